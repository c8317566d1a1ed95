"""Weights of some modules in a graph, the nodes that read them, and the widths in which the graph holds them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from objectives.compression.export import PREFIX
from objectives.compression.graph_passes.exported import is_recurrent
from objectives.int8_weights import Int8WeightBits, largest_code
from objectives.onnx_graph import array, name_of
from spaces.model_structure import ModelStructure

# Operand that is the weight, for operators that look rows up and for those that multiply.
PLACES = {"Gather": 0, "Gemm": 1, "MatMul": 1}
_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, "axis": 0}


class WidthError(RuntimeError):
    """A graph does not hold the requested widths."""


def prefixes(modules: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of the names of the modules' tensors."""
    return tuple(f"{PREFIX}{module}." for module in modules)


def weights(graph: ir.Graph, modules: Sequence[str]) -> list[ir.Value]:
    """Return the fp32 matrices of the modules that are looked up or multiplied.

    A weight is held whole, as two factors, as the halves of the two sides, or as the parts of a compressed table. For a
    recurrent layer, its input weight represents all of its weights. Tensors that are only added, such as positions,
    have no width of their own.
    """
    named = prefixes(modules)
    return [value for name, value in graph.initializers.items() if name.startswith(named) and _is_weight(value)]


def _is_weight(value: ir.Value) -> bool:
    if value.dtype == ir.DataType.FLOAT and value.shape is not None and len(value.shape) == 2:
        return any(node.op_type in PLACES for node in value.consumers())
    return any(is_recurrent(node) and place == 1 for node, place in value.uses())


def lookups(weight: ir.Value) -> list[ir.Node]:
    return [node for node in _readers(weight) if node.op_type == "Gather"]


def products(weight: ir.Value) -> list[ir.Node]:
    return [node for node in _readers(weight) if node.op_type != "Gather"]


def _readers(weight: ir.Value) -> list[ir.Node]:
    """Return the plain products and lookups of a weight; WidthError where it feeds anything else, or other forms."""
    found = list(weight.consumers())
    kinds = sorted({node.op_type for node in found})
    if not set(kinds) <= set(PLACES):
        raise WidthError(
            f"{weight.name} must feed products and lookups alone to change its width, but it feeds {kinds}."
        )
    forms = [{n: of.value for n, of in node.attributes.items() if _PLAIN.get(n) != of.value} for node in found]
    if any(place != PLACES[node.op_type] for node, place in weight.uses()):
        raise WidthError(f"{weight.name} must be looked up or the second factor of its products, but it is the first.")
    turned = {is_transposed(node) for node in found if node.op_type != "Gather"}
    if any(form not in ({}, {"transB": 1}) for form in forms) or len(turned) > 1:
        raise WidthError(f"{weight.name} must be read alike, but its {kinds} have {forms}.")
    return found


def is_transposed(product: ir.Node) -> bool:
    """Return whether the product's weight is (outputs, inputs), as in torch, and not (inputs, outputs)."""
    return bool(product.attributes.get_int("transB", 0))


def to_half(name: str, matrix: NDArray[np.float32]) -> NDArray[np.float16]:
    """Convert the matrix to fp16.

    Raises:
        WidthError: a number is too large for fp16 and would become infinite.
    """
    peak, most = float(np.abs(matrix).max(initial=0)), float(np.finfo(np.float16).max)
    if peak > most:
        raise WidthError(f"{name} must lie within {most:g} to be held in fp16, but it has {peak:g}.")
    return matrix.astype(np.float16)


