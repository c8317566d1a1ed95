"""Prepare, fit and export: a builder's stages, of which the last two turn a candidate's choices into a model file."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, nn

from objectives.build import elastic
from objectives.build.baseline_checks import check_metric, dry_facts, split_refused, undertrained, unlearnable
from objectives.build.fit import Fitted, fit_elastic, untrained
from objectives.build.fit import fit as fit_weights
from objectives.build.model_structure import of_baseline
from objectives.build.technique_checks import TechniqueChecks
from objectives.compression.elastic.network import ElasticNetwork
from objectives.compression.embeddings import evenly_seen, seen
from objectives.compression.export import (
    Rows,
    Signature,
    largest_difference,
    of_each_shape,
)
from objectives.compression.graph_passes.split_embeddings import split_embeddings
from objectives.compression.graph_passes.user_once import UserOnceError, compute_once
from objectives.compression.quantization import quantize, read_weight_bits, read_widths
from objectives.compression.traced_graphs import TracedGraphs
from objectives.errors import one_line
from objectives.held_out_rows import HELD_PARTS, HeldOut, HeldPart, read_requests, write_held_out, write_requests
from objectives.jobs.protocol import Progress
from objectives.jobs.requests import ExportRequest, ExportResponse, FitRequest, FitResponse, PrepareRequest
from objectives.onnx_graph import load_graph, multiply_adds, save_graph
from objectives.parity import LIMIT
from objectives.recommenders.load import open_recommender
from objectives.recommenders.protocol import Recommender
from objectives.recommenders.user_model.factory import FactoryError
from objectives.records import LEARNED_ROUNDING, Artifact, InputSpec, Prepared, Tried, rows_of
from objectives.serving.split_engine import DENSE, TABLES
from objectives.store import make_once
from objectives.task import Task
from spaces.model_structure import ModelStructure
from spaces.serialization import Json, digest, from_plain, to_plain
from spaces.techniques.embeddings import SMALLEST
from spaces.techniques.placement import Placement
from spaces.techniques.quantization import Precision
from spaces.weights import Weights

# Versions of the stages, raised when a stage's output changes, so that older cache entries are not used.
FIT_STAGE = 10
ELASTIC_STAGE = 1
EXPORT_STAGE = 15
TECHNIQUES_STAGE = 3
CALIBRATION_ROWS = 2048
# Serving rows on which a form of the graph is compared.
_ROWS = 512
# Users of a ranking that a dry run scores at most.
_DRY_USERS = 384
MODEL = "model.onnx"


def prepare(request: PrepareRequest, progress: Progress) -> Prepared:
    """Train the baseline, export it, and write the held-out rows and the requests as plain arrays.

    A dry run evaluates and trains nothing, but reports what is probably not meant, and forms of the graph that are
    not available; of a ranking it keeps a few users.

    Raises:
        FactoryError: the metric is undefined for the model; in a dry run, its hidden module gives no features.
        TraceError: the model's forward cannot be traced.
        ParityError: the exported graph does not give the model's scores.
    """
    task = request.task
    recommender = open_once(task, progress, request.threads)
    held = {part: recommender.held_out(part) for part in HELD_PARTS}
    key = digest(recommender.key, task.key(), _of_slices(held), EXPORT_STAGE)[:20]
    holdout = task.cache / "holdouts" / key

    def write(into: Path) -> None:
        check_metric(recommender)
        for part, of in held.items():
            whole = of.items is None or not task.dry_run
            write_held_out(of if whole else of.every(-(-len(of.labels) // _DRY_USERS)), into, part)
        write_requests(list(recommender.requests(task.seed)), into)
        facts = dry_facts(recommender, task.seed, held) if task.dry_run else _facts(task, recommender, progress)
        facts |= {"unlearnable": unlearnable(recommender, task.seed), "even_tables": _even_tables(recommender)}
        (into / "facts.json").write_text(json.dumps(facts))

    make_once(holdout, write)
    progress("baseline: exporting it")
    artifact = _export(task, recommender, Weights(), Precision(), Placement()).artifact
    requests = read_requests(holdout)
    rows = int(np.median([rows_of(request) for request in requests]))
    model = Path(task.home) / artifact.path
    refused, share = _user_once(task, recommender, model, rows, requests)
    kept, traced = json.loads((holdout / "facts.json").read_text()), of_baseline(recommender)
    facts: Json = {name: tuple(value) if isinstance(value, list) else value for name, value in kept.items()}
    progress("baseline: applying each technique once")
    tried = _tried(task, recommender, artifact)
    return Prepared(
        key=recommender.key,
        holdout=str(holdout),
        structure=traced.structure,
        left_alone={**traced.left_alone, **_not_done(tried, facts["unlearnable"])},
        tried=tried,
        metric=recommender.metric,
        custom_metric=recommender.custom_metric,
        median_rows=rows,
        featured=recommender.hidden is not None,
        built=recommender.built,
        nested=recommender.layout(None) is not None,
        columns=recommender.columns,
        parts=held["validation"].parts,
        student=recommender.student(),
        sizes=recommender.sizes(),
        inputs=tuple(_coded(spec, traced.structure) for spec in recommender.inputs),
        baseline=artifact,
        user_once_refused=refused,
        user_once_share=share,
        history=recommender.history(),
        once=tuple(sorted(recommender.once)),
        simple=recommender.references,
        split_refused=split_refused(model) if task.dry_run else None,
        **facts,
    )


def _facts(task: Task, recommender: Recommender, progress: Progress) -> Json:
    progress("baseline: evaluating it and simple references")
    facts: Json = to_plain(recommender.facts())
    if not facts["training"]:  # a built-in baseline was trained until validation stopped improving
        progress("baseline: checking its convergence with one more epoch of training")
        facts["undertrained"] = undertrained(recommender, task.seed)
    return facts


def _tried(task: Task, recommender: Recommender, baseline: Artifact) -> tuple[Tried, ...]:
    bits = task.int8_weight_bits
    key = digest(baseline.key, recommender.key, bits, TECHNIQUES_STAGE, onnxruntime.__version__)[:20]
    folder = task.cache / "techniques" / key

    def write(into: Path) -> None:
        structure, graph = of_baseline(recommender).structure, load_graph(Path(task.home) / baseline.path)
        tried = TechniqueChecks(recommender, structure, graph, signature_of(recommender), bits).run()
        (into / "tried.json").write_text(json.dumps(to_plain(tried)))

    make_once(folder, write)
    return tuple(from_plain(Tried, one) for one in json.loads((folder / "tried.json").read_text()))


def _not_done(tried: Sequence[Tried], unlearnable: str | None) -> dict[str, str]:
    """Return the parts that some techniques cannot be applied to, techniques of one reason together, and the reason."""
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for one in tried:
        if one.refused is not None:
            found[one.group, one.refused].append(one.technique)
    if unlearnable is not None:
        found["all layers", unlearnable].append(LEARNED_ROUNDING)
    return {f"{part} ({', '.join(techniques)})": reason for (part, reason), techniques in found.items()}


def _even_tables(recommender: Recommender) -> list[str]:
    """Return the tables large enough for a compressed form whose rows are known to be looked up about equally often."""
    modules = {t: recommender.model.get_submodule(t.name) for t in of_baseline(recommender).structure.tables}
    large = {t: m for t, m in modules.items() if t.rows >= SMALLEST and isinstance(m, nn.Embedding)}
    counts = recommender.counts(recommender.model, list(large)) if large else {}
    return [t.name for t, m in large.items() if seen(m, counts.get(t.name)) and evenly_seen(m, counts[t.name])]


def _of_slices(held: Mapping[HeldPart, HeldOut]) -> str:
    """Hash the slices of the held-out rows, which no weight depends on."""
    content = hashlib.sha256()
    for of in held.values():
        for name, mask in of.slices.items():
            content.update(name.encode() + mask.tobytes())
    return content.hexdigest()


def fit(request: FitRequest, progress: Progress) -> FitResponse:
    """Reshape or prune the weights, then distil them. The baseline's own weights need no fitting."""
    task, weights = request.task, request.weights
    if weights.distillation is None:
        return FitResponse(True)
    recommender = open_once(task, progress, request.threads)
    # A dry run trains on a few batches, whose teacher's outputs are not worth those of all of train.
    cache, bits = None if task.dry_run else task.cache, task.int8_weight_bits
    seconds: list[float] = []

    def write(into: Path) -> None:
        network = _elastic(task, recommender, weights, progress, cache) if weights.elastic else None
        fitted = fit_weights(recommender, weights, task.seed, progress, cache, bits, network)
        fitted.save(into)
        seconds.append(fitted.batch_seconds)

    reused = make_once(_weights_folder(task, recommender, weights), write)
    return FitResponse(reused, sum(seconds))


