"""A builder's stages on small studies, from the data to a file that an engine scores as the model does."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from sklearn.metrics import roc_auc_score
from torch import nn

from objectives.build import user_ranks
from objectives.build.evaluate import evaluate
from objectives.build.fit import TRAINING, Fitted
from objectives.build.fit import fit as fit_weights
from objectives.build.model_structure import of_baseline
from objectives.build.stages import graphs as graphs_stage
from objectives.build.stages import opened as opened_stage
from objectives.build.stages import prepare as prepare_stage
from objectives.build.stages import weights as weights_stage
from objectives.build.stages.opened import open_once
from objectives.build.stages.prepare import even_tables
from objectives.build.stages.weights import weights_folder
from objectives.build.technique_checks import TechniqueChecks
from objectives.compression.distillation import distil
from objectives.held_out_rows import read_held_out, read_requests
from objectives.jobs.requests import EvaluateRequest, FitRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.recommenders.load import open_recommender
from objectives.recommenders.protocol import Recommender
from objectives.records import Artifact, Prepared, Quality
from objectives.task import Task
from spaces.domains import Scalar
from spaces.model_structure import Kind
from spaces.serialization import from_plain, to_plain
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder
from spaces.techniques.low_rank import LowRank
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import CALIBRATIONS, LINEAR_WIDTHS, TABLE_WIDTHS, Precision
from spaces.weights import Weights
from tests.build_tests.small import FAMILIES, small_task
from tests.build_tests.staged import Form, export, fit, prepare

TaskOf = Callable[[str], Task]
ROWS = (1, 2, 7, 64, 257)
FULL, PLAIN = Precision(), Form()
LEARNING = Distillation(2.0, 0.5, 1)
POINTWISE = ("dcn-v2", "dlrm")
LINEAR = {"dcn-v2": "mlp", "dlrm": "top", "sasrec": "feed_forward"}
TABLE = {"dcn-v2": "tables.shop", "dlrm": "tables.shop", "sasrec": "tables.item"}
ONE_THREAD = Placement(InstanceGroup(threads=1))
Arrays = Mapping[str, NDArray[Any]]


def _silent(line: str) -> None:
    pass


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def prepared(task_of: TaskOf) -> Iterator[Callable[[str], Prepared]]:
    """A function of the family: what a builder prepares, without the checks of techniques, which have own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TechniqueChecks, "run", lambda checks: ())
        yield cache(lambda family: prepare(task_of(family), _silent))


def _model(task: Task, opened: Recommender, weights: Weights) -> nn.Module:
    """Return the fitted model, read from the folder that a builder wrote."""
    if weights == Weights():
        return opened.model
    return Fitted.load(weights_folder(task, opened, weights)).model


def _made(task: Task, weights: Weights, precision: Precision = FULL, form: Form = PLAIN) -> Artifact:
    fit(task, weights, _silent)
    return export(task, weights, precision, form, _silent)[0]


def _run(file: Path, inputs: Arrays, once: Sequence[str] = ()) -> NDArray[np.float32]:
    """Run the graph in ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = {name: values[:1] if name in once else values for name, values in inputs.items()}
    scores: NDArray[np.float32] = session.run(["scores"], feeds)[0]
    return scores


def _rows(opened: Recommender, count: int) -> dict[str, NDArray[Any]]:
    """Return rows of one request: inputs that are given once repeat the first row's."""
    rows = {name: values.numpy() for name, values in opened.serving_rows(300).items()}
    return {name: values[[0] * count] if name in opened.once else values[-count:] for name, values in rows.items()}


def _scored(model: nn.Module, inputs: Arrays) -> NDArray[np.float32]:
    with torch.inference_mode():
        scores: NDArray[np.float32] = model.eval()(**{n: torch.from_numpy(v) for n, v in inputs.items()}).numpy()
    return scores


def _check_parity(task: Task, opened: Recommender, weights: Weights, artifact: Artifact) -> None:
    model, file = _model(task, opened, weights), Path(task.home) / artifact.path
    for count in ROWS:
        inputs = _rows(opened, count)
        got = _run(file, inputs, sorted(opened.once))
        assert got.shape == (count,)
        assert np.allclose(got, _scored(model, inputs), atol=1e-4)
    assert 0 <= artifact.parity <= 1e-4
    assert artifact.model_bytes == file.stat().st_size
    assert all(width == "fp32" for width in artifact.widths.values())


