"""Distillation of real ratings under losses of several sizes: the teacher's share of the loss is the same in all.

    python tests/benchmarks/techniques/teacher_share.py [--seeds 5] [--passes 4]

A model of users and films predicts the ratings of MovieLens latest-small (the folder of LEANREC_TEST_DATA): the stars,
in units of which a star has 0.01, 1 or 100, by their squared error; or whether there are four or more, by a cross
entropy times 0.01, 1 and 1024 (as a sum over a batch has it). The first four fifths of each user's ratings by time are
train, the rest validation. Three quarters of its hidden units are pruned and the rest is trained again, from the labels
alone; with half the weight on the comparison with the teacher's outputs, as curved as the loss; and with this
comparison unweighted (for stars: divided by their variance). Printed: on validation the root mean squared error in
stars, or the mean cross entropy; the mean of the seeds and its standard error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from objectives.build.fit import fit
from objectives.build.model_structure import of_baseline
from objectives.recommenders.user_model import load as opening
from objectives.recommenders.user_model.load import open_user_model
from objectives.task import Task
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.weights import Weights

RATINGS = Path(os.environ.get("LEANREC_TEST_DATA", "../shared/data"), "movielens-latest-small", "ratings.csv")
_BATCH, _TEACHER_PASSES, _PRUNED = 1024, 6, 0.75


@cache
def ratings() -> dict[str, pl.DataFrame]:
    """Return the train and the validation rows: user, item and stars."""
    table = pl.read_csv(RATINGS).sort("userId", "timestamp")
    table = table.select(
        user=pl.col("userId").rank("dense").cast(pl.Int64) - 1,
        item=pl.col("movieId").rank("dense").cast(pl.Int64) - 1,
        stars=pl.col("rating").cast(pl.Float32),
        share=pl.int_range(pl.len()).over("userId") / pl.len().over("userId"),
    )
    return {"train": table.filter(pl.col("share") < 0.8), "validation": table.filter(pl.col("share") >= 0.8)}


@dataclass(frozen=True)
class Case:
    """Prediction task with its loss.

    likes: whether the model predicts, in logits, that there are four stars or more; else the stars
    unit: that a star has in outputs and labels
    factor: of the loss
    """

    name: str
    likes: bool
    unit: float = 1.0
    factor: float = 1.0

    def labels(self, stars: Tensor) -> Tensor:
        return (stars >= 4).float() if self.likes else self.unit * stars

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        of = F.binary_cross_entropy_with_logits if self.likes else F.mse_loss
        return self.factor * of(outputs, labels)

    def error(self, outputs: Tensor, labels: Tensor) -> float:
        """Return the mean cross entropy, or the root mean squared error in stars."""
        whole = float(self.loss(outputs, labels)) / self.factor
        return whole if self.likes else whole**0.5 / self.unit


CASES = (
    Case("a star is 0.01", likes=False, unit=0.01),
    Case("a star is 1", likes=False),
    Case("a star is 100", likes=False, unit=100.0),
    Case("0.01 times the cross entropy", likes=True, factor=0.01),
    Case("the cross entropy", likes=True),
    Case("1024 times the cross entropy", likes=True, factor=1024.0),
)


class Predictor(nn.Module):
    def __init__(self, case: Case) -> None:
        super().__init__()
        rows = pl.concat(ratings().values())
        self.user, self.item = (nn.Embedding(rows[name].n_unique(), 32) for name in ("user", "item"))
        self.tower = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
        self.unit, self.middle = case.unit, 0.0 if case.likes else 3.5
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        vectors = torch.cat([self.user(user), self.item(item)], 1)
        found: Tensor = self.unit * (self.middle + self.tower(vectors).squeeze(1))
        return found


class Ratings:
    """Factory of a case, with a trained model."""

    name = "ratings"

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        self.case, self.loss, self.model = case, case.loss, Predictor(case)
        optimizer, rows = torch.optim.AdamW(self.model.parameters(), lr=1e-3), list(self.batches("train"))
        for _ in range(_TEACHER_PASSES):
            for at in torch.randperm(len(rows)).tolist():
                optimizer.zero_grad()
                self.loss(self.model(**rows[at][0]), rows[at][1]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    @staticmethod
    def metric(scores: Any, labels: Any, groups: Any) -> float:
        return -float(((scores - labels) ** 2).mean())

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        rows = ratings()["train" if split == "train" else "validation"]
        rows = rows.sample(fraction=1.0, shuffle=True, seed=0) if split == "train" else rows
        for part in rows.iter_slices(_BATCH):
            user, item, stars = (torch.from_numpy(part[name].to_numpy(writable=True)) for name in rows.columns[:3])
            yield {"user": user, "item": item}, self.case.labels(stars), user

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        for user in range(100):
            yield {"user": np.full(200, user), "item": np.arange(200)}

    def error(self, model: nn.Module) -> float:
        """Return the error on validation."""
        with torch.inference_mode():
            parts = [(model(**inputs), labels) for inputs, labels, _ in self.batches("validation")]
            outputs, labels = (torch.cat(columns) for columns in zip(*parts, strict=True))
            return self.case.error(outputs, labels)


def compare(case: Case, seeds: int, passes: int) -> None:
    """Train the pruned model of a case by each teacher, and print its errors."""
    given = Ratings(case)
    with tempfile.TemporaryDirectory() as home, patch.object(opening, "load_factory", lambda *_: lambda: given):
        recommender = open_user_model(Task(home, "ratings:factory", "", "", 200, 0.6, 1000, 0), lambda line: None)
    (kind,) = recommender.output_kinds
    with torch.inference_mode():
        variance = float(torch.cat([given.model(**inputs) for inputs, *_ in given.batches("train")]).var())
    groups = [group.name for group in of_baseline(recommender).structure.groups if group.prunable]
    pruning = Pruning(tuple((group, _PRUNED) for group in groups))
    own = given.error(given.model)
    print(f"{case.name}: {kind.scale} of weight {kind.weight:.4g}, the teacher's error is {own:.4f}")
    for name, share, weight in (
        ("labels alone", 0.0, kind.weight),
        ("teacher, as curved as the loss", 0.5, kind.weight),
        ("teacher, unweighted", 0.5, 1.0 if case.likes else 1 / variance),
    ):
        recommender.__dict__["output_kinds"] = (replace(kind, weight=weight),)
        weights = Weights(pruning=pruning, distillation=Distillation(1.0, share, passes))
        found = [given.error(fit(recommender, weights, seed, lambda line: None).model) for seed in range(seeds)]
        deviation = np.std(found, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        print(f"  {name}: {np.mean(found):.4f}, {deviation:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--passes", type=int, default=4)
    options = parser.parse_args()
    for case in CASES:
        compare(case, options.seeds, options.passes)


if __name__ == "__main__":
    main()
