"""Judge: what a model is worth on held-out rows, through the engine that will serve."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.arms import Arm, named
from objectives.measurement.quality import paired_quality, paired_ranking
from objectives.measurement.ranking import ranks
from objectives.record import Artifact, Quality
from objectives.serving.devices import engine_version
from objectives.serving.engines import Engine, open_replica
from objectives.store import make_once
from spaces.canonical import digest
from spaces.placement import Placement, Seat

_CHUNK_ROWS = 4096
_ITEM = "item"


@dataclass(frozen=True, eq=False)
class _HeldOut:
    """As a builder wrote it; of a ranking there are items, and what each user had seen of them."""

    inputs: Mapping[str, NDArray[Any]]
    labels: NDArray[Any]
    groups: NDArray[np.int64]
    slices: Mapping[str, NDArray[np.bool_]]
    seen: NDArray[np.int64] | None
    items: NDArray[np.int64] | None


def judge(
    cache: Path,
    holdout: Path,
    part: str,
    metric: str,
    candidate: tuple[Artifact, Arm],
    baseline: tuple[Artifact, Arm],
    seed: int,
    confidence: float,
) -> tuple[Quality, bool]:
    """Quality on held-out rows through the engine that will serve; and whether the scores were in the cache.

    Where requests are routed by size, the engine that loses more speaks for both.
    """
    held = _held_out(holdout, part)
    theirs, _ = _scores(cache, holdout, part, held, *baseline)
    found = []
    artifact, arm = candidate
    for seat in arm.placement.seats:
        ours, reused = _scores(cache, holdout, part, held, artifact, replace(arm, placement=_alone(arm, seat)))
        found.append((_quality(metric, ours, theirs, held, seed, confidence), reused))
    return max(found, key=lambda pair: pair[0].loss)


def _quality(
    metric: str, ours: NDArray[Any], theirs: NDArray[Any], held: _HeldOut, seed: int, confidence: float
) -> Quality:
    if held.items is not None:
        return paired_ranking(metric, ours, theirs, held.groups, seed, confidence, held.slices)
    return paired_quality(metric, ours, theirs, held.labels, held.groups, seed, confidence, held.slices)


def _scores(
    cache: Path, holdout: Path, part: str, held: _HeldOut, artifact: Artifact, arm: Arm
) -> tuple[NDArray[Any], bool]:
    """Of each row its score, or of each user the rank of the item that came next, (n,)."""
    seat, lookup = arm.placement.seat, arm.placement.lookup
    versions = [engine_version(place.engine) for place in (seat, lookup) if place is not None]
    key = digest(holdout.name, part, artifact.key, seat, lookup, versions, arm.compute)[:20]
    folder = cache / "scores" / key

    def write(into: Path) -> None:
        engine = open_replica(Path(arm.model), seat, lookup, arm.compute)
        found = run_rows(engine, held.inputs) if held.items is None else _ranks(engine, held)
        np.save(into / "scores.npy", found)

    reused = make_once(folder, write)
    scores: NDArray[Any] = np.load(folder / "scores.npy")
    return scores, reused


def _ranks(engine: Engine, held: _HeldOut) -> NDArray[np.float64]:
    """Of the item that came next, among all that a user had not had before; each user is one request."""
    items, seen = held.items, held.seen
    assert items is not None and seen is not None

    def score(user: int) -> NDArray[np.float32]:
        once = {name: values[user : user + 1] for name, values in held.inputs.items()}
        scores: NDArray[np.float32] = engine.run({**once, _ITEM: items})
        return scores

    return ranks(score, held.labels, seen)


def run_rows(engine: Engine, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Scores of any rows, in their order; what an engine takes once a request is the same in each part it is given."""
    rows = len(next(iter(inputs.values())))
    order, starts = np.arange(rows), np.arange(0, rows, _CHUNK_ROWS)
    if engine.once:
        # By their bytes: codes, numbers and several codes a row stand side by side.
        users = [np.ascontiguousarray(inputs[name]).reshape(rows, -1).view(np.uint8) for name in sorted(engine.once)]
        _, user = np.unique(np.concatenate(users, axis=1), axis=0, return_inverse=True)
        order = np.argsort(user, kind="stable")
        starts = np.flatnonzero(np.diff(user[order], prepend=-1))
    scores = np.empty(rows, dtype=np.float32)
    for start, end in itertools.pairwise([*starts.tolist(), rows]):
        part = order[start:end]
        scores[part] = engine.run({name: values[part] for name, values in inputs.items()})
    return scores


def _alone(arm: Arm, seat: Seat) -> Placement:
    """One replica of a seat, as far as its scores depend on it."""
    return Placement(Seat(seat.engine, seat.device), lookup=arm.placement.lookup, user_once=arm.placement.user_once)


@lru_cache(maxsize=2)
def _held_out(holdout: Path, part: str) -> _HeldOut:
    with np.load(holdout / f"{part}.npz") as arrays:
        seen, items = (arrays.get(name) for name in ("seen", "items"))
        return _HeldOut(named(arrays, "input"), arrays["labels"], arrays["groups"], named(arrays, "slice"), seen, items)
