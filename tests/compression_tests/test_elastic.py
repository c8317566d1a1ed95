"""Slices of an elastic network and their training, against zeroed units, autograd over masks, and numpy."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from objectives.compression.elastic.network import ElasticNetwork, Slice, Subnetwork
from objectives.compression.elastic.prunable import dims_of, in_order, layout_of, smaller
from objectives.compression.elastic.sandwich import Shapes, sandwich_step, train_elastic
from objectives.compression.elastic.statistics import recompute_statistics
from objectives.compression.importance import importances
from objectives.compression.module_edit import tensors
from objectives.compression.structure import trace
from objectives.compression.training_data import TrainingData
from objectives.tensor_layout import TensorLayout
from objectives.training_rows import Block, TrainingRows
from spaces.model_structure import ModelStructure
from spaces.techniques.distillation import Distillation
from tests.compression_tests.test_pruning import (
    Attending,
    Ranker,
    attending_anatomy,
    evidence,
    histories,
    lively,
    ranker_anatomy,
    requests,
    scores,
    zeroed,
)

DIMS = {"embedding_dim": 8, "tower.0": 32, "tower.3": 24}
KEPT = st.fixed_dictionaries({name: st.integers(1, units) for name, units in DIMS.items()})


def _ranker() -> nn.Module:
    return lively(Ranker())


def _network(model: nn.Module, structure: ModelStructure) -> ElasticNetwork:
    return ElasticNetwork(copy.deepcopy(model), layout_of(model, dims_of(structure)))


def _slice(network: ElasticNetwork, structure: ModelStructure, kept: Mapping[str, int]) -> Slice:
    """Return a slice with the tensors that are left where units are removed, all of which it has read."""
    part, _ = smaller(network.model, structure, kept)
    removed = {name: tensor.clone() for name, tensor in part.module.state_dict().items()}
    for tensor in part.module.parameters():
        nn.init.constant_(tensor, torch.nan)
    sliced = Slice(network, part)
    sliced.read()
    for name, tensor in part.module.state_dict().items():
        assert torch.equal(tensor, removed[name]), name
    return sliced


def _without(model: nn.Module, structure: ModelStructure, kept: Mapping[str, int]) -> nn.Module:
    narrower = (dim for dim in dims_of(structure) if kept[dim.name] < dim.units)
    return zeroed(model, {dim: list(range(kept[dim.name], dim.units)) for dim in narrower})


@settings(max_examples=8)
@given(KEPT)
def test_a_slice_scores_as_the_whole_does_with_the_other_units_at_zero(kept: dict[str, int]) -> None:
    model, structure = _ranker(), ranker_anatomy()
    module = _slice(_network(model, structure), structure, kept).module
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    d, first, second = (kept[name] for name in DIMS)
    assert shapes["cross.weight"] == (2 * d, 2 * d) and shapes["tower.3.weight"] == (second, first)
    assert shapes["head.weight"] == (1, 2 * d + second) and shapes["tables.item.weight"] == (40, d)
    expected = scores(_without(model, structure, kept), requests())
    torch.testing.assert_close(scores(module, requests()), expected, rtol=1e-4, atol=1e-4)


def test_all_units_are_the_model_itself() -> None:
    model, structure = _ranker(), ranker_anatomy()
    module = _slice(_network(model, structure), structure, DIMS).module
    assert torch.equal(scores(module, requests()), scores(model, requests()))


def test_heads_and_normalised_units_are_sliced() -> None:
    """A removed unit of the normalised dimension is no zero, so only the tensors are compared."""
    model, structure = lively(Attending()), attending_anatomy()
    heads = {"d": 8, "heads": 2}
    module = _slice(_network(model, structure), structure, heads).module
    expected = scores(_without(model, structure, heads), histories())
    torch.testing.assert_close(scores(module, histories()), expected, rtol=1e-4, atol=1e-5)
    narrow = _slice(_network(model, structure), structure, {"d": 3, "heads": 1}).module.state_dict()
    whole = model.state_dict()
    assert torch.equal(narrow["q.weight"], whole["q.weight"][:4, :3])
    assert torch.equal(narrow["out.weight"], whole["out.weight"][:3, :4])
    assert torch.equal(narrow["norm.weight"], whole["norm.weight"][:3])


class Recurrent(nn.Module):
    """A recurrent layer over vectors, whose weights torch keeps in a list of its own too."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.encoder, self.head = nn.Embedding(20, 6), nn.GRU(6, 8, batch_first=True), nn.Linear(8, 1)

    def forward(self, history: Tensor) -> Tensor:
        return self.head(self.encoder(self.item(history))[0][:, -1]).squeeze(1)  # type: ignore[no-any-return]