def _elastic(
    task: Task, recommender: Recommender, weights: Weights, progress: Progress, cache: Path | None
) -> ElasticNetwork:
    """Return the elastic network that the weights are a slice of, trained on the first call."""
    folder = task.cache / "elastic_networks" / _elastic_key(task, recommender, weights)
    made: list[ElasticNetwork] = []

    def write(into: Path) -> None:
        made.append(fit_elastic(recommender, weights, task.seed, progress, cache))
        elastic.save(made[0], into)

    make_once(folder, write)
    return made[0] if made else elastic.load(folder)


def _elastic_key(task: Task, recommender: Recommender, weights: Weights) -> str:
    """Return the cache key of an elastic network: of no single shape, but of all that determines the others."""
    assert weights.distillation is not None
    shapes = recommender.student() if weights.pruning is None else weights.pruning.multiple
    trained = [task.seed, recommender.train_rows().batch_size, _settings(recommender.optimizer(recommender.model))]
    return digest(recommender.key, shapes, replace(weights.distillation, epochs=0), trained, ELASTIC_STAGE)[:20]


def export(request: ExportRequest, progress: Progress) -> ExportResponse:
    """Export one ONNX graph in the candidate's widths and its placement's form, checked against the model."""
    task, chosen = request.task, request.candidate
    recommender = open_once(task, progress, request.threads)
    return _export(task, recommender, chosen.weights, chosen.precision, chosen.placement)


