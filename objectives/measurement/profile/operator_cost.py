"""Arithmetic operations and bytes moved of one step, derived from shapes rather than measured."""

from __future__ import annotations

import math
from collections.abc import Mapping

from objectives.measurement.profile.model_steps import Step, Value

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


def flops(step: Step, values: Mapping[str, Value]) -> int:
    """Count the operations of a step: twice the multiply-adds of a product (its bias not counted); one for each number
    of the largest value of any other operator; none for operators that only move numbers.

    Args:
        values: every value that the step reads or puts out, by name
    """
    out = values[step.puts[0]]
    if step.operator in _PRODUCTS:
        return 2 * out.count * _inner(step, values[step.reads[0]])
    if step.operator in _CONVOLUTIONS:
        return 2 * out.count * math.prod(values[step.reads[1]].shape[1:])
    if step.operator in _MOVERS:
        return 0
    return max(values[name].count for name in (*step.reads, *step.puts) if name in values)


def bytes_moved(step: Step, values: Mapping[str, Value]) -> int:
    """Count the bytes moved: each value read once and written once; of a table, the rows that are looked up (a row
    requested twice is read twice).
    """
    if step.operator in _VIEWS:
        return 0
    written = sum(values[name].bytes for name in step.puts if name in values)
    if step.operator == "Slice":
        return 2 * written
    read = [name for name in dict.fromkeys(step.reads) if name in values]
    if step.operator not in _LOOKUPS:
        return written + sum(values[name].bytes for name in read)
    ids = values[step.reads[1]]
    axis = step.attributes.get("axis", step.attributes.get("gather_axis", 0))
    tables = [values[name] for name in read if name != step.reads[1]]
    rows = sum(ids.count * table.bytes // max(1, table.shape[axis]) for table in tables)
    return written + ids.bytes + rows


def _inner(step: Step, left: Value) -> int:
    """Return the size of the dimension that a product sums over."""
    if "K" in step.attributes:  # MatMulNBits packs its right factor
        return step.attributes["K"]
    return left.shape[-2] if step.attributes.get("transA") else left.shape[-1]
