"""Prepare: the baseline, trained and exported, the techniques that apply to it, and the held-out rows and requests."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
from torch import nn

from objectives.build.baseline_checks import (
    check_metric,
    convergence_check,
    dry_facts,
    rows_interact,
    split_refused,
    unlearnable,
)
from objectives.build.model_structure import of_baseline
from objectives.build.stages.graphs import EXPORT_STAGE, arrays_of, export_graph, signature_of, user_inputs
from objectives.build.stages.opened import open_once
from objectives.build.stages.weights import optimizer_settings
from objectives.build.technique_checks import TechniqueChecks
from objectives.compression.embeddings import evenly_seen, seen
from objectives.compression.export import Rows, largest_difference
from objectives.compression.graph_passes.score_catalogue import CatalogueError, catalogue_rows, score_catalogue
from objectives.compression.graph_passes.user_once import UserOnceError, compute_once
from objectives.errors import one_line
from objectives.held_out_rows import HELD_PARTS, HeldOut, HeldPart, read_requests, write_held_out, write_requests
from objectives.jobs.protocol import Progress
from objectives.jobs.requests import PrepareRequest
from objectives.onnx_graph import load_graph, multiply_adds
from objectives.parity import LIMIT
from objectives.recommenders.protocol import Recommender
from objectives.records import LEARNED_ROUNDING, Artifact, InputSpec, Prepared, Tried, rows_of
from objectives.store import make_once
from objectives.task import Task
from spaces.model_structure import ModelStructure
from spaces.serialization import Json, digest, from_plain, to_plain
from spaces.techniques.embeddings import SMALLEST
from spaces.techniques.placement import Placement
from spaces.techniques.quantization import Precision
from spaces.weights import Weights

# Version of the checks, raised when their result changes, so that older cache entries are not used.
TECHNIQUES_STAGE = 4
# Version of the facts that are written with the held-out rows.
FACTS_STAGE = 1
# Serving rows on which a form of the graph is compared.
_ROWS = 512
# Share of a table's rows that a request takes at least where all of them may as well be scored: with a tenth of 20,000
# rows it took 1.2 times (16 dimensions) and 1.6 times as long (50), with half of them 0.4 times.
_CATALOGUE_SHARE = 0.1
# Users of a ranking that a dry run scores at most.
_DRY_USERS = 384


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
    made_by = EXPORT_STAGE, FACTS_STAGE, optimizer_settings(recommender)  # the convergence check trains
    key = digest(recommender.key, recommender.metric, task.key(), _of_slices(held), *made_by)[:20]
    holdout = task.cache / "holdouts" / key
    make_once(holdout, lambda into: _write_holdout(task, recommender, held, progress, into))
    progress("baseline: exporting it")
    artifact = export_graph(task, recommender, Weights(), Precision(), Placement()).artifact
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
        softened=any(kind.scale != "values" for kind in recommender.output_kinds),
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
        catalogue_refused=_catalogue_refused(task, recommender, model, rows, once=refused is None),
        rows_interact=rows_interact(model, requests),
        history=recommender.history(),
        once=tuple(sorted(recommender.once)),
        simple=recommender.references,
        encoding=recommender.encoding,
        split_refused=split_refused(model) if task.dry_run else None,
        **facts,
    )


def _write_holdout(
    task: Task, recommender: Recommender, held: Mapping[HeldPart, HeldOut], progress: Progress, into: Path
) -> None:
    """Write the held-out rows, the requests and the facts that are found with them."""
    check_metric(recommender)
    for part, of in held.items():
        if task.dry_run and of.items is not None:
            of = of.of_users(np.arange(0, len(of.labels), -(-len(of.labels) // _DRY_USERS)))
        write_held_out(of, into, part)
    write_requests(list(recommender.requests(task.seed)), into)
    facts = dry_facts(recommender, task.seed, held) if task.dry_run else _facts(task, recommender, progress)
    facts |= {"unlearnable": unlearnable(recommender, task.seed), "even_tables": even_tables(recommender)}
    (into / "facts.json").write_text(json.dumps(facts))


def _facts(task: Task, recommender: Recommender, progress: Progress) -> Json:
    progress("baseline: evaluating it and simple references")
    facts: Json = to_plain(recommender.facts())
    if not facts["training"]:  # a built-in baseline was trained until validation stopped improving
        progress("baseline: checking its convergence with one more epoch of training")
        found = convergence_check(recommender, task.seed)
        facts |= {"undertrained": found.improvement, "epoch_seconds": found.epoch_seconds}
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


def even_tables(recommender: Recommender) -> list[str]:
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


def _coded(spec: InputSpec, structure: ModelStructure) -> InputSpec:
    """Add the number of codes to the input, as far as tables look its codes up directly."""
    rows = [table.rows for table in structure.tables if spec.name in table.inputs]
    return replace(spec, vocabulary=min(rows)) if rows and spec.vocabulary is None else spec


def _user_once(
    task: Task, recommender: Recommender, model: Path, rows: int, requests: Sequence[Rows]
) -> tuple[str | None, float | None]:
    """Return why the user's side cannot be computed once a request, and the share of multiply-adds left if it is.

    One of the two is None; both are None where the multiply-adds cannot be counted.
    """
    users = user_inputs(recommender)
    if not users:
        once = ", ".join(sorted(recommender.once))
        return (f"{once} is given once anyway" if once else "no input is the user's or the moment's alone"), None
    graph = load_graph(model)
    try:
        once_graph = compute_once(graph, users)
        if task.dry_run:
            largest_difference(once_graph, graph, arrays_of(recommender.serving_rows(_ROWS)), LIMIT)
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


def _catalogue_refused(task: Task, recommender: Recommender, model: Path, rows: int, once: bool) -> str | None:
    """Return why the catalogue is not scored as a whole, None where that may pay.

    Args:
        rows: of a request
        once: whether the user's side can be computed once a request, as it then is here
    """
    source = load_graph(model)
    try:
        graph = compute_once(source, user_inputs(recommender)) if once else source
        size = catalogue_rows(graph)
        if rows < _CATALOGUE_SHARE * size:
            return f"a request of {rows} rows takes less than {_CATALOGUE_SHARE:.0%} of the {size} rows of the tables"
        if task.dry_run:
            rows_of_it = arrays_of(recommender.serving_rows(_ROWS))
            largest_difference(score_catalogue(graph), source, rows_of_it, LIMIT)
    except CatalogueError as error:
        return str(error)
    except Exception as error:  # any failure excludes this form only
        return one_line(error)
    return None
