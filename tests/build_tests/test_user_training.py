"""Training of a user's model: from rows that are kept once, in batches of a stated size."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.build.baseline_checks import convergence_check
from objectives.build.fit import Fitted, _training_data, fit, untrained
from objectives.build.model_structure import of_baseline
from objectives.build.stages import prepare as prepare_stage
from objectives.build.stages.weights import weights_key
from objectives.compression.distillation import training_loss
from objectives.jobs.requests import PrepareRequest
from objectives.output_kind import OutputKind
from objectives.recommenders.user_model import load as opening
from objectives.recommenders.user_model.load import open_user_model
from objectives.recommenders.user_model.optimizer import WithSparseTables
from objectives.recommenders.user_model.outputs import kind_of
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.task import Task
from spaces.techniques.architecture import Architecture
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.weights import Weights

USERS, ITEMS, ROWS = 20, 60, 600
LEARN = Distillation(2.0, 0.5, 2)


class Ranker(nn.Module):
    def __init__(self, width: int = 32, sparse: bool = False) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 8, sparse=sparse), nn.Embedding(ITEMS, 8, sparse=sparse)
        self.tower = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.tower(torch.cat([self.user(user), self.item(item)], 1)).squeeze(1)  # type: ignore[no-any-return]


class Shop:
    """A shop whose train rows come in batches of `size`; the rows are the same whatever it is."""

    name, metric = "shop", "auc"

    def __init__(self, model: nn.Module | None = None, size: int = 50) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Ranker() if model is None else model
        self.size, self.asked = size, list[str]()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        self.asked.append(split)
        random = np.random.default_rng(len(split))
        user, item = random.integers(USERS, size=ROWS), random.integers(ITEMS, size=ROWS)
        click = ((user + item) % 3 == 0).astype(np.float32)
        for start in range(0, ROWS, self.size):
            rows = slice(start, start + self.size)
            yield {"user": user[rows], "item": item[rows]}, torch.from_numpy(click[rows]), user[rows]

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        random = np.random.default_rng(seed)
        for rows in random.integers(3, 30, size=30):
            yield {"user": np.repeat(random.integers(USERS), rows), "item": random.integers(ITEMS, size=rows)}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def opened(given: Any, home: Path, monkeypatch: pytest.MonkeyPatch, **task: Any) -> UserRecommender:
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: given)
    return open_user_model(Task(str(home), "mine:factory", "", "", 200, 0.6, 1000, 0, **task), lambda line: None)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _quiet(line: str) -> None:
    pass


# -- a sibling that is not all its own


class Sibling(Ranker):
    """A sibling with the teacher's tables, and the first layer of the teacher's tower under another name.

    With `frozen`, it freezes the item table.
    """

    def __init__(self, teacher: Ranker, width: int, frozen: bool) -> None:
        super().__init__(width)
        self.user, self.item = teacher.user, teacher.item
        self.extra = teacher.tower[0]
        if frozen:
            self.item.requires_grad_(False)


class Sharing(Shop):
    def __init__(self, frozen: bool = False, anew: bool = True) -> None:
        super().__init__()
        self.frozen, self.anew, self.made = frozen, anew, dict[int, nn.Module]()
        self.shapes = {"width": [4, 8]}

    def build(self, shape: dict[str, int]) -> nn.Module:
        teacher, width = self.model, shape["width"]
        assert isinstance(teacher, Ranker)
        if self.anew or width not in self.made:
            torch.manual_seed(width)
            self.made[width] = Sibling(teacher, width, self.frozen)
        return self.made[width]


def _student(found: UserRecommender, width: int = 4) -> Fitted:
    weights = Weights(architecture=Architecture((("width", width),)), distillation=LEARN)
    return fit(found, weights, 0, _quiet)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_sibling_that_shares_modules_does_not_train_the_teacher(
    frozen: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(Sharing(frozen), home, monkeypatch)
    before = _state(found.model)
    fitted = _student(found)
    assert _same(_state(found.model), before)
    moved = {name: not torch.equal(fitted.model.state_dict()[f"{name}.weight"], before[f"{name}.weight"])
             for name in ("user", "item")}  # fmt: skip
    assert moved == {"user": True, "item": not frozen}, "it learns all the same, but for what the user froze"
    ours = {tensor.untyped_storage().data_ptr() for tensor in fitted.model.state_dict().values()}
    assert not ours & {tensor.untyped_storage().data_ptr() for tensor in found.model.state_dict().values()}


def test_a_sibling_that_is_given_twice_starts_afresh(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(Sharing(anew=False), home, monkeypatch)
    assert _same(_state(_student(found).model), _state(_student(found).model))


# -- rows, batches and seeds


def _pruned(found: UserRecommender, seed: int = 0, cache: Path | None = None, importance: Any = "magnitude") -> Fitted:
    pruning = Pruning((("tower", 0.5),), importance, multiple=8)
    return fit(found, Weights(pruning=pruning, distillation=LEARN), seed, _quiet, cache)


@pytest.mark.parametrize("size", [7, 64, ROWS])
def test_what_is_learned_does_not_depend_on_the_factorys_batches(
    size: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, other = (opened(Shop(size=of), home, monkeypatch) for of in (50, size))
    assert (
        found.train_rows().batches_per_epoch == other.train_rows().batches_per_epoch == 3
        and found.train_rows().batch_size == 256
    )
    assert found.key == other.key
    assert _same(_state(_pruned(found).model), _state(_pruned(other).model))


def test_rows_are_read_from_the_factory_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop()
    found = opened(shop, home, monkeypatch)
    found.train_rows()
    shop.asked.clear()
    _pruned(found, importance="taylor")
    list(found.train_rows().batches(torch.Generator()))
    found.counts(found.model, ())
    assert "train" not in shop.asked
    ours, theirs = (next(iter(rows.blocks)).inputs["item"] for rows in (found.train_rows(), found.train_rows()))
    assert ours.data_ptr() == theirs.data_ptr(), "one copy"


def test_arrays_that_the_factory_fills_again_are_copied(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Filling(Shop):
        def batches(self, split: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
            held: dict[str, Any] = {}
            for inputs, labels, groups in super().batches(split):
                for name, values in {**inputs, "labels": labels.numpy()}.items():
                    held.setdefault(name, values.copy())[:] = values
                yield {name: held[name] for name in inputs}, torch.from_numpy(held["labels"]), groups

    (ours,), (theirs,) = (opened(of, home, monkeypatch).train_rows().blocks for of in (Filling(), Shop()))
    assert torch.equal(ours.inputs["item"], theirs.inputs["item"]) and torch.equal(ours.labels, theirs.labels)


def test_another_batch_size_or_seed_is_another_model(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(Shop(), home, monkeypatch)
    small = opened(Shop(), home, monkeypatch, batch_size=100)
    assert small.train_rows().batches_per_epoch == 6
    states = [_state(_pruned(found).model), _state(_pruned(small).model), _state(_pruned(found, 1).model)]
    assert not any(_same(states[i], states[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def _with_rate(rate: float) -> Shop:
    shop = Shop()
    shop.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=rate)  # type: ignore[attr-defined]
    return shop


def test_the_key_of_weights_tells_all_that_trains_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate comes from a closure: the source is the same. The baseline's own weights follow from none of it."""
    made = {
        "plain": opened(Shop(), home, monkeypatch),
        "batch": opened(Shop(), home, monkeypatch, batch_size=100),
        "fast": opened(_with_rate(1e-2), home, monkeypatch),
        "slow": opened(_with_rate(1e-3), home, monkeypatch),
    }
    learned = Weights(pruning=Pruning((("tower", 0.5),)), distillation=LEARN)

    def key(name: str, weights: Weights, seed: int = 0) -> str:
        return weights_key(replace(made[name].task, seed=seed), made[name], weights)

    assert len({key(name, learned) for name in made} | {key("plain", learned, 1)}) == 5
    assert key("plain", learned) == key("plain", learned)
    assert key("plain", Weights()) == key("batch", Weights()) == key("plain", Weights(), 1)
    assert key("fast", Weights()) == key("slow", Weights())


