"""Rehearsal: every stage once and briefly, before any budget is spent; what can be compressed, what cannot, and why."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import torch
from torch import Tensor, nn

from objectives.anatomy import of_baseline
from objectives.compression.distillation import distil
from objectives.compression.export import (
    Signature,
    check_parity,
    check_requests,
    largest_difference,
    of_each_shape,
    to_onnx,
)
from objectives.compression.low_rank import factorise
from objectives.compression.precision import quantise
from objectives.compression.pruning import prune
from objectives.compression.saving import save_graph
from objectives.compression.training_graph import trouble_with_training
from objectives.errors import located, one_line
from objectives.fitting import course_of
from objectives.grading import check_metric
from objectives.holdout import write_requests
from objectives.recommenders.protocol import Recommender
from objectives.record import WEIGHTS
from objectives.rehearsed import MODEL, Rehearsal, Tried
from spaces.anatomy import Anatomy, Group
from spaces.distillation import Distillation
from spaces.low_rank import LowRank
from spaces.precision import Precision
from spaces.pruning import Pruning

Progress = Callable[[str], None]
_ROWS = 512
_RATIO, _SHARE = 0.5, 0.25
_BATCHES = 3


def rehearse(recommender: Recommender, signature: Signature, folder: Path, seed: int, progress: Progress) -> Rehearsal:
    """Trace, export, parity, on each group one technique of each stage that fits it, and a few steps of fine-tuning.

    Raises:
        FactoryError: the metric cannot be told of the model.
        TraceError: the model's forward cannot be traced.
        ParityError: the exported graph does not give the model's scores.
        ValueError: a step of fine-tuning fails.
    """
    seconds: dict[str, float] = {}
    check_metric(recommender)

    def timed(stage: str) -> _Clock:
        progress(f"rehearsal: {stage}")
        return _Clock(stage, seconds)

    with timed("trace"):
        traced = of_baseline(recommender)
    model, rows = recommender.model, recommender.serving_rows(_ROWS)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS).unlink(missing_ok=True)
    with timed("export"):
        graph = to_onnx(model, rows, signature, folder / WEIGHTS)
    with timed("parity"):
        parity = check_parity(model, graph, rows, signature.scores)
        requests = list(recommender.requests(seed))
        check_requests(model, graph, of_each_shape(requests), signature)
    size = save_graph(graph, folder / MODEL)
    write_requests(requests, folder)
    with timed("techniques"), TemporaryDirectory(dir=folder) as scratch:
        tried = tuple(_techniques(recommender, traced.anatomy, graph, signature, seed, Path(scratch) / WEIGHTS))
    progress("rehearsal: step")
    seconds["step"] = _step_seconds(recommender, seed)
    parts = recommender.held_out("validation").parts
    return Rehearsal(
        traced.anatomy, traced.left_alone, tried, str(folder), parts, parity, size, seconds, recommender.per_pass,
        recommender.inputs,
    )  # fmt: skip


def unlearnable(recommender: Recommender, seed: int) -> str | None:
    """Why weights cannot learn with their rounding in the loop, None where they can: on a few batches of train, of
    different shapes where there are some, and on a part of one, since not all have as many rows."""
    shapes: dict[object, dict[str, Tensor]] = {}
    for inputs, _ in recommender.lessons(torch.Generator().manual_seed(seed)):
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


def _techniques(
    recommender: Recommender,
    anatomy: Anatomy,
    graph: onnx.ModelProto,
    signature: Signature,
    seed: int,
    weights_file: Path,
) -> Iterator[Tried]:
    model, rows = recommender.model, recommender.serving_rows(_ROWS)
    arrays = {name: values.numpy() for name, values in rows.items()}

    def pruned(group: Group) -> None:
        smaller, _ = prune(model, Pruning(((group.name, _RATIO),), multiple=1), anatomy)
        _check(smaller)

    def factorised(group: Group) -> None:
        _check(factorise(model, LowRank(((group.name, _SHARE),)), anatomy))

    def narrowed(group: Group, width: str) -> None:
        asked = Precision(((group.name, width),))
        largest_difference(quantise(graph, asked, anatomy, arrays, weights_file=weights_file), graph, arrays)
        weights_file.unlink(missing_ok=True)

    def _check(smaller: nn.Module) -> None:
        check_parity(smaller, to_onnx(smaller, rows, signature, weights_file), rows, signature.scores)
        weights_file.unlink(missing_ok=True)

    not_learned = unlearnable(recommender, seed)
    for group in anatomy.groups:
        if group.prunable:
            yield _tried(group, "pruning", pruned)
        else:
            yield Tried(group.name, "pruning", group.unprunable_reason)
        if group.kind == "table":
            yield _tried(group, "int8", lambda of: narrowed(of, "int8"))
        if group.kind in ("linear", "attention"):
            if group.factorable:
                yield _tried(group, "low rank", factorised)
            else:
                yield Tried(group.name, "low rank", group.unfactorable_reason)
            yield _tried(group, "int8-dynamic", lambda of: narrowed(of, "int8-dynamic"))
            yield Tried(group.name, "learned rounding", not_learned)


def _tried(group: Group, technique: str, attempt: Callable[[Group], None]) -> Tried:
    try:
        attempt(group)
    except Exception as error:  # whatever the user's own forward raises, smaller than it was
        return Tried(group.name, technique, one_line(error))
    return Tried(group.name, technique)


def _step_seconds(recommender: Recommender, seed: int) -> float:
    """Of one batch, as a copy of the model learns from the model; the batches are at hand, and all was run once."""
    student = copy.deepcopy(recommender.model).requires_grad_(True)
    distillation = Distillation(2.0, 0.5, 1)
    whole = course_of(recommender, distillation)
    lessons = list(islice(whole.lessons(torch.Generator().manual_seed(seed)), min(_BATCHES, whole.per_pass)))
    course = replace(whole, per_pass=len(lessons), lessons=lambda generator: iter(lessons))
    for _ in range(2):
        start = time.monotonic()
        try:
            distil(student, course, recommender.optimizer(student), distillation, seed, recommender.model)
        except Exception as error:  # whatever the user's own forward or loss raises while it learns
            raise ValueError(f"The model must learn from a batch, but got {located(error)}") from error
    return (time.monotonic() - start) / len(lessons)
