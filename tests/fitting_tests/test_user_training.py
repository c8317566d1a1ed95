"""How a model of the user's own learns: from rows that are kept once, in batches of a stated size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.fitting import Fitted, fit
from objectives.recommenders.own import opening
from objectives.recommenders.own.opening import open_own
from objectives.recommenders.own.recommender import OwnRecommender
from objectives.task import Task
from spaces.architecture import Architecture
from spaces.distillation import Distillation
from spaces.pruning import Pruning
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
    """Train comes in batches of `size` rows; the rows are the same whatever it is."""

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


def opened(given: Any, home: Path, monkeypatch: pytest.MonkeyPatch, **task: Any) -> OwnRecommender:
    monkeypatch.setattr(opening, "load_factory", lambda spec, folder: lambda: given)
    return open_own(Task(str(home), "mine:factory", "", "", 200, 0.6, 1000, 0, **task), lambda line: None)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def _quiet(line: str) -> None:
    pass


# -- a sibling that is not all its own


class Sibling(Ranker):
    """The teacher's tables, its last layer under another name, and, where told, whatever it has in a frozen state."""

    def __init__(self, teacher: Ranker, width: int, frozen: bool) -> None:
        super().__init__(width)
        self.user, self.item = teacher.user, teacher.item
        self.extra = teacher.tower[0]
        if frozen:
            self.item.requires_grad_(False)


class Sharing(Shop):
    shapes = {"width": [4, 8]}

    def __init__(self, frozen: bool = False, anew: bool = True) -> None:
        super().__init__()
        self.frozen, self.anew, self.made = frozen, anew, dict[int, nn.Module]()

    def build(self, shape: dict[str, int]) -> nn.Module:
        teacher, width = self.model, shape["width"]
        assert isinstance(teacher, Ranker)
        if self.anew or width not in self.made:
            torch.manual_seed(width)
            self.made[width] = Sibling(teacher, width, self.frozen)
        return self.made[width]


def _student(found: OwnRecommender, width: int = 4) -> Fitted:
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
