"""QAT with the rounding of static int8, against the same rounding in numpy and against PT2E's own conversion."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torchao.quantization.pt2e import FakeQuantize
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from objectives.compression.distillation import distil
from objectives.compression.qat import Ranges, train_aware
from objectives.compression.training_data import TrainingData
from objectives.int8_weights import Int8WeightBits
from objectives.output_kind import soft_loss
from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families import dcn_v2, sasrec
from objectives.training_rows import Block, TrainingRows
from spaces.techniques.distillation import Distillation
from spaces.techniques.quantization import Precision
from tests.model_structure_tests.written_structures import dcn_v2_anatomy, sasrec_anatomy
from tests.protos import quantize, run_onnx, to_onnx

Array = NDArray[np.float32]
FIELDS = {"user": 12, "item": 20}
ROWS = 256


class Tower(nn.Module):
    """Tables, a layer with dropout, a residual, a factored layer, a head; normalised with constants of no default.

    Batch normalisation makes PT2E look for convolutions to fuse with it, for seconds: most tests go without.
    """

    def __init__(self, normalised: bool = False, dropout: float = 0.2) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, 4) for name, size in FIELDS.items()})
        norm = nn.BatchNorm1d(16, eps=1e-2, momentum=0.3) if normalised else nn.LayerNorm(16, eps=1e-2)
        self.mlp = nn.Sequential(nn.Linear(8, 16), norm, nn.ReLU(), nn.Dropout(dropout))
        self.side = nn.Linear(8, 16)
        self.factored = nn.ModuleDict({"first": nn.Linear(16, 3, bias=False), "second": nn.Linear(3, 16)})
        self.head = nn.Linear(16, 1)

    def forward(self, **inputs: Tensor) -> Tensor:
        x0 = torch.cat([self.tables[name](inputs[name]) for name in FIELDS], 1)
        x = self.mlp(x0)
        x += self.side(x0)
        x = x + self.factored["second"](self.factored["first"](x))
        return self.head(x).squeeze(1)  # type: ignore[no-any-return]


class Attention(nn.Module):
    """One causal block over positions; trained by `positions`, served by another form."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(20, 8, padding_idx=0)
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(0.1)

    def states(self, history: Tensor) -> Tensor:
        x = self.items(history)
        scores = self.q(self.norm(x)) @ self.k(x).transpose(-1, -2) / 8**0.5
        mask = torch.full((history.shape[1], history.shape[1]), -torch.inf).triu(1)
        mixed = self.dropout(torch.softmax(scores + mask, -1)) @ self.v(x)
        return x + self.out(mixed)  # type: ignore[no-any-return]

    def positions(self, history: Tensor, candidates: Tensor) -> Tensor:
        """Map positions: (B, L), (B, L, C) -> (B, L, C)."""
        return (self.items(candidates) @ self.states(history).unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        return self.items(item) @ self.states(history)[0, -1]  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def rows() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randint(0, size, (ROWS,), generator=generator) for name, size in FIELDS.items()}


@pytest.fixture(scope="module")
def labels(rows: dict[str, Tensor]) -> Tensor:
    return ((rows["user"] + rows["item"]) % 3 == 0).float()


@pytest.fixture(scope="module")
def lists() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        "history": torch.randint(0, 20, (16, 6), generator=generator),
        "candidates": torch.randint(1, 20, (16, 6, 3), generator=generator),
    }


def _few(rows: Mapping[str, Tensor], count: int = 4) -> dict[str, Tensor]:
    return {name: values[:count] for name, values in rows.items()}


