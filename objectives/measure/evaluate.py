"""Judge: what a model is worth on held-out rows, through the engine that will serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.held_out_rows import HeldOut, HeldPart, read_held_out, runs
from objectives.measure.deployment import Deployment
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.metrics.quality import paired_quality, paired_ranking
from objectives.other_outputs import others_of
from objectives.ranking_metrics import ranks
from objectives.records import Artifact, Quality
from objectives.serving.devices import engine_version
from objectives.serving.engines import Engine, open_replica
from objectives.store import make_once
from spaces.serialization import digest
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.quantization import BATCH_DEPENDENT

_ITEM = "item"
# Of a ranking's users every so many are judged first, where they are enough to tell what is hopeless.
_NTH, _ENOUGH = 10, 1000


@dataclass(frozen=True, eq=False)
class _Rows:
    """Held-out rows, by the name that their scores have in the cache; and the threads of the engine that scores them,
    None for its own choice."""

    cache: Path
    name: str
    part: HeldPart
    held: HeldOut
    threads: int | None


def evaluate(
    cache: Path,
    holdout: Path,
    part: HeldPart,
    metric: str,
    candidate: tuple[Artifact, Deployment],
    baseline: tuple[Artifact, Deployment],
    seed: int,
    confidence: float,
    reject_above: float | None = None,
    threads: int | None = None,
) -> tuple[Quality, bool]:
    """Quality on held-out rows through the engine that will serve; and whether the scores were in the cache.

    Where requests are routed by size, the engine that loses more speaks for both.

    Args:
        hopeless: a loss; where a tenth of a ranking's users say that the whole interval is beyond it, theirs is the
            quality, and the rest are not judged
        threads: of the engine, fewer where others are at work; None for its own choice
    """
    rows, asked = _rows(cache, holdout, part, threads), (metric, candidate, baseline, seed, confidence)
    if reject_above is not None and rows.held.items is not None and len(rows.held.labels) >= _NTH * _ENOUGH:
        tenth = replace(rows, name=f"{rows.name} every {_NTH}", held=rows.held.every(_NTH))
        with suppress(UndefinedLossError):  # of a metric that is nearly nothing; all users may tell
            found = _judged(tenth, *asked)
            if found[0].loss_interval[0] > reject_above:
                return found
    return _judged(rows, *asked)


def _rows(cache: Path, holdout: Path, part: HeldPart, threads: int | None) -> _Rows:
    return _Rows(cache, holdout.name, part, read_held_out(holdout, part), threads)


def _judged(
    rows: _Rows,
    metric: str,
    candidate: tuple[Artifact, Deployment],
    baseline: tuple[Artifact, Deployment],
    seed: int,
    confidence: float,
) -> tuple[Quality, bool]:
    theirs, _ = _scores(rows, *baseline)
    found = []
    artifact, deployment = candidate
    for instance_group in deployment.placement.instance_groups:
        ours, reused = _scores(rows, artifact, replace(deployment, placement=_alone(deployment, instance_group)))
        found.append((_quality(metric, ours, theirs, rows.held, seed, confidence), reused))
    return max(found, key=lambda pair: pair[0].loss)


def score(
    cache: Path,
    holdout: Path,
    part: HeldPart,
    candidate: tuple[Artifact, Deployment],
    baseline: tuple[Artifact, Deployment],
    threads: int | None = None,
) -> tuple[list[str], str, bool]:
    """The files of both arms' scores for a metric that is evaluated elsewhere: of the candidate one for each engine
    that answers, and the baseline's; and whether all were in the cache. Threads as in `judge`."""
    rows = _rows(cache, holdout, part, threads)
    artifact, deployment = candidate
    theirs, known = _scored(rows, *baseline)
    ours = [
        _scored(rows, artifact, replace(deployment, placement=_alone(deployment, instance_group)))
        for instance_group in deployment.placement.instance_groups
    ]
    return [str(path) for path, _ in ours], str(theirs), known and all(reused for _, reused in ours)