@pytest.mark.slow
def test_what_was_prepared_is_read_back_as_it_was_made(
    family: str, prepared: Callable[[str], Prepared], opened: Callable[[str], Recommender], task_of: TaskOf
) -> None:
    found, recommender = prepared(family), opened(family)
    assert from_plain(Prepared, to_plain(found)) == found
    assert (found.key, found.inputs, found.history) == (recommender.key, recommender.inputs, recommender.history())
    assert found.structure == of_baseline(recommender).structure
    assert found.once == tuple(sorted(recommender.once))
    rows = {table.name: table.rows for table in found.structure.tables}
    counts = recommender.counts(recommender.model, found.structure.tables)
    assert {name: len(of) for name, of in counts.items()}.items() <= rows.items() and counts
    for part in ("validation", "test"):
        held = recommender.held_out(part)
        written = read_held_out(Path(found.holdout), part)
        assert all(np.array_equal(written.inputs[0][name], values) for name, values in held.inputs[0].items())
        assert np.array_equal(written.labels, held.labels) and np.array_equal(written.groups, held.groups)
        assert (written.seen is None) == (held.seen is None)
        assert written.slices.keys() == held.slices.keys() >= {"users with little history", "rare items"}
        assert all(mask.dtype == bool for mask in written.slices.values())
    wanted = list(recommender.requests(task_of(family).seed))
    requests = read_requests(Path(found.holdout))
    assert len(requests) == len(wanted) == 1000
    for request, of in zip(requests, wanted, strict=True):
        assert set(request) == set(of) and all(np.array_equal(request[name], of[name]) for name in of)
    _check_parity(task_of(family), recommender, Weights(), found.baseline)


def test_requests_hold_the_history_once_and_the_items_as_often_as_asked(prepared: Callable[[str], Prepared]) -> None:
    requests = read_requests(Path(prepared("sasrec").holdout))
    assert {request["history"].shape for request in requests} == {(1, 8)}
    rows = [len(request["item"]) for request in requests]
    assert min(rows) >= 1 and 40 < max(rows) <= 60 and np.median(rows) == pytest.approx(20, abs=3)


def test_what_is_told_of_each_family(family: str, prepared: Callable[[str], Prepared]) -> None:
    found = prepared(family)
    assert found.training["history"][found.training["best_epoch"]] == max(found.training["history"])
    if family == "sasrec":
        assert found.reference_metric == "ndcg@10" and found.references["logistic_regression"] is None
        assert "history" in str(found.user_once_refused) and found.user_once_share is None
        assert "takes less than 10% of the 311 rows" in str(found.catalogue_refused)
        return
    assert found.reference_metric == "auc"
    references = found.references
    assert all(value is not None and 0.5 < value < 1 for value in references.values())
    assert references["baseline"] > references["popularity"]  # type: ignore[operator]
    assert found.user_once_refused is None and 0 < found.user_once_share < 1  # type: ignore[operator]
    assert "one vector" in str(found.catalogue_refused)
    assert sum(found.rows.values()) == 4000 and found.users == 120


@pytest.mark.slow
def test_a_synthetic_log_tells_the_best_that_there_can_be(tmp_path: Path) -> None:
    task = replace(
        small_task(tmp_path, "dcn-v2"),
        source="synthetic",
        columns=None,
        synthetic={"rows": 4000, "users": 120, "items": 100, "fields": 5},
    )
    found = prepare(task, _silent)
    assert [spec.name for spec in found.inputs] == ["user", "item", "hour", "user_0", "item_0"]
    references = found.references
    assert references["bayes_optimal"] > references["baseline"] > 0.5  # type: ignore[operator]