# -- a teacher that is asked once


def test_the_convergence_check_is_that_of_the_optimizer_of_today(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that the optimizer's function reads elsewhere is in no key of the recommender."""

    def shop(rate: float) -> Shop:
        given = Shop()
        given.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=rate)  # type: ignore[attr-defined]
        return given

    made = [opened(shop(rate), home, monkeypatch) for rate in (1e-3, 10.0, 1e-3)]
    assert len({recommender.key for recommender in made}) == 1
    found = []
    for recommender in made:
        monkeypatch.setattr(prepare_stage, "open_once", lambda *_, one=recommender: one)
        found.append(prepare_stage.prepare(PrepareRequest(recommender.task, 1), _quiet))
    assert found[0] == found[2] and found[0].holdout != found[1].holdout


def test_the_users_model_is_asked_once_for_all_fits(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, rows = opened(Shop(), home, monkeypatch), list[int]()
    of_baseline(found)
    assert found.output_kinds

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        if module is found.model:  # its students are copies, with their hooks
            rows.append(len(output))

    handle = found.model.register_forward_hook(note)
    try:
        kept = _pruned(found, cache=home)
        first = sum(rows)
        _pruned(found, seed=1, cache=home)
    finally:
        handle.remove()
    assert ROWS <= first <= ROWS + 256 and sum(rows) - first <= 256, "a batch tells how much there is to keep"
    anew = _pruned(found)
    for name, tensor in _state(kept.model).items():
        assert torch.allclose(tensor, anew.model.state_dict()[name], atol=1e-4)


# -- outputs of different kinds


class Several(nn.Module):
    """A click's logit, the seconds that a user stays, a probability, and an output that nothing is known of."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(USERS, 8), nn.Embedding(ITEMS, 8)
        self.tower = nn.Sequential(nn.Linear(16, width), nn.ReLU())
        self.click, self.dwell = nn.Linear(width, 1), nn.Linear(width, 1)
        self.buy, self.other = nn.Linear(width, 1), nn.Linear(width, 1)

    def forward(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        x = self.tower(torch.cat([self.user(user), self.item(item)], 1))
        return {
            "click": 3 * self.click(x).squeeze(1), "dwell": 4000 + 900 * self.dwell(x).squeeze(1),
            "buy": torch.sigmoid(3 * self.buy(x).squeeze(1) - 1), "other": 50 * self.other(x).squeeze(1),
        }  # fmt: skip


class Mall(Shop):
    output = "click"

    def __init__(self) -> None:
        super().__init__(Several())

    def batches(self, split: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        random = np.random.default_rng(len(split))
        for inputs, click, groups in super().batches(split):
            dwell = torch.from_numpy(random.lognormal(8, 1, len(groups))).float()
            yield inputs, {"click": click, "dwell": dwell, "buy": (dwell > 9000).float()}, groups

    def loss(self, outputs: Any, labels: Any) -> Tensor:
        click = F.binary_cross_entropy_with_logits(outputs["click"], labels["click"])
        return click + F.mse_loss(outputs["dwell"], labels["dwell"]) / 1e6 + F.binary_cross_entropy(
            outputs["buy"], labels["buy"]
        )  # fmt: skip


def test_each_output_is_of_the_kind_that_its_scores_and_labels_show(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(Mall(), home, monkeypatch)
    kinds = dict(zip(found.columns, found.output_kinds, strict=True))
    assert {name: kind.scale for name, kind in kinds.items()} == {
        "click": "logits", "dwell": "values", "buy": "probabilities", "other": "values",
    }  # fmt: skip
    rows = [{n: torch.from_numpy(v) for n, v in inputs.items()} for inputs, *_ in found.given.batches("train")]
    with torch.inference_mode():
        other = np.concatenate([found.model(**inputs)["other"].numpy() for inputs in rows])
    assert kinds["other"].weight == pytest.approx(1 / other.var(), rel=1e-4), "nothing is known of what it should be"
    assert kinds["dwell"].weight == pytest.approx(1e-6, rel=1e-3), "its loss is the squared distance over 1e6"
    assert (kinds["click"].weight, kinds["buy"].weight) == (1.0, 1.0), "their losses are cross entropies"


class Summed(Shop):
    """Loss that is a sum over the rows of a batch, as part of which it is 0.1 of a cross entropy."""

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return 0.1 * F.binary_cross_entropy_with_logits(outputs, labels, reduction="sum")


def test_the_teachers_weight_is_its_share_of_a_loss_with_a_weight_of_its_own(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = opened(Summed(), home, monkeypatch, batch_size=50)
    (kind,) = found.output_kinds
    assert kind.scale == "logits" and kind.weight == 5.0, "a tenth for each of 50 rows"
    data = _training_data(found, Distillation(1.0, 0.25, 1), None)
    batch = next(data.rows.epoch(torch.Generator().manual_seed(0)))
    student = Ranker()
    z, teacher = student(**batch.inputs), found.model(**batch.inputs).detach()
    by_teacher = 5 * F.binary_cross_entropy_with_logits(z, teacher.sigmoid())
    expected = 0.75 * found.loss(z, batch.labels) + 0.25 * by_teacher
    got = training_loss(student, batch, data, Distillation(1.0, 0.25, 1), found.model)
    assert got.item() == pytest.approx(expected.item(), rel=1e-5)


class Sales(Shop):
    """Regression: labels and scores in some currency."""

    @staticmethod
    def metric(scores: Any, labels: Any, groups: Any) -> float:  # type: ignore[override]
        return -float(((scores - labels) ** 2).mean())

    def __init__(self, currency: float) -> None:
        super().__init__()
        self.currency = currency
        with torch.no_grad():
            for parameter in self.model.tower[2].parameters():  # type: ignore[index, union-attr]
                parameter.mul_(currency)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Any], Any, Any]]:
        random = np.random.default_rng(len(split))
        for inputs, click, groups in super().batches(split):
            yield inputs, torch.from_numpy(self.currency * random.normal(2, 1, len(click))).float(), groups

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs, labels)


@pytest.mark.parametrize("currency", [0.01, 100.0])
def test_the_teachers_weight_is_its_share_of_the_loss_in_any_unit(
    currency: float, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient is that of (1 - a) (z - y)^2 + a (z - t)^2, where it was that of labels or teacher alone."""
    found = opened(Sales(currency), home, monkeypatch)
    (kind,) = found.output_kinds
    assert kind.scale == "values" and kind.weight == 1.0
    data = _training_data(found, Distillation(2.0, 0.25, 1), None)
    batch = next(data.rows.epoch(torch.Generator().manual_seed(0)))
    student = copy.deepcopy(found.model)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.mul_(0.7)
        teacher = found.model(**batch.inputs)
    z = student(**batch.inputs)
    expected = 0.75 * F.mse_loss(z, batch.labels) + 0.25 * F.mse_loss(z, teacher)  # type: ignore[arg-type]
    got = training_loss(student, batch, data, Distillation(2.0, 0.25, 1), found.model)
    assert got.item() == pytest.approx(expected.item(), rel=1e-3)


def test_a_student_comes_to_every_output_of_its_teacher(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The student learns from the teacher alone, whatever the outputs' sizes: none of them drowns the others."""
    mall = Mall()
    mall.build = lambda shape: Several(**shape)  # type: ignore[attr-defined]
    mall.optimizer = lambda parameters: torch.optim.Adam(parameters, lr=3e-3)  # type: ignore[attr-defined]
    found = opened(mall, home, monkeypatch, batch_size=64)
    teacher_scores = Weights(architecture=Architecture((("width", 16),)), distillation=Distillation(1.0, 1.0, 200))
    student = fit(found, teacher_scores, 0, _quiet, home).model
    inputs, left = found.serving_rows(400), dict[str, float]()
    with torch.inference_mode():
        mine, theirs = (model(**inputs) for model in (student, found.model))
    for name in theirs:
        ours, truth = (torch.logit(of[name].double()) if name == "buy" else of[name].double() for of in (mine, theirs))
        left[name] = float((ours - truth).square().mean() / truth.var())
    assert max(left.values()) < 0.35, left


@pytest.mark.parametrize(
    ("scores", "labels", "kind"),
    [
        ([0.1, 0.9], [0, 1], OutputKind("probabilities")),
        ([0.1, 0.9], None, OutputKind("probabilities")),
        ([0.1, 1.1], [0, 1], OutputKind("logits")),
        ([0.1, 0.9], [0, 0.5], OutputKind("values", 1 / 0.16)),
        ([1000.0, 3000.0], [2.0, 7.0], OutputKind("values", 1e-6)),
        ([-3.0, 5.0], None, OutputKind("values", 1 / 16)),
        ([5000.0, 5000.0], [2.0, 7.0], OutputKind("values", 1 / 25e6)),
        ([-2.0, -2.0], None, OutputKind("values", 0.25)),
        ([0.0, 0.0], [2.0, 7.0], OutputKind("values", 1.0)),
    ],
)
def test_kinds_by_hand(scores: list[float], labels: list[float] | None, kind: OutputKind) -> None:
    found = kind_of(np.array(scores), None if labels is None else np.array(labels))
    assert found.scale == kind.scale and found.weight == pytest.approx(kind.weight)


# -- weights before training


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("steps", [1, 3])
def test_untrained_weights_have_the_shapes_of_the_trained_ones(
    importance: Any, steps: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of untrained weights is known before anything is trained, and the same for all trainings of a shape."""
    found = opened(Shop(Ranker()), home, monkeypatch)
    pruning = Pruning((("tower", 0.5),), importance, steps, multiple=8)
    weights = Weights(pruning=pruning, distillation=Distillation(2.0, 0.5, 3))
    other = Weights(pruning=Pruning((("tower", 0.5),), multiple=8), distillation=Distillation(4.0, 0.2, 1))
    assert weights.untrained == other.untrained != weights
    trained, before = fit(found, weights, 0, _quiet), untrained(found, weights.untrained, 0)
    shapes = [{name: tensor.shape for name, tensor in of.model.state_dict().items()} for of in (trained, before)]
    assert shapes[0] == shapes[1] and trained.structure == before.structure
    assert shapes[0] != {name: tensor.shape for name, tensor in found.model.state_dict().items()}
    assert not _same(_state(trained.model), _state(before.model))


def test_weights_that_are_only_trained_cost_as_much_as_the_baselines() -> None:
    weights = Weights(distillation=Distillation(2.0, 0.5, 3), quantization_aware=("tower",))
    assert weights.untrained == Weights() == Weights().untrained


# -- tables of sparse gradients


def _sparse(**changes: Any) -> Shop:
    torch.manual_seed(0)
    shop = Shop(Ranker(sparse=True))
    for name, value in changes.items():
        setattr(shop, name, value)
    return shop


@pytest.mark.parametrize("importance", ["magnitude", "taylor", "activation"])
def test_tables_of_sparse_gradients_are_learned(importance: Any, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(_sparse(), home, monkeypatch)
    fitted = _pruned(found, importance=importance)
    for name in ("user", "item"):
        table = fitted.model.get_submodule(name)
        assert isinstance(table, nn.Embedding) and table.sparse
        assert not torch.equal(table.weight, found.model.get_submodule(name).get_parameter("weight"))
    convergence_check(found, 0)


def test_features_are_learned_beside_sparse_tables(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(_sparse(hidden="tower.0"), home, monkeypatch)
    weights = Weights(pruning=Pruning((("tower", 0.5),), multiple=8), distillation=Distillation(2.0, 0.5, 2, 1.0))
    assert not _same(_state(fit(found, weights, 0, _quiet).model), _state(found.model))


def test_sparse_tables_step_as_with_an_optimizer_of_each_kind(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One optimizer for all parameters gives the same weights as an optimizer of each kind.

    It has SparseAdam for the tables and AdamW for the rest, at rates that a schedule moves.
    """
    found = opened(_sparse(), home, monkeypatch)
    ours, theirs = copy.deepcopy(found.model), copy.deepcopy(found.model)
    both = found.optimizer(ours)
    schedule = torch.optim.lr_scheduler.ExponentialLR(both, 0.5)
    tables = [theirs.get_submodule(name).get_parameter("weight") for name in ("user", "item")]
    rest = theirs.get_submodule("tower").parameters()
    apart: list[torch.optim.Optimizer] = [torch.optim.SparseAdam(tables, 1e-3)]
    apart.append(torch.optim.AdamW(rest, 1e-3, fused=True))
    for number, (inputs, labels) in enumerate(found.train_rows().batches(torch.Generator())):
        both.zero_grad()
        found.loss(ours(**inputs), labels).backward()
        both.step()
        schedule.step()
        theirs.zero_grad()
        found.loss(theirs(**inputs), labels).backward()
        for each in apart:
            for group in each.param_groups:
                group["lr"] = 1e-3 * 0.5**number
            each.step()
    assert _same(_state(ours), _state(theirs)) and not _same(_state(ours), _state(found.model))


class Tied(nn.Module):
    """A model that is a table, which it looks up and multiplies by, so that its gradient is dense."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, 8, sparse=True)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.item(user) @ self.item.weight.T).gather(1, item.unsqueeze(1)).squeeze(1)


def test_a_tied_table_of_sparse_gradients_is_learned(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = opened(Shop(Tied()), home, monkeypatch, batch_size=ROWS)
    ours, theirs = copy.deepcopy(found.model), copy.deepcopy(found.model)
    theirs.get_submodule("item").sparse = False  # type: ignore[assignment]
    steps = ((ours, found.optimizer(ours)), (theirs, torch.optim.Adam(theirs.parameters(), 1e-3)))
    for inputs, labels in [*found.train_rows().batches(torch.Generator())] * 3:
        for model, optimizer in steps:
            optimizer.zero_grad()
            found.loss(model(**inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    (mine,), (other,) = ours.parameters(), theirs.parameters()
    assert torch.allclose(mine, other, atol=1e-4), "each row has a gradient, so that lazy Adam is Adam"


@pytest.mark.parametrize(
    ("make", "beside"),
    [
        (lambda parameters: torch.optim.Adam(parameters, lr=2e-3), True),
        (lambda parameters: torch.optim.Adagrad(parameters, lr=2e-3), False),
        (lambda parameters: torch.optim.SGD(parameters, lr=2e-3), False),
    ],
)
def test_the_users_optimizer_has_the_tables_that_it_can_take(
    make: Any, beside: bool, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = opened(_sparse(optimizer=make), home, monkeypatch).optimizer(Ranker(sparse=True))
    assert isinstance(made, WithSparseTables) is beside
    assert {group["lr"] for group in made.param_groups} == {2e-3}
    assert sum(len(group["params"]) for group in made.param_groups) == 6
