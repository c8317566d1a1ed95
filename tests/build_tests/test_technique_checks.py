"""Techniques that a model cannot take never enter its space and are listed with a reason; all others are offered."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from objectives.serving.devices import int8_weight_bits
from objectives.task import Task
from search.config.defaults import space_for
from search.config.space_sections import SpaceConfig
from search.errors import ConfigError
from spaces.techniques.quantization import LINEAR_WIDTHS
from tests.compression_tests.composing import Shop, brief_training, told, walk

CORNERS = """
import numpy as np, torch
from torch import nn
from torch.nn import functional as F

class Scaled(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 4

class Folded(nn.Embedding):
    "Its rows times 4: the exported graph holds the product."
    def forward(self, ids):
        return F.embedding(ids, self.weight * 4)

class Doubled(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight * 2, self.bias)

class Masked(nn.Linear):
    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.register_buffer("mask", (torch.rand(outputs, inputs) < 0.5).float())

    def forward(self, x):
        return F.linear(x, self.weight * self.mask, self.bias)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(500, 16), nn.Embedding(400, 16)
        self.scaled, self.folded = Scaled(300, 16), Folded(300, 16)
        self.gate = Doubled(16, 16)
        self.masked = nn.Sequential(Masked(48, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.tower = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Linear(32, 1)

    def forward(self, user, item, kind):
        u, i = self.user(user), self.item(item)
        likeness = i @ self.item.weight[:4].t()
        u = u * torch.sigmoid(self.gate(u))
        x = torch.cat([u, i, self.scaled(kind) + self.folded(kind)], 1)
        return self.head(self.tower(self.masked(x))).squeeze(1) + likeness.sum(1)

class Bagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.EmbeddingBag(300, 16, mode="sum")
        self.tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, item):
        return self.tower(self.words(item)).squeeze(1)

class Shop:
    name, metric = "corners", "auc"

    def __init__(self, model, codes):
        torch.manual_seed(0)
        self.model, self.codes = model(), codes

    def loss(self, outputs, labels):
        return F.binary_cross_entropy_with_logits(outputs, labels)

    def inputs(self, random, rows):
        # Low codes are looked up most, so that dimensions can be mixed.
        shape = {"item": (rows, 3)} if len(self.codes) == 1 else {}
        return {
            n: (random.random(shape.get(n, rows)) ** 4 * size).astype(np.int64) for n, size in self.codes.items()
        }

    def batches(self, split):
        for number in range({"train": 6, "validation": 4, "test": 4}[split]):
            random = np.random.default_rng([number, len(split)])
            inputs = {n: torch.from_numpy(values) for n, values in self.inputs(random, 128).items()}
            first = next(iter(inputs.values())).reshape(128, -1)[:, 0]
            yield inputs, (first % 2).float(), torch.arange(128) % 8

    def requests(self, seed):
        random = np.random.default_rng(seed)
        for _ in range(20):
            given = self.inputs(random, int(random.integers(5, 30)))
            yield given

def factory():
    return Shop(Net, {"user": 500, "item": 400, "kind": 300})

def bagged():
    return Shop(Bagged, {"item": 300})
"""
FORMS = ("quotient-remainder", "mixed-dimensions")
CONFIG = {"distillation": {"epochs": 1}, "precision": {"calibration": ["minmax"]}}


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Shop]]:
    home = tmp_path_factory.mktemp("corners")
    (home / "corner_shop.py").write_text(CORNERS)
    with pytest.MonkeyPatch.context() as patch, brief_training():
        patch.chdir(home)
        patch.setattr(sys, "path", [*sys.path, str(home)])
        task = Task(str(home), "corner_shop:factory", "", "", 20, 0.6, 60, 0, int8_weight_bits=int8_weight_bits())
        yield lambda factory: Shop.open(replace(task, recommender=f"corner_shop:{factory}"), CONFIG)


@pytest.fixture(scope="module")
def shop(shops: Callable[[str], Shop]) -> Shop:
    return shops("factory")


def test_what_prepare_saw_fail_is_left_alone_with_its_reason(shop: Shop) -> None:
    alone = _reasons(shop)
    for form in FORMS:
        assert "AttributeError" in alone["item", form]
        for own in ("scaled", "folded"):
            assert "other answers" in alone[own, form]
        assert ("user", form) not in alone
    for group in ("gate", "masked"):
        assert "other answers" in alone[group, "low rank"]
    assert ("tower", "low rank") not in alone
    for width in LINEAR_WIDTHS[1:]:
        assert alone["gate", width].startswith("WidthError"), "nothing of it is in the graph by its name"
        assert "graph" in alone["masked.0", width], "the other layer of its group is there"
        assert not {("masked", width), ("tower", width)} & alone.keys()
    assert alone["folded", "int8"].startswith("WidthError")


def _reasons(shop: Shop) -> dict[tuple[str, str], str]:
    """Reasons by part and technique, as `left_alone` lists them: `part (technique, technique)`."""
    told = ((*name.rstrip(")").partition(" ("), reason) for name, reason in shop.prepared.left_alone.items())
    return {(part, one): reason for part, _, techniques, reason in told for one in techniques.split(", ")}


def test_a_bag_keeps_its_rows(shops: Callable[[str], Shop]) -> None:
    bagged = shops("bagged")
    assert all("EmbeddingBag" in _reasons(bagged)["words", form] for form in FORMS)
    assert not bagged.space.weights.tables


def test_nothing_that_failed_enters_the_space(shop: Shop) -> None:
    weights, widths = shop.space.weights, shop.space.precision.widths
    assert set(weights.tables) == {"user"} and weights.tables["user"].form.values == ("full", *FORMS)
    assert set(weights.low_rank) == {"tower"} and {"masked", "tower"} <= set(weights.pruning)
    assert widths["gate"].values == widths["folded"].values == ("fp32",)
    assert widths["masked"].values == widths["tower"].values == LINEAR_WIDTHS
    assert set(widths["user"].values) == {"fp32", "fp16", "int8", "int4", "int2"}


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ({"precision": {"gate": ["fp32", "int4"]}}, r"space\.precision\.gate: .*int4"),
        ({"low_rank": {"masked": [1.0, 0.25]}}, r"space\.low_rank\.masked: .*tower"),
    ],
)
def test_a_study_that_asks_for_it_is_told(shop: Shop, asked: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        space_for(SpaceConfig.model_validate(asked), shop.prepared)


@pytest.mark.parametrize("number", range(2))
def test_what_enters_the_space_can_be_done(shop: Shop, number: int) -> None:
    candidate = shop.candidates(2, seed=3)[number]
    done = walk(shop, candidate)
    assert done.refusal is None and done.scores, told(candidate)