def _learn(rows: Mapping[str, Tensor], labels: Tensor, steps: int = 15) -> Callable[[nn.Module], None]:
    def train(model: nn.Module) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(steps):
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(model(**rows), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return train


def _graph(model: nn.Module, method: str = "forward") -> Any:
    """The rounding graph during training."""
    return getattr(model, method).graph


def _converted(model: nn.Module, rows: Mapping[str, Tensor], method: str = "forward") -> Array:
    """The model after PT2E's own conversion to whole numbers."""
    graph = convert_pt2e(copy.deepcopy(_graph(model, method)), fold_quantize=False)
    scores: Tensor = graph(*rows.values())[0]
    return scores.detach().numpy()


# -- the same rounding in numpy


def _rounded_input(x: Array, bounds: tuple[float, float]) -> Array:
    scale = np.float32((bounds[1] - bounds[0]) / 255)
    zero_point = np.rint(-bounds[0] / scale)
    return ((np.clip(np.rint(x / scale) + zero_point, 0, 255) - zero_point) * scale).astype(np.float32)


def _rounded_weight(weight: Array, bits: Int8WeightBits) -> Array:
    largest = 2 ** (bits - 1) - 1
    scale = np.abs(weight).max(axis=1, keepdims=True) / largest
    return np.clip(np.rint(weight / scale), -largest, largest) * scale


class Numpy:
    """Layers of a model, those with a range as the static graph computes them."""

    def __init__(self, model: nn.Module, ranges: Ranges, bits: Int8WeightBits = 8) -> None:
        self.held = {name: value.numpy() for name, value in model.state_dict().items()}
        self.ranges, self.bits = ranges, bits

    def linear(self, x: Array, name: str) -> Array:
        weight = self.held[f"{name}.weight"]
        if name in self.ranges:
            x, weight = _rounded_input(x, self.ranges[name]), _rounded_weight(weight, self.bits)
        return x @ weight.T + self.held.get(f"{name}.bias", np.float32(0))

    def tower(self, rows: Mapping[str, Tensor]) -> Array:
        x = np.concatenate([self.held[f"tables.{name}.weight"][rows[name].numpy()] for name in FIELDS], 1)
        h = self.linear(x, "mlp.0")
        mean = self.held.get("mlp.1.running_mean", h.mean(1, keepdims=True))
        variance = self.held.get("mlp.1.running_var", h.var(1, keepdims=True))
        h = (h - mean) / np.sqrt(variance + 1e-2) * self.held["mlp.1.weight"] + self.held["mlp.1.bias"]
        x = np.maximum(h, 0) + self.linear(x, "side")
        x = x + self.linear(self.linear(x, "factored.first"), "factored.second")
        return self.linear(x, "head")[:, 0]

    def attention(self, lists: Mapping[str, Tensor]) -> Array:
        x = self.held["items.weight"][lists["history"].numpy()]
        centred = x - x.mean(-1, keepdims=True)
        normal = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)
        normal = normal * self.held["norm.weight"] + self.held["norm.bias"]
        scores = self.linear(normal, "q") @ self.linear(x, "k").transpose(0, 2, 1) / 8**0.5
        scores = np.exp(scores) * np.tril(np.ones(scores.shape[1:]))
        mixed = (scores / scores.sum(-1, keepdims=True)).astype(np.float32) @ self.linear(x, "v")
        states = x + self.linear(mixed, "out")
        return (self.held["items.weight"][lists["candidates"].numpy()] * states[..., None, :]).sum(-1)


def _close(got: Array, expected: Array, step: float) -> None:
    """Assert that all but 5% of the values are as computed.

    None is off by more than one code more or less at an input makes, which is less than `step`.
    """
    difference = np.abs(got - expected)
    assert np.quantile(difference, 0.95) < 1e-5
    assert difference.max() < step


def _step(model: nn.Module, ranges: Ranges) -> float:
    steps = [(ranges[name][1] - ranges[name][0]) / 255 for name in ranges]
    weights = [model.get_parameter(f"{name}.weight").abs().max().item() for name in ranges]
    return max(step * weight for step, weight in zip(steps, weights, strict=True))


BITS = pytest.mark.parametrize("bits", [8, 7])


@BITS
@pytest.mark.parametrize("modules", [("mlp.0",), ("side", "head"), ("mlp.0", "side", "factored", "head")])
def test_the_named_layers_and_no_others_round_as_the_static_graph(
    rows: dict[str, Tensor], labels: Tensor, modules: tuple[str, ...], bits: Int8WeightBits
) -> None:
    """Scores in evaluation, converted by PT2E, and of numpy from the returned weights and ranges are the same."""
    kept: dict[str, Array] = {}

    def train(model: nn.Module) -> None:
        _learn(rows, labels)(model)
        kept["judged"] = model.eval()(**rows).detach().numpy()
        kept["converted"] = _converted(model, rows)

    torch.manual_seed(0)
    trained, ranges = train_aware(Tower(), modules, train, _few(rows), weight_bits=bits)
    expected = Numpy(trained, ranges, bits).tower(rows)
    _close(kept["judged"], expected, _step(trained, ranges))
    _close(kept["converted"], expected, _step(trained, ranges))
    wide = trained(**rows).detach().numpy()
    assert np.allclose(wide, Numpy(trained, {}).tower(rows), atol=1e-5)
    assert 1e-5 < np.abs(wide - expected).max() < 0.1


