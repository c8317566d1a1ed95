"""Bit widths: a graph rewritten to narrower weights, and the widths that are read back from it."""

from __future__ import annotations

import copy
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from objectives.compression.export import PREFIX
from spaces.anatomy import Anatomy, Group
from spaces.precision import Precision

Rows = Mapping[str, NDArray[np.generic]]
_CALIBRATION_BATCH = 256


class WidthError(RuntimeError):
    """A graph does not hold the widths that were asked for."""


def quantise(graph: onnx.ModelProto, precision: Precision, anatomy: Anatomy, calibration: Rows) -> onnx.ModelProto:
    """A copy of an fp32 graph with each group's weights in the width that was asked for.

    Args:
        calibration: inputs of some train rows, for the ranges of static int8

    Raises:
        WidthError: what is read back from the result is not what was asked.
    """
    result = copy.deepcopy(graph)
    present = read_widths(graph, anatomy)
    asked = {group.name: precision.width(group.name) for group in anatomy.groups if group.name in present}
    by_width: dict[str, list[str]] = {}
    # The anatomy is the baseline's: a smaller sibling has fewer layers of the same names.
    held = {tensor.name for tensor in graph.graph.initializer}
    for name, width in asked.items():
        by_width.setdefault(width, []).extend(w for w in _weights(anatomy.group(name)) if w in held)
    # Static first: its pass needs the graph as exported; the others rewrite single nodes.
    if "int8-static" in by_width:
        result = _static_int8(result, by_width["int8-static"], calibration)
    rewrites: dict[str, Callable[[onnx.ModelProto, str], None]] = {
        "int8-dynamic": _dynamic_int8,
        "fp16": _table_fp16,
        "int8": _table_int8,
    }
    for width, rewrite in rewrites.items():
        for weight in by_width.get(width, []):
            rewrite(result, weight)
    _drop_unused(result)
    onnx.checker.check_model(result, full_check=True)
    read = read_widths(result, anatomy)
    if read != asked:
        wrong = {name: (asked[name], read.get(name)) for name in asked if asked[name] != read.get(name)}
        raise WidthError("; ".join(f"{g}: asked {a}, but the graph holds {r}" for g, (a, r) in wrong.items()) + ".")
    return result


def read_widths(graph: onnx.ModelProto, anatomy: Anatomy) -> dict[str, str]:
    """The width of each group that the graph holds, from its initialisers' types and from what consumes them."""
    widths: dict[str, str] = {}
    for group in anatomy.groups:
        found = {width for weight in _weights(group) if (width := _width_of(graph, weight)) is not None}
        if found:
            widths[group.name] = found.pop() if len(found) == 1 else "mixed: " + ", ".join(sorted(found))
    return widths


def _weights(group: Group) -> list[str]:
    return [f"{PREFIX}{module}.weight" for module in group.modules]


def _width_of(graph: onnx.ModelProto, weight: str) -> str | None:
    """None where the graph has no such weight."""
    floats = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
    consumers = {name: node.op_type for node in graph.graph.node for name in node.input}
    for tensor in graph.graph.initializer:
        if tensor.name not in (weight, f"{weight}_quantized") or tensor.name not in consumers:
            continue
        if tensor.data_type in floats:
            return floats[tensor.data_type]
        by_consumer = {"MatMulInteger": "int8-dynamic", "DequantizeLinear": "int8-static", "Gather": "int8"}
        name = by_consumer.get(consumers[tensor.name], consumers[tensor.name])
        return name if tensor.data_type == TensorProto.INT8 else f"type {tensor.data_type} in {name}"
    return None


