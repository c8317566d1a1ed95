"""Weights of some modules in a graph, and the nodes that read them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from objectives.compression.export import PREFIX
from objectives.compression.graph_passes.exported import is_recurrent

# Domain of ONNX Runtime's own operators.
ENGINE = "com.microsoft"
# Operand that is the weight, for operators that look rows up and for those that multiply.
PLACES = {"Gather": 0, "Gemm": 1, "MatMul": 1}
_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, "axis": 0}


class WidthError(RuntimeError):
    """A graph does not hold the requested widths."""


def prefixes(modules: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of the names of the modules' tensors."""
    return tuple(f"{PREFIX}{module}." for module in modules)


def weights(graph: ir.Graph, modules: Sequence[str]) -> list[ir.Value]:
    """Return the fp32 matrices of the modules that are looked up or multiplied: whole, as two factors, as the halves of
    the two sides, or as the parts of a compressed table; for a recurrent layer, its input weight, which represents all
    of its weights.

    Tensors that are only added, such as positions, have no width of their own.
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
    whole = all(place == PLACES[node.op_type] for node, place in weight.uses())
    turned = {is_transposed(node) for node in found if node.op_type != "Gather"}
    if not whole or any(form not in ({}, {"transB": 1}) for form in forms) or len(turned) > 1:
        raise WidthError(f"{weight.name} must be read alike, as a whole weight, but its {kinds} have {forms}.")
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
