"""Export: the ONNX graph of a candidate in its widths and its placement's form, checked against the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor

from objectives.build.fit import Fitted
from objectives.build.stages.opened import open_once, traced
from objectives.build.stages.weights import fitted_weights, weights_key
from objectives.compression.export import Rows, Signature, largest_difference, of_each_shape
from objectives.compression.graph_passes.score_catalogue import score_catalogue
from objectives.compression.graph_passes.split_embeddings import split_embeddings
from objectives.compression.graph_passes.user_once import compute_once
from objectives.compression.quantization import quantize, read_weight_bits, read_widths
from objectives.jobs.protocol import Progress
from objectives.jobs.requests import ExportRequest, ExportResponse
from objectives.onnx_graph import load_graph, save_graph
from objectives.parity import LIMIT
from objectives.recommenders.protocol import Recommender
from objectives.records import Artifact
from objectives.serving.split_engine import DENSE, TABLES
from objectives.store import make_once
from objectives.task import Task
from spaces.serialization import added_later, digest, from_plain
from spaces.techniques.placement import Placement
from spaces.techniques.quantization import Precision
from spaces.weights import Weights

# Version of the stage, raised when its output changes, so that older cache entries are not used.
EXPORT_STAGE = 18
CALIBRATION_ROWS = 2048
MODEL = "model.onnx"


@dataclass(frozen=True)
class _Form:
    """Form of a graph, as far as a placement decides it."""

    user_once: bool
    split_embeddings: bool
    score_catalogue: bool = field(default=False, metadata=added_later())


def export(request: ExportRequest, progress: Progress) -> ExportResponse:
    """Export one ONNX graph in the candidate's widths and its placement's form, checked against the model."""
    task, chosen = request.task, request.candidate
    recommender = open_once(task, progress, request.threads)
    return export_graph(task, recommender, chosen.weights, chosen.precision, chosen.placement)


def export_graph(
    task: Task,
    recommender: Recommender,
    weights: Weights,
    precision: Precision,
    placement: Placement,
    known: Fitted | None = None,
) -> ExportResponse:
    """Export a graph once; `known` is the fitted model, where the caller has it."""
    # The compute type of an engine does not change the file, nor does a placement but by the graph's form.
    split = placement.embedding_device is not None
    form = _Form(placement.user_once, split, placement.score_catalogue)
    narrow = any(width != "fp32" for _, width in precision.widths)
    # A choice of fp32 for each group is the plain graph, which others need too.
    stored = Precision(precision.widths, calibration=precision.calibration) if narrow else Precision()
    bits = task.int8_weight_bits if stored.rounds_products else None
    made_by = (EXPORT_STAGE, ir.__version__, version("onnxscript"), torch.__version__)
    key = digest(weights_key(task, recommender, weights), stored, form, bits, *made_by)
    folder = task.cache / "artifacts" / key[:20]

    def write(into: Path) -> None:
        fitted = known or fitted_weights(task, recommender, weights)
        graph, parity = _graph(task, recommender, weights, stored, placement, fitted)
        size = save_graph(graph, into / MODEL)
        if split:  # two parts next to the graph, which share its large tensors
            parts = split_embeddings(load_graph(into / MODEL))
            size = sum(save_graph(part, into / name) for part, name in zip(parts, (TABLES, DENSE), strict=True))
        widths = read_widths(graph, fitted.structure, dict(stored.widths))
        units = {group.name: [width.units for width in group.dims] for group in fitted.structure.groups if group.dims}
        facts = {"widths": widths, "model_bytes": size, "parity": parity, "units": units}
        (into / "facts.json").write_text(json.dumps({**facts, "int8_weight_bits": read_weight_bits(graph)}))

    reused = make_once(folder, write)
    facts = json.loads((folder / "facts.json").read_text())
    path = str((folder / MODEL).relative_to(task.home))
    return ExportResponse(from_plain(Artifact, {"key": key[:20], "path": path, **facts}), reused)


def _graph(
    task: Task, recommender: Recommender, weights: Weights, stored: Precision, placement: Placement, fitted: Fitted
) -> tuple[ir.Model, float]:
    """Return the graph in its form and widths, and its parity with the model, or with the graph of no form or width."""
    rows, narrow = recommender.serving_rows(CALIBRATION_ROWS), bool(stored.widths)
    if placement.of_graph == Placement() and not narrow:
        signature = signature_of(recommender)
        requests = of_each_shape(list(recommender.requests(task.seed))) if signature.open else ()
        return traced.export(fitted.model, rows, signature, requests)
    plain = export_graph(task, recommender, weights, Precision(), Placement(), fitted).artifact
    graph = source = load_graph(Path(task.home) / plain.path)
    arrays = arrays_of(rows)
    if placement.user_once:
        graph = compute_once(source, user_inputs(recommender))
    if placement.score_catalogue:
        graph = score_catalogue(graph)
    if graph is not source:
        largest_difference(graph, source, arrays, LIMIT)
    if narrow:
        graph = quantize(graph, stored, fitted.structure, arrays, fitted.ranges, task.int8_weight_bits)
    return graph, largest_difference(graph, source, arrays)


def signature_of(recommender: Recommender) -> Signature:
    axes = {spec.name: tuple(i for i, size in enumerate(spec.shape, 1) if size is None) for spec in recommender.inputs}
    return Signature(recommender.once, {name: of for name, of in axes.items() if of}, recommender.scores)


def user_inputs(recommender: Recommender) -> frozenset[str]:
    """Return the inputs that are the same in all rows of a request, without those that the model takes once."""
    return frozenset(spec.name for spec in recommender.inputs if spec.side == "user") - recommender.once


def arrays_of(rows: Mapping[str, Tensor]) -> Rows:
    return {name: values.numpy() for name, values in rows.items()}
