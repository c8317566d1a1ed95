"""Techniques compose: candidates drawn at random are built and served, and each shows all that was asked and no more.

What shows a technique is the weights, beside those of the same candidate without it, fitted with the same seed: where
it was skipped they would be equal bit by bit. Each export takes a second, so that the later candidates are slow tests.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from objectives.compression.export import run_onnx
from objectives.compression.graph import once_inputs
from objectives.compression.low_rank import LowRankLinear
from objectives.compression.tables import MixedTable, SharedRowsTable
from objectives.fitting import Fitted
from objectives.serving.engines import open_engine
from objectives.serving.staged import DENSE, TABLES
from objectives.task import Task
from spaces.candidate import Candidate
from spaces.techniques import techniques
from spaces.weights import Weights
from tests.compression_tests.composing import COLUMNS, Shop, Walk, brief_training, told, walk, write_table

CANDIDATES, QUICK, SEED = 25, 5, 4
MEDIAN_ROWS = 20
SIZES: dict[str, dict[str, int | str]] = {
    "dcn-v2": {"embedding_dim": 16, "crosses": 2, "mlp": "64-48"},
    "dlrm": {"embedding_dim": 16, "bottom": "48-32", "top": "64-48"},
    "sasrec": {"d": 32, "blocks": 2, "heads": 2, "feed_forward": 48, "length": 16},
}
# None as large as the baseline, so that a student always shows.
STUDENTS: dict[str, dict[str, list[int | str]]] = {
    "dcn-v2": {"embedding_dim": [8, 12], "crosses": [1], "mlp": ["48", "48-32"]},
    "dlrm": {"embedding_dim": [8, 12], "bottom": ["32", "32-16"], "top": ["48", "48-32"]},
    "sasrec": {"embedding_dim": [16, 24], "blocks": [1], "heads": [1, 2], "feed_forward": [32]},
}
# Products in int8 beside lookups, as of a compressed table's parts, are stored as ONNX Runtime's blocks are.
STORED = {
    "fp32": {TensorProto.FLOAT}, "fp16": {TensorProto.FLOAT16}, "int8": {TensorProto.INT8, TensorProto.UINT8},
    "int8-dynamic": {TensorProto.INT8}, "int8-static": {TensorProto.INT8}, "int4": {TensorProto.UINT8},
    "int2": {TensorProto.UINT8},
}  # fmt: skip
BUILT = [
    pytest.param(family, number, marks=[pytest.mark.slow] if number >= QUICK else [])
    for family in SIZES
    for number in range(CANDIDATES)
]


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """By family: the shop, and what came of its candidate of a number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("composition")
    write_table(home / "clicks.parquet", rows=4000, users=300, items=400)

    @cache
    def shop(family: str) -> Shop:
        source: dict[str, Any] = {"source": f"table:{home / 'clicks.parquet'}", "columns": COLUMNS}
        if family == "sasrec":
            source = {
                "source": "synthetic",
                "synthetic": {"rows": 4000, "users": 100, "items": 500, "order": 0.8, "zipf": 0.5},
            }
        task = Task(
            str(home), family, metric="auc", rows_median=MEDIAN_ROWS, rows_sigma=0.5, rows_max=60, seed=0,
            sizes=SIZES[family], **source,
        )  # fmt: skip
        return Shop.open(
            task,
            {
                "architecture": STUDENTS[family],
                "distillation": {"passes": 1, "feature_weight": [0, 0.5]},
                # Entropy takes as long for each range as all else together.
                "precision": {"calibration": ["minmax", "percentile"]},
                "placement": {"lookup": ["same", "onnxruntime", "openvino"]},
            },
        )

    @cache
    def candidates(family: str) -> list[Candidate]:
        return shop(family).candidates(CANDIDATES, SEED)

    @cache
    def walked(family: str, number: int) -> tuple[Shop, Walk]:
        candidate = candidates(family)[number]
        try:
            return shop(family), walk(shop(family), candidate)
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error} of {told(candidate)}") from error

    with brief_training():
        yield walked
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("family", "number"), BUILT)
def test_a_candidate_is_all_that_was_asked_and_no_more(shops: Any, family: str, number: int) -> None:
    shop, done = shops(family, number)
    if done.refusal is not None:
        return
    fitted = shop.fitted(done.candidate.weights)
    check_weights(shop, done.candidate.weights, fitted)
    check_techniques(shop, done.candidate, fitted)
    check_graph(shop, done, fitted)
    check_scores(shop, done)


@pytest.mark.parametrize("family", SIZES)
def test_few_candidates_have_nothing_to_gain(shops: Any, family: str) -> None:
    refusals = [refusal for number in range(QUICK) if (refusal := shops(family, number)[1].refusal)]
    assert len(refusals) <= QUICK // 4, refusals


