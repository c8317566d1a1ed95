"""The convergence check tells a baseline that could still learn from one that could not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.build.baseline_checks import convergence_check
from objectives.recommenders.user_model import load as opening
from objectives.recommenders.user_model.load import open_user_model
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.task import Task


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, numbers: Tensor) -> Tensor:
        return self.layer(numbers).squeeze(1)


class Given:
    """Clicks by a logistic law of the numbers."""

    name, metric = "logistic", "auc"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = Net()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Any]]:
        random = np.random.default_rng(len(split))
        for _ in range(20):
            numbers = random.normal(size=(100, 6)).astype(np.float32)
            chance = 1 / (1 + np.exp(-numbers @ np.array([2.0, -2, 1, 0, 0, 1])))
            labels = (random.random(100) < chance).astype(np.float32)
            yield {"numbers": torch.from_numpy(numbers)}, torch.from_numpy(labels), random.integers(50, size=100)

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        yield {"numbers": np.zeros((4, 6), dtype=np.float32)}

    def optimizer(self, parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.5)


def _opened(given: Given, monkeypatch: pytest.MonkeyPatch) -> UserRecommender:
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: given)
    return open_user_model(Task("home", "x:factory", "", "", 200, 0.6, 1000, 0), lambda line: None)


def test_an_untrained_baseline_is_told_and_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given()
    before = [parameter.clone() for parameter in given.model.parameters()]
    found = convergence_check(_opened(given, monkeypatch), 0).improvement
    assert found is not None and re.search(r"auc by \d", found)
    assert all(torch.equal(a, b) for a, b in zip(before, given.model.parameters(), strict=True))


def test_a_trained_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given()
    with torch.no_grad():
        given.model.layer.weight.copy_(torch.tensor([[2.0, -2, 1, 0, 0, 1]]))  # type: ignore[union-attr, operator]
        given.model.layer.bias.zero_()  # type: ignore[union-attr, operator]
    assert convergence_check(_opened(given, monkeypatch), 0).improvement is None


def test_a_metric_of_ones_own_tells_too(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given()
    given.metric = lambda scores, labels, groups: float(np.mean((scores > 0) == (labels > 0)))  # type: ignore[assignment]
    found = convergence_check(_opened(given, monkeypatch), 0).improvement
    assert found is not None and "<lambda>" in found