def test_a_method_over_lists_rounds_as_the_static_graph(lists: dict[str, Tensor]) -> None:
    """Inputs of three axes; products of two states are no layer's and stay as they were."""
    kept: dict[str, Array] = {}

    def train(model: nn.Module) -> None:
        assert isinstance(model, Attention)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(10):
            optimizer.zero_grad()
            logits = model.positions(lists["history"], candidates=lists["candidates"])
            F.cross_entropy(logits.flatten(0, 1), torch.zeros(96, dtype=torch.int64)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        kept["judged"] = model.eval().positions(**lists).detach().numpy()
        kept["converted"] = _converted(model, lists, "positions")

    torch.manual_seed(0)
    trained, ranges = train_aware(Attention(), ["q", "k", "v", "out"], train, _few(lists), method="positions")
    expected = Numpy(trained, ranges).attention(lists)
    _close(kept["judged"], expected, 8 * _step(trained, ranges))
    _close(kept["converted"], expected, 8 * _step(trained, ranges))
    assert isinstance(trained, Attention)
    assert trained(lists["history"][:1], torch.arange(5)).shape == (5,)
    assert ranges["k"] == ranges["v"], "one input has one range"


# -- what is trained is the model


def test_weights_and_statistics_learn_and_the_model_given_does_not(rows: dict[str, Tensor], labels: Tensor) -> None:
    """The rounded model with batch normalisation equals that of numpy, by its running statistics."""
    model = Tower(normalised=True)
    before = copy.deepcopy(model.state_dict())
    judged: list[Array] = []

    def train(learner: nn.Module) -> None:
        _learn(rows, labels)(learner)
        judged.append(learner.eval()(**rows).detach().numpy())

    trained, ranges = train_aware(model, ["mlp.0", "head"], train, _few(rows))
    after = trained.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(torch.equal(before[name], after[name]) for name in before)
    _close(judged[0], Numpy(trained, ranges).tower(rows), _step(trained, ranges))
    assert not trained.training
    torch.save(trained, io.BytesIO())
    assert "forward" not in vars(trained)


def test_modes_are_the_plain_models_own(rows: dict[str, Tensor]) -> None:
    """Dropout, batch normalisation and its statistics, with rounding off, do as torch's modules do, and back again."""
    torch.manual_seed(0)
    plain = Tower(normalised=True)

    def train(learner: nn.Module) -> None:
        learner(**rows)  # so that ranges are there
        learner.load_state_dict(plain.state_dict())
        for module in _graph(learner).modules():
            if isinstance(module, FakeQuantize):
                module.forward = lambda x: x
        for training in (True, False, True):
            outputs = []
            for one in (plain.train(training), learner.train(training)):
                torch.manual_seed(7)
                outputs.append(one(**rows))
            assert torch.allclose(*outputs, atol=1e-6)
            states = plain.state_dict(), learner.state_dict()
            assert all(torch.allclose(value, states[1][name], atol=1e-6) for name, value in states[0].items())

    train_aware(copy.deepcopy(plain), ["mlp.0", "head"], train, _few(rows))


def test_any_operator_keeps_its_constants_between_modes() -> None:
    """Dropout in torch's fused attention has no module of its own. Nothing is learned yet, so nothing is rounded.

    A tensor that is no parameter, and a parameter of two names, are traced too.
    """

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.v = nn.Linear(4, 4), nn.Linear(4, 4)
            self.v.weight = self.q.weight
            self.constant = torch.tensor(2.0)

        def forward(self, x: Tensor) -> Tensor:
            q, v = self.q(x) * self.constant, x @ self.v.weight
            return F.scaled_dot_product_attention(q, x, v, dropout_p=0.3 if self.training else 0.0)

    x, plain = torch.randn(8, 5, 4), Fused()

    def train(learner: nn.Module) -> None:
        assert torch.allclose(learner.eval()(x), plain.eval()(x), atol=1e-6)
        assert not torch.allclose(learner.train()(x), learner(x), atol=1e-3)

    train_aware(plain, ["q"], train, {"x": x[:2]})


def test_a_judged_model_changes_nothing(rows: dict[str, Tensor], labels: Tensor) -> None:
    """Before training the model does not round; later, ranges stay whatever is evaluated."""
    seen: list[Tensor] = []

    def train(model: nn.Module) -> None:
        model.eval()
        assert torch.allclose(model(**rows), Tower.forward(model, **rows), atol=1e-6)  # type: ignore[arg-type]
        _learn(rows, labels)(model.train())
        model.eval()(**rows)
        before = copy.deepcopy(_graph(model).state_dict())
        far = {name: torch.full((50,), size - 1) for name, size in FIELDS.items()}
        seen.extend(model(**far) for _ in range(2))
        after = _graph(model).state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    train_aware(Tower(), ["mlp.0"], train, _few(rows))
    assert torch.equal(*seen)


def test_submodules_and_numbers_of_rows_are_free(rows: dict[str, Tensor], labels: Tensor) -> None:
    """An optimiser may treat tables by their kind; a batch may be of any size, and a state may be put back."""

    def train(model: nn.Module) -> None:
        tables = [p for module in model.modules() if isinstance(module, nn.Embedding) for p in module.parameters()]
        assert len(tables) == 2
        start = copy.deepcopy(model.state_dict())
        optimizer = torch.optim.SGD([{"params": tables, "lr": 1.0}])
        for count in (2, 33, ROWS):
            F.binary_cross_entropy_with_logits(model(**_few(rows, count)), labels[:count]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        assert not torch.equal(start["tables.user.weight"], model.get_parameter("tables.user.weight"))
        assert torch.equal(start["head.weight"], model.get_parameter("head.weight"))
        model.load_state_dict(start)
        assert torch.equal(start["tables.user.weight"], _graph(model).get_parameter("model.tables.user.weight"))

    train_aware(Tower(), ["mlp.0"], train, _few(rows))


class Doubled:
    """A forward that is set on one model, around that of its class."""

    def __init__(self, own: Callable[..., Tensor]) -> None:
        self.own = own

    def forward(self, **inputs: Tensor) -> Tensor:
        return 2 * self.own(**inputs)


def test_a_model_gets_its_own_forward_back(rows: dict[str, Tensor], labels: Tensor) -> None:
    model = Tower()
    model.forward = Doubled(model.forward).forward  # type: ignore[method-assign]
    learner, _ = train_aware(model, ["mlp.0"], _learn(rows, labels, 2), _few(rows))
    with torch.no_grad():
        assert torch.equal(learner(**rows), 2 * Tower.forward(learner, **rows))  # type: ignore[arg-type]


# -- ranges


def test_a_range_is_the_moving_average_of_what_batches_hold(rows: dict[str, Tensor]) -> None:
    """The oracle is the formula of the exponential average in numpy, a hundredth of each batch, with zero in it."""
    extremes: list[tuple[float, float]] = []

    def train(model: nn.Module) -> None:
        for start in range(0, ROWS, 32):
            batch = {name: values[start : start + 32] for name, values in rows.items()}
            tables = [model.get_parameter(f"tables.{name}.weight")[batch[name]] for name in FIELDS]
            x = torch.cat(tables, 1).detach().numpy()
            extremes.append((x.min(), x.max()))
            model(**batch)

    _, ranges = train_aware(Tower(), ["side"], train, _few(rows))
    low, high = extremes[0]
    for least, most in extremes[1:]:
        low, high = low + 0.01 * (least - low), high + 0.01 * (most - high)
    step = float(high - low) / 255
    assert ranges["side"] == pytest.approx((low, high), abs=0.51 * step)


def test_a_range_covers_what_was_seen(rows: dict[str, Tensor]) -> None:
    """One batch over and over is covered, and no more.

    Both ends lie within a step of what was seen, or within four steps where rounding in earlier layers has moved it.
    """
    seen: dict[str, Tensor] = {}

    def train(model: nn.Module) -> None:
        for _ in range(3):
            model(**rows)

    trained, ranges = train_aware(Tower(dropout=0.0), ["mlp.0", "side", "factored", "head"], train, _few(rows))
    assert set(ranges) == {"mlp.0", "side", "factored.first", "factored.second", "head"}
    for name in ranges:
        trained.get_submodule(name).register_forward_hook(lambda m, x, y, name=name: seen.update({name: x[0]}))
    trained(**rows)
    for name, (low, high) in ranges.items():
        step = (high - low) / 255 * (1 if name in ("mlp.0", "side") else 4)
        assert low == pytest.approx(min(0.0, seen[name].min().item()), abs=step)
        assert high == pytest.approx(max(0.0, seen[name].max().item()), abs=step)


def test_a_layer_that_is_called_twice_has_one_range_for_both() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) + self.layer(-9 * x)

    x = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))

    def train(model: nn.Module) -> None:
        for _ in range(400):
            model(x)

    _, ranges = train_aware(Twice(), ["layer"], train, {"x": x[:2]})
    low, high = ranges["layer"]
    # Each call moves both ends by a hundredth towards its own: in the long run to the middle of the two, or near it.
    assert low == pytest.approx(-9 * x.max().item() / 2, rel=0.1)
    assert high == pytest.approx(x.max().item() / 2, rel=0.1)