@pytest.mark.parametrize("family", ["dcn-v2", "sasrec"])
def test_everything_comes_from_the_cache_the_second_time(
    family: str, prepared: Callable[[str], Prepared], task_of: TaskOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, weights = task_of(family), _reshaped(family)["student"]
    first = prepared(family), _made(task, weights)
    monkeypatch.setattr(opened_stage, "_opened", {})
    for module in ("pointwise", "sequential"):
        monkeypatch.setattr(f"objectives.recommenders.families.{module}.train_to_optimum", None)
    monkeypatch.setattr(weights_stage, "fit_weights", None)
    monkeypatch.setattr(graphs_stage, "_graph", None)
    assert fit(task, weights, _silent).reused and fit(task, Weights(), _silent).reused
    artifact, reused = export(task, weights, Precision(), Form(), _silent)
    assert reused and (prepare(task, _silent), artifact) == first


def test_what_an_engine_computes_in_is_no_other_file(prepared: Callable[[str], Prepared], task_of: TaskOf) -> None:
    baseline, task = prepared("dlrm").baseline, task_of("dlrm")
    assert _made(task, Weights(), Precision(compute="bf16")) == baseline
    assert _made(task, Weights(), Precision((("top", "int8-dynamic"),))).key != baseline.key


def _reshaped(family: str) -> dict[str, Weights]:
    group = LINEAR[family]
    students: Mapping[str, tuple[tuple[str, Scalar], ...]] = {
        "dcn-v2": (("embedding_dim", 4), ("crosses", 1), ("mlp", "32-16")),
        "dlrm": (("embedding_dim", 4), ("bottom", "16"), ("top", "32")),
        "sasrec": (("embedding_dim", 8), ("blocks", 1), ("heads", 2), ("feed_forward", 16)),
    }
    given: dict[str, dict[str, Any]] = {
        "student": {"architecture": Architecture(students[family])},
        "pruned": {"pruning": Pruning((("tables", 0.5), (group, 0.5)), "activation", multiple=4)},
        "shared rows": {"quotient_remainder": (QuotientRemainder(TABLE[family], 0.1),)},
    }
    if family == "sasrec":
        given["attention"] = {"attention": Attention(window=2, history=5)}
    return {name: Weights(**{"distillation": LEARNING, **weights}) for name, weights in given.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "name"), [(family, name) for family in FAMILIES for name in _reshaped(family)])
def test_the_file_scores_as_the_model_does(
    family: str, name: str, opened: Callable[[str], Recommender], task_of: TaskOf
) -> None:
    task, weights = task_of(family), _reshaped(family)[name]
    artifact = _made(task, weights)
    _check_parity(task, opened(family), weights, artifact)
    assert set(artifact.widths) == {group.name for group in of_baseline(opened(family)).structure.groups}


def _composed(family: str) -> Weights:
    """Return a candidate with all techniques that `_reshaped` leaves out."""
    group, heads = LINEAR[family], (("attention", 0.5),) if family == "sasrec" else ()
    return Weights(
        mixed_dimensions=(MixedDimensions(TABLE[family], 0.4),),
        attention=Attention(window=3, history=6) if family == "sasrec" else None,
        pruning=Pruning(((group, 0.5), *heads), "taylor", 2, 4),
        low_rank=LowRank(((group, 0.25),)),
        distillation=replace(LEARNING, epochs=3, feature_weight=0.1),
        quantization_aware=(group,),
    )


WIDTHS: Mapping[Kind, Sequence[str]] = {"linear": LINEAR_WIDTHS, "attention": LINEAR_WIDTHS, "table": TABLE_WIDTHS}


def _cases() -> list[tuple[str, str]]:
    groups = {"dcn-v2": ("tables", "cross", "mlp"), "dlrm": ("tables", "bottom", "top")}
    groups["sasrec"] = ("tables", "attention", "feed_forward")
    return [(family, group) for family, of in groups.items() for group in of]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "group"), _cases())
def test_each_width_is_read_back(
    family: str,
    group: str,
    prepared: Callable[[str], Prepared],
    opened: Callable[[str], Recommender],
    task_of: TaskOf,
) -> None:
    task, structure = task_of(family), prepared(family).structure
    baseline, inputs = prepared(family).baseline, _rows(opened(family), 257)
    once = sorted(opened(family).once)
    exact = _run(Path(task.home) / baseline.path, inputs, once)
    for width in WIDTHS[structure.group(group).kind]:
        artifact = _made(task, Weights(), Precision(((group, width),)))
        assert artifact.widths == dict.fromkeys(baseline.widths, "fp32") | {group: width}
        if width == "fp32":
            assert artifact.widths == baseline.widths
            continue
        scores = _run(Path(task.home) / artifact.path, inputs, once)
        assert 0 < np.abs(scores - exact).max() < 2 * exact.std() + 0.5