def _export(
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
    form = {"user_once": placement.user_once, "split_embeddings": split}
    stored = Precision(precision.widths, calibration=precision.calibration)
    bits = task.int8_weight_bits if stored.rounds_products else None
    made_by = (EXPORT_STAGE, ir.__version__, torch.__version__)
    key = digest(_weights_key(task, recommender, weights), stored, form, bits, *made_by)
    folder = task.cache / "artifacts" / key[:20]

    def write(into: Path) -> None:
        fitted = known or _fitted(task, recommender, weights)
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
    rows, narrow = recommender.serving_rows(CALIBRATION_ROWS), any(width != "fp32" for _, width in stored.widths)
    if not (placement.user_once or placement.embedding_device or narrow):
        signature = signature_of(recommender)
        requests = of_each_shape(list(recommender.requests(task.seed))) if signature.open else ()
        return _traced.export(fitted.model, rows, signature, requests)
    plain = _export(task, recommender, weights, Precision(), Placement(), fitted).artifact
    graph = source = load_graph(Path(task.home) / plain.path)
    arrays = _arrays(rows)
    if placement.user_once:
        graph = compute_once(source, user_inputs(recommender))
        largest_difference(graph, source, arrays, LIMIT)
    if narrow:
        graph = quantize(graph, stored, fitted.structure, arrays, fitted.ranges, task.int8_weight_bits)
    return graph, largest_difference(graph, source, arrays)


def _coded(spec: InputSpec, structure: ModelStructure) -> InputSpec:
    """Add the number of codes to the input, as far as tables look its codes up directly."""
    rows = [table.rows for table in structure.tables if spec.name in table.inputs]
    return replace(spec, vocabulary=min(rows)) if rows and spec.vocabulary is None else spec


def signature_of(recommender: Recommender) -> Signature:
    axes = {spec.name: tuple(i for i, size in enumerate(spec.shape, 1) if size is None) for spec in recommender.inputs}
    return Signature(recommender.once, {name: of for name, of in axes.items() if of}, recommender.scores)


def user_inputs(recommender: Recommender) -> frozenset[str]:
    """Return the inputs that are the same in all rows of a request, without those that the model takes once."""
    return frozenset(spec.name for spec in recommender.inputs if spec.side == "user") - recommender.once


def _arrays(rows: Mapping[str, Tensor]) -> Rows:
    return {name: values.numpy() for name, values in rows.items()}


def _user_once(
    task: Task, recommender: Recommender, model: Path, rows: int, requests: Sequence[Rows]
) -> tuple[str | None, float | None]:
    """Return (why the user's side cannot be computed once a request, the share of multiply-adds left if it is): one of
    the two, or neither where the multiply-adds cannot be counted.
    """
    users = user_inputs(recommender)
    if not users:
        once = ", ".join(sorted(recommender.once))
        return (f"{once} is given once anyway" if once else "no input is the user's or the moment's alone"), None
    graph = load_graph(model)
    try:
        once_graph = compute_once(graph, users)
        if task.dry_run:
            largest_difference(once_graph, graph, _arrays(recommender.serving_rows(_ROWS)), LIMIT)
    except UserOnceError as error:
        return str(error), None
    except Exception as error:  # any failure excludes this form only
        return one_line(error), None
    shapes = {name: np.array([request[name].shape[1:] for request in requests]) for name in requests[0]}
    lengths = {name: tuple(map(int, np.median(of, axis=0))) for name, of in shapes.items()}  # of one row
    try:
        return None, multiply_adds(once_graph, rows, lengths) / max(1, multiply_adds(graph, rows, lengths))
    except ValueError:  # a size known only when the graph runs; the actual saving is measured in any case
        return None, None


def _fitted(task: Task, recommender: Recommender, weights: Weights) -> Fitted:
    if weights.reference is not None:
        return Fitted(recommender.reference(weights.reference), ModelStructure(()), {})
    if weights.distillation is None:
        return Fitted(recommender.model, of_baseline(recommender).structure, {})
    if not weights.distillation.trained:
        return untrained(recommender, weights, task.seed)
    return Fitted.load(_weights_folder(task, recommender, weights))


def _weights_key(task: Task, recommender: Recommender, weights: Weights) -> str:
    """Return the cache key of weights; settings of training are part of it only where the weights are trained."""
    trained: list[object] = []
    if weights.distillation is not None:
        trained = [task.seed, recommender.train_rows().batch_size, _settings(recommender.optimizer(recommender.model))]
    bits = task.int8_weight_bits if weights.quantization_aware else None
    stages = (FIT_STAGE, ELASTIC_STAGE) if weights.elastic else (FIT_STAGE,)
    return digest(recommender.key, weights, trained, bits, *stages)[:20]


def _settings(optimizer: torch.optim.Optimizer) -> list[object]:
    """Describe an optimizer by its class, its settings and the number of parameters of each group."""
    found: list[object] = [f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"]
    # Those of torch's own optimizers; the repr of another object may contain its address, which is never the same.
    kinds = (int, float, str, tuple, Tensor)
    for group in optimizer.param_groups:
        found.append([len(group["params"]), {n: repr(value) for n, value in group.items() if isinstance(value, kinds)}])
    return found


def _weights_folder(task: Task, recommender: Recommender, weights: Weights) -> Path:
    return task.cache / "weights" / _weights_key(task, recommender, weights)


# One builder serves one study, so one recommender stays in memory, with the graphs of its models.
_opened: dict[str, Recommender] = {}
_traced = TracedGraphs()


def open_once(task: Task, progress: Progress, threads: int | None = None) -> Recommender:
    """Open the recommender, or return the one in memory; from here on torch computes with so many threads.

    Raises:
        FactoryError: the recommender is not the one that the study was prepared with.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    key = digest(replace(task, expected=""))
    if key not in _opened:
        _opened.clear()
        _traced.clear()
        _opened[key] = open_recommender(task, progress)
    if task.expected not in ("", _opened[key].key):
        raise FactoryError(
            f"{task.recommender}: must give the same model, data and requests, by the same code and library versions, "
            "whenever it is called, but gave others than when the study was prepared; let it load what was trained, "
            "and seed what it draws"
        )
    return _opened[key]
