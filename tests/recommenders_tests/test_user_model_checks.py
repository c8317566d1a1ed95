"""Mistakes in a user's model or loss that raise no error are reported, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.recommenders.user_model import load as opening
from objectives.recommenders.user_model.checks import model_warnings
from objectives.recommenders.user_model.factory import FactoryError
from objectives.recommenders.user_model.load import open_user_model
from objectives.task import Task

Loss = Callable[[Tensor, Tensor], Tensor]


class Ranker(nn.Module):
    def __init__(self, probabilities: bool = False, column: bool = False) -> None:
        super().__init__()
        self.item = nn.Embedding(20, 4)
        self.tower = nn.Linear(4, 1)
        self.probabilities, self.column = probabilities, column

    def forward(self, item: Tensor) -> Tensor:
        scores: Tensor = 10 * self.tower(self.item(item))
        scores = torch.sigmoid(scores) if self.probabilities else scores
        return scores if self.column else scores.squeeze(1)


class Given:
    name, metric = "given", "auc"

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self.model, self.loss = model, loss

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        random = torch.Generator().manual_seed(len(split))
        item = torch.randint(20, (200,), generator=random)
        yield {"item": item}, torch.randint(2, (200,), generator=random).float(), item % 7

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        return ({"item": np.arange(size)} for size in (3, 5))


def told(model: nn.Module, loss: Loss, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: Given(model, loss))
    task = Task("home", "given:factory", "", "", 200, 0.6, 1000, 0)
    return model_warnings(open_user_model(task, lambda line: None), 0)


def test_shapes_that_nothing_builds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    given = Given(Ranker(), logits)
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: given)
    task = Task("home", "given:factory", "", "", 200, 0.6, 1000, 0)
    assert model_warnings(open_user_model(task, lambda line: None), 0) == ()
    given.shapes = {"width": [2]}  # type: ignore[attr-defined]
    (line,) = model_warnings(open_user_model(task, lambda line: None), 0)
    assert "shapes is not used without build(shape)" in line


def local() -> nn.Module:
    class Local(Ranker):
        pass

    return Local()


def hooked() -> nn.Module:
    model = Ranker()
    model.tower.register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def holding() -> nn.Module:
    model = Ranker()
    model.act = lambda values: values  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("make", [local, hooked, holding])
def test_a_model_that_could_not_be_saved_once_it_is_trained_is_refused(
    make: Callable[[], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FactoryError, match=r"given: model must be a model that torch\.save can"):
        told(make(), logits, monkeypatch)
    monkeypatch.setattr(Given, "shapes", {"width": [2]}, raising=False)
    monkeypatch.setattr(Given, "build", lambda given, shape: make(), raising=False)
    with pytest.raises(FactoryError, match=r"given: build\({'width': 2}\) must be a model that torch\.save can"):
        told(Ranker(), logits, monkeypatch)


def logits(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, labels)


def probabilities(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy(outputs, labels)


def added(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(outputs, labels, reduction="sum")


def pairs(outputs: Tensor, labels: Tensor) -> Tensor:
    """Each even row beside the odd one that follows it."""
    return F.softplus(outputs[1::2] - outputs[::2]).mean()


def broadcast(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square().mean()


def noisy(outputs: Tensor, labels: Tensor) -> Tensor:
    return logits(outputs + torch.randn_like(outputs), labels)


@pytest.mark.parametrize(
    ("model", "loss", "word"),
    [
        (Ranker(), logits, None),
        (Ranker(probabilities=True), probabilities, None),
        (Ranker(column=True), lambda outputs, labels: logits(outputs.squeeze(1), labels), None),
        (Ranker(), noisy, None),
        (Ranker(), added, "adds up"),
        (Ranker(), pairs, "neighbouring rows"),
        (Ranker(column=True), broadcast, "broadcast"),
        (Ranker(probabilities=True), logits, "logits"),
    ],
    ids=["logits", "probabilities", "a column", "noisy", "a sum", "pairs", "broadcast", "mistaken for logits"],
)
def test_a_loss_that_is_not_what_training_takes_it_for_is_told(
    model: nn.Module, loss: Loss, word: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = told(model, loss, monkeypatch)
    assert len(lines) == (word is not None) and all(word is not None and word in line for line in lines)


def test_a_loss_that_reads_the_factorys_own_weights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Ranker()

    def regularised(outputs: Tensor, labels: Tensor) -> Tensor:
        return logits(outputs, labels) + 1e-4 * model.item.weight.square().mean()

    (line,) = told(model, regularised, monkeypatch)
    assert "weight_decay" in line


@pytest.mark.parametrize(("padding", "zeros", "lines"), [(None, 1, 1), (0, 1, 0), (None, 0, 0), (None, 3, 0)])
def test_a_row_of_padding_that_training_would_change_is_told(
    padding: int | None, zeros: int, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several rows of zeros are ids that nobody has learned."""
    model = Ranker()
    model.item = nn.Embedding(20, 4, padding_idx=padding)
    with torch.no_grad():
        model.item.weight[:zeros] = 0
    found = told(model, logits, monkeypatch)
    assert len(found) == lines and all("row 0 of item" in line and "padding_idx=0" in line for line in found)