def _quality(
    metric: str, ours: NDArray[Any], theirs: NDArray[Any], held: HeldOut, seed: int, confidence: float
) -> Quality:
    if held.items is not None:
        return paired_ranking(metric, ours, theirs, held.groups, seed, confidence, held.slices)
    if ours.ndim == 1:
        return paired_quality(metric, ours, theirs, held.labels, held.groups, seed, confidence, held.slices)
    main = paired_quality(metric, ours[:, 0], theirs[:, 0], held.labels, held.groups, seed, confidence, held.slices)

    def other(column: int, labels: NDArray[Any]) -> Quality:
        return paired_quality(metric, ours[:, column], theirs[:, column], labels, held.groups, seed, confidence)

    return replace(main, others=others_of(held, other))


def _scores(rows: _Rows, artifact: Artifact, deployment: Deployment) -> tuple[NDArray[Any], bool]:
    """Of each row its score, (n,) or (n, outputs), or of each user the rank of the item that came next, (n,)."""
    file, reused = _scored(rows, artifact, deployment)
    scores: NDArray[Any] = np.load(file)
    return scores, reused


def _scored(rows: _Rows, artifact: Artifact, deployment: Deployment) -> tuple[Path, bool]:
    """The same scores whatever the threads."""
    instance_group, lookup = deployment.placement.instance_group, deployment.placement.embedding_device
    versions = [engine_version(place.engine) for place in (instance_group, lookup) if place is not None]
    groups = rows.held.groups if _depends_on_batch(artifact) else None
    how = (deployment.compute, groups is not None)
    key = digest(rows.name, rows.part, artifact.key, instance_group, lookup, versions, *how)[:20]
    folder = rows.cache / "scores" / key

    def write(into: Path) -> None:
        engine = open_replica(
            Path(deployment.model), replace(instance_group, threads=rows.threads), lookup, deployment.compute
        )
        held = rows.held
        found = run_blocks(engine, held.inputs, groups) if held.items is None else _ranks(engine, held)
        np.save(into / "scores.npy", found)

    reused = make_once(folder, write)
    return folder / "scores.npy", reused


def _depends_on_batch(artifact: Artifact) -> bool:
    """Whether activations are rounded to the range of the rows that are scored together, as its graph holds it."""
    return any(one in width for one in BATCH_DEPENDENT for width in artifact.widths.values())


def _ranks(engine: Engine, held: HeldOut) -> NDArray[np.float64]:
    """Of the item that came next, among all that a user had not had before; each user is one request."""
    items, seen = held.items, held.seen
    assert items is not None and seen is not None

    def score(user: int) -> NDArray[np.float32]:
        once = {name: values[user : user + 1] for name, values in held.inputs[0].items()}
        scores: NDArray[np.float32] = engine.run({**once, _ITEM: items})
        return scores

    return ranks(score, held.labels, seen)


def run_blocks(
    engine: Engine, blocks: Sequence[Mapping[str, NDArray[Any]]], groups: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Scores of all rows, block after block.

    Args:
        groups: (n,) of all rows, given where each group is scored by itself, as a request is
    """
    ends = np.cumsum([len(next(iter(block.values()))) for block in blocks])[:-1]
    parts = [None] * len(blocks) if groups is None else np.split(groups, ends)
    return np.concatenate([run_rows(engine, *pair) for pair in zip(blocks, parts, strict=True)])


def run_rows(
    engine: Engine, inputs: Mapping[str, NDArray[Any]], groups: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Scores of rows of one shape, in their order, (rows,) or (rows, outputs); what an engine takes once a request is
    the same in each part it is given."""
    rows, parts = len(next(iter(inputs.values()))), runs(inputs, engine.once, groups)
    found = [engine.run({name: values[part] for name, values in inputs.items()}) for part in parts]
    scores = np.empty((rows, *found[0].shape[1:]), dtype=np.float32)
    scores[np.concatenate(parts)] = np.concatenate(found)
    return scores


def _alone(deployment: Deployment, instance_group: InstanceGroup) -> Placement:
    """One replica of a seat, as far as its scores depend on it."""
    return Placement(
        InstanceGroup(instance_group.engine, instance_group.device),
        embedding_device=deployment.placement.embedding_device,
        user_once=deployment.placement.user_once,
    )