@pytest.mark.slow
def test_the_units_that_are_left_are_told(
    family: str, opened: Callable[[str], Recommender], prepared: Callable[[str], Prepared], task_of: TaskOf
) -> None:
    """Kept units are as long as the axes that they lie along; other groups keep as many as before."""
    task, model, group = task_of(family), opened(family).model, prepared(family).structure.group(LINEAR[family])
    weights = Weights(pruning=Pruning(((group.name, 0.5),), multiple=1), distillation=LEARNING)
    artifact = _made(task, weights)
    before, after = (of.state_dict() for of in (model, _model(task, opened(family), weights)))
    compared = 0
    for width, left in zip(group.dims, artifact.units[group.name], strict=True):
        for cut in width.axis_slices:
            if before[cut.tensor].shape[cut.axis] == width.units:
                assert after[cut.tensor].shape[cut.axis] == left < width.units
                compared += 1
    assert compared
    others = {g.name: tuple(w.units for w in g.dims) for g in prepared(family).structure.groups if g.dims}
    assert {**artifact.units, group.name: others[group.name]} == others == prepared(family).baseline.units


def test_ranges_go_by_the_rule_that_was_asked_for(task_of: TaskOf) -> None:
    """The input scales of the first layer are as wide as all values with minmax, and narrower with the other rules."""
    scales = {}
    for rule in CALIBRATIONS:
        artifact = _made(task_of("dlrm"), Weights(), Precision((("top", "int8-static"),), calibration=rule))
        assert artifact.widths["top"] == "int8-static" and artifact.parity > 0
        scales[rule] = max(_input_scales(task_of("dlrm"), artifact))
    assert scales["minmax"] > scales["percentile"] and scales["minmax"] > scales["entropy"]


def _input_scales(task: Task, artifact: Artifact) -> list[float]:
    graph = onnx.load(str(Path(task.home) / artifact.path)).graph
    steps = {node.input[1] for node in graph.node if node.op_type == "QuantizeLinear"}
    return [float(numpy_helper.to_array(tensor)) for tensor in graph.initializer if tensor.name in steps]


@pytest.mark.slow
def test_several_techniques_and_widths_at_once(
    family: str, opened: Callable[[str], Recommender], task_of: TaskOf
) -> None:
    task, weights = task_of(family), _composed(family)
    plain = _made(task, weights)
    _check_parity(task, opened(family), weights, plain)
    mixed = Precision(((LINEAR[family], "int8-static"), ("tables", "int4")))
    narrow = _made(task, weights, mixed)
    assert narrow.widths == {**plain.widths, LINEAR[family]: "int8-static", "tables": "int4"}
    assert 0 < narrow.parity < 1
    # What was learned is what is rounded to: of the first factor's inputs, which no Relu gives.
    ranges = Fitted.load(weights_folder(task, opened(family), weights)).ranges
    low, high = next(iter(ranges.values()))
    assert any(scale == pytest.approx((high - low) / 255, rel=1e-4) for scale in _input_scales(task, narrow))


@pytest.mark.slow
@pytest.mark.parametrize("aware", [False, True])
def test_int8_weights_have_the_bits_that_the_task_asks_for(
    aware: bool, opened: Callable[[str], Recommender], task_of: TaskOf
) -> None:
    """Weights learned or rounded afterwards get the same bits.

    Other bits are another model, except where there are no int8 products.
    """
    weights = Weights(distillation=LEARNING, quantization_aware=("mlp",)) if aware else Weights()
    tasks = [replace(task_of("dcn-v2"), int8_weight_bits=bits) for bits in (7, 8)]
    for width in ("int8-static",) if aware else ("int8-static", "int8-dynamic"):
        seven, eight = (_made(task, weights, Precision((("mlp", width),))) for task in tasks)
        assert (seven.int8_weight_bits, eight.int8_weight_bits) == (7, 8) and seven.key != eight.key
        for artifact, largest in ((seven, 63), (eight, 127)):
            graph = onnx.load(str(Path(tasks[0].home) / artifact.path)).graph
            held = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.INT8}
            codes = [values.astype(int) for name, values in held.items() if name.endswith("weight_quantized")]
            assert codes and {int(np.abs(of).max()) for of in codes} == {largest}
    folders = {weights_folder(task, opened("dcn-v2"), weights) for task in tasks}
    assert len(folders) == (2 if aware else 1)
    if not aware:
        plain = [_made(task, weights, Precision((("tables", "int8"),))) for task in tasks]
        assert plain[0] == plain[1] and plain[0].int8_weight_bits is None


