"""Distillation losses against closed forms in numpy; the loop against what it may run, repeat and leave behind."""

from __future__ import annotations

import copy
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.special import expit, log_softmax, softmax
from torch import Tensor, nn

from objectives.compression.distillation import (
    Training,
    distil,
    feature_loss,
    hidden_outputs,
)
from objectives.compression.training_data import TrainingData
from objectives.output_kind import OutputKind, soft_loss, soft_loss_of
from objectives.recommenders.user_model.optimizer import keeps_state, optimizer_of
from objectives.training_rows import Block, NumberedBatch, TrainingRows
from spaces.techniques.distillation import Distillation

ROWS, WIDTH = 96, 6


class Tower(nn.Module):
    """A model whose features are taken from `body`."""

    def __init__(self, hidden: int, seed: int, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Sequential(nn.Linear(WIDTH, hidden), nn.Tanh(), nn.Dropout(dropout))
        self.head = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze(-1)  # type: ignore[no-any-return]


class Silent(nn.Module):
    """A teacher that must not be asked."""

    def forward(self, **inputs: Tensor) -> Tensor:
        raise AssertionError("the teacher was run")


@pytest.fixture
def rows() -> dict[str, Tensor]:
    return {"x": torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))}


@pytest.fixture
def labels() -> Tensor:
    return torch.randint(0, 2, (ROWS,), generator=torch.Generator().manual_seed(2)).float()


def _by_name(model: nn.Module, inputs: Mapping[str, Tensor]) -> object:
    return model(**inputs)


def _course(
    rows: dict[str, Tensor], labels: Tensor, teacher_scores: Tensor | None = None, hidden: str | None = None
) -> TrainingData:
    def known(of: NumberedBatch) -> Tensor:
        assert teacher_scores is not None
        return teacher_scores[of.rows]

    train, loss = TrainingRows((Block(rows, labels),), 32), F.binary_cross_entropy_with_logits
    data = TrainingData(train, loss, soft_loss, _by_name, hidden)
    return data if teacher_scores is None else replace(data, teacher_scores=known)


def predict(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**inputs)  # type: ignore[no-any-return]


def _train(
    student: nn.Module, training_data: TrainingData, choice: Distillation, seed: int = 0, **others: object
) -> tuple[float, ...]:
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    return distil(student, training_data, optimizer, choice, seed, **others).losses  # type: ignore[arg-type]


