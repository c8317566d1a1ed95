"""Fit: the weights of a candidate, trained once and kept in the cache."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from objectives.build import elastic
from objectives.build.fit import TRAINING, Fitted, fit_elastic, untrained
from objectives.build.fit import fit as fit_weights
from objectives.build.model_structure import of_baseline
from objectives.build.stages.opened import open_once
from objectives.compression.elastic.network import ElasticNetwork
from objectives.jobs.protocol import Progress
from objectives.jobs.requests import FitNetworkRequest, FitNetworkResponse, FitRequest, FitResponse
from objectives.recommenders.protocol import Recommender
from objectives.store import make_once
from objectives.task import Task
from spaces.model_structure import ModelStructure
from spaces.serialization import digest
from spaces.weights import Weights

# Versions of the stages, raised when a stage's output changes, so that older cache entries are not used.
FIT_STAGE = 15
ELASTIC_STAGE = 4
# Trainings that were stopped and may go on, of which the state is kept; one of more trains from its beginning.
_KEPT = 8


def fit(request: FitRequest, progress: Progress) -> FitResponse:
    """Reshape or prune the weights, then distil them. The baseline's own weights need no fitting."""
    task, weights = request.task, request.weights
    if weights.distillation is None:
        return FitResponse(True)
    recommender = open_once(task, progress, request.threads)
    if weights.distillation.stopped_after:
        whole = replace(weights, distillation=replace(weights.distillation, stopped_after=0))
        if weights_folder(task, recommender, whole).exists():
            return FitResponse(True, whole=True)
    cache, bits = _cache(task), task.int8_weight_bits
    seconds: list[float] = []

    def write(into: Path) -> None:
        network = _network(task, recommender, weights, progress) if weights.elastic else None
        begun = None if early is None else Fitted.load_begun(early)
        previous = None
        if weights.previous is not None:
            fit(replace(request, weights=weights.previous), progress)
            previous = fitted_weights(task, recommender, weights.previous)
        fitted = fit_weights(
            recommender, weights, task.seed, progress, cache, bits, network=network, previous=previous, begun=begun
        )
        fitted.save(into)
        seconds.append(fitted.batch_seconds)

    early = None if weights.early is None else weights_folder(task, recommender, weights.early)
    reused = make_once(weights_folder(task, recommender, weights), write)
    # A state is as large as the weights, or several times.
    if early is not None:
        (early / TRAINING).unlink(missing_ok=True)
    if weights.distillation.stopped_after:
        _forget_trainings(task.cache / "weights")
    return FitResponse(reused, sum(seconds))


def fit_network(request: FitNetworkRequest, progress: Progress) -> FitNetworkResponse:
    """Train the elastic network that the weights are a slice of, unless it is in the cache."""
    task, weights = request.task, request.weights
    recommender = open_once(task, progress, request.threads)
    return FitNetworkResponse(_make_network(task, recommender, weights, progress)[1])


def _forget_trainings(folder: Path) -> None:
    """Delete the states of stopped trainings but for the newest."""
    dated: list[tuple[float, Path]] = []
    for file in folder.glob(f"*/{TRAINING}"):
        with contextlib.suppress(FileNotFoundError):  # another builder's training went on
            dated.append((file.stat().st_mtime, file))
    for _, file in sorted(dated)[:-_KEPT]:
        file.unlink(missing_ok=True)


def _network(task: Task, recommender: Recommender, weights: Weights, progress: Progress) -> ElasticNetwork:
    """Return the elastic network that the weights are a slice of, trained on the first call."""
    folder, _, made = _make_network(task, recommender, weights, progress)
    return elastic.load(folder) if made is None else made


def _make_network(
    task: Task, recommender: Recommender, weights: Weights, progress: Progress
) -> tuple[Path, bool, ElasticNetwork | None]:
    """Train the network unless it is in the cache; return its folder, whether it was there, and what was trained."""
    folder, made = task.cache / "elastic_networks" / elastic_key(task, recommender, weights), list[ElasticNetwork]()

    def write(into: Path) -> None:
        made.append(fit_elastic(recommender, weights, task.seed, progress, _cache(task)))
        elastic.save(made[0], into)

    reused = make_once(folder, write)
    return folder, reused, next(iter(made), None)


def _cache(task: Task) -> Path | None:
    """Return the cache of the teacher's outputs; None in a dry run.

    A dry run trains on a few batches, too few to make the outputs on all of train worthwhile.
    """
    return None if task.dry_run else task.cache


def elastic_key(task: Task, recommender: Recommender, weights: Weights) -> str:
    """Return the cache key of an elastic network: of no single shape, but of all that determines the others."""
    assert weights.distillation is not None
    shapes = recommender.student() if weights.pruning is None else weights.pruning.multiple
    trained = [task.seed, recommender.train_rows().batch_size, optimizer_settings(recommender)]
    return digest(recommender.key, shapes, replace(weights.distillation, epochs=0), trained, ELASTIC_STAGE)[:20]


def fitted_weights(task: Task, recommender: Recommender, weights: Weights) -> Fitted:
    if weights.reference is not None:
        return Fitted(recommender.reference(weights.reference), ModelStructure(()), {})
    if weights.distillation is None:
        return Fitted(recommender.model, of_baseline(recommender).structure, {})
    if not weights.distillation.trained:
        return untrained(recommender, weights, task.seed)
    return Fitted.load(weights_folder(task, recommender, weights))


def weights_key(task: Task, recommender: Recommender, weights: Weights) -> str:
    """Return the cache key of weights; settings of training are part of it only where the weights are trained."""
    trained: list[object] = []
    if weights.distillation is not None:
        trained = [task.seed, recommender.train_rows().batch_size, optimizer_settings(recommender)]
    bits = [task.int8_weight_bits, version("torchao")] if weights.quantization_aware else None
    stages = (FIT_STAGE, ELASTIC_STAGE) if weights.elastic else (FIT_STAGE,)
    return digest(recommender.key, weights, trained, bits, *stages)[:20]


def optimizer_settings(recommender: Recommender) -> list[object]:
    """Describe the recommender's optimizer by its class, its settings and the number of parameters of each group."""
    optimizer = recommender.optimizer(recommender.model)
    found: list[object] = [f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"]
    # Those of torch's own optimizers; the repr of another object may contain its address, which is never the same.
    kinds = (int, float, str, tuple, Tensor)
    for group in optimizer.param_groups:
        found.append([len(group["params"]), {n: repr(value) for n, value in group.items() if isinstance(value, kinds)}])
    return found


def weights_folder(task: Task, recommender: Recommender, weights: Weights) -> Path:
    return task.cache / "weights" / weights_key(task, recommender, weights)