def test_one_group_learns_its_ranges_and_another_is_calibrated(
    opened: Callable[[str], Recommender], task_of: TaskOf
) -> None:
    task, found = task_of("dcn-v2"), {}
    weights = Weights(distillation=LEARNING, quantization_aware=("mlp",))
    widths = (("cross", "int8-static"), ("mlp", "int8-static"))
    for rule in ("minmax", "percentile"):
        artifact = _made(task, weights, Precision(widths, calibration=rule))  # type: ignore[arg-type]
        assert {group: artifact.widths[group] for group, _ in widths} == dict(widths)
        found[rule] = {round(scale, 9) for scale in _input_scales(task, artifact)}
    ranges = Fitted.load(weights_folder(task, opened("dcn-v2"), weights)).ranges
    assert ranges and all(name.startswith("mlp.") for name in ranges)
    low, high = ranges["mlp.0"]
    for scales in found.values():
        assert any(scale == pytest.approx((high - low) / 255, rel=1e-4) for scale in scales)
    assert found["minmax"] != found["percentile"], "the ranges of the cross layers go by the rule"


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("dcn-v2", Form(user_once=True)),
        ("dlrm", Form(split_embeddings=True)),
        ("dlrm", Form(user_once=True, split_embeddings=True)),
        ("sasrec", Form(score_catalogue=True)),
    ],
)
def test_forms_change_no_score(family: str, form: Form, opened: Callable[[str], Recommender], task_of: TaskOf) -> None:
    """Every form gives the scores of a request in which the user's side is the same in all rows."""
    task = task_of(family)
    artifact = _made(task, Weights(), form=form)
    users = [spec.name for spec in opened(family).inputs if spec.side == "user"]
    inputs = _rows(opened(family), 64)
    inputs |= {name: inputs[name][[0] * 64] for name in users}
    once = [*opened(family).once, *(users if form.user_once else ())]
    got = _run(Path(task.home) / artifact.path, inputs, once)
    assert np.allclose(got, _scored(opened(family).model, inputs), atol=1e-4)
    halves = [Path(task.home, artifact.path).with_name(f"{part}.onnx").exists() for part in ("tables", "dense")]
    assert halves == [form.split_embeddings] * 2