# -- the losses


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0])
def test_one_logit_is_softened_as_two_classes(temperature: float) -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 50))
    p = expit(teacher / temperature)
    expected = -(p * np.log(expit(student / temperature)) + (1 - p) * np.log(expit(-student / temperature))).mean()
    got = soft_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert got.item() == pytest.approx(temperature**2 * expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_a_list_is_softened_by_its_softmax(temperature: float) -> None:
    student, teacher = np.random.default_rng(1).normal(size=(2, 20, 7))
    expected = -(softmax(teacher / temperature, axis=1) * log_softmax(student / temperature, axis=1)).sum(1).mean()
    got = soft_loss(torch.tensor(student), torch.tensor(teacher), temperature)
    assert got.item() == pytest.approx(temperature**2 * expected, rel=1e-9)


def test_two_candidates_are_one_logit() -> None:
    """The softmax of (z, 0) is the sigmoid of z."""
    student, teacher = torch.randn(2, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    pairs = [torch.stack([z, torch.zeros_like(z)], 1) for z in (student, teacher)]
    assert soft_loss(*pairs, 4.0).item() == pytest.approx(soft_loss(student, teacher, 4.0).item(), rel=1e-12)


@pytest.mark.parametrize("temperature", [300.0, 3000.0])
def test_gradients_keep_their_size_at_any_temperature(temperature: float) -> None:
    """A list of mean zero has the gradient (z - v) / N for large T (Hinton et al., eq. 4), one logit (z - v) / 4."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 5, 8, dtype=torch.float64, generator=generator)
    student, teacher = (z - z.mean(1, keepdim=True) for z in (student, teacher))
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(5 * soft_loss(student, teacher, temperature), student)
    assert torch.allclose(gradient, (student - teacher) / 8, atol=5 / temperature)
    one, other = student.detach()[:, 0].requires_grad_(), teacher[:, 0]
    (gradient,) = torch.autograd.grad(5 * soft_loss(one, other, temperature), one)
    assert torch.allclose(gradient, (one - other) / 4, atol=5 / temperature)


@pytest.mark.parametrize("shapes", [((4,), (5,)), ((4,), (4, 1)), ((2, 3, 4), (2, 3, 4))])
def test_logits_of_other_rows_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=rf"but got .*{re.escape(str(shapes[0]))}.*{re.escape(str(shapes[1]))}"):
        soft_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 2.0)


def test_the_loss_of_features_is_the_variance_that_is_missed() -> None:
    student, teacher = np.random.default_rng(5).normal(size=(2, 40, 3)) * [1.0, 10.0, 0.1]
    expected = ((student - teacher) ** 2).sum() / (40 * teacher.var(0).sum())
    for scale in (1.0, 300.0):
        values = (torch.tensor(scale * of) for of in (student, teacher))
        assert feature_loss(*values).item() == pytest.approx(expected, rel=1e-9)
    mean = torch.tensor(teacher).mean(0).expand(40, 3)
    assert feature_loss(mean, torch.tensor(teacher)).item() == pytest.approx(1)


def test_features_that_hardly_vary_outweigh_no_others() -> None:
    """Features hardly vary where one row of forty is just above zero."""
    student, teacher = np.random.default_rng(6).normal(size=(2, 40, 3))
    teacher[:, 1] = np.eye(40)[0] * 1e-6
    rest = ((student - teacher)[:, [0, 2]] ** 2).sum() / (40 * teacher[:, [0, 2]].var(0).sum())
    assert feature_loss(torch.tensor(student), torch.tensor(teacher)).item() < 2 * rest
    assert feature_loss(torch.zeros(4, 2), torch.ones(4, 2)).item() == 0.0, "none varies"


def test_features_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\), \(4, 2\)"):
        feature_loss(torch.zeros(3, 2), torch.zeros(4, 2))


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)])
def test_hidden_outputs_are_rows_of_features(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
    x = torch.randn(shape)
    with hidden_outputs(model, "0") as latest:
        model(x)
        model(-x)
        assert torch.equal(latest(), model[0](-x).reshape(-1, 3))
    assert not model[0]._forward_hooks


def test_hidden_modules_that_give_no_features_are_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Flatten(0))
    with pytest.raises(ValueError, match="'tower'"), hidden_outputs(model, "tower"):
        pass
    with hidden_outputs(model, "1") as latest:
        with pytest.raises(ValueError, match=r"'1' .*NoneType"):
            latest()
        model(torch.zeros(2, 4))
        with pytest.raises(ValueError, match=r"but got \(6,\)"):
            latest()


# -- lessons


def test_a_pass_holds_each_row_once_in_a_new_order(rows: dict[str, Tensor], labels: Tensor) -> None:
    numbers = torch.arange(ROWS)
    train = TrainingRows((Block({"x": rows["x"], "number": numbers}, labels),), 20)
    generator = torch.Generator().manual_seed(0)
    orders = []
    for _ in range(2):
        given = list(train.epoch(generator))
        assert len(given) == train.batches_per_epoch == 5
        orders.append(torch.cat([batch.inputs["number"] for batch in given]).tolist())
        for batch in given:
            pick = batch.inputs["number"]
            assert torch.equal(batch.inputs["x"], rows["x"][pick])
            assert torch.equal(batch.labels, labels[pick]) and torch.equal(batch.rows, pick)
    assert orders[0] != orders[1]
    assert all(sorted(order) == numbers.tolist() for order in orders)


def test_few_rows_are_one_batch_and_none_are_refused(rows: dict[str, Tensor], labels: Tensor) -> None:
    assert TrainingRows((Block(rows, labels),), 1000).batches_per_epoch == 1
    with pytest.raises(ValueError, match=r"training rows: .*\[0\]"):
        TrainingRows((Block({"x": torch.zeros(0, 2)}, torch.zeros(0)),), 32)


# -- the loop


@pytest.mark.parametrize(
    "choice", [Distillation(2.0, 0.0, 30), Distillation(2.0, 0.5, 30), Distillation(4.0, 1.0, 30, 0.5)]
)
def test_the_loss_falls(rows: dict[str, Tensor], labels: Tensor, choice: Distillation) -> None:
    teacher = Tower(8, seed=1).eval()
    losses = _train(Tower(4, seed=2), _course(rows, labels, hidden="body"), choice, teacher=teacher)
    assert len(losses) == 30
    assert losses[-1] < losses[0]


def test_a_student_comes_to_the_teachers_scores_from_the_teacher_alone(rows: dict[str, Tensor], labels: Tensor) -> None:
    """Teacher scores are learned where the labels are noise."""
    teacher = Tower(8, seed=1).eval()
    scores = predict(teacher, rows)

    def correlation(weight: float) -> float:
        student = Tower(4, seed=3)
        _train(student, _course(rows, labels, scores), Distillation(2.0, weight, 100))
        return float(np.corrcoef(predict(student, rows), scores)[0, 1])

    assert correlation(1.0) > 0.95
    assert abs(correlation(0.0)) < 0.6


def test_listwise_scores_are_learned_from_lists_drawn_anew() -> None:
    """Candidates are drawn in each batch, so their scores can only come from running the teacher on them."""

    class Ranker(nn.Module):
        def __init__(self, seed: int) -> None:
            super().__init__()
            torch.manual_seed(seed)
            self.items, self.query = nn.Embedding(30, 5), nn.Linear(WIDTH, 5)

        def positions(self, x: Tensor, candidates: Tensor) -> Tensor:
            return (self.items(candidates) @ self.query(x).unsqueeze(2)).squeeze(2)  # type: ignore[no-any-return]

    def draw(rows: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        x = torch.randn(len(rows), WIDTH, generator=generator)
        return {"x": x, "candidates": torch.randint(0, 30, (len(rows), 4), generator=generator)}

    def outputs(model: nn.Module, inputs: object) -> Tensor:
        return model.positions(**inputs)  # type: ignore[no-any-return,operator,arg-type]

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels.long())

    rows = TrainingRows((Block({"x": torch.zeros(120, WIDTH)}, torch.zeros(120)),), 24, draw)
    training_data = TrainingData(rows, loss, soft_loss, outputs)
    teacher, student = Ranker(1), Ranker(2)
    held = {"x": torch.randn(200, WIDTH), "candidates": torch.randint(0, 30, (200, 4))}

    def agreement() -> float:
        best = [model.positions(**held).argmax(1) for model in (teacher, student)]
        return (best[0] == best[1]).float().mean().item()

    before = agreement()
    _train(student, training_data, Distillation(1.0, 1.0, 60), teacher=teacher)
    assert before < 0.5 < 0.8 < agreement()


def test_the_control_learns_from_labels_without_running_the_teacher(rows: dict[str, Tensor], labels: Tensor) -> None:
    control, alone = Tower(4, seed=2), Tower(4, seed=2)
    _train(control, _course(rows, labels, hidden="body"), Distillation(2.0, 0.0, 3), teacher=Silent())
    _train(alone, _course(rows, labels), Distillation(8.0, 0.0, 3))
    assert all(torch.equal(a, b) for a, b in zip(control.parameters(), alone.parameters(), strict=True))


def test_known_scores_are_not_asked_for_again(rows: dict[str, Tensor], labels: Tensor) -> None:
    teacher = Tower(8, seed=1).eval()
    known, asked = Tower(4, seed=2), Tower(4, seed=2)
    choice = Distillation(2.0, 0.5, 3)
    _train(known, _course(rows, labels, predict(teacher, rows)), choice, teacher=Silent())
    _train(asked, _course(rows, labels), choice, teacher=teacher)
    for a, b in zip(known.parameters(), asked.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_one_seed_is_one_student(rows: dict[str, Tensor], labels: Tensor) -> None:
    """The seed determines dropout too, and the generator that others draw from is not touched."""
    teacher = Tower(8, seed=1).eval()

    def weights(seed: int) -> Tensor:
        student = Tower(4, seed=2, dropout=0.3)
        before = torch.get_rng_state()
        _train(student, _course(rows, labels, hidden="body"), Distillation(2.0, 0.5, 3, 1.0), seed, teacher=teacher)
        assert torch.equal(before, torch.get_rng_state())
        return student.head.weight

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_a_copy_of_the_teacher_has_no_distance_to_its_features(rows: dict[str, Tensor], labels: Tensor) -> None:
    """A copy stays one at a learning rate of 0, and the loss of features is the whole loss."""
    teacher, copy = Tower(5, seed=1).eval(), Tower(5, seed=1)
    nothing = replace(_course(rows, labels, hidden="body"), loss=lambda logits, labels: 0 * logits.sum())
    optimizer = torch.optim.SGD(copy.parameters(), lr=0.0)
    assert distil(copy, nothing, optimizer, Distillation(1.0, 0.0, 2, 3.0), 0, teacher).losses == (0.0, 0.0)


@pytest.mark.slow
@pytest.mark.parametrize("width", [3, 8, 12])
def test_features_are_learned_up_to_a_projection(rows: dict[str, Tensor], labels: Tensor, width: int) -> None:
    """Training by features alone leaves a smaller residual of the best linear map onto the teacher's than before."""
    teacher = Tower(8, seed=1).eval()
    student = Tower(width, seed=2)

    def left_over() -> float:
        with torch.no_grad():
            mine = torch.cat([student.eval().body(rows["x"]), torch.ones(ROWS, 1)], 1)
            theirs = teacher.body(rows["x"])
        fit = torch.linalg.lstsq(mine, theirs).solution
        return ((mine @ fit - theirs) / theirs.std(0)).square().mean().item()

    before, names = left_over(), list(student.state_dict())
    nothing = replace(_course(rows, labels, hidden="body"), loss=lambda logits, labels: 0 * logits.sum())
    _train(student, nothing, Distillation(1.0, 0.0, 150, 1.0), teacher=teacher)
    assert left_over() < 0.7 * before
    assert list(student.state_dict()) == names
    assert not student.body._forward_hooks and not teacher.body._forward_hooks


def test_the_teacher_stays_as_it_was(rows: dict[str, Tensor], labels: Tensor) -> None:
    teacher = Tower(8, seed=1, dropout=0.5).eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    _train(Tower(4, seed=2), _course(rows, labels, hidden="body"), Distillation(2.0, 0.5, 2, 1.0), teacher=teacher)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert not teacher.training


@pytest.mark.parametrize("steps", [*range(1, 13), 40])
def test_the_rate_goes_up_to_thrice_its_own_and_down(steps: int) -> None:
    """The rate rises at any number of steps: torch's own schedule fails where the warm-up is one step."""
    rates: list[float] = []
    student = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        rates.append(optimizer.param_groups[0]["lr"])
        return outputs.square().mean()

    rows = TrainingRows((Block({"input": torch.ones(2 * steps, 1)}, torch.zeros(2 * steps)),), 2)
    distil(student, TrainingData(rows, loss, soft_loss, _by_name), optimizer, Distillation(1.0, 0.0, 1), 0)
    peak = int(np.argmax(rates))
    assert len(rates) == steps
    assert min(rates) > 0
    assert 0.1 < max(rates) <= 0.3 + 1e-9
    assert steps < 40 or (peak in (3, 4) and max(rates) > 0.299)
    assert rates[: peak + 1] == sorted(rates[: peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)


def test_each_pass_is_told(rows: dict[str, Tensor], labels: Tensor) -> None:
    lines: list[str] = []
    losses = _train(Tower(4, seed=2), _course(rows, labels), Distillation(1.0, 0.0, 2), progress=lines.append)
    assert lines == [f"distilling: epoch {n} of 2, loss {loss:.4f}" for n, loss in enumerate(losses, 1)]


@pytest.mark.parametrize(
    ("choice", "hidden", "teacher", "reason"),
    [
        (Distillation(2.0, 0.5, 1), None, None, "teacher"),
        (Distillation(2.0, 0.0, 1, 1.0), "body", None, "hidden"),
        (Distillation(2.0, 0.0, 1, 1.0), None, Tower, "hidden"),
        (Distillation(2.0, 0.0, 1, 1.0), "trunk", Tower, "'trunk'"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    rows: dict[str, Tensor],
    labels: Tensor,
    choice: Distillation,
    hidden: str | None,
    teacher: Callable[..., nn.Module] | None,
    reason: str,
) -> None:
    with pytest.raises(ValueError, match=reason):
        _train(
            Tower(4, seed=2),
            _course(rows, labels, hidden=hidden),
            choice,
            teacher=None if teacher is None else teacher(8, seed=1),
        )


PROBABILITIES = OutputKind("probabilities")


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("shift", [0.0, -9.0, -20.0])
def test_probabilities_are_compared_as_the_logits_that_they_came_from(temperature: float, shift: float) -> None:
    """Rare probabilities count too: at -20 they are near 2e-9, and their order still counts."""
    student, teacher = np.random.default_rng(7).normal(size=(2, 30)) + shift
    p, q = expit(student / temperature), expit(teacher / temperature)
    expected = -(temperature**2) * (q * np.log(p) + (1 - q) * np.log1p(-p)).mean()
    mine = torch.tensor(expit(student), dtype=torch.float32).requires_grad_()
    got = soft_loss_of([PROBABILITIES], mine, torch.tensor(expit(teacher), dtype=torch.float32), temperature)
    assert got.item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    (gradient,) = torch.autograd.grad(got, mine)
    by_logit = gradient.double().numpy() * expit(student) * expit(-student)
    assert by_logit == pytest.approx(temperature * (p - q) / 30, rel=1e-2, abs=1e-3 * np.abs(p - q).max())


def test_certain_probabilities_leave_the_loss_finite() -> None:
    sure = torch.tensor([0.0, 1.0]).requires_grad_()
    loss = soft_loss_of([PROBABILITIES], sure, torch.tensor([1.0, 0.0]), 2.0)
    (gradient,) = torch.autograd.grad(loss, sure)
    assert torch.isfinite(loss) and torch.isfinite(gradient).all()


def test_values_are_compared_by_their_weight() -> None:
    """The weight is the same for all batches, and not a batch's own: two alike rows are worth no more than others."""
    student, teacher = np.random.default_rng(8).normal(size=(2, 9))
    for scale in (1.0, 5000.0):
        soft = partial(soft_loss_of, [OutputKind("values", (2 * scale) ** -2)])
        got = soft(torch.tensor(scale * student + 3), torch.tensor(scale * teacher + 3), 3.0).item()
        assert got == pytest.approx(((student - teacher) ** 2).mean() / 4, rel=1e-9)
        alike = soft(torch.tensor([7.0 * scale, 7 * scale]), torch.tensor([8.0 * scale, 8 * scale]), 3.0).item()
        assert alike == pytest.approx(0.25, rel=1e-6)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_a_positive_number(weight: float) -> None:
    with pytest.raises(ValueError, match=f"weight: .*{weight}"):
        OutputKind("values", weight)


def test_each_output_has_the_loss_of_its_kind() -> None:
    draws = torch.randn(2, 40, 3, dtype=torch.double, generator=torch.Generator().manual_seed(9))
    student, teacher = (torch.stack([z[:, 0], 60 * z[:, 1] + 900, z[:, 2].sigmoid()], 1) for z in draws)
    kinds = [OutputKind("logits", 0.1), OutputKind("values", 1 / 3600), PROBABILITIES]
    got = soft_loss_of(kinds, student, teacher, 2.0)
    of_values = ((student[:, 1] - teacher[:, 1]) ** 2).mean() / 3600
    mine, theirs = (torch.logit(z[:, 2]) for z in (student, teacher))
    expected = 0.1 * soft_loss(student[:, 0], teacher[:, 0], 2.0) + of_values + soft_loss(mine, theirs, 2.0)
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)


def test_lists_are_compared_as_lists() -> None:
    student, teacher = torch.randn(9, 2), torch.randn(9, 2)
    expected = soft_loss(student, teacher, 2.0).item()
    assert soft_loss_of([OutputKind("lists")], student, teacher, 2.0).item() == pytest.approx(expected)


@pytest.mark.parametrize("until", [1, 2, 3])
def test_a_training_that_is_stopped_goes_on_as_if_it_had_not_been(
    until: int, rows: dict[str, Tensor], labels: Tensor
) -> None:
    """A training goes on bit for bit, through a file: dropout, the order of batches, the optimizer and its schedule."""
    whole, part = Tower(16, 0, dropout=0.5), Tower(16, 0, dropout=0.5)
    course, choice = _course(rows, labels), Distillation(2.0, 0.5, 4)

    def train(model: nn.Module, how: Distillation, begun: Training | None = None) -> Training:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        return distil(model, course, optimizer, how, 0, Tower(5, seed=1).eval(), begun=begun)

    expected = train(whole, choice)
    begun = train(part, replace(choice, stopped_after=until))
    assert begun.losses == expected.losses[:until]
    kept = io.BytesIO()
    torch.save((part, begun), kept)
    kept.seek(0)
    model, begun = torch.load(kept, weights_only=False)
    assert train(model, choice, begun).losses == expected.losses
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


class Sparse(nn.Module):
    """A table with sparse gradients below a layer with dropout."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(9, 4, sparse=True), nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.table(x)).squeeze(-1)  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_a_training_with_sparse_tables_goes_on_as_if_it_had_not_been_stopped(make: Any, labels: Tensor) -> None:
    """The optimizer of the tables and that of the rest, whose rates follow the schedule."""
    rows = {"x": torch.arange(ROWS) % 9}
    course, choice = _course(rows, labels, torch.randn(ROWS)), Distillation(2.0, 0.5, 4)
    whole, part = Sparse(), Sparse()

    def train(model: nn.Module, how: Distillation, begun: Training | None = None) -> Training:
        optimizer = optimizer_of(model, lambda parameters: make(parameters, lr=0.05))
        assert keeps_state(optimizer)
        return distil(model, course, optimizer, how, 0, begun=begun)

    expected = train(whole, choice)
    begun = train(part, replace(choice, stopped_after=1))
    assert train(part, choice, copy.deepcopy(begun)).losses == expected.losses
    for name, tensor in whole.state_dict().items():
        assert torch.equal(part.state_dict()[name], tensor)


def test_an_optimizer_of_another_package_may_not_keep_its_state() -> None:
    class Other(torch.optim.SGD):
        pass

    parameters = [nn.Parameter(torch.zeros(2))]
    assert keeps_state(torch.optim.SGD(parameters, lr=1.0)) and not keeps_state(Other(parameters, lr=1.0))