# -- what it is good for


def test_learning_with_rounding_beats_rounding_afterwards() -> None:
    """One value far from all others leaves these few codes. Fp32 has no loss, and both are computed alike."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(64, 8), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight[0, 0] = 60.0
    ids = torch.arange(64)
    target = model(ids).detach()

    def loss(trained: nn.Module, bounds: tuple[float, float]) -> float:
        numpy = Numpy(trained, {"1": bounds})
        return float(np.square(numpy.linear(numpy.held["0.weight"], "1") - target.numpy()).mean())

    def train(learner: nn.Module) -> None:
        optimizer = torch.optim.Adam(learner.parameters(), lr=0.02)
        for _ in range(300):
            optimizer.zero_grad()
            F.mse_loss(learner(ids), target).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    table = model[0].weight.detach()
    afterwards = loss(model, (table.min().item(), table.max().item()))
    trained, ranges = train_aware(model, ["1"], train, {"input": ids[:4]})
    assert loss(trained, ranges["1"]) < 0.5 * afterwards


def test_it_distils(rows: dict[str, Tensor], labels: Tensor) -> None:
    """Labels, the teacher's scores and its hidden features all go through the rounding graph."""
    torch.manual_seed(0)
    teacher, student = Tower().eval(), Tower()
    training_data = TrainingData(
        TrainingRows((Block(rows, labels),), 64),
        F.binary_cross_entropy_with_logits,
        soft_loss,
        lambda model, inputs: model(**inputs),
        "mlp",
    )
    losses: list[float] = []

    def train(model: nn.Module) -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses.extend(distil(model, training_data, optimizer, Distillation(2.0, 0.5, 25, 0.5), 0, teacher).losses)

    def once() -> nn.Module:
        return train_aware(student, ["mlp.0", "head"], train, _few(rows), hidden="mlp")[0]

    first, second = once(), once()
    assert losses[24] < 0.8 * losses[0]
    assert losses[:25] == losses[25:]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert "forward" not in vars(first.mlp)  # type: ignore[arg-type]


