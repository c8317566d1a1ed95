"""Checks of a candidate that went through every stage: all that was asked, and no more.

What shows a technique is the weights, beside those of the same candidate without it, fitted with the same seed: where
it was skipped they would be equal bit by bit.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto
from torch import nn

from objectives.build.fit import Fitted
from objectives.compression.embeddings import MixedTable, QuotientRemainderTable
from objectives.compression.low_rank import LowRankLinear
from objectives.serving.engines import open_replica
from objectives.serving.split_engine import DENSE, TABLES
from spaces.ablations import techniques
from spaces.candidate import Candidate
from spaces.techniques.placement import InstanceGroup
from spaces.weights import Weights
from tests.compression_tests.composing import Shop, Walk, told
from tests.protos import once_inputs, run_onnx

# Products in int8 beside lookups, as of a compressed table's parts, are stored as ONNX Runtime's blocks are.
STORED = {
    "fp32": {TensorProto.FLOAT}, "fp16": {TensorProto.FLOAT16}, "int8": {TensorProto.INT8, TensorProto.UINT8},
    "int8-dynamic": {TensorProto.INT8}, "int8-static": {TensorProto.INT8}, "int4": {TensorProto.UINT8},
    "int4-dynamic": {TensorProto.UINT8},
    "int2": {TensorProto.UINT8},
}  # fmt: skip


def check(shop: Shop, done: Walk) -> None:
    """Check the candidate's weights, graph and scores."""
    fitted = shop.fitted(done.candidate.weights)
    check_weights(shop, done.candidate.weights, fitted)
    check_techniques(shop, done.candidate, fitted)
    check_graph(shop, done, fitted)
    check_scores(shop, done)


def check_weights(shop: Shop, weights: Weights, fitted: Fitted) -> None:
    """Each technique is in the groups that it names, and in no other."""
    factorized, compressed = set[str](), set[str]()
    for name, members in fitted.structure.stored(form.group for form in weights.table_forms).items():
        modules = [fitted.model.get_submodule(module) for module in members]
        factorized |= {name} if any(isinstance(module, LowRankLinear) for module in modules) else set()
        compressed |= {name} if any(isinstance(m, (QuotientRemainderTable, MixedTable)) for m in modules) else set()
    assert factorized == {name for name, _ in (weights.low_rank.shares if weights.low_rank else ())}, factorized
    assert compressed == {form.group for form in weights.table_forms}, compressed
    if weights.architecture is None:
        pruned = {name for name, _ in (weights.pruning.ratios if weights.pruning else ())}
        for before, after in zip(shop.prepared.structure.groups, fitted.structure.groups, strict=True):
            units = [sum(width.units for width in group.dims) for group in (before, after)]
            assert (units[1] < units[0]) == (before.name in pruned), before.name
    learned = {name for group in weights.quantization_aware for name in fitted.structure.group(group).modules}
    assert {name for name in learned if any(layer.startswith(name) for layer in fitted.ranges)} == learned
    assert all(layer.startswith(tuple(learned)) for layer in fitted.ranges)


def check_techniques(shop: Shop, candidate: Candidate, fitted: Fitted) -> None:
    """Each technique leaves its mark. QAT takes long, so that the others are checked without it."""
    if candidate.weights.quantization_aware:
        candidate, learned = replace_weights(candidate, quantization_aware=()), fitted
        fitted = shop.fitted(candidate.weights)
        assert differ(learned.model, fitted.model), "rounding was not learned"
    for technique in techniques(candidate):
        if technique.without.weights != candidate.weights:
            assert differ(fitted.model, shop.fitted(technique.without.weights).model), technique.name
    learning, attention = candidate.weights.distillation, candidate.weights.attention
    if learning is not None and learning.feature_weight > 0:
        outputs_alone = replace_weights(candidate, distillation=replace(learning, feature_weight=0.0))
        assert differ(fitted.model, shop.fitted(outputs_alone.weights).model), "no features were learned"
    if attention is not None:
        model: Any = fitted.model
        assert (model.window, model.history) == (attention.window, attention.history), attention
        assert differ_in_scores(fitted.model, shop.requests[0]), "the attention is not sparse"