def read_widths(model: ir.Model, structure: ModelStructure, apart: Iterable[str] = ()) -> dict[str, str]:
    """Return the width of each group in the graph.

    A width is fp32, fp16, int8, int4, int2, int8-dynamic, int8-static, int4-dynamic or int8-lstm. Several widths give
    "mixed: ..."; integers in any other operator give the type and the operator's name.

    Args:
        apart: tables to be reported by themselves, and not with their group
    """
    held = {name: width for name, value in model.graph.initializers.items() if (width := _width(model.graph, value))}
    widths: dict[str, str] = {}
    for part, modules in structure.stored(apart).items():
        found = sorted({width for name, width in held.items() if name.startswith(prefixes(modules))})
        if found:
            widths[part] = found[0] if len(found) == 1 else "mixed: " + ", ".join(found)
    return widths


def read_weight_bits(model: ir.Model) -> Int8WeightBits | None:
    """Return the bits that the weights of int8 products need, by their largest code; None without such products."""
    read = [(node, node.inputs[1]) for node in model.graph if node.op_type in ("Gemm", "MatMul", "MatMulInteger")]
    codes = {value if node.op_type == "MatMulInteger" else _widened(value) for node, value in read}
    codes |= {value for node in model.graph if node.op_type == "DynamicQuantizeLSTM" for value in node.inputs[1:3]}
    held = [array(value) for value in codes if value and value.is_initializer() and value.dtype == ir.DataType.INT8]
    if not held:
        return None
    largest = max(int(np.abs(values.astype(np.int16)).max(initial=0)) for values in held)
    return 7 if largest <= largest_code(7) else 8


def _widened(value: ir.Value | None) -> ir.Value | None:
    """Return the codes that a DequantizeLinear makes a value of."""
    node = None if value is None else value.producer()
    return node.inputs[0] if node is not None and node.op_type == "DequantizeLinear" else None


def _maker(value: ir.Value | None) -> str:
    node = None if value is None else value.producer()
    return "nothing" if node is None else node.op_type


def _width(graph: ir.Graph, value: ir.Value) -> str | None:
    """Return the width of a matrix, None where it is no weight: no lookup or product reads it."""
    if value.shape is None or len(value.shape) < 2 or _is_scale(graph, name_of(value)):
        return None
    if value.dtype == ir.DataType.FLOAT:
        return "fp32" if any(_weighs(node, place) for node, place in value.uses()) else None
    if value.dtype == ir.DataType.FLOAT16:
        return "fp16" if value.uses() else None
    if value.dtype not in (ir.DataType.INT8, ir.DataType.UINT8):
        return None
    return " and ".join(sorted({_whole_number_width(value, node) for node in value.consumers()})) or None


def _whole_number_width(value: ir.Value, node: ir.Node) -> str:
    kind = node.op_type
    if kind in ("GatherBlockQuantized", "MatMulNBits"):
        rounded = node.attributes.get_int("accuracy_level", 0) == 4
        return f"int{node.attributes.get_int('bits', 4)}{'-dynamic' if rounded else ''}"
    if value.dtype == ir.DataType.INT8:
        if kind == "Gather":
            return "int8"
        if kind == "DynamicQuantizeLSTM":
            return "int8-lstm"
        if kind == "MatMulInteger" and _maker(node.inputs[0]) == "DynamicQuantizeLinear":
            return "int8-dynamic"
        if kind == "DequantizeLinear" and _meets_rounded(node.outputs[0]):
            return "int8-static"
    return f"{str(value.dtype).lower()} in {kind}"


def _meets_rounded(weight: ir.Value) -> bool:
    """Return whether all readers multiply the weight with a quantized activation."""
    rounded = [
        node.op_type in ("Gemm", "MatMul") and _maker(_widened(node.inputs[0])) == "QuantizeLinear"
        for node in weight.consumers()
    ]
    return bool(rounded) and all(rounded)


def _weighs(node: ir.Node, place: int) -> bool:
    return place in (1, 2) if is_recurrent(node) else PLACES.get(node.op_type) == place


def _is_scale(graph: ir.Graph, name: str) -> bool:
    stem = name.removesuffix("_scale")
    return stem != name and (stem in graph.initializers or f"{stem}_quantized" in graph.initializers)
