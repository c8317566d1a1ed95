"""Two towers whose catalogue is scored as a whole go through every stage of a builder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.build.evaluate import evaluate
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.onnx_graph import load_graph
from objectives.recommenders.user_model import load as opening
from objectives.task import Task
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.build_tests import staged
from tests.build_tests.staged import Form

USERS, ITEMS, ROWS = 40, 60, 20


class Towers(nn.Module):
    """A user's vector by two layers, multiplied with an item's, and the item's bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item, self.bias = nn.Embedding(USERS, 16), nn.Embedding(ITEMS, 8), nn.Embedding(ITEMS, 1)
        self.tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        scores: Tensor = (self.tower(self.user(user)) * self.item(item)).sum(1) + self.bias(item).squeeze(1)
        return scores


def _rows(count: int, seed: int, user: int | None = None) -> dict[str, Tensor]:
    random = np.random.default_rng(seed)
    users = random.integers(0, USERS, count) if user is None else np.full(count, user)
    return {"user": torch.from_numpy(users), "item": torch.from_numpy(random.integers(0, ITEMS, count))}


class Shop:
    """A factory of two towers, whose requests have a third of the items."""

    name, metric = "shop", "auc"

    def __init__(self) -> None:
        self.model: nn.Module = Towers().eval()

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        for number in range(3):
            inputs = _rows(80, number)
            yield inputs, (torch.arange(80) % 2).float(), inputs["user"]

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        for number in range(30):
            yield {name: values.numpy() for name, values in _rows(ROWS, number, number).items()}


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(opening, "load_factory", lambda spec, _: Shop)
    return Task(str(tmp_path), "shop:factory", "", "", 200, 0.6, 1000, 0)


def _silent(line: str) -> None:
    """Report no progress."""


@pytest.mark.parametrize("width", ["fp32", "int8-static", "int4"])
def test_two_towers_score_the_catalogue_in_every_width_of_their_layers(task: Task, width: str) -> None:
    found = staged.prepare(task, _silent)
    assert (found.user_once_refused, found.catalogue_refused) == (None, None)
    (tower,) = (group.name for group in found.structure.groups if group.kind == "linear")
    precision = Precision(((tower, width),))
    plain, _ = staged.export(task, Weights(), precision, Form(), _silent)
    scored, _ = staged.export(task, Weights(), precision, Form(user_once=True, score_catalogue=True), _silent)
    assert scored.key != plain.key and scored.widths[tower] == width
    graph = load_graph(Path(task.home) / scored.path).graph
    assert [node.op_type for node in graph].count("GatherElements") == 1
    if width == "fp32":
        assert scored.parity < 1e-5
    placement = Placement(InstanceGroup(threads=1), user_once=True, score_catalogue=True)
    ours = Deployment(scored, str(Path(task.home) / scored.path), placement, "fp32")
    theirs = Deployment(plain, str(Path(task.home) / plain.path), Placement(), "fp32")
    response = evaluate(
        EvaluateRequest(ScoreRequest(ours, theirs, str(task.cache), found.holdout, "validation"), "auc", 0, 0.95)
    )
    assert response.quality.loss == pytest.approx(0.0, abs=1e-3 if width == "fp32" else 0.02)