class Tied(nn.Module):
    """The output layer is the table of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.inner = nn.Embedding(20, 8), nn.Linear(8, 8)
        self.output = nn.Linear(8, 20, bias=False)
        self.output.weight = self.item.weight

    def forward(self, history: Tensor) -> Tensor:
        return self.output(torch.relu(self.inner(self.item(history).sum(1))))  # type: ignore[no-any-return]


@pytest.mark.parametrize("made", [Recurrent, Tied])
def test_a_traced_model_is_sliced(made: type[nn.Module]) -> None:
    """Recurrent layers read the sliced weights, and tied weights stay one."""
    torch.manual_seed(0)
    model, rows = made().eval(), {"history": torch.randint(20, (9, 4))}
    structure = trace(model, rows).structure
    kept = {dim.name: max(1, dim.units // 2) for dim in dims_of(structure)}
    assert any(kept[dim.name] < dim.units for dim in dims_of(structure))
    module = _slice(_network(model, structure), structure, kept).module
    expected = scores(_without(model, structure, kept), rows)
    torch.testing.assert_close(scores(module, rows), expected, rtol=1e-4, atol=1e-5)
    assert len(list(module.parameters())) == len(list(model.parameters()))


@pytest.mark.foreign
def test_rtdls_ft_transformer_is_sliced() -> None:
    rtdl = pytest.importorskip("rtdl_revisiting_models")

    class Tabular(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = rtdl.FTTransformer(
                n_cont_features=1, cat_cardinalities=[20, 30], d_out=1, n_blocks=2, d_block=16, attention_n_heads=4,
                attention_dropout=0.1, ffn_d_hidden_multiplier=4 / 3, ffn_dropout=0.1, residual_dropout=0.0,
            )  # fmt: skip

        def forward(self, item: Tensor, price: Tensor) -> Tensor:
            codes = torch.stack([item % 20, item], dim=1)
            return self.net(price.unsqueeze(1), codes).squeeze(1)  # type: ignore[no-any-return]

    torch.manual_seed(0)
    model, rows = Tabular().eval(), {"item": torch.randint(30, (9,)), "price": torch.rand(9)}
    structure = trace(model, rows).structure
    half = {dim.name: max(1, dim.units // 2) for dim in dims_of(structure)}
    narrow = _slice(_network(model, structure), structure, half).module
    assert sum(p.numel() for p in narrow.parameters()) < 0.6 * sum(p.numel() for p in model.parameters())
    assert bool(torch.isfinite(scores(narrow, rows)).all())
    kept = {dim.name: dim.units if dim.normalised else half[dim.name] for dim in dims_of(structure)}
    assert any(kept[dim.name] < dim.units for dim in dims_of(structure))
    module = _slice(_network(model, structure), structure, kept).module
    expected = scores(_without(model, structure, kept), rows)
    torch.testing.assert_close(scores(module, rows), expected, rtol=1e-4, atol=1e-5)


def test_units_come_in_order_of_importance_and_the_scores_stay() -> None:
    model, structure = _ranker(), ranker_anatomy()
    ordered = in_order(model, dims_of(structure), evidence())
    torch.testing.assert_close(scores(ordered, requests()), scores(model, requests()), rtol=1e-4, atol=1e-4)
    before = importances(model, dims_of(structure), "taylor", evidence())
    after = importances(ordered, dims_of(structure), "taylor", evidence())
    for then, now in zip(before, after, strict=True):
        torch.testing.assert_close(now, then.sort(descending=True).values, rtol=1e-2, atol=1e-4)
        assert not torch.equal(then, now)


def test_what_is_not_nested_is_refused() -> None:
    model, structure = _ranker(), ranker_anatomy()
    network, (part, _) = _network(model, structure), smaller(model, structure, DIMS)
    other = TensorLayout(part.layout["head.weight"].axes, role="another")
    with pytest.raises(ValueError, match=r"head\.weight"):
        Slice(network, Subnetwork(part.module, {**part.layout, "head.weight": other}))
    with pytest.raises(ValueError, match=r"cross\.bias"):
        Slice(network, Subnetwork(part.module, {n: t for n, t in part.layout.items() if n != "cross.bias"}))
    part.module.register_parameter("more", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="more"):
        Slice(network, part)


# -- training


def _masked_gradients(
    model: nn.Module, structure: ModelStructure, kepts: Sequence[Mapping[str, int]], labels: Tensor
) -> dict[str, Tensor]:
    """Gradients of the sum of losses over shapes, each of which is the whole with masked weights."""
    parameters = dict(model.named_parameters())
    total = torch.zeros(())
    for kept in kepts:
        ones = {name: torch.ones_like(tensor) for name, tensor in parameters.items()}
        for dim in dims_of(structure):
            for cut in dim.axis_slices:
                if cut.tensor in ones:
                    gone = torch.tensor(cut.positions(range(kept[dim.name], dim.units)), dtype=torch.long)
                    ones[cut.tensor].index_fill_(cut.axis, gone, 0.0)
        masked = {name: tensor * ones[name] for name, tensor in parameters.items()}
        total = total + nn.functional.mse_loss(functional_call(model, masked, (), requests(50)), labels)
    found = torch.autograd.grad(total, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))


def test_a_steps_gradient_is_the_sum_of_its_slices() -> None:
    model, structure = _ranker().double(), ranker_anatomy()
    labels = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kepts = [DIMS, {"embedding_dim": 2, "tower.0": 4, "tower.3": 8}, {"embedding_dim": 5, "tower.0": 32, "tower.3": 3}]
    network = _network(model, structure)
    slices = [_slice(network, structure, kept) for kept in kepts]

    def loss(module: nn.Module) -> Tensor:
        return nn.functional.mse_loss(module(**requests(50)), labels)

    losses = sandwich_step(slices, loss)
    expected = _masked_gradients(model, structure, kepts, labels)
    found = {name: tensor.grad for name, tensor in network.model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(losses, [float(loss(part.module).detach()) for part in slices])
    assert all(tensor.grad is None for part in slices[1:] for tensor in part.module.parameters())


def _training(rows: int = 400) -> TrainingData:
    """Rows whose labels another model gives, which is the teacher too."""
    inputs = requests(rows)
    labels = scores(_ranker(), inputs).clone()
    loss = nn.functional.mse_loss
    return TrainingData(
        TrainingRows((Block(inputs, labels),), 100),
        lambda outputs, truth: loss(outputs, truth),  # type: ignore[arg-type]
        lambda student, teacher, temperature: loss(student, teacher),
        lambda model, given: model(**given),
    )


def _untrained() -> ElasticNetwork:
    torch.manual_seed(0)
    return _network(Ranker(), ranker_anatomy())


def _trained(epochs: int, seed: int = 0) -> tuple[ElasticNetwork, tuple[float, ...]]:
    structure, network = ranker_anatomy(), _untrained()
    least = {name: max(1, units // 8) for name, units in DIMS.items()}

    def draw(random: np.random.Generator) -> tuple[tuple[str, int], ...]:
        return tuple((name, int(random.integers(least[name], units + 1))) for name, units in DIMS.items())

    shapes = Shapes(
        tuple(DIMS.items()),
        tuple(least.items()),
        draw,
        lambda kept: smaller(network.model, structure, dict(kept))[0],
    )
    learning = Distillation(1.0, 0.5, 0, elastic_epochs=epochs)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    return network, train_elastic(network, shapes, _training(), optimizer, learning, seed, _ranker())


def test_every_shape_learns_and_the_seed_decides() -> None:
    structure, inputs = ranker_anatomy(), requests()
    (network, losses), (once, _), (again, _), (other, _) = _trained(12), _trained(1), _trained(1), _trained(1, seed=1)
    assert len(losses) == 12 and losses[-1] < 0.5 * losses[0]
    for name, tensor in once.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    assert any(not torch.equal(a, b) for a, b in zip(once.parameters(), other.parameters(), strict=True))
    truth = scores(_ranker(), inputs)
    data = _training()
    for kept in (DIMS, {"embedding_dim": 2, "tower.0": 8, "tower.3": 6}):
        errors = []
        for whole in (_untrained(), network):
            module = _slice(whole, structure, kept).module
            recompute_statistics(module, [data.rows.blocks[0].inputs], data.outputs)
            errors.append(float((scores(module, inputs) - truth).square().mean()))
        assert errors[1] < 0.5 * errors[0]


def test_the_global_generator_is_left_as_it_was() -> None:
    structure = ranker_anatomy()
    network, data = _network(_ranker(), structure), _training()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    shapes = Shapes((), (), lambda random: (), lambda _: smaller(network.model, structure, DIMS)[0])
    learning = Distillation(1.0, 0.0, 0, elastic_epochs=1)
    train_elastic(network, shapes, data, torch.optim.SGD(network.parameters(), 0.0), learning, 0)
    assert torch.equal(before, torch.random.get_rng_state())


# -- statistics


def test_statistics_are_the_means_over_the_batches() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).train()
    batches = [{"x": torch.randn(40, 3) * (number + 1) + number} for number in range(4)]
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    recompute_statistics(model, batches, lambda of, inputs: of(inputs["x"]))
    arrays = [batch["x"].numpy() for batch in batches]
    np.testing.assert_allclose(norm.running_mean, np.mean([a.mean(0) for a in arrays], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, np.mean([a.var(0, ddof=1) for a in arrays], 0), rtol=1e-5)
    assert norm.momentum == 0.1 and not any(module.training for module in model.modules())


def test_a_model_without_statistics_is_not_run() -> None:
    called = partial(pytest.fail, "the model ran")
    recompute_statistics(nn.Linear(2, 2), [{"x": torch.zeros(1, 2)}], called)


def test_tensors_that_only_smaller_networks_have_are_nested_too() -> None:
    """A layer of another role is a part of a tensor of its own, not of the one that has its name."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    axes = ((("", 2),), (("d", 3),))
    alone = torch.arange(6.0).reshape(2, 3)
    given = {("1.weight", "short"): (TensorLayout(axes, "short"), alone)}
    network = ElasticNetwork(model, {"1.weight": TensorLayout(axes)}, given)
    small = nn.Sequential(nn.Linear(4, 3), nn.Linear(2, 2))
    part = Subnetwork(small, {"1.weight": TensorLayout(((("", 2),), (("d", 2),)), "short")})
    sliced = Slice(network, part)
    sliced.read()
    assert torch.equal(tensors(small)["1.weight"], alone[:, :2])
    assert torch.equal(tensors(small)["0.weight"], tensors(model)["0.weight"])
    tensors(small)["1.weight"].sum().backward()  # type: ignore[no-untyped-call]
    sliced.add_gradients()
    assert torch.equal(network.others[0].grad, torch.tensor([[1.0, 1.0, 0.0]] * 2))
    assert tensors(model)["1.weight"].grad is None
