"""Units in which a squared distance has the curvature of a loss, by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.recommenders.user_model.label_unit import label_unit


def unit_of(loss: Callable[[Tensor, Tensor], Tensor], values: Tensor | None = None) -> float | None:
    random = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        outputs = 300 + 40 * torch.randn(32, generator=random) if values is None else values.clone()
        batches.append((outputs, 300 + 90 * torch.randn(len(outputs), generator=random)))
    with torch.no_grad():
        return label_unit(batches, lambda of: of, loss)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize(
    ("loss", "unit"),
    [
        (F.mse_loss, 1.0),
        (lambda z, y: F.mse_loss(z, y) / 2, math.sqrt(2)),
        (lambda z, y: F.mse_loss(z, y) / 1e6, 1000.0),
        (lambda z, y: F.mse_loss(z / 7, y / 7), 7.0),
        (lambda z, y: F.mse_loss(z, y, reduction="sum") / 32, 1.0),
        (lambda z, y: F.huber_loss(z, y, delta=1e6), math.sqrt(2)),
        # a pair of rows: the mean of ((z1 - z2) - (y1 - y2))^2 over all pairs has twice the curvature
        (lambda z, y: ((z[:, None] - z) - (y[:, None] - y)).square().mean(), math.sqrt(0.5)),
    ],
)
def test_units_by_hand(loss: Callable[[Tensor, Tensor], Tensor], unit: float) -> None:
    assert unit_of(loss) == pytest.approx(unit, rel=1e-3)


def test_the_unit_of_a_poisson_loss_is_that_of_its_second_derivative() -> None:
    """The second derivative of exp(z) - y z at z = 2 is exp(2), and that of a squared distance in unit u is 2 / u^2."""
    near = 2 + 1e-3 * torch.randn(64, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    found = unit_of(lambda z, y: F.poisson_nll_loss(z, y), near)
    assert found == pytest.approx(math.sqrt(2 / math.exp(2)), rel=1e-3)


@pytest.mark.parametrize("loss", [lambda z, y: y.mean(), lambda z, y: z.mean(), lambda z, y: -F.mse_loss(z, y)])
def test_a_loss_without_curvature_above_0_has_no_unit(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert unit_of(loss) is None


def test_outputs_that_do_not_vary_have_no_unit() -> None:
    assert unit_of(F.mse_loss, torch.full((8,), 3.0)) is None


def test_a_loss_may_change_its_outputs_in_place() -> None:
    def loss(outputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        outputs["minutes"] /= 10
        outputs["minutes"] = outputs["minutes"] - 2
        return F.mse_loss(outputs.pop("minutes"), labels)

    batches = [({"minutes": torch.arange(6.0)}, torch.zeros(6))]
    with torch.no_grad():
        found = label_unit(batches, lambda of: of["minutes"], loss)  # type: ignore[index, arg-type]
    assert found == pytest.approx(10.0) and batches[0][0]["minutes"].tolist() == list(range(6))


def test_what_a_loss_draws_at_random_is_the_same_whenever_and_no_one_elses() -> None:
    torch.manual_seed(1)
    first, state = unit_of(lambda z, y: F.mse_loss(F.dropout(z, 0.5), y)), torch.random.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's numbers go on as if nothing was drawn"
    torch.manual_seed(2)
    assert unit_of(lambda z, y: F.mse_loss(F.dropout(z, 0.5), y)) == first
    assert first == pytest.approx(math.sqrt(0.5), rel=0.2), "half of the rows, twice as large, count four times"


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_outputs_of_half_precision_have_the_unit_of_single(kind: torch.dtype) -> None:
    values = torch.linspace(200, 400, 64).to(kind)
    found = unit_of(lambda z, y: F.mse_loss(z.float(), y), values)
    assert found == pytest.approx(1.0, rel=0.02)


def test_a_batch_without_a_finite_gradient_is_left_out() -> None:
    batches = [(torch.arange(6.0), torch.full((6,), math.nan)), (torch.arange(6.0), torch.zeros(6))]
    with torch.no_grad():
        found = label_unit(batches, lambda of: of, F.mse_loss)  # type: ignore[arg-type, return-value]
        assert label_unit([(torch.arange(6), torch.zeros(6))], lambda of: of, F.mse_loss) is None  # type: ignore[arg-type, return-value]
    assert found == pytest.approx(1.0)


def test_the_outputs_stay_as_they_are() -> None:
    """They may be tensors of the model's own."""
    own, labels = torch.arange(6.0), torch.zeros(6)
    with torch.no_grad():
        assert label_unit([(own, labels)], lambda of: of, F.mse_loss) == pytest.approx(1.0)  # type: ignore[arg-type, return-value]
        assert label_unit([(own[:1].expand(6), labels)], lambda of: of, F.mse_loss) is None  # type: ignore[arg-type, return-value]
    assert own.tolist() == list(range(6)) and not own.requires_grad