def replace_weights(candidate: Candidate, **parts: Any) -> Candidate:
    weights = replace(candidate.weights, **parts)
    return replace(candidate, weights=weights if weights.reshaped or weights.quantization_aware else Weights())


def differ(one: nn.Module, other: nn.Module) -> bool:
    """Return whether any tensor differs in shape or value."""
    a, b = one.state_dict(), other.state_dict()
    return a.keys() != b.keys() or any(not torch.equal(a[name], b[name]) for name in a)


def differ_in_scores(sparse: nn.Module, request: Any) -> bool:
    """Return whether scores differ from those of the same weights with the full history."""
    wide: Any = copy.deepcopy(sparse)
    wide.window = wide.history = None
    inputs = {name: torch.from_numpy(values) for name, values in request.items()}
    inputs["history"] = inputs["history"].clamp(min=1)  # of padding nothing would be seen
    with torch.inference_mode():
        return not torch.equal(sparse(**inputs), wide(**inputs))


def check_graph(shop: Shop, done: Walk, fitted: Fitted) -> None:
    """Every group has its width, read back and by the types of what is stored; the form is as asked."""
    assert done.artifact is not None
    parts = fitted.structure.stored(dict(done.candidate.precision.widths))
    asked = {name: done.candidate.precision.width(name) for name in parts}
    assert done.artifact.widths == asked, (done.artifact.widths, asked)
    graph = onnx.load(str(shop.model(done.artifact)))
    for name, modules in parts.items():
        inside = tuple(f"model.{module}." for module in modules)
        stored = {t.data_type for t in graph.graph.initializer if t.name.startswith(inside) and is_weight(t)}
        assert stored and stored <= STORED[asked[name]], name
    users = {spec.name for spec in shop.prepared.inputs if spec.side == "user"}
    alone = done.candidate.placement.user_once or shop.task.recommender == "sasrec"
    assert once_inputs(graph) == (users if alone else set())
    halves = [shop.model(done.artifact).with_name(name).exists() for name in (TABLES, DENSE)]
    assert halves == [done.candidate.placement.embedding_device is not None] * 2


def is_weight(tensor: TensorProto) -> bool:
    return len(tensor.dims) >= 2 and not tensor.name.endswith("_scale")


def check_scores(shop: Shop, done: Walk) -> None:
    """Scores equal those of the whole graph in ONNX Runtime, to the last digits where that is what runs."""
    assert done.artifact is not None and np.isfinite(done.artifact.parity)
    path = shop.model(done.artifact)
    graph = onnx.load(str(path))
    for request, scores in zip(shop.requests, done.scores, strict=True):
        expected = run_onnx(graph, request)
        assert scores.shape == expected.shape
        assert np.abs(scores - expected).max() <= tolerance(done.candidate) * (1 + expected.std()), told(done.candidate)
    if done.candidate.precision.compute == "bf16":
        exact = open_replica(path, InstanceGroup("openvino"), None).run(shop.requests[1])
        assert not np.array_equal(done.scores[1], exact)


def tolerance(candidate: Candidate) -> float:
    """Tolerance of a comparison: bf16 has 8 bits; of int8, a value may round to the next code in another engine."""
    if candidate.precision.compute == "bf16":
        return 0.1
    placement, widths = candidate.placement, dict(candidate.precision.widths).values()
    engines = {instance_group.engine for instance_group in placement.instance_groups} | (
        {placement.embedding_device.engine} if placement.embedding_device else set()
    )
    other = engines != {"onnxruntime"}
    return 0.02 if other and any(width.startswith("int8-") for width in widths) else 1e-4
