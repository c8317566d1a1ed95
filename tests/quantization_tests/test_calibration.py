"""Calibration sees its rows batch by batch, and gives the ranges of all values at once."""

from __future__ import annotations

import contextlib
import io
import tracemalloc

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector

from spaces.techniques.quantization import Calibration
from tests.protos import value_ranges


def _graph(columns: int) -> onnx.ModelProto:
    """Return a graph of `hidden` = x W, and of `scores` from it."""
    weight = np.random.default_rng(0).normal(size=(4, columns)).astype(np.float32)
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["hidden"]),
            helper.make_node("ReduceSum", ["hidden", "axis"], ["scores"], keepdims=0),
        ],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.array([1]), "axis")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _hidden(graph: onnx.ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = x @ numpy_helper.to_array(graph.graph.initializer[0])
    return found.ravel()


def _expected(values: NDArray[np.float32], rule: Calibration) -> tuple[float, float]:
    """Ranges of all values at once: numpy's, or the library's."""
    if rule == "minmax":
        return float(values.min()), float(values.max())
    if rule == "percentile":
        low, high = np.quantile(values, (0.00005, 0.99995))
        return float(low), float(high)
    whole = HistogramCollector("entropy", False, 2048, 128, None, None)
    with contextlib.redirect_stdout(io.StringIO()):
        whole.collect({"": values})
        low, high, *_ = whole.compute_collection_result()[""]
    return float(low), float(high)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("rows", [1, 200, 256, 5000])
@pytest.mark.parametrize("spread", ["normal", "outliers", "one-sided", "constant", "rising"])
def test_ranges_are_those_of_all_values_at_once(rule: Calibration, rows: int, spread: str) -> None:
    random = np.random.default_rng(rows)
    x = random.normal(size=(rows, 4)).astype(np.float32)
    if spread == "outliers":
        x[-1] *= 50
    elif spread == "one-sided":
        x = np.abs(x)
    elif spread == "constant":
        x = np.full_like(x, 0.25)
    elif spread == "rising":  # each batch beyond the one before it
        x *= np.linspace(0.01, 10, rows, dtype=np.float32)[:, None]
    graph = _graph(8)
    found = value_ranges(graph, ["hidden", "x", "hidden"], {"x": x}, rule)
    assert set(found) == {"hidden", "x"}
    for name, values in (("hidden", _hidden(graph, x)), ("x", x.ravel())):
        assert found[name] == pytest.approx(_expected(values, rule), rel=1e-5, abs=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy"])
def test_what_is_held_does_not_grow_with_the_rows(rule: Calibration) -> None:
    x = np.random.default_rng(1).normal(size=(20_000, 4)).astype(np.float32)
    graph = _graph(512)
    every = 4 * 512 * len(x)  # bytes of the hidden values
    tracemalloc.start()
    try:
        value_ranges(graph, ["hidden"], {"x": x}, rule)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < every / 4