@pytest.mark.parametrize("dry", [False, True])
def test_the_catalogue_is_scored_whole_where_requests_take_enough_of_it(
    dry: bool, task_of: TaskOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests have some 20 rows, and the table 311."""
    monkeypatch.setattr(prepare_stage, "_CATALOGUE_SHARE", 0.05)
    task = task_of("sasrec")
    task = replace(task, dry_run=str(Path(task.home, "dry_run"))) if dry else task
    assert prepare(task, _silent).catalogue_refused is None


def _judged(task: Task, found: Prepared, metric: str, artifact: Artifact, form: str = "fp32") -> Quality:
    ours, base = (Deployment(of, str(Path(task.home) / of.path), ONE_THREAD, form) for of in (artifact, found.baseline))
    scores = ScoreRequest(ours, base, str(task.cache), found.holdout, "test")
    return evaluate(EvaluateRequest(scores, metric, 0, 0.95)).quality


def _gauc(labels: NDArray[Any], scores: NDArray[Any], groups: NDArray[Any]) -> float:
    """AUC of each user who has both labels, weighted by the rows."""
    total, weight = 0.0, 0
    for group in np.unique(groups):
        own = groups == group
        if 0 < labels[own].mean() < 1:
            total += own.sum() * roc_auc_score(labels[own], scores[own])
            weight += own.sum()
    return float(total / weight)


@pytest.mark.parametrize(("family", "user_once"), list(zip(POINTWISE, [False, True], strict=True)))
def test_rows_are_judged_as_by_the_models_own_scores(
    family: str,
    user_once: bool,
    prepared: Callable[[str], Prepared],
    opened: Callable[[str], Recommender],
    task_of: TaskOf,
) -> None:
    task, weights = task_of(family), _reshaped(family)["pruned"]
    artifact = _made(task, weights, form=Form(user_once=user_once))
    held = opened(family).held_out("test")
    ours, theirs = (_scored(_model(task, opened(family), w), held.inputs[0]) for w in (weights, Weights()))
    quality = _judged(task, prepared(family), "auc", artifact)
    value, baseline = (float(roc_auc_score(held.labels, scores)) for scores in (ours, theirs))
    assert quality.value == pytest.approx(value, abs=1e-3) and quality.baseline == pytest.approx(baseline, abs=1e-3)
    assert quality.loss == pytest.approx((baseline - value) / baseline, abs=2e-3)
    assert (quality.rows, quality.groups) == (400, len(np.unique(held.groups)))
    for part in quality.slices:
        kept = held.slices[part.name]
        assert (part.rows, part.groups) == (kept.sum(), len(np.unique(held.groups[kept])))
        assert part.value == pytest.approx(float(roc_auc_score(held.labels[kept], ours[kept])), abs=5e-3)
    grouped = _judged(task, prepared(family), "gauc", artifact)
    assert grouped.value == pytest.approx(_gauc(held.labels, ours, held.groups), abs=5e-3)


def _gains(recommender: Recommender, model: nn.Module) -> tuple[NDArray[Any], NDArray[Any]]:
    """NDCG@10 and HR@10 of each user of test, by sorting all items of the catalogue that were not taken before."""
    sequences = recommender.sequences  # type: ignore[attr-defined]
    ndcg, hits = [], []
    for user in range(sequences.users):
        events = sequences.codes[sequences.offsets[user] : sequences.offsets[user + 1]].tolist()
        *before, target = events
        history = np.zeros((1, 8), dtype=np.int64)
        history[0, -min(8, len(before)) :] = before[-8:]
        items = [item for item in range(1, sequences.items + 1) if item == target or item not in before]
        scores = _scored(model, {"history": history, "item": np.array(items)})
        rank = 1 + int((scores > scores[items.index(target)]).sum())
        ndcg.append(1 / np.log2(1 + rank) if rank <= 10 else 0.0)
        hits.append(float(rank <= 10))
    return np.array(ndcg), np.array(hits)


@pytest.mark.parametrize("name", ["pruned", "attention"])
def test_users_are_judged_as_by_sorting_the_catalogue(
    name: str, prepared: Callable[[str], Prepared], opened: Callable[[str], Recommender], task_of: TaskOf
) -> None:
    task, weights = task_of("sasrec"), _reshaped("sasrec")[name]
    artifact, recommender = _made(task, weights), opened("sasrec")
    ours, theirs = (_gains(recommender, _model(task, recommender, w)) for w in (weights, Weights()))
    held = recommender.held_out("test")
    for metric, mine, base in zip(("ndcg@10", "hr@10"), ours, theirs, strict=True):
        quality = _judged(task, prepared("sasrec"), metric, artifact)
        assert quality.value == pytest.approx(mine.mean(), abs=1e-6)
        assert quality.baseline == pytest.approx(base.mean(), abs=1e-6)
        assert (quality.rows, quality.groups) == (120, 120)
        for part in quality.slices:
            kept = held.slices[part.name]
            assert part.rows == kept.sum()
            assert part.reason is not None or part.value == pytest.approx(mine[kept].mean(), abs=1e-6)
    assert prepared("sasrec").references["baseline"] == pytest.approx(theirs[0].mean(), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("group", ["tables", "attention", "feed_forward"])
def test_items_that_are_a_constant_rank_as_those_that_are_given(
    group: str, prepared: Callable[[str], Prepared], task_of: TaskOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graph is scored with the items as one of its constants, and as an input."""
    task, found = task_of("sasrec"), prepared("sasrec")
    held = read_held_out(Path(found.holdout), "test")
    for width in WIDTHS[found.structure.group(group).kind]:
        file = Path(task.home) / _made(task, Weights(), Precision(((group, width),))).path
        ranks = []
        for given in (False, True):
            with monkeypatch.context() as patched:
                patched.setattr(user_ranks, "is_large", lambda _, given=given: given)
                ranks.append(user_ranks.user_ranks(file, InstanceGroup(threads=1), None, "fp32", held, tmp_path))
        assert np.array_equal(ranks[0], ranks[1]), width


def test_a_narrow_model_is_judged_through_the_engine(
    family: str, prepared: Callable[[str], Prepared], task_of: TaskOf
) -> None:
    task, found = task_of(family), prepared(family)
    narrow = _made(task, Weights(), Precision((("tables", "int2"), (LINEAR[family], "int4"))))
    quality = _judged(task, found, task.metric, narrow)
    assert quality.loss != 0 and quality.loss_interval[0] <= quality.loss <= quality.loss_interval[1]
    assert _judged(task, found, task.metric, found.baseline).loss == 0


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"recommender": "fm"}, r"recommender.*'fm'"),
        ({"source": "netflix"}, r"data\.source.*'netflix'"),
        ({"columns": None}, r"data\.columns.*none"),
        ({"source": "table:/nowhere/clicks.csv"}, r"nowhere/clicks\.csv.*none"),
        ({"sizes": {"depth": 3}}, r"sizes\.depth: .*embedding_dim, crosses, mlp"),
        ({"sizes": {"mlp": "64-wide"}}, r"sizes\.mlp: .*'64-wide'"),
        ({"sizes": {"crosses": 1.5}}, r"sizes\.crosses: .*1\.5"),
        ({"sizes": {"embedding_dim": 0}}, r"embedding_dim=0"),
    ],
)
def test_a_task_that_cannot_be_is_refused_in_one_line(change: Mapping[str, Any], line: str, task_of: TaskOf) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        open_recommender(replace(task_of("dcn-v2"), **change), _silent)
    assert len(str(caught.value).splitlines()) == 1


