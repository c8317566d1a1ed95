"""Curvature of losses relative to the comparison with a teacher, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.output_kind import OutputKind
from objectives.recommenders.user_model.loss_curvature import relative_curvature

VALUES, LOGITS, PROBABILITIES = OutputKind("values"), OutputKind("logits"), OutputKind("probabilities")
Loss = Callable[[Tensor, Tensor], Tensor]


def curvature_of(loss: Loss, values: Tensor | None = None, kind: OutputKind = VALUES) -> float | None:
    """Return the curvature over four batches, by default of 32 values near 300 and labels near them."""
    random, batches = torch.Generator().manual_seed(0), []
    for _ in range(4):
        outputs = 300 + 40 * torch.randn(32, generator=random) if values is None else values.clone()
        batches.append((outputs, 300 + 90 * torch.randn(len(outputs), generator=random)))
    with torch.no_grad():
        return relative_curvature(batches, lambda of: of, kind, loss)  # type: ignore[arg-type, return-value]


def of_logits(loss: Loss, kind: OutputKind = LOGITS) -> float | None:
    """Return the curvature over a batch of 64 logits, or the probabilities of them, and labels 0 and 1."""
    random = torch.Generator().manual_seed(0)
    raw, labels = 2 * torch.randn(64, generator=random) - 1, (torch.rand(64, generator=random) < 0.3).float()
    with torch.no_grad():
        return relative_curvature([(kind.scores(raw), labels)], lambda of: of, kind, loss)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("loss", "curvature"),
    [
        (F.mse_loss, 1.0),
        (lambda z, y: F.mse_loss(z, y) / 2, 0.5),
        (lambda z, y: F.mse_loss(z, y) / 1e6, 1e-6),
        (lambda z, y: F.mse_loss(z / 7, y / 7), 0.0204),
        (lambda z, y: F.mse_loss(z, y, reduction="sum"), 32.0),
        (lambda z, y: F.huber_loss(z, y, delta=1e6), 0.5),
        # a pair of rows: the mean of ((z1 - z2) - (y1 - y2))^2 over all pairs has twice the curvature
        (lambda z, y: ((z[:, None] - z) - (y[:, None] - y)).square().mean(), 2.0),
    ],
)
def test_curvatures_of_losses_of_values(loss: Loss, curvature: float) -> None:
    assert curvature_of(loss) == pytest.approx(curvature, rel=2e-3)


@pytest.mark.parametrize(
    ("loss", "curvature"),
    [
        (F.binary_cross_entropy_with_logits, 1.0),
        (lambda z, y: 0.1 * F.binary_cross_entropy_with_logits(z, y), 0.1),
        (lambda z, y: F.binary_cross_entropy_with_logits(z, y, reduction="sum"), 64.0),
        (lambda z, y: F.binary_cross_entropy_with_logits(z, 0.9 * y + 0.05), 1.0),
        # what is a 1 counts five times: 0.7 + 5 * 0.3
        (lambda z, y: F.binary_cross_entropy_with_logits(z, 0.3 + 0 * y, pos_weight=torch.tensor(5.0)), 2.2),
    ],
)
def test_curvatures_of_losses_of_logits(loss: Loss, curvature: float) -> None:
    assert of_logits(loss) == pytest.approx(curvature, rel=2e-3)


@pytest.mark.parametrize("weight", [1.0, 0.1])
def test_probabilities_have_the_curvature_of_their_logits(weight: float) -> None:
    found = of_logits(lambda p, y: weight * F.binary_cross_entropy(p, y), PROBABILITIES)
    assert found == pytest.approx(weight, rel=1e-3)


def test_the_curvature_of_a_poisson_loss_is_its_second_derivative() -> None:
    """The second derivative of exp(z) - y z at z = 2 is exp(2), and that of a squared distance 2."""
    near = 2 + 1e-3 * torch.randn(64, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    found = curvature_of(lambda z, y: F.poisson_nll_loss(z, y), near)
    assert found == pytest.approx(math.exp(2) / 2, rel=2e-3)


@pytest.mark.parametrize(
    "loss",
    [
        lambda z, y: y.mean(),
        lambda z, y: z.mean(),
        lambda z, y: -F.mse_loss(z, y),
        lambda z, y: F.mse_loss(z, y) - F.mse_loss(z, 0 * y),
    ],
)
def test_a_loss_without_curvature_above_0_has_none(loss: Loss) -> None:
    assert curvature_of(loss) is None


def test_outputs_that_do_not_vary_show_no_curvature() -> None:
    assert curvature_of(F.mse_loss, torch.full((8,), 3.0)) is None


def test_a_loss_may_change_its_outputs_in_place() -> None:
    def loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        outputs["minutes"] /= 10
        outputs["minutes"] = outputs["minutes"] - 2
        return F.mse_loss(outputs.pop("minutes"), labels)

    batches = [({"minutes": torch.arange(6.0)}, torch.zeros(6))]
    with torch.no_grad():
        found = relative_curvature(batches, lambda of: of["minutes"], VALUES, loss)  # type: ignore[index, arg-type]
    assert found == 0.01 and batches[0][0]["minutes"].tolist() == list(range(6))


def test_a_loss_may_change_its_labels() -> None:
    def loss(outputs: Tensor, labels: dict[str, Tensor]) -> Tensor:
        weight = labels.pop("weight")
        labels["stars"].mul_(2)
        return (weight * (outputs - labels["stars"]).square()).mean()

    labels = {"stars": torch.ones(6), "weight": torch.full((6,), 3.0)}
    with torch.no_grad():
        found = relative_curvature([(torch.arange(6.0), labels)], lambda of: of, VALUES, loss)  # type: ignore[arg-type, return-value]
    assert found == 3.0 and labels["stars"].tolist() == [1.0] * 6 and "weight" in labels


def test_a_batch_whose_rows_have_no_labels_counts_as_flat() -> None:
    """Half of the batches have labels, so that the loss is half as curved in the mean."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        known = ~labels.isnan()
        return F.mse_loss(outputs[known], labels[known]) if known.any() else torch.zeros(())

    batches = [(torch.arange(6.0), torch.full((6,), math.nan if part % 2 else 1.0)) for part in range(4)]
    with torch.no_grad():
        assert relative_curvature(batches, lambda of: of, VALUES, loss) == 0.5  # type: ignore[arg-type, return-value]