# -- through the engine


def _near(got: Array, judged: Array) -> None:
    """Assert that the scores are the same up to float error, except for values on the edge between two codes.

    Such a value may fall to either side; one of a user's embedding does so in all of the user's rows.
    """
    difference = np.abs(got - judged)
    assert np.quantile(difference, 0.9) < 1e-4 * judged.std()
    assert difference.max() < 0.02 * judged.std()


def test_dcn_v2_learns_what_the_engine_computes() -> None:
    """The plain model exported, and quantised by the learned ranges alone, gives the scores that were learned."""
    generator = torch.Generator().manual_seed(0)
    fields = [
        Field("user", "user", vocabulary=40),
        Field("price", "item", "numeric"),
        Field("tags", "item", "multi", 9, 3),
    ]
    rows = {
        "user": torch.randint(0, 40, (300,), generator=generator),
        "price": torch.randn(300, generator=generator),
        "tags": torch.randint(0, 9, (300, 3), generator=generator),
    }
    torch.manual_seed(0)
    model = dcn_v2.DCNV2(fields, dcn_v2.Sizes(8, 2, (32, 16)))
    for table in model.tables.values():
        nn.init.normal_(table.get_parameter("weight"), std=0.5)
    structure = dcn_v2_anatomy(model)
    judged: list[Array] = []

    def train(learner: nn.Module) -> None:
        _learn(rows, (rows["user"] % 2).float(), 20)(learner)
        judged.append(learner.eval()(**rows).detach().numpy())

    modules = [*structure.group("cross").modules, *structure.group("mlp").modules]
    trained, ranges = train_aware(model, modules, train, _few(rows), weight_bits=7)
    asked = Precision((("cross", "int8-static"), ("mlp", "int8-static")))
    narrow = quantize(to_onnx(trained, rows), asked, structure, {}, ranges, 7)
    _near(run_onnx(narrow, {name: values.numpy() for name, values in rows.items()}), judged[0])


