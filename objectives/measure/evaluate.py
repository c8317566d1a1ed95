"""Evaluation of a model on held-out rows, with the engine that will serve it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays, Numbers
from objectives.held_out_rows import HeldOut, HeldPart, read_held_out, runs
from objectives.measure.deployment import Deployment
from objectives.measurement.metrics.other_outputs import others_of
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.metrics.quality import paired_quality, paired_ranking
from objectives.ranking_metrics import ranks
from objectives.records import Artifact, Quality
from objectives.serving.devices import engine_version
from objectives.serving.engines import Engine, open_replica
from objectives.store import make_once
from spaces.serialization import digest
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.quantization import BATCH_DEPENDENT

_ITEM = "item"
# A ranking is first evaluated on every 10th user, where at least 1000 users remain, for early rejection.
_NTH, _ENOUGH = 10, 1000


@dataclass(frozen=True, eq=False)
class _Rows:
    """Held-out rows, the name of their scores in the cache, and the threads of the engine that scores them (None: the
    engine's default).
    """

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
    """Evaluate the quality on held-out rows with the engine that will serve.

    Where requests are routed by size, the engine with the larger loss counts.

    Args:
        reject_above: a relative loss; where the whole interval on a tenth of a ranking's users exceeds it, the quality
            on that tenth is returned, and the other users are not evaluated
        threads: threads of the engine, fewer where other jobs run at the same time; None for the engine's default

    Returns:
        The quality, and True if the scores were in the cache.
    """
    rows, asked = _rows(cache, holdout, part, threads), (metric, candidate, baseline, seed, confidence)
    if reject_above is not None and rows.held.items is not None and len(rows.held.labels) >= _NTH * _ENOUGH:
        tenth = replace(rows, name=f"{rows.name} every {_NTH}", held=rows.held.every(_NTH))
        with suppress(UndefinedLossError):  # the metric is undefined on a tenth of the users, but may be defined on all
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
    """Score both deployments for a metric that is evaluated elsewhere.

    Args:
        threads: threads of the engine, as in `evaluate`

    Returns:
        The candidate's files of scores, one for each engine that serves; the baseline's; and True if all were in the
        cache.
    """
    rows = _rows(cache, holdout, part, threads)
    artifact, deployment = candidate
    theirs, known = _scored(rows, *baseline)
    ours = [
        _scored(rows, artifact, replace(deployment, placement=_alone(deployment, instance_group)))
        for instance_group in deployment.placement.instance_groups
    ]
    return [str(path) for path, _ in ours], str(theirs), known and all(reused for _, reused in ours)


def _quality(metric: str, ours: Numbers, theirs: Numbers, held: HeldOut, seed: int, confidence: float) -> Quality:
    if held.items is not None:
        our_ranks, their_ranks = (scores.astype(np.float64, copy=False) for scores in (ours, theirs))
        return paired_ranking(metric, our_ranks, their_ranks, held.groups, seed, confidence, held.slices)
    if ours.ndim == 1:
        return paired_quality(metric, ours, theirs, held.labels, held.groups, seed, confidence, held.slices)
    main = paired_quality(metric, ours[:, 0], theirs[:, 0], held.labels, held.groups, seed, confidence, held.slices)

    def other(column: int, labels: Numbers) -> Quality:
        return paired_quality(metric, ours[:, column], theirs[:, column], labels, held.groups, seed, confidence)

    return replace(main, others=others_of(held, other))


def _scores(rows: _Rows, artifact: Artifact, deployment: Deployment) -> tuple[Numbers, bool]:
    """Return the score of each row, (n,) or (n, outputs), or, for a ranking, the rank of each user's next
    item, (n,).
    """
    file, reused = _scored(rows, artifact, deployment)
    return np.load(file), reused


def _scored(rows: _Rows, artifact: Artifact, deployment: Deployment) -> tuple[Path, bool]:
    """Return the file of scores, computed or from the cache; the number of threads does not change it."""
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
    """True if activations are quantized to the range of the rows that are scored together, by the widths of
    the graph.
    """
    return any(one in width for one in BATCH_DEPENDENT for width in artifact.widths.values())


def _ranks(engine: Engine, held: HeldOut) -> NDArray[np.float64]:
    """Return the rank of each user's next item, (n,), among all items that the user had not seen; each user is one
    request.
    """
    items, seen = held.items, held.seen
    assert items is not None and seen is not None

    def score(user: int) -> NDArray[np.float32]:
        once = {name: values[user : user + 1] for name, values in held.inputs[0].items()}
        scores: NDArray[np.float32] = engine.run({**once, _ITEM: items})
        return scores

    return ranks(score, held.labels.astype(np.int64, copy=False), seen)


def run_blocks(
    engine: Engine, blocks: Sequence[Arrays], groups: NDArray[np.int64] | None = None
) -> NDArray[np.float32]:
    """Score all rows, block after block.

    Args:
        groups: (n,) of all rows, given where each group is scored by itself, as a request is
    """
    ends = np.cumsum([len(next(iter(block.values()))) for block in blocks])[:-1]
    parts = [None] * len(blocks) if groups is None else np.split(groups, ends)
    return np.concatenate([run_rows(engine, *pair) for pair in zip(blocks, parts, strict=True)])


def run_rows(engine: Engine, inputs: Arrays, groups: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
    """Score rows of one shape, in their order: (rows,) or (rows, outputs). Inputs that an engine takes once a request
    are equal within each batch.
    """
    rows, parts = len(next(iter(inputs.values()))), runs(inputs, engine.once, groups)
    found = [engine.run({name: values[part] for name, values in inputs.items()}) for part in parts]
    scores = np.empty((rows, *found[0].shape[1:]), dtype=np.float32)
    scores[np.concatenate(parts)] = np.concatenate(found)
    return scores


def _alone(deployment: Deployment, instance_group: InstanceGroup) -> Placement:
    """Return the placement of one replica of an instance group, reduced to the settings that its scores depend on."""
    return Placement(
        InstanceGroup(instance_group.engine, instance_group.device),
        embedding_device=deployment.placement.embedding_device,
        user_once=deployment.placement.user_once,
    )