def test_what_went_wrong_leaves_nothing_in_the_cache(task_of: TaskOf) -> None:
    task = task_of("dcn-v2")
    weights = Weights(pruning=Pruning((("cross", 0.5),)), distillation=LEARNING)
    before = set(task.cache.rglob("*"))
    for _ in range(2):
        with pytest.raises(ValueError, match="'cross'"):
            fit(task, weights, _silent)
    assert set(task.cache.rglob("*")) == before


def test_fp32_for_a_group_is_the_plain_graph(task_of: TaskOf) -> None:
    plain, _ = export(task_of("dlrm"), Weights(), Precision(), Form(), _silent)
    widths = Precision((("bottom", "fp32"), ("tables", "fp32")))
    assert export(task_of("dlrm"), Weights(), widths, Form(), _silent) == (plain, True)


def test_one_recommender_stays_open(task_of: TaskOf) -> None:
    first, second = (open_once(task_of(family), _silent) for family in itertools.islice(FAMILIES, 2))
    assert open_once(task_of("dlrm"), _silent) is second
    assert open_once(task_of("dcn-v2"), _silent) is not first


@pytest.mark.parametrize(("first", "even"), [(10, True), (500, False)])
def test_tables_whose_rows_are_seen_as_often_are_told(
    opened: Callable[[str], Recommender], first: int, even: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender = opened("dcn-v2")
    large = [table for table in of_baseline(recommender).structure.tables if table.rows >= 16]
    counts = {t.name: torch.tensor([first] * (t.rows // 15 + 1) + [10] * (t.rows - t.rows // 15 - 1)) for t in large}
    monkeypatch.setattr(prepare_stage, "SMALLEST", 16)
    monkeypatch.setattr(type(recommender), "counts", lambda self, model, tables: counts)
    assert large and (even_tables(recommender) == [table.name for table in large]) == even
    monkeypatch.setattr(type(recommender), "counts", lambda self, model, tables: {})
    assert even_tables(recommender) == [], "of what is never seen nothing is known"


def test_a_fit_that_was_stopped_goes_on_as_if_it_had_not_been(
    family: str, task_of: TaskOf, opened: Callable[[str], Recommender]
) -> None:
    """A stopped fit gives the same weights bit for bit, by the same outputs of the teacher.

    What is needed to go on is deleted with the end of the training.
    """
    task, recommender = task_of(family), opened(family)
    whole = replace(_reshaped(family)["student"], distillation=Distillation(2.0, 0.5, 4, seed=7))
    assert whole.early is not None
    expected = fit_weights(recommender, whole, task.seed, _silent, task.cache).model.state_dict()
    early, end = (weights_folder(task, recommender, weights) for weights in (whole.early, whole))
    assert not fit(task, whole.early, _silent).reused and (early / TRAINING).exists()
    half = Fitted.load(early).model.state_dict()
    assert any(not torch.equal(half[name], tensor) for name, tensor in expected.items())
    trained: list[str] = []
    assert not weights_stage.fit(FitRequest(task, whole, torch.get_num_threads()), trained.append).reused
    assert next(line for line in trained if "epoch" in line).startswith("distilling: epoch 2 of 4")
    assert not (early / TRAINING).exists() and (early / "model.pt").exists()
    found = Fitted.load(end).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_part_of_a_training_that_is_in_the_cache_to_its_end_is_not_trained(task_of: TaskOf) -> None:
    task = task_of("dlrm")
    whole = replace(_reshaped("dlrm")["student"], distillation=Distillation(2.0, 0.5, 2, seed=8))
    assert whole.early is not None
    fit(task, whole, _silent)
    found = fit(task, whole.early, _silent)
    assert found.whole and found.reused
    assert not weights_folder(task, open_once(task, _silent), whole.early).exists()


@pytest.mark.parametrize("aware", [False, True])
def test_a_second_cycle_starts_from_the_weights_of_the_first(
    aware: bool, family: str, task_of: TaskOf, opened: Callable[[str], Recommender], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first cycle is trained by the way, and kept; quantization-aware training is part of the last cycle only."""
    task, recommender, starts, seeds = task_of(family), opened(family), [], list[int]()
    once = replace(_reshaped(family)["student"], distillation=Distillation(2.0, 0.5, 3, seed=10 + aware))
    assert once.distillation is not None
    groups = (LINEAR[family],) if aware else ()
    twice = replace(once, distillation=replace(once.distillation, cycles=2), quantization_aware=groups)

    def seen(*given: Any, previous: Fitted | None, **more: Any) -> Fitted:
        starts.append(None if previous is None else copy.deepcopy(previous.model.state_dict()))
        return fit_weights(*given, previous=previous, **more)

    def noted(model: nn.Module, data: Any, optimizer: Any, learning: Any, seed: int, *more: Any, **named: Any) -> Any:
        seeds.append(seed)
        return distil(model, data, optimizer, learning, seed, *more, **named)

    monkeypatch.setattr(weights_stage, "fit_weights", seen)
    monkeypatch.setattr("objectives.build.fit.distil", noted)
    lines: list[str] = []
    assert not weights_stage.fit(FitRequest(task, twice, torch.get_num_threads()), lines.append).reused
    epochs = [line.split(",")[0] for line in lines if line.startswith("distilling")]
    last = [2, 1] if aware else [3]
    expected = [f"distilling: epoch {n} of {of}" for of in (3, *last) for n in range(1, of + 1)]
    assert epochs == expected
    assert seeds[0] not in seeds[1:], "the batches come in another order"
    first, second = (Fitted.load(weights_folder(task, recommender, weights)) for weights in (once, twice))
    none, start = starts
    assert none is None and start is not None and fit(task, once, _silent).reused
    states = first.model.state_dict(), start
    assert all(torch.equal(states[0][name], tensor) for name, tensor in states[1].items())
    assert any(not torch.equal(tensor, second.model.state_dict()[name]) for name, tensor in states[0].items())
    assert (first.ranges == {}) and bool(second.ranges) == aware


def test_the_newest_states_of_stopped_trainings_are_kept(tmp_path: Path) -> None:
    for number in range(12):
        file = tmp_path / f"w{number}" / TRAINING
        file.parent.mkdir()
        file.touch()
        os.utime(file, (number, number))
    weights_stage._forget_trainings(tmp_path)
    assert {file.parent.name for file in tmp_path.glob(f"*/{TRAINING}")} == {f"w{number}" for number in range(4, 12)}
