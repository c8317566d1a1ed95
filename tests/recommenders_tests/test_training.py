"""The schedule of a baseline's training, on a model of one weight.

Each epoch takes a learning rate off the weight, and validation answers as it is told to.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from objectives.recommenders.training import Trained, student_batch, train_to_optimum


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))


def _trained(answers: Iterable[float], **schedule: int) -> tuple[Trained, float, list[float], list[float]]:
    """Train; return the record, the weight that is left, and the rate and weight before each look at validation."""
    model, told = Weight(), iter(answers)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    rates: list[float] = []
    weights: list[float] = []

    def loss(of: nn.Module, inputs: dict[str, Tensor], labels: Tensor) -> Tensor:
        assert of.training
        return of.value * 1.0  # type: ignore[return-value]

    def validate(of: nn.Module) -> float:
        rates.append(optimizer.param_groups[0]["lr"])
        weights.append(of.value.item())  # type: ignore[union-attr, operator]
        return next(told)

    trained = train_to_optimum(
        model, loss, optimizer, lambda: [({}, torch.zeros(0))], validate, progress=lambda line: None, **schedule
    )
    assert not model.training
    return trained, model.value.item(), rates, weights


def test_the_best_weights_come_back_at_each_fall_of_the_rate_and_stay_in_the_end() -> None:
    """Two epochs without a gain, and the best weights go on at a tenth of the rate, twice; the third time it ends."""
    answers = [0.5, 0.6, 0.55, 0.58, 0.59, 0.57, 0.61, 0.6, 0.6]
    trained, left, rates, weights = _trained(answers)
    assert trained.history == tuple(answers)
    assert (max(trained.history), trained.best_epoch) == (0.61, 6)
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.01])
    assert weights == pytest.approx([-1, -2, -3, -4, -2.1, -2.2, -2.01, -2.02, -2.03])
    assert left == pytest.approx(-2.01)


def test_an_equal_epoch_is_no_gain() -> None:
    trained, left, rates, _ = _trained([0.7] * 7)
    assert (trained.best_epoch, len(trained.history), left) == (0, 7, -1.0)
    assert rates == pytest.approx([1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_gain_begins_the_waiting_anew() -> None:
    trained, left, rates, _ = _trained([0.1, 0.0, 0.2, 0.0, 0.3, 0.0, 0.0], reductions=0)
    assert (max(trained.history), trained.best_epoch, left) == (0.3, 4, -5.0)
    assert rates == [1.0] * 7


def test_it_ends_at_the_most_epochs_with_the_best_of_them() -> None:
    trained, left, _, _ = _trained([0.1, 0.3, 0.2], most_epochs=3)
    assert (max(trained.history), len(trained.history), left) == (0.3, 3, -2.0)


def test_an_epoch_of_several_passes_takes_the_batches_of_each() -> None:
    trained, left, _, weights = _trained([0.1, 0.3], passes=3, most_epochs=2)
    assert weights == pytest.approx([-3, -6])
    assert (trained.passes, left) == (3, -6.0)


@pytest.mark.parametrize(("rows", "batch"), [(600, 256), (65_536, 256), (81_108, 316), (262_144, 1024), (10**7, 1024)])
def test_smaller_models_learn_in_batches_of_a_256th_of_train_within_bounds(rows: int, batch: int) -> None:
    assert student_batch(rows, 256, 1024) == batch