def test_outputs_may_have_gradients_of_their_own() -> None:
    weight = nn.Parameter(torch.arange(6.0))
    for outputs in ({"stars": weight}, {"stars": 2 * weight}):
        found = relative_curvature([(outputs, torch.zeros(6))], lambda of: of["stars"], VALUES, _of_stars)  # type: ignore[index, arg-type, return-value]
        assert found == 1.0
    assert weight.grad is None


def _of_stars(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
    return F.mse_loss(outputs["stars"], labels)


def test_random_draws_of_a_loss_are_repeated_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    first, state = curvature_of(lambda z, y: F.mse_loss(F.dropout(z, 0.5), y)), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's numbers go on as if nothing was drawn"
    torch.manual_seed(2)
    assert curvature_of(lambda z, y: F.mse_loss(F.dropout(z, 0.5), y)) == first
    assert first == pytest.approx(2.0, rel=0.4), "half of the rows, twice as large, count four times"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_outputs_of_half_precision_have_the_curvature_of_single(kind: torch.dtype) -> None:
    values = torch.linspace(200, 400, 64).to(kind)
    assert curvature_of(lambda z, y: F.mse_loss(z.float(), y), values) == pytest.approx(1.0, rel=0.02)


def test_a_batch_without_a_finite_gradient_is_left_out() -> None:
    batches = [(torch.arange(6.0), torch.full((6,), math.nan)), (torch.arange(6.0), torch.zeros(6))]
    whole = [(torch.arange(6), torch.zeros(6))]
    with torch.no_grad():
        found = relative_curvature(batches, lambda of: of, VALUES, F.mse_loss)  # type: ignore[arg-type, return-value]
        assert relative_curvature(whole, lambda of: of, VALUES, F.mse_loss) is None  # type: ignore[arg-type, return-value]
    assert found == 1.0


def test_the_outputs_stay_as_they_are() -> None:
    """They may be tensors of the model's own, or one value for all rows."""
    own, labels = torch.arange(6.0), torch.zeros(6)
    expanded = own[:1].expand(6)
    with torch.no_grad():
        assert relative_curvature([(own, labels)], lambda of: of, VALUES, F.mse_loss) == 1.0  # type: ignore[arg-type, return-value]
        assert relative_curvature([(expanded, labels)], lambda of: of, VALUES, F.mse_loss) is None  # type: ignore[arg-type, return-value]
    assert own.tolist() == list(range(6)) and not own.requires_grad