def _static_int8(graph: onnx.ModelProto, weights: Sequence[str], calibration: Rows) -> onnx.ModelProto:
    """Weights per output channel, activations by the range seen on the calibration rows; QDQ around each product."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(calibration)

        def get_next(self) -> Rows | None:
            return next(self._batches, None)

    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "static.onnx"
        quantize_static(
            copy.deepcopy(graph),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Gemm"],
            nodes_to_quantize=[_consumer(graph, weight).name for weight in weights],
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            # Only the products themselves: what else reads the same tensor keeps its fp32.
            extra_options={"DedicatedQDQPair": True, "OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        return onnx.load(str(target))


def _batches(rows: Rows) -> Iterator[Rows]:
    count = len(next(iter(rows.values())))
    for start in range(0, count, _CALIBRATION_BATCH):
        yield {name: values[start : start + _CALIBRATION_BATCH] for name, values in rows.items()}


def _dynamic_int8(graph: onnx.ModelProto, weight: str) -> None:
    """Gemm(x, W, b) -> DynamicQuantizeLinear, MatMulInteger, scale, add; the engine fuses them into one kernel."""
    gemm = _consumer(graph, weight)
    x, _, bias = gemm.input
    matrix = numpy_helper.to_array(_initialiser(graph, weight)).astype(np.float32)
    if _attribute(gemm, "transB"):
        matrix = matrix.T
    scale = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny) / np.float32(127)
    codes = np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8)
    name, out = gemm.name, gemm.output[0]
    _add_initialisers(graph, {f"{weight}_quantized": np.ascontiguousarray(codes), f"{weight}_scale": scale})
    _replace(
        graph,
        gemm,
        [
            helper.make_node(
                "DynamicQuantizeLinear", [x], [f"{name}_x", f"{name}_x_scale", f"{name}_x_zero"], f"{name}_quantise"
            ),
            helper.make_node(
                "MatMulInteger",
                [f"{name}_x", f"{weight}_quantized", f"{name}_x_zero"],
                [f"{name}_int32"],
                f"{name}_product",
            ),
            helper.make_node("Cast", [f"{name}_int32"], [f"{name}_float"], f"{name}_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_x_scale", f"{weight}_scale"], [f"{name}_scale"], f"{name}_scales"),
            helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [f"{name}_scaled"], f"{name}_rescale"),
            helper.make_node("Add", [f"{name}_scaled", bias], [out], f"{name}_bias"),
        ],
    )


def _table_fp16(graph: onnx.ModelProto, weight: str) -> None:
    """Rows are stored in half precision and widened after the lookup."""
    gather = _consumer(graph, weight)
    table = numpy_helper.to_array(_initialiser(graph, weight)).astype(np.float16)
    name, out = gather.name, gather.output[0]
    _add_initialisers(graph, {f"{weight}_quantized": table})
    _replace(
        graph,
        gather,
        [
            helper.make_node("Gather", [f"{weight}_quantized", gather.input[1]], [f"{name}_half"], f"{name}_rows"),
            helper.make_node("Cast", [f"{name}_half"], [out], f"{name}_widen", to=TensorProto.FLOAT),
        ],
    )


def _table_int8(graph: onnx.ModelProto, weight: str) -> None:
    """Each row has a scale of its own: value = code * scale, codes symmetric in [-127, 127]."""
    gather = _consumer(graph, weight)
    table = numpy_helper.to_array(_initialiser(graph, weight)).astype(np.float32)
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
    codes = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
    name, ids, out = gather.name, gather.input[1], gather.output[0]
    _add_initialisers(graph, {f"{weight}_quantized": codes, f"{weight}_scale": scale})
    _replace(
        graph,
        gather,
        [
            helper.make_node("Gather", [f"{weight}_quantized", ids], [f"{name}_codes"], f"{name}_rows"),
            helper.make_node("Gather", [f"{weight}_scale", ids], [f"{name}_scale"], f"{name}_scales"),
            helper.make_node("Cast", [f"{name}_codes"], [f"{name}_float"], f"{name}_widen", to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [out], f"{name}_rescale"),
        ],
    )


def _consumer(graph: onnx.ModelProto, weight: str) -> onnx.NodeProto:
    consumers = [node for node in graph.graph.node if weight in node.input]
    if len(consumers) != 1 or consumers[0].op_type not in ("Gemm", "Gather"):
        kinds = [node.op_type for node in consumers]
        raise WidthError(f"{weight} must feed one Gemm or Gather to change its width, but it feeds {kinds}.")
    found: onnx.NodeProto = consumers[0]
    return found


def _initialiser(graph: onnx.ModelProto, name: str) -> TensorProto:
    found: TensorProto = next(tensor for tensor in graph.graph.initializer if tensor.name == name)
    return found


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((int(a.i) for a in node.attribute if a.name == name), 0)


def _add_initialisers(graph: onnx.ModelProto, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    graph.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())


def _replace(graph: onnx.ModelProto, old: onnx.NodeProto, new: Sequence[onnx.NodeProto]) -> None:
    """In the old node's place, so that the nodes stay in topological order."""
    nodes = list(graph.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.name == old.name)
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes[:at], *new, *nodes[at + 1 :]])


def _drop_unused(graph: onnx.ModelProto) -> None:
    used = {name for node in graph.graph.node for name in node.input}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
