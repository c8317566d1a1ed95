"""Random candidates through every stage: fitted in a step or two, exported, opened as they are placed, and run."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import optuna
import polars as pl
from numpy.typing import NDArray

from objectives.build.fit import Fitted
from objectives.build.stages.opened import open_once
from objectives.build.stages.weights import fitted_weights
from objectives.held_out_rows import read_requests
from objectives.jobs.protocol import Progress
from objectives.recommenders.datasets.synthetic import synthetic_log
from objectives.recommenders.load import open_recommender
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.training import train_to_optimum
from objectives.records import Artifact, Prepared
from objectives.serving.pool import Pool
from objectives.task import Task
from objectives.training_rows import Block, TrainingRows, over_labels
from search.config.defaults import space_for
from search.config.space_sections import SpaceConfig
from spaces.candidate import Candidate
from spaces.search_space import SearchSpace
from spaces.weights import Weights
from tests.build_tests import staged
from tests.build_tests.staged import Form
from tests.families_tests.mixed_fields import lively

Request = Mapping[str, NDArray[Any]]
LESSON_ROWS = 32
COLUMNS = {
    "label": "label", "timestamp": "timestamp", "user": "user", "item": "item", "categorical": ["hour"],
    "numeric": ["age"], "multi": ["tags"], "of_user": ["age"], "of_item": ["tags"],
}  # fmt: skip
# What a technique says that would leave its group as it is.
NOTHING_TO_GAIN = re.compile(r"nothing to gain|rounds to none")


class Brief:
    """A recommender whose epoch is one small batch; all else is the recommender's own."""

    def __init__(self, whole: Recommender) -> None:
        self._whole = whole

    def __getattr__(self, name: str) -> Any:
        return getattr(self._whole, name)

    def train_rows(self) -> TrainingRows:
        rows = self._whole.train_rows()
        inputs = {name: values[:LESSON_ROWS] for name, values in rows.blocks[0].inputs.items()}
        labels = over_labels(lambda values: values[:LESSON_ROWS], rows.blocks[0].labels)
        return replace(rows, blocks=(Block(inputs, labels),))


@contextmanager
def brief_training() -> Iterator[None]:
    """Recommenders are opened hardly trained within this context, with every part visible in the scores."""

    def opened(task: Task, progress: Progress) -> Brief:
        whole = open_recommender(task, progress)
        lively(whole.model)
        return Brief(whole)

    once_over = partial(train_to_optimum, most_epochs=1)
    with (
        patch("objectives.recommenders.families.pointwise.train_to_optimum", once_over),
        patch("objectives.recommenders.families.sequential.train_to_optimum", once_over),
        patch("objectives.build.stages.opened.open_recommender", opened),
    ):
        yield


def write_table(path: Path, rows: int, users: int, items: int) -> None:
    """A synthetic log as Parquet, with numbers and sets beside the categories."""
    log, random = synthetic_log(rows, users, items, fields=3), np.random.default_rng(0)
    assert log.user is not None and log.item is not None
    tags = [[f"t{tag}" for tag in random.choice(20, random.integers(1, 4), replace=False)] for _ in range(items)]
    table = {
        "user": log.user, "item": log.item, "timestamp": log.timestamp, "label": log.label, **log.columns,
        "age": random.normal(40, 9, users)[log.user], "tags": [tags[item] for item in log.item],
    }  # fmt: skip
    pl.DataFrame(table).write_parquet(path)


@dataclass(frozen=True)
class Shop:
    """A prepared recommender, its space, and requests of few rows and of many."""

    task: Task
    prepared: Prepared
    space: SearchSpace
    requests: tuple[Request, Request]

    @classmethod
    def open(cls, task: Task, config: Mapping[str, Any]) -> Shop:
        prepared = staged.prepare(task, _quiet)
        space = space_for(SpaceConfig.model_validate(config), prepared)
        by_rows = sorted(read_requests(Path(prepared.holdout)), key=lambda request: len(request["item"]))
        return cls(task, prepared, space, (by_rows[0], by_rows[-1]))

    def candidates(self, count: int, seed: int) -> list[Candidate]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
        return [self.space.suggest(study.ask()) for _ in range(count)]

    def fitted(self, weights: Weights) -> Fitted:
        """Fit by a builder's own stage and cache.

        Raises:
            ValueError: a technique cannot be applied, or would change nothing.
        """
        staged.fit(self.task, weights, _quiet)
        return fitted_weights(self.task, open_once(self.task, _quiet), weights)

    def model(self, artifact: Artifact) -> Path:
        return Path(self.task.home) / artifact.path


@dataclass(frozen=True)
class Walk:
    """The stages a candidate reached: the scores of each request, or a technique's refusal to change a group.

    seconds: by stage
    """

    candidate: Candidate
    seconds: Mapping[str, float]
    artifact: Artifact | None = None
    scores: tuple[NDArray[np.float32], ...] = ()
    refusal: str | None = None


def walk(shop: Shop, candidate: Candidate) -> Walk:
    """Run a candidate through every stage."""
    seconds: dict[str, float] = {}
    placement = candidate.placement
    try:
        with _clocked(seconds, "fit"):
            staged.fit(shop.task, candidate.weights, _quiet)
    except ValueError as error:
        structure = shop.prepared.structure
        parts = (*(group.name for group in structure.groups), *(table.name for table in structure.tables))
        if not NOTHING_TO_GAIN.search(str(error)) or not any(repr(part) in str(error) for part in parts):
            raise
        return Walk(candidate, seconds, refusal=str(error))
    with _clocked(seconds, "export"):
        form = Form.of(placement)
        artifact, _ = staged.export(shop.task, candidate.weights, candidate.precision, form, _quiet)
    with _clocked(seconds, "serve"), Pool.open(shop.model(artifact), placement, candidate.precision.compute) as pool:
        scores = tuple(pool.submit(request).result() for request in shop.requests)
    return Walk(candidate, seconds, artifact, scores)


def told(candidate: Candidate) -> str:
    """The candidate's choices, to be read beside a failure."""
    return json.dumps(candidate.knobs())


@contextmanager
def _clocked(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = time.monotonic() - start


def _quiet(line: str) -> None:
    pass
