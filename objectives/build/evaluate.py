"""Evaluation of a model on held-out rows, with the engine that will serve it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays, Numbers
from objectives.build.many_users import open_for_many_users
from objectives.build.user_ranks import user_ranks
from objectives.held_out_rows import HeldOut, read_held_out, runs
from objectives.jobs.requests import EvaluateRequest, EvaluateResponse, ScoreRequest, ScoreResponse
from objectives.measure.deployment import Deployment
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.metrics.quality import paired_quality, quality_by_output
from objectives.serving.devices import engine_version
from objectives.serving.engines import open_replica
from objectives.serving.split_engine import Engine
from objectives.store import make_once
from spaces.serialization import digest
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup
from spaces.techniques.quantization import BATCH_DEPENDENT

# Looks at a ranking, where it has enough users: after the first of every ten, the first three, and all.
_LOOKS, _MANY = (1, 3, 10), 10_000


def evaluate(request: EvaluateRequest) -> EvaluateResponse:
    """Evaluate the quality on held-out rows with the engine that will serve.

    Where requests are routed by size, the engine with the larger loss counts.

    A ranking of 10,000 users or more is evaluated on a tenth of them, then on three, then on all. The quality on the
    first of these whose loss's whole interval exceeds `reject_above` is returned, and no more users are scored.
    """
    name, held = _rows(request.scores)
    shares, scored = _shares(name, held), list[ScoreResponse]()
    for number, (share, rows) in enumerate(shares, 1):
        scored.append(_scored(request.scores, share, held if len(shares) == 1 else held.of_users(rows)))
        if request.reject_above is not None and number < len(shares):
            with suppress(UndefinedLossError):  # the metric may be undefined on some of the users, but not on all
                found = _evaluated(request, held, [of for _, of in shares[:number]], scored)
                if found.quality.loss_interval[0] > request.reject_above:
                    return found
    return _evaluated(request, held, [of for _, of in shares], scored)


def score(request: ScoreRequest) -> ScoreResponse:
    """Score both deployments for a metric that is evaluated elsewhere."""
    return _scored(request, *_rows(request))


def _rows(request: ScoreRequest) -> tuple[str, HeldOut]:
    """Return the name of the held-out rows' scores in the cache, and the rows."""
    holdout = Path(request.holdout)
    return holdout.name, read_held_out(holdout, request.part)


def _shares(name: str, held: HeldOut) -> list[tuple[str, NDArray[np.int64]]]:
    """Return the rows that are scored between two looks, with the name of their scores in the cache."""
    rows = np.arange(len(held.labels))
    if held.items is None or len(rows) < _MANY:
        return [(name, rows)]
    place, bounds = rows % _LOOKS[-1], itertools.pairwise((0, *_LOOKS))
    return [(f"{name} {low} to {high} of {_LOOKS[-1]}", rows[(low <= place) & (place < high)]) for low, high in bounds]


def _evaluated(
    request: EvaluateRequest, held: HeldOut, shares: Sequence[NDArray[np.int64]], scored: Sequence[ScoreResponse]
) -> EvaluateResponse:
    """Evaluate shares of the rows together; `scored` are the files of their scores."""
    rows = np.concatenate(shares)
    order = np.argsort(rows)
    users = held if len(rows) == len(held.labels) else held.of_users(rows[order])

    def joined(files: Iterable[str]) -> Numbers:
        scores: Numbers = np.concatenate([np.load(file) for file in files])[order]
        return scores

    theirs = joined(one.baseline for one in scored)
    quality = partial(paired_quality, request.metric, seed=request.seed, confidence=request.confidence)
    by_engine = zip(*(one.candidates for one in scored), strict=True)
    found = (quality_by_output(joined(files), theirs, users, quality) for files in by_engine)
    return EvaluateResponse(max(found, key=lambda each: each.loss), all(one.reused for one in scored))


def _scored(request: ScoreRequest, name: str, held: HeldOut) -> ScoreResponse:
    # Another deployment stands for the baseline where two candidates are compared.
    theirs, known = _score(request, name, held, next(_by_engine(request.baseline)))
    ours = [_score(request, name, held, each) for each in _by_engine(request.candidate)]
    return ScoreResponse(tuple(file for file, _ in ours), theirs, known and all(reused for _, reused in ours))


def _by_engine(deployment: Deployment) -> Iterator[Deployment]:
    """Yield a deployment of one replica of each instance group, reduced to the settings that its scores depend on."""
    for placement in deployment.placement.of_scores:
        yield replace(deployment, placement=placement)


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
        how = Path(deployment.model), limited, lookup, deployment.compute
        ranking = held.items is not None
        # Where a whole table is multiplied there is one user in each run.
        together = groups is None and not deployment.placement.score_catalogue
        found = user_ranks(*how, held, into) if ranking else _scores(*how, held, groups, into, together)
        np.save(into / "scores.npy", found)

    reused = make_once(folder, write)
    return str(folder / "scores.npy"), reused


def _scores(
    model: Path,
    instance_group: InstanceGroup,
    lookup: EmbeddingDevice | None,
    compute: str,
    held: HeldOut,
    groups: NDArray[np.int64] | None,
    scratch: Path,
    together: bool,
) -> NDArray[np.float32]:
    """Return the score of each row, (n,) or (n, outputs).

    Args:
        model: this and the others are the arguments of `run_blocks` and `user_ranks`
        together: whether a run may be tried that takes rows of many users
    """
    engine = open_replica(model, instance_group, lookup, compute)
    if engine.once and together and lookup is None:

        def opened(file: Path) -> Engine:
            return open_replica(file, instance_group, None, compute)

        engine = open_for_many_users(opened, model, engine, held.inputs, scratch) or engine
    return run_blocks(engine, held.inputs, groups)


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
