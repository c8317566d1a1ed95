"""Distillation of a regression of real ratings in several units: the teacher's share of the loss is the same in all.

    python tests/benchmarks/techniques/values.py [--seeds 5] [--units 0.01,1,100] [--passes 4]

A model of users and films predicts the ratings of MovieLens latest-small (the folder of LEANREC_TEST_DATA), in stars or
in a unit of which a star has so many. The first four fifths of each user's ratings by time are train, the rest
validation. Three quarters of its hidden units are pruned and the rest is trained again, from the labels alone, and with
half the weight on the teacher's outputs, whose squared distance is as curved as the user's loss, or is in units of
their own standard deviation. Printed: the root mean squared error in stars, the mean of the seeds and its standard
error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
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


class Regression(nn.Module):
    def __init__(self, unit: float) -> None:
        super().__init__()
        rows = pl.concat(ratings().values())
        self.user, self.item = (nn.Embedding(rows[name].n_unique(), 32) for name in ("user", "item"))
        self.tower = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))
        self.unit = unit
        for table in (self.user, self.item):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        found: Tensor = self.unit * (3.5 + self.tower(torch.cat([self.user(user), self.item(item)], 1)).squeeze(1))
        return found


class Ratings:
    """Factory of the regression, with a trained model."""

    name = "ratings"

    def __init__(self, unit: float) -> None:
        torch.manual_seed(0)
        self.unit, self.model = unit, Regression(unit)
        optimizer, rows = torch.optim.AdamW(self.model.parameters(), lr=1e-3), list(self.batches("train"))
        for _ in range(_TEACHER_PASSES):
            for at in torch.randperm(len(rows)).tolist():
                optimizer.zero_grad()
                self.loss(self.model(**rows[at][0]), rows[at][1]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()

    @staticmethod
    def metric(scores: Any, labels: Any, groups: Any) -> float:
        return -float(((scores - labels) ** 2).mean())

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return F.mse_loss(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        rows = ratings()["train" if split == "train" else "validation"]
        rows = rows.sample(fraction=1.0, shuffle=True, seed=0) if split == "train" else rows
        for part in rows.iter_slices(_BATCH):
            user, item, stars = (torch.from_numpy(part[name].to_numpy(writable=True)) for name in rows.columns[:3])
            yield {"user": user, "item": item}, self.unit * stars, user

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        for user in range(100):
            yield {"user": np.full(200, user), "item": np.arange(200)}


def error(model: nn.Module, given: Ratings) -> float:
    """Return the root mean squared error on validation, in stars."""
    with torch.inference_mode():
        parts = [
            ((model(**inputs) - labels) / given.unit).square() for inputs, labels, _ in given.batches("validation")
        ]
    return float(torch.cat(parts).mean().sqrt())


def compare(unit: float, seeds: int, passes: int) -> None:
    """Train the pruned model in a unit by each teacher, and print its errors."""
    given = Ratings(unit)
    with tempfile.TemporaryDirectory() as home, patch.object(opening, "load_factory", lambda *_: lambda: given):
        recommender = open_user_model(Task(home, "ratings:factory", "", "", 200, 0.6, 1000, 0), lambda line: None)
    (kind,) = recommender.output_kinds
    with torch.inference_mode():
        spread = float(torch.cat([given.model(**inputs) for inputs, *_ in given.batches("train")]).std())
    groups = [group.name for group in of_baseline(recommender).structure.groups if group.prunable]
    pruning = Pruning(tuple((group, _PRUNED) for group in groups))
    print(f"a star is {unit:g}: the teacher errs by {error(given.model, given):.4f} stars; weight {kind.weight:.4g}")
    for name, share, weight in (
        ("labels alone", 0.0, kind.weight),
        ("teacher, by the curvature of the loss", 0.5, kind.weight),
        ("teacher, by the deviation", 0.5, spread**-2),
    ):
        recommender.__dict__["output_kinds"] = (replace(kind, weight=weight),)
        weights = Weights(pruning=pruning, distillation=Distillation(1.0, share, passes))
        found = [error(fit(recommender, weights, seed, lambda line: None).model, given) for seed in range(seeds)]
        deviation = np.std(found, ddof=1) / np.sqrt(seeds) if seeds > 1 else np.nan
        print(f"  {name}: {np.mean(found):.4f}, {deviation:.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--units", default="0.01,1,100")
    parser.add_argument("--passes", type=int, default=4)
    options = parser.parse_args()
    for unit in map(float, options.units.split(",")):
        compare(unit, options.seeds, options.passes)


if __name__ == "__main__":
    main()
