"""Arithmetic operations and bytes moved of one node, derived from shapes rather than measured."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

# The first value read is the left factor, in every width.
_FULL = frozenset(("Gemm", "FusedGemm", "MatMul", "FusedMatMul"))
_NARROW = frozenset(("MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm", "QLinearMatMul"))
_PRODUCTS = _FULL | _NARROW | {"MatMulNBits"}
_CONVOLUTIONS = frozenset(("Conv", "FusedConv"))
_LOOKUPS = frozenset(("Gather", "GatherBlockQuantized"))
# Views of the same bytes, which move nothing.
_VIEWS = frozenset(("Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Shape", "Size"))
_MOVERS = _VIEWS | frozenset(
    ("Gather", "Concat", "Slice", "Split", "Transpose", "Expand", "Tile", "Pad", "Cast", "Where", "ScatterND")
)


def flops(node: ir.Node) -> int:
    """Count the arithmetic operations of a node whose values have known shapes.

    A matrix product or convolution has twice its multiply-adds, without its bias. Operators that only move numbers have
    none. Any other operator has one for each number of its largest value.
    """
    out = node.outputs[0]
    if node.op_type in _PRODUCTS:
        return 2 * _count(out) * _inner(node)
    if node.op_type in _CONVOLUTIONS:
        return 2 * _count(out) * math.prod(_sizes(node.inputs[1])[1:])
    if node.op_type in _MOVERS:
        return 0
    return max(_count(value) for value in (*node.inputs, *node.outputs))


def bytes_moved(node: ir.Node) -> int:
    """Count the bytes that a node moves: each value is read or written once.

    Of a table, only the rows that are looked up are read; a row requested twice is read twice. A slice reads as many
    bytes as it writes, and a view moves none.
    """
    if node.op_type in _VIEWS:
        return 0
    written = sum(stored_bytes(value) for value in node.outputs)
    if node.op_type == "Slice":
        return 2 * written
    read = dict.fromkeys(node.inputs)
    if node.op_type not in _LOOKUPS:
        return written + sum(map(stored_bytes, read))
    ids = node.inputs[1]
    axis = node.attributes.get_int("axis", node.attributes.get_int("gather_axis", 0))
    tables = [value for value in read if value is not None and value is not ids]
    rows = sum(_count(ids) * stored_bytes(table) // max(1, _sizes(table)[axis]) for table in tables)
    return written + stored_bytes(ids) + rows


def stored_bytes(value: ir.Value | None) -> int:
    """Return the bytes of a value's numbers; 0 where shape or type is unknown, and for strings, stored elsewhere."""
    kind = None if value is None else value.dtype
    return 0 if kind is None or kind.name == "STRING" else math.ceil(_count(value) * kind.bitwidth / 8)


def _count(value: ir.Value | None) -> int:
    """Return the number of a value's numbers, 0 where its shape is unknown."""
    return math.prod(_sizes(value)) if value is not None and value.shape is not None else 0


def _sizes(value: ir.Value | None) -> tuple[int, ...]:
    """Return the shape of a value; a dimension without a fixed size counts as 0."""
    shape = () if value is None or value.shape is None else value.shape
    return tuple(size if isinstance(size, int) else 0 for size in shape)


def _inner(node: ir.Node) -> int:
    """Return the size of the dimension that a product sums over."""
    left = _sizes(node.inputs[0])
    inner = left[-2] if node.attributes.get_int("transA", 0) else left[-1]
    return node.attributes.get_int("K", inner)  # MatMulNBits packs its right factor
