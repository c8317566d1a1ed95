"""Evaluation of a model on held-out rows, with the engine that will serve it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays
from objectives.held_out_rows import HeldOut, read_held_out, runs
from objectives.jobs.requests import EvaluateRequest, EvaluateResponse, ScoreRequest, ScoreResponse
from objectives.measure.deployment import Deployment
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.metrics.quality import paired_quality, quality_by_output
from objectives.ranking_metrics import ranks
from objectives.serving.devices import engine_version
from objectives.serving.engines import open_replica
from objectives.serving.split_engine import Engine
from objectives.store import make_once
from spaces.serialization import digest
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.quantization import BATCH_DEPENDENT

_ITEM = "item"
# A ranking is first evaluated on every 10th user, where at least 1000 users remain, for early rejection.
_NTH, _ENOUGH = 10, 1000


def evaluate(request: EvaluateRequest) -> EvaluateResponse:
    """Evaluate the quality on held-out rows with the engine that will serve.

    Where requests are routed by size, the engine with the larger loss counts.

    Where the whole interval on a tenth of a ranking's users exceeds `reject_above`, the quality on that tenth is
    returned, and the other users are not evaluated.
    """
    name, held = _rows(request.scores)
    if request.reject_above is not None and held.items is not None and len(held.labels) >= _NTH * _ENOUGH:
        with suppress(UndefinedLossError):  # the metric is undefined on a tenth of the users, but may be defined on all
            found = _evaluated(request, f"{name} every {_NTH}", held.every(_NTH))
            if found.quality.loss_interval[0] > request.reject_above:
                return found
    return _evaluated(request, name, held)


def score(request: ScoreRequest) -> ScoreResponse:
    """Score both deployments for a metric that is evaluated elsewhere."""
    return _scored(request, *_rows(request))


def _rows(request: ScoreRequest) -> tuple[str, HeldOut]:
    """Return the name of the held-out rows' scores in the cache, and the rows."""
    holdout = Path(request.holdout)
    return holdout.name, read_held_out(holdout, request.part)


def _evaluated(request: EvaluateRequest, name: str, held: HeldOut) -> EvaluateResponse:
    scored = _scored(request.scores, name, held)
    theirs = np.load(scored.baseline)
    quality = partial(paired_quality, request.metric, seed=request.seed, confidence=request.confidence)
    found = (quality_by_output(np.load(file), theirs, held, quality) for file in scored.candidates)
    return EvaluateResponse(max(found, key=lambda each: each.loss), scored.reused)


def _scored(request: ScoreRequest, name: str, held: HeldOut) -> ScoreResponse:
    theirs, known = _score(request, name, held, request.baseline)
    ours = [_score(request, name, held, each) for each in _by_engine(request.candidate)]
    return ScoreResponse(tuple(file for file, _ in ours), theirs, known and all(reused for _, reused in ours))


def _by_engine(deployment: Deployment) -> Iterator[Deployment]:
    """Yield a deployment of one replica of each instance group, reduced to the settings that its scores depend on."""
    placement = deployment.placement
    for group in placement.instance_groups:
        alone = Placement(
            InstanceGroup(group.engine, group.device),
            embedding_device=placement.embedding_device,
            user_once=placement.user_once,
        )
        yield replace(deployment, placement=alone)


def _score(request: ScoreRequest, name: str, held: HeldOut, deployment: Deployment) -> tuple[str, bool]:
    """Return the file of the scores, and whether the cache had it.

    The file is computed unless the cache has it. It holds each row's score, (n,) or (n, outputs), or, for a ranking,
    the rank of each user's next item, (n,). The number of threads does not change the values.
    """
    artifact = deployment.artifact
    instance_group, lookup = deployment.placement.instance_group, deployment.placement.embedding_device
    versions = [engine_version(place.engine) for place in (instance_group, lookup) if place is not None]
    # Where activations are quantized to the range of the rows that are scored together, by the widths of the graph.
    by_group = any(one in width for one in BATCH_DEPENDENT for width in artifact.widths.values())
    groups, how = held.groups if by_group else None, (deployment.compute, by_group)
    key = digest(name, request.part, artifact.key, instance_group, lookup, versions, *how)[:20]
    folder = Path(request.cache, "scores", key)

    def write(into: Path) -> None:
        limited = replace(instance_group, threads=request.threads)
        engine = open_replica(Path(deployment.model), limited, lookup, deployment.compute)
        found = run_blocks(engine, held.inputs, groups) if held.items is None else _ranks(engine, held)
        np.save(into / "scores.npy", found)

    reused = make_once(folder, write)
    return str(folder / "scores.npy"), reused


def _ranks(engine: Engine, held: HeldOut) -> NDArray[np.float64]:
    """Return the rank of each user's next item, (n,), among the items not seen before; each user is one request."""
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
    """Score the rows of all blocks in their order, and return the scores, (n,) or (n, outputs).

    Inputs that an engine takes once a request are equal within each batch. With groups, (n,), each group is scored by
    itself, as a request is.
    """
    scores, start = [], 0
    for inputs in blocks:
        rows = len(next(iter(inputs.values())))
        parts = runs(inputs, engine.once, None if groups is None else groups[start : start + rows])
        found = [engine.run({name: values[part] for name, values in inputs.items()}) for part in parts]
        scores.append(np.empty((rows, *found[0].shape[1:]), dtype=np.float32))
        scores[-1][np.concatenate(parts)] = np.concatenate(found)
        start += rows
    return np.concatenate(scores)