def check_weights(shop: Shop, weights: Weights, fitted: Fitted) -> None:
    """Each technique is in the groups that it names, and in no other."""
    factorised, compressed = set[str](), set[str]()
    for group in fitted.anatomy.groups:
        modules = [fitted.model.get_submodule(name) for name in group.modules]
        factorised |= {group.name} if any(isinstance(module, LowRankLinear) for module in modules) else set()
        compressed |= {group.name} if any(isinstance(m, (SharedRowsTable, MixedTable)) for m in modules) else set()
    assert factorised == {name for name, _ in (weights.low_rank.shares if weights.low_rank else ())}
    assert compressed == {form.group for form in weights.table_forms}
    if weights.architecture is None:
        pruned = {name for name, _ in (weights.pruning.ratios if weights.pruning else ())}
        for before, after in zip(shop.prepared.anatomy.groups, fitted.anatomy.groups, strict=True):
            units = [sum(width.units for width in group.widths) for group in (before, after)]
            assert (units[1] < units[0]) == (before.name in pruned), before.name
    learned = {name for group in weights.quantisation_aware for name in fitted.anatomy.group(group).modules}
    assert {name for name in learned if any(layer.startswith(name) for layer in fitted.ranges)} == learned
    assert all(layer.startswith(tuple(learned)) for layer in fitted.ranges)


def check_techniques(shop: Shop, candidate: Candidate, fitted: Fitted) -> None:
    """Each leaves its mark. Learning with rounding takes long, so that the others are looked at without it."""
    if candidate.weights.quantisation_aware:
        candidate, learned = replace_weights(candidate, quantisation_aware=()), fitted
        fitted = shop.fitted(candidate.weights)
        assert differ(learned.model, fitted.model)
    for technique in techniques(candidate):
        if technique.without.weights != candidate.weights:
            assert differ(fitted.model, shop.fitted(technique.without.weights).model), technique.name
    learning, attention = candidate.weights.distillation, candidate.weights.attention
    if learning is not None and learning.feature_weight > 0:
        outputs_alone = replace_weights(candidate, distillation=replace(learning, feature_weight=0.0))
        assert differ(fitted.model, shop.fitted(outputs_alone.weights).model)
    if attention is not None:
        assert (fitted.model.window, fitted.model.history) == (attention.window, attention.history)
        assert differ_in_scores(fitted.model, shop.requests[0])


def replace_weights(candidate: Candidate, **parts: Any) -> Candidate:
    weights = replace(candidate.weights, **parts)
    return replace(candidate, weights=weights if weights.reshaped or weights.quantisation_aware else Weights())


def differ(one: nn.Module, other: nn.Module) -> bool:
    """In a shape or a value of any tensor."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() != b.keys() or any(not torch.equal(a[name], b[name]) for name in a)


def differ_in_scores(sparse: nn.Module, request: Any) -> bool:
    """From those of the same weights, all of whose history is looked at."""
    wide = copy.deepcopy(sparse)
    wide.window = wide.history = None
    inputs = {name: torch.from_numpy(values) for name, values in request.items()}
    with torch.inference_mode():
        return not torch.equal(sparse(**inputs), wide(**inputs))


def check_graph(shop: Shop, done: Walk, fitted: Fitted) -> None:
    """Every group is in its width, by what is read back and by the types of what is stored; the form is as asked."""
    assert done.artifact is not None
    asked = {group.name: done.candidate.precision.width(group.name) for group in fitted.anatomy.groups}
    assert done.artifact.widths == asked
    graph = onnx.load(str(shop.model(done.artifact)))
    for group in fitted.anatomy.groups:
        inside = tuple(f"model.{name}." for name in group.modules)
        stored = {t.data_type for t in graph.graph.initializer if t.name.startswith(inside) and is_weight(t)}
        assert stored and stored <= STORED[asked[group.name]], group.name
    users = {spec.name for spec in shop.prepared.inputs if spec.side == "user"}
    alone = done.candidate.placement.user_once or shop.task.recommender == "sasrec"
    assert once_inputs(graph) == (users if alone else set())
    halves = [shop.model(done.artifact).with_name(name).exists() for name in (TABLES, DENSE)]
    assert halves == [done.candidate.placement.lookup is not None] * 2


def is_weight(tensor: TensorProto) -> bool:
    return len(tensor.dims) >= 2 and not tensor.name.endswith("_scale")


def check_scores(shop: Shop, done: Walk) -> None:
    """Those of the whole graph in ONNX Runtime, to the last digits where that is what runs."""
    assert done.artifact is not None and np.isfinite(done.artifact.parity)
    path = shop.model(done.artifact)
    graph = onnx.load(str(path))
    for request, scores in zip(shop.requests, done.scores, strict=True):
        expected = run_onnx(graph, request)
        assert scores.shape == expected.shape
        assert np.abs(scores - expected).max() <= tolerance(done.candidate) * (1 + expected.std()), told(done.candidate)
    if done.candidate.precision.compute == "bf16":
        exact = open_engine("openvino", path).run(shop.requests[1])
        assert not np.array_equal(done.scores[1], exact)


def tolerance(candidate: Candidate) -> float:
    """bf16 has 8 bits. Of int8, a value may fall on the other side of a rounding edge in another engine, and dynamic
    ranges are those of the rows that are run together."""
    if candidate.precision.compute == "bf16":
        return 0.1
    placement, widths = candidate.placement, dict(candidate.precision.widths).values()
    lookup = [placement.lookup] if placement.lookup else []
    other = any(place.engine != "onnxruntime" for place in (*placement.seats, *lookup))
    in_parts = placement.split_rows is not None and "int8-dynamic" in widths
    return 0.02 if in_parts or (other and any(width.startswith("int8-") for width in widths)) else 1e-4
