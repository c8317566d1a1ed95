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

from objectives.compression.emission import ITEM, USER
from objectives.compression.export import PREFIX
from objectives.compression.graph import attribute, initialisers, keep_needed, once_inputs, replace
from spaces.anatomy import Anatomy, Group
from spaces.precision import Precision

Rows = Mapping[str, NDArray[np.generic]]
_CALIBRATION_BATCH = 256


class WidthError(RuntimeError):
    """A graph does not hold the widths that were asked for."""


def quantise(graph: onnx.ModelProto, precision: Precision, anatomy: Anatomy, calibration: Rows) -> onnx.ModelProto:
    """A copy of an fp32 graph with each group's weights in the width that was asked for.

    A weight that `compute_once` cut in two has one width in both halves.

    Args:
        calibration: inputs of some train rows, for the ranges of static int8; where the graph takes the user's inputs
            once, the rows of one user go through it together

    Raises:
        WidthError: what is read back from the result is not what was asked.
    """
    result = copy.deepcopy(graph)
    present = read_widths(graph, anatomy)
    asked = {group.name: precision.width(group.name) for group in anatomy.groups if group.name in present}
    by_width: dict[str, list[str]] = {}
    # The anatomy is the baseline's: a smaller sibling has fewer layers of the same names.
    read_by_nodes = {name for node in graph.graph.node for name in node.input}
    for name, width in asked.items():
        by_width.setdefault(width, []).extend(w for w in _weights(anatomy.group(name)) if w in read_by_nodes)
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
    keep_needed(result)
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
    """Whole, and as the halves of the two sides."""
    return [f"{PREFIX}{module}.weight{side}" for module in group.modules for side in ("", USER, ITEM)]


def _width_of(graph: onnx.ModelProto, weight: str) -> str | None:
    """None where the graph has no such weight."""
    floats: dict[int, str] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16"}
    by_consumer = {"MatMulInteger": "int8-dynamic", "DequantizeLinear": "int8-static", "Gather": "int8"}
    held = initialisers(graph)
    for tensor in (held[name] for name in (weight, f"{weight}_quantized") if name in held):
        consumers = sorted({node.op_type for node in graph.graph.node if tensor.name in node.input})
        if consumers and tensor.data_type in floats:
            return floats[tensor.data_type]
        if consumers:
            name = by_consumer.get(consumers[0], consumers[0]) if len(consumers) == 1 else " and ".join(consumers)
            return name if tensor.data_type == TensorProto.INT8 else f"type {tensor.data_type} in {name}"
    return None


def _static_int8(graph: onnx.ModelProto, weights: Sequence[str], calibration: Rows) -> onnx.ModelProto:
    """Weights per output channel, activations by the range seen on the calibration rows; QDQ around each product."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = _batches(calibration, once_inputs(graph))

        def get_next(self) -> Rows | None:
            return next(self._batches, None)

    products = [node for weight in weights for node in _consumers(graph, weight)]
    names = {product.name for product in products}
    for product in products:
        _detach_bias(graph, product, names)
    logging.getLogger().setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "static.onnx"
        quantize_static(
            copy.deepcopy(graph),
            str(target),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Gemm"],
            nodes_to_quantize=sorted(names),
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
        narrow = onnx.load(str(target))
    _keep_others_wide(narrow, names)
    return narrow


def _keep_others_wide(graph: onnx.ModelProto, products: set[str]) -> None:
    """The quantiser gives the rounded values to all that read a product's input; they are for the products alone."""
    made_by = {name: node for node in graph.graph.node for name in node.output}
    for node in graph.graph.node:
        for i, name in enumerate(node.input if node.name not in products else ()):
            widened = made_by.get(name)
            rounded = made_by.get(widened.input[0]) if widened and widened.op_type == "DequantizeLinear" else None
            if rounded is not None and rounded.op_type == "QuantizeLinear":
                node.input[i] = rounded.input[0]


def _batches(rows: Rows, once: frozenset[str]) -> Iterator[Rows]:
    """Rows in their order; those of one user together, and what is taken once given by the first of them."""
    count = len(next(iter(rows.values())))
    order = [np.arange(count)]
    if once:
        keys = [np.ascontiguousarray(rows[name]).reshape(count, -1).view(np.uint8) for name in sorted(once)]
        _, user = np.unique(np.concatenate(keys, axis=1), axis=0, return_inverse=True)
        by_user = np.argsort(user, kind="stable")
        order = np.split(by_user, np.flatnonzero(np.diff(user[by_user])) + 1)
    for chosen in order:
        for start in range(0, len(chosen), _CALIBRATION_BATCH):
            batch = chosen[start : start + _CALIBRATION_BATCH]
            yield {name: values[batch[:1] if name in once else batch] for name, values in rows.items()}