def test_sasrec_learns_what_the_engine_computes() -> None:
    """Trained and distilled over all positions of drawn lists, served as one history and candidates."""
    torch.manual_seed(0)
    model, teacher = (sasrec.SASRec(30, sasrec.Sizes(d, 2, heads, d, 8)) for d, heads in ((16, 2), (24, 1)))
    structure = sasrec_anatomy(model)

    def draw(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        history = torch.randint(1, 31, (len(rows), 8), generator=generator)
        history[:4, :3] = 0
        candidates = torch.randint(1, 31, (len(rows), 8, 3), generator=generator)
        candidates[..., 0] = history % 30 + (history > 0)
        return {"history": history, "candidates": candidates}

    drawn = TrainingRows((Block({"history": torch.zeros(80, 8)}, torch.zeros(80)),), 16, draw)
    training_data = TrainingData(drawn, lambda lists, _: sasrec.loss(lists), soft_loss, sasrec.outputs, "norm")
    history, item = torch.randint(1, 31, (1, 8)), torch.arange(1, 31)
    judged: list[Array] = []

    def train(learner: nn.Module) -> None:
        optimizer = torch.optim.Adam(learner.parameters(), lr=3e-3)
        losses = distil(learner, training_data, optimizer, Distillation(2.0, 0.5, 5, 0.3), 0, teacher).losses
        assert losses[-1] < losses[0]
        assert isinstance(learner, sasrec.SASRec)
        judged.append(learner.positions(history, item.expand(1, 8, 30))[0, -1].detach().numpy())

    example = next(drawn.epoch(torch.Generator().manual_seed(0))).inputs
    modules = [*structure.group("attention").modules, *structure.group("mlp").modules]
    trained, ranges = train_aware(model, modules, train, example, "positions", training_data.hidden, 8)
    asked = Precision((("attention", "int8-static"), ("mlp", "int8-static")))
    rows = {"history": history.expand(30, 8), "item": item}
    narrow = quantize(to_onnx(trained, rows), asked, structure, {}, ranges, 8)
    # A value on the edge between two codes moves the one state that all scores share: 2.1% with two threads of torch.
    got = run_onnx(narrow, {"history": history.numpy(), "item": item.numpy()})
    assert np.abs(got - judged[0]).max() < 0.03 * judged[0].std()


# -- what is refused


class Tied(nn.Module):
    """`layer` is not called: its weight is read another way."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.other = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(x) @ self.layer.weight


@pytest.mark.parametrize(
    ("modules", "reason"),
    [
        (["mlp.1"], "'mlp.1' .*LayerNorm"),
        (["mlp.0", "tables"], "'tables' .*ModuleDict"),
        (["tower"], "'tower'"),
        ([], "none"),
    ],
)
def test_what_is_no_linear_layer_is_refused(
    rows: dict[str, Tensor], labels: Tensor, modules: list[str], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        train_aware(Tower(), modules, _learn(rows, labels), _few(rows))


def test_layers_without_a_product_of_their_own_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\['layer'\]"):
        train_aware(Tied(), ["layer"], lambda model: None, {"x": torch.zeros(2, 3)})


def test_a_layer_without_a_product_of_its_own_is_not_rounded() -> None:
    """The other one of its group is, by a formula in numpy."""
    judged: list[Tensor] = []
    x = torch.rand(64, 3, generator=torch.Generator().manual_seed(0))

    def train(learner: nn.Module) -> None:
        learner(x)
        judged.append(learner.eval()(x).detach())

    torch.manual_seed(0)
    trained, ranges = train_aware(Tied(), ["layer", "other"], train, {"x": x[:2]})
    assert set(ranges) == {"other"}
    expected = (
        Numpy(trained, ranges).linear(x.numpy(), "other") @ trained.get_parameter("layer.weight").detach().numpy()
    )
    assert np.allclose(judged[0], expected, atol=1e-6)
    assert not np.allclose(judged[0], Tied.forward(trained, x).detach(), atol=1e-4)  # type: ignore[arg-type]


def test_a_hidden_module_that_is_not_there_is_refused(rows: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="'tower'"):
        train_aware(Tower(), ["mlp.0"], lambda model: None, _few(rows), hidden="tower")


def test_training_that_never_runs_the_model_is_refused(rows: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"'mlp\.0'"):
        train_aware(Tower(), ["mlp.0"], lambda model: None, _few(rows))
