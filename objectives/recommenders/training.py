"""Common part of the built-in recommenders: their settings, and the training of a baseline, once for each cache."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from objectives.recommenders.protocol import Recommender
from objectives.store import make_once
from objectives.task import Task
from objectives.training_rows import Inputs
from spaces.serialization import digest

M = TypeVar("M", bound=nn.Module)
Progress = Callable[[str], None]
# Inputs by name, (rows, ...) each, and labels.
Labelled = tuple[Inputs, Tensor]
# About the batches that a pass over train is divided into, within the bounds of a family: a training of a few hundred
# steps in all ends before it has converged (tests/benchmarks/RESULTS.md, batches of smaller models).
_BATCHES_PER_PASS = 256


@dataclass(frozen=True, eq=False)
class Baseline(Generic[M]):
    """Model in evaluation mode, facts of its training, and its key."""

    model: M
    training: Mapping[str, object]
    key: str


@dataclass(frozen=True, eq=False)
class BuiltIn(Recommender, Generic[M]):
    """Recommender with a baseline that leanrec trains; what it lacks of `Recommender` depends on the family."""

    task: Task
    baseline: Baseline[M]
    custom_metric: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ()
    built: ClassVar[bool] = True

    @property
    def key(self) -> str:
        return self.baseline.key

    @property
    def model(self) -> M:
        return self.baseline.model

    @property
    def metric(self) -> str:
        return self.task.metric

    def scores(self, outputs: object) -> Tensor:
        assert isinstance(outputs, Tensor)
        return outputs


def student_batch(rows: int, least: int, most: int) -> int:
    """Return the batch size for smaller models: a 256th of train, within bounds.

    Args:
        rows: of train
        least, most: rows of a batch
    """
    return max(least, min(most, rows // _BATCHES_PER_PASS))


@dataclass(frozen=True)
class Trained:
    """Result of a training.

    best_epoch: from 0
    history: the validation metric after each epoch
    passes: over train in an epoch
    """

    best_epoch: int
    history: tuple[float, ...]
    seconds: float
    passes: int = 1


def train_to_optimum(
    model: nn.Module,
    loss: Callable[[nn.Module, Inputs, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    batches: Callable[[], Iterable[Labelled]],
    validate: Callable[[nn.Module], float],
    passes: int = 1,
    patience: int = 2,
    reductions: int = 2,
    most_epochs: int = 100,
    progress: Callable[[str], None] = lambda line: None,
) -> Trained:
    """Train in place until validation no longer improves, and leave the best weights in the model.

    After `patience` epochs without an improvement the best weights are restored and the learning rate is divided by
    ten; after `reductions` such divisions training ends (the schedule of the FuxiCTR library, with which BARS was run).

    Args:
        batches: gives the batches of one pass over train
        passes: over train in an epoch, between two validations
    """
    start = time.monotonic()
    best, best_epoch, history = float("-inf"), -1, list[float]()
    kept = copy.deepcopy(model.state_dict())
    waited = fallen = 0
    for epoch in range(most_epochs):
        model.train()
        for inputs, labels in chain.from_iterable(batches() for _ in range(passes)):
            optimizer.zero_grad(set_to_none=True)
            loss(model, inputs, labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        history.append(validate(model))
        progress(f"baseline: epoch {epoch + 1}, validation {history[-1]:.4f}, {time.monotonic() - start:.0f} s")
        if history[-1] > best:
            best, best_epoch, waited = history[-1], epoch, 0
            kept = copy.deepcopy(model.state_dict())
            continue
        waited += 1
        if waited < patience:
            continue
        if fallen == reductions:
            break
        fallen, waited = fallen + 1, 0
        model.load_state_dict(kept)
        for settings in optimizer.param_groups:
            settings["lr"] *= 0.1
    model.load_state_dict(kept)
    model.eval()
    return Trained(best_epoch, tuple(history), time.monotonic() - start, passes)


def open_baseline(
    task: Task, data: str, rules: object, build: Callable[[], M], train: Callable[[M], Trained]
) -> Baseline[M]:
    """Load the baseline from the cache, else build and train it; in a dry run, leave it untrained.

    Args:
        data: hash of the data
        rules: all else, besides recommender and seed, that the trained weights depend on
    """
    key = digest(task.recommender, data, rules, task.seed, torch.__version__)[:20]
    folder = task.cache / "baselines" / key

    def make(into: Path) -> None:
        torch.manual_seed(task.seed)
        fresh = build()
        facts = asdict(train(fresh))
        torch.save(fresh.state_dict(), into / "state.pt")
        (into / "training.json").write_text(json.dumps(facts))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        model = build().eval()
    if task.dry_run:
        return Baseline(model, {}, f"{key}-untrained")
    make_once(folder, make)
    model.load_state_dict(torch.load(folder / "state.pt", weights_only=True))
    return Baseline(model, json.loads((folder / "training.json").read_text()), key)
