"""Dry run: every stage once and briefly, before any budget is spent, to find which parts can be compressed, and the
reasons for those that cannot.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from objectives.build.custom_metric import check_metric
from objectives.build.fit import training_data_of
from objectives.build.model_structure import of_baseline
from objectives.build.technique_checks import TechniqueChecks
from objectives.compression.distillation import distil, hidden_outputs
from objectives.compression.export import (
    Signature,
    check_parity,
    check_requests,
    largest_difference,
    of_each_shape,
    to_onnx,
)
from objectives.compression.graph_passes.split_embeddings import split_embeddings
from objectives.compression.graph_passes.user_once import compute_once
from objectives.compression.training_graph import trouble_with_training
from objectives.dry_run_result import MODEL, DryRun
from objectives.errors import located, one_line
from objectives.held_out_rows import write_requests
from objectives.int8_weights import Int8WeightBits
from objectives.onnx_graph import save_graph
from objectives.parity import LIMIT
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.user_model.checks import model_warnings
from objectives.recommenders.user_model.factory import FactoryError
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.records import LEARNED_ROUNDING, Tried
from spaces.techniques.distillation import Distillation

Progress = Callable[[str], None]
_ROWS = 512
_BATCHES = 3


def dry_run(
    recommender: Recommender,
    signature: Signature,
    folder: Path,
    seed: int,
    progress: Progress,
    weight_bits: Int8WeightBits = 8,
) -> DryRun:
    """Run every stage once: tracing, export, parity, each technique on each group that it fits, and a few training
    steps.

    Raises:
        FactoryError: the metric is undefined for the model, or its hidden module gives no features.
        TraceError: the model's forward cannot be traced.
        ParityError: the exported graph does not give the model's scores.
        ValueError: a training step fails.
    """
    seconds: dict[str, float] = {}
    check_metric(recommender)
    _check_hidden(recommender, seed)

    def timed(stage: str) -> _Clock:
        progress(f"dry run: {stage}")
        return _Clock(stage, seconds)

    with timed("trace"):
        traced = of_baseline(recommender)
    model, rows = recommender.model, recommender.serving_rows(_ROWS)
    folder.mkdir(parents=True, exist_ok=True)
    with timed("export"):
        graph = to_onnx(model, rows, signature)
    with timed("parity"):
        parity = check_parity(model, graph, rows, signature.scores)
        requests = list(recommender.requests(seed))
        check_requests(model, graph, of_each_shape(requests), signature)
    with timed("forms"):
        forms = {name: _refused(attempt) for name, attempt in _forms(recommender, graph).items()}
    size = save_graph(graph, folder / MODEL)
    write_requests(requests, folder)
    with timed("techniques"):
        tried = TechniqueChecks(recommender, traced.structure, graph, signature, weight_bits).run()
        not_learned = unlearnable(recommender, seed)
        layers = [group.name for group in traced.structure.groups if group.kind in ("linear", "attention")]
        tried += tuple(Tried(name, LEARNED_ROUNDING, not_learned) for name in layers)
    progress("dry run: step")
    seconds["step"] = _step_seconds(recommender, seed)
    warnings = model_warnings(recommender, seed) if isinstance(recommender, UserRecommender) else ()
    held = recommender.held_out("validation")
    scored = len(held.labels) * (1 if held.items is None else len(held.items))
    return DryRun(
        traced.structure, traced.left_alone, tried, forms, str(folder), held.parts, parity, size, seconds,
        recommender.batches_per_epoch, scored, recommender.inputs, warnings,
    )  # fmt: skip


def unlearnable(recommender: Recommender, seed: int) -> str | None:
    """Return the reason why the model cannot be trained quantization-aware, None where it can. Tries a few batches of
    train, of different shapes where there are some, and part of one, since not all batches have the same number of
    rows.
    """
    shapes: dict[object, dict[str, Tensor]] = {}
    for inputs, _ in recommender.batches(torch.Generator().manual_seed(seed)):
        shapes.setdefault(tuple(values.shape[1:] for values in inputs.values()), dict(inputs))
        if len(shapes) == min(_BATCHES, len(recommender.train_rows().blocks)):
            break
    batches = list(shapes.values())
    batches.append({name: values[:-1] if len(values) > 2 else values for name, values in batches[0].items()})
    return trouble_with_training(recommender.model, recommender.method, batches)


class _Clock:
    def __init__(self, stage: str, seconds: dict[str, float]) -> None:
        self._stage, self._seconds = stage, seconds

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *error: object) -> None:
        self._seconds[self._stage] = time.monotonic() - self._start


def user_inputs(recommender: Recommender) -> frozenset[str]:
    """Return the inputs that are the same in all rows of a request, without those that the model takes once
    a request.
    """
    return frozenset(spec.name for spec in recommender.inputs if spec.side == "user") - recommender.once


def _forms(recommender: Recommender, graph: ir.Model) -> dict[str, Callable[[], object]]:
    """Return the checks of the graph's forms that a placement may need, by name."""

    def once() -> None:
        rows = {name: values.numpy() for name, values in recommender.serving_rows(_ROWS).items()}
        largest_difference(compute_once(graph, user_inputs(recommender)), graph, rows, LIMIT)

    return {"user once": once, "split embeddings": lambda: split_embeddings(graph)}


def _refused(attempt: Callable[[], object]) -> str | None:
    try:
        attempt()
    except Exception as error:  # any failure excludes this form only
        return one_line(error)
    return None


def _check_hidden(recommender: Recommender, seed: int) -> None:
    """
    Raises:
        FactoryError: the outputs of the hidden module are no features.
    """
    if recommender.hidden is None:
        return
    inputs, _ = next(iter(recommender.batches(torch.Generator().manual_seed(seed))))
    try:
        with torch.no_grad(), hidden_outputs(recommender.model, recommender.hidden) as latest:
            recommender.outputs(recommender.model.eval(), inputs)
            latest()
    except ValueError as error:
        raise FactoryError(f"hidden: {error}") from error


def _step_seconds(recommender: Recommender, seed: int) -> float:
    """Measure the seconds of one distillation step on a copy of the model, with batches prepared and after
    a warm-up.
    """
    student = copy.deepcopy(recommender.model).requires_grad_(True)
    distillation = Distillation(2.0, 0.5, 1)
    whole = training_data_of(recommender, distillation)
    batches = list(islice(whole.batches(torch.Generator().manual_seed(seed)), min(_BATCHES, whole.batches_per_epoch)))
    training_data = replace(whole, batches_per_epoch=len(batches), batches=lambda generator: iter(batches))
    for _ in range(2):
        start = time.monotonic()
        try:
            distil(student, training_data, recommender.optimizer(student), distillation, seed, recommender.model)
        except Exception as error:  # anything that the user's forward or loss may raise in training
            raise ValueError(f"The model must learn from a batch, but got {located(error)}") from error
    return (time.monotonic() - start) / len(batches)