def _detach_bias(graph: onnx.ModelProto, product: onnx.NodeProto, products: set[str]) -> None:
    """A bias is added behind the product where it is computed, as the user's half is to the item's: it has no width.

    And where the result goes through a Relu to others than products: ONNX Runtime would fuse the two in fp32.
    """
    x, weight, *bias = product.input
    relus = [node.output[0] for node in _readers(graph, product.output[0]) if node.op_type == "Relu"]
    fused = any(reader.name not in products for relu in relus for reader in _readers(graph, relu))
    if not bias or (bias[0] in initialisers(graph) and not fused):
        return
    out = product.output[0]
    alone = copy.deepcopy(product)
    alone.input[:] = [x, weight]
    alone.output[:] = [f"{out}.unbiased"]
    replace(graph, product, [alone, helper.make_node("Add", [*alone.output, bias[0]], [out], f"{product.name}_bias")])


def _readers(graph: onnx.ModelProto, value: str) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if value in node.input]


def _dynamic_int8(graph: onnx.ModelProto, weight: str) -> None:
    """Gemm(x, W, b) -> DynamicQuantizeLinear, MatMulInteger, scale, add; the engine fuses them into one kernel."""
    products = _consumers(graph, weight)
    matrix = numpy_helper.to_array(initialisers(graph)[weight]).astype(np.float32)
    if attribute(products[0], "transB", 0):
        matrix = matrix.T
    scale = np.maximum(np.abs(matrix).max(axis=0), np.finfo(np.float32).tiny) / np.float32(127)
    codes = np.clip(np.rint(matrix / scale), -127, 127).astype(np.int8)
    _add_initialisers(graph, {f"{weight}_quantized": np.ascontiguousarray(codes), f"{weight}_scale": scale})
    for gemm in products:
        replace(graph, gemm, _dynamic_nodes(gemm, weight))


def _dynamic_nodes(gemm: onnx.NodeProto, weight: str) -> list[onnx.NodeProto]:
    x, _, *bias = gemm.input
    name, out = gemm.name, gemm.output[0]
    scaled = f"{name}_scaled" if bias else out
    return [
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
        helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [scaled], f"{name}_rescale"),
        *([helper.make_node("Add", [scaled, *bias], [out], f"{name}_bias")] if bias else []),
    ]


def _table_fp16(graph: onnx.ModelProto, weight: str) -> None:
    """Rows are stored in half precision and widened after the lookup."""
    lookups = _consumers(graph, weight)
    table = numpy_helper.to_array(initialisers(graph)[weight]).astype(np.float16)
    _add_initialisers(graph, {f"{weight}_quantized": table})
    for gather in lookups:
        name, out = gather.name, gather.output[0]
        half = helper.make_node("Gather", [f"{weight}_quantized", gather.input[1]], [f"{name}_half"], f"{name}_rows")
        widen = helper.make_node("Cast", [f"{name}_half"], [out], f"{name}_widen", to=TensorProto.FLOAT)
        replace(graph, gather, [half, widen])


def _table_int8(graph: onnx.ModelProto, weight: str) -> None:
    """Each row has a scale of its own: value = code * scale, codes symmetric in [-127, 127]."""
    lookups = _consumers(graph, weight)
    table = numpy_helper.to_array(initialisers(graph)[weight]).astype(np.float32)
    scale = np.maximum(np.abs(table).max(axis=1, keepdims=True), np.finfo(np.float32).tiny) / np.float32(127)
    codes = np.clip(np.rint(table / scale), -127, 127).astype(np.int8)
    _add_initialisers(graph, {f"{weight}_quantized": codes, f"{weight}_scale": scale})
    for gather in lookups:
        name, ids, out = gather.name, gather.input[1], gather.output[0]
        replace(
            graph,
            gather,
            [
                helper.make_node("Gather", [f"{weight}_quantized", ids], [f"{name}_codes"], f"{name}_rows"),
                helper.make_node("Gather", [f"{weight}_scale", ids], [f"{name}_scale"], f"{name}_scales"),
                helper.make_node("Cast", [f"{name}_codes"], [f"{name}_float"], f"{name}_widen", to=TensorProto.FLOAT),
                helper.make_node("Mul", [f"{name}_float", f"{name}_scale"], [out], f"{name}_rescale"),
            ],
        )


def _consumers(graph: onnx.ModelProto, weight: str) -> list[onnx.NodeProto]:
    """The plain products, or the lookups, that share a weight.

    Raises:
        WidthError: it feeds anything else, or products of other forms.
    """
    consumers = _readers(graph, weight)
    kinds = sorted({node.op_type for node in consumers})
    if kinds not in (["Gemm"], ["Gather"]):
        raise WidthError(f"{weight} must feed Gemms or Gathers alone to change its width, but it feeds {kinds}.")
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, "axis": 0}
    given = [{a.name: helper.get_attribute_value(a) for a in node.attribute} for node in consumers]
    forms = [{name: value for name, value in form.items() if plain.get(name) != value} for form in given]
    place = {"Gemm": 1, "Gather": 0}[kinds[0]]
    whole = all(node.input[place] == weight and list(node.input).count(weight) == 1 for node in consumers)
    if not whole or forms[0] not in ({}, {"transB": 1}) or any(form != forms[0] for form in forms):
        raise WidthError(f"{weight} must be read alike, as a whole weight, but its {kinds[0]}s have {forms}.")
    return consumers


def _add_initialisers(graph: onnx.ModelProto, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    graph.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
