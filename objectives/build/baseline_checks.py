"""Checks of a baseline, made once: whether it can be evaluated and compressed as it is.

A dry run also checks for mistakes that raise no error, and for forms that are not available.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from objectives.arrays import Arrays
from objectives.build.custom_metric import custom_metric
from objectives.compression.distillation import hidden_outputs
from objectives.compression.graph_passes.split_embeddings import split_embeddings
from objectives.compression.training_graph import trouble_with_training
from objectives.errors import one_line
from objectives.held_out_rows import HELD_PARTS, HeldOut, HeldPart
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.metrics.quality import paired_quality
from objectives.model_copy import learning_copy
from objectives.onnx_graph import load_graph
from objectives.parity import LIMIT, compare_scores
from objectives.recommenders.protocol import Facts, Recommender
from objectives.recommenders.scoring import main_scores
from objectives.recommenders.user_model.checks import model_warnings
from objectives.recommenders.user_model.factory import FactoryError
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.records import rows_of
from objectives.serving.engines import open_replica
from spaces.serialization import Json, to_plain
from spaces.techniques.placement import InstanceGroup

# Shapes of batches on which quantization-aware training is tried, and requests of which the largest is split.
_SHAPES, _REQUESTS = 3, 100


def check_metric(recommender: Recommender) -> None:
    """Check that the metric is defined on the model's scores of both held-out parts.

    Raises:
        FactoryError: the metric gives no relative loss with an interval on validation or on test.
    """
    name = f"metric {recommender.metric}"
    for part in HELD_PARTS:
        held = recommender.held_out(part)
        if (groups := len(np.unique(held.groups))) < 2:
            raise FactoryError(f"{name} needs rows of two groups or more, but those of {part} are of {groups}")
        if recommender.custom_metric:
            scores = main_scores(recommender, recommender.model, held.inputs)
            value = recommender.evaluate_custom_metric(scores, held.labels, held.groups)
            if not 0 < value < float("inf"):
                raise FactoryError(
                    f"{name} must give a number above 0 for the model on {part}, higher being better, but gave "
                    f"{value:.4g}"
                )
        elif held.items is None and set(np.unique(held.labels)) != {0, 1}:
            some = ", ".join(f"{label:g}" for label in np.unique(held.labels)[:3])
            raise FactoryError(f"{name} needs labels that are 0 and 1, but those of {part} are {some} ...")


@dataclass(frozen=True)
class Convergence:
    """Result of a convergence check.

    epoch_seconds: seconds of an epoch of training
    improvement: a sentence with the relative improvement by it, where its whole interval is one; None where it is not,
        or where the metric is undefined
    """

    epoch_seconds: float
    improvement: str | None


def convergence_check(recommender: Recommender, seed: int) -> Convergence:
    """Train a copy of the model for one more epoch, and evaluate it on validation; the model itself is not changed."""
    learner = learning_copy(recommender.model).train()
    optimizer, start = recommender.optimizer(learner), time.monotonic()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, labels in recommender.train_rows().batches(torch.Generator().manual_seed(seed)):
            optimizer.zero_grad(set_to_none=True)
            recommender.loss(recommender.outputs(learner, inputs), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return Convergence(time.monotonic() - start, _improvement(recommender, learner, seed))


def _improvement(recommender: Recommender, learner: nn.Module, seed: int) -> str | None:
    held = recommender.held_out("validation")
    ours, theirs = (main_scores(recommender, model, held.inputs) for model in (learner, recommender.model))
    try:
        if recommender.custom_metric:
            quality = custom_metric(recommender, ours, theirs, held, seed, 0.95)
        else:
            quality = paired_quality(recommender.metric, ours, theirs, held, seed)
    except UndefinedLossError:
        return None
    if not quality.loss_interval[1] < 0:
        return None
    low, high = (-end for end in reversed(quality.loss_interval))
    return f"one more epoch of training improves {quality.metric} by {-quality.loss:.2%} [{low:.2%}, {high:.2%}]"


def unlearnable(recommender: Recommender, seed: int) -> str | None:
    """Return the reason why the model cannot be trained quantization-aware; None where it can.

    It is tried on a few batches of train, of different shapes where there are some, and on part of one, since not all
    batches have the same number of rows.
    """
    rows = replace(recommender.train_rows(), most_batches=None)
    shapes: dict[object, Mapping[str, Tensor]] = {}
    for batch in rows.epoch(torch.Generator().manual_seed(seed)):
        shapes.setdefault(tuple(values.shape[1:] for values in batch.inputs.values()), batch.inputs)
        if len(shapes) == min(_SHAPES, len(rows.blocks)):
            break
    batches = list(shapes.values())
    batches.append({name: values[:-1] if len(values) > 2 else values for name, values in batches[0].items()})
    return trouble_with_training(recommender.model, recommender.method, batches)


def dry_facts(recommender: Recommender, seed: int, held: Mapping[HeldPart, HeldOut]) -> Json:
    """Return the facts that a dry run reports.

    They are the number of rows scored in each part, the number of batches in a whole epoch of train, and warnings of
    probable mistakes in a user's model or loss.

    Raises:
        FactoryError: the outputs of the hidden module are no features.
    """
    _check_hidden(recommender, seed)
    rows: dict[str, int] = {p: len(of.labels) * (1 if of.items is None else len(of.items)) for p, of in held.items()}
    warnings = model_warnings(recommender, seed) if isinstance(recommender, UserRecommender) else ()
    batches = replace(recommender.train_rows(), most_batches=None).batches_per_epoch
    return {**to_plain(Facts("", rows, 0, {}, "", {})), "warnings": warnings, "batches_per_epoch": batches}


def split_refused(model: Path) -> str | None:
    """Return the reason why the graph cannot be split behind its tables, None where it can."""
    try:
        split_embeddings(load_graph(model))
    except Exception as error:  # any failure excludes this form only
        return one_line(error)
    return None


def rows_interact(model: Path, requests: Sequence[Arrays]) -> str | None:
    """Return the reason why a request can be neither split nor run together with others, None where it can.

    The scores of its rows then depend on each other, as where a model normalises over them: the graph gives others to
    the halves of a request.
    """
    request = max(requests[:_REQUESTS], key=rows_of)
    if (rows := rows_of(request)) < 2:
        return None
    engine = open_replica(model, InstanceGroup(threads=1), None)
    halves = [
        {name: values if len(values) == 1 else values[start:end] for name, values in request.items()}
        for start, end in ((0, rows // 2), (rows // 2, rows))
    ]
    apart = np.concatenate([engine.run(half) for half in halves])
    difference = compare_scores([apart], [engine.run(request)], limit=None)
    if difference <= LIMIT:
        return None
    return f"scores of a request's rows depend on each other: in halves they differ by {difference:.2g} of their spread"


def _check_hidden(recommender: Recommender, seed: int) -> None:
    if recommender.hidden is None:
        return
    inputs, _ = next(iter(recommender.train_rows().batches(torch.Generator().manual_seed(seed))))
    try:
        with torch.no_grad(), hidden_outputs(recommender.model, recommender.hidden) as latest:
            recommender.outputs(recommender.model.eval(), inputs)
            latest()
    except ValueError as error:
        raise FactoryError(f"hidden: {error}") from error
