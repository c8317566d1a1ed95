"""Quantized embedding tables: rows are stored in fewer bits, and widened after the lookup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from objectives.compression.quantization.rounding import Floats, block_codes, block_size, by_rows, int8_codes, packed
from objectives.compression.quantization.weights import lookups, to_half
from objectives.onnx_graph import add_before, array, initializer, name_of, operands, turn_into

Codes = NDArray[np.int8]
# A sum counts as zero where it is no more than the rounding errors of its terms.
_NOUGHT = np.finfo(np.float32).eps


def half_rows(graph: ir.Graph, weight: ir.Value) -> None:
    """Store the rows of a table in fp16."""
    for gather, ids, out, (rows,) in _lookups(graph, weight, partial(_half_rows, name_of(weight))):
        found = add_before(gather, "Gather", [rows, ids], f"{out}_half", f"{out}_rows")
        turn_into(gather, "Cast", [found], f"{out}_widen", {"to": ir.DataType.FLOAT})


def int8_rows(graph: ir.Graph, weight: ir.Value) -> None:
    """Store the rows of a table in int8, each with its own scale: value = code * scale."""
    for gather, ids, out, (rows, steps) in _lookups(graph, weight, _int8_rows):
        found = add_before(gather, "Gather", [rows, ids], f"{out}_codes", f"{out}_rows")
        scale = add_before(gather, "Gather", [steps, ids], f"{out}_scale", f"{out}_scales")
        if ids.shape is not None and len(ids.shape) == 1:
            # One row for each id: for ten thousand, ONNX Runtime needs 0.5 to 0.6 of a product's time.
            turn_into(gather, "DequantizeLinear", [found, scale], f"{out}_widen", {"axis": 0})
            continue
        wide = add_before(gather, "Cast", [found], f"{out}_float", f"{out}_widen", {"to": ir.DataType.FLOAT})
        last = initializer(graph, f"{out}_last", np.array([-1]))
        column = add_before(gather, "Unsqueeze", [scale, last], f"{out}_column", f"{out}_stand")
        turn_into(gather, "Mul", [wide, column], f"{out}_rescale")


def block_rows(graph: ir.Graph, weight: ir.Value, bits: int) -> None:
    """Store a table in codes of 4 or 2 bits, decoded by GatherBlockQuantized.

    Each block of adjacent numbers has a scale. A row fills whole bytes: added columns are sliced off after the lookup.
    In ONNX Runtime a row may end within a block; OpenVINO reads only rows of whole blocks.
    """
    columns = array(weight).shape[1]
    width = columns + -columns % (8 // bits)
    form = {"gather_axis": 0, "quantize_axis": 1, "block_size": block_size(columns), "bits": bits}
    for gather, ids, out, (rows, steps) in _lookups(graph, weight, partial(_block_rows, bits=bits, width=width)):
        kind, inputs, name = "GatherBlockQuantized", [rows, ids, steps], f"{out}_rows"
        if width == columns:
            turn_into(gather, kind, inputs, name, form)
            continue
        padded = add_before(gather, kind, inputs, f"{out}_padded", name, form)
        ends = {"first": 0, "end": columns, "axis": -1}
        kept = [initializer(graph, f"{out}_{part}", np.array([end])) for part, end in ends.items()]
        turn_into(gather, "Slice", [padded, *kept], f"{out}_slice")


def _lookups(
    graph: ir.Graph, weight: ir.Value, stored: Callable[[Floats], tuple[NDArray[Any], ...]]
) -> Iterator[tuple[ir.Node, ir.Value, str, list[ir.Value]]]:
    """Yield each lookup in a table, its ids, its output's name, and the initialisers of the rows as they are stored."""
    nodes = lookups(weight)
    parts = by_rows(array(weight), stored) if nodes else ()
    names = (f"{weight.name}_rows", f"{weight.name}_rows_scale")
    held = [initializer(graph, name, values) for name, values in zip(names, parts, strict=False)]
    for gather in nodes:
        yield gather, operands(gather)[1], name_of(gather.outputs[0]), held


def _int8_rows(table: Floats) -> tuple[Codes, Floats]:
    """Return the codes of rows, and the scale of each, (rows,)."""
    codes, scale = int8_codes(table, axis=1)
    return _telling(codes, scale, table, -127, 127), scale[:, 0]


def _block_rows(table: Floats, bits: int, width: int) -> tuple[NDArray[np.uint8], Floats]:
    """Return packed codes of rows, padded to `width`, and the scales of their blocks, (rows, blocks)."""
    rows, columns = table.shape
    blocks, scales = block_codes(table, bits)
    half = 1 << (bits - 1)
    codes = blocks.reshape(rows, -1)[:, :width].astype(np.int8) - np.int8(half)
    step = np.repeat(scales, block_size(columns), axis=1)[:, :columns]
    codes[:, :columns] = _telling(codes[:, :columns], step, table, -half, half - 1)
    return packed((codes + np.int8(half)).astype(np.uint8), bits), scales


def _half_rows(weight: str, table: Floats) -> tuple[NDArray[np.float16]]:
    """Round to fp16; in a row that would sum to zero the largest number moves: steps of others may be too small."""
    half = to_half(weight, table)
    rows = _cancelled_rows(half.astype(np.float32), table)
    of = half[rows]
    largest = np.abs(of) == np.abs(of).max(axis=1, keepdims=True)
    above, below = (np.where(largest, np.nextafter(of, np.float16(end)), np.nan) for end in (np.inf, -np.inf))
    half[rows] = _least_moves(of.astype(np.float32), table[rows], above.astype(np.float32), below.astype(np.float32))
    return (half,)


def _telling(codes: Codes, step: Floats, table: Floats, least: int, most: int) -> Codes:
    """Return codes (rows, columns) in [least, most] whose rows sum to zero only where the table's do."""
    rows = _cancelled_rows(codes * step, table)
    of, size = codes[rows].astype(np.float32), np.broadcast_to(step, codes.shape)[rows]
    above, below = (np.where(of == end, np.nan, (of + d) * size) for end, d in ((most, 1), (least, -1)))
    told = codes.copy()
    told[rows] = np.rint(_least_moves(of * size, table[rows], above, below) / size)
    return told


def _cancelled_rows(rounded: Floats, exact: Floats) -> NDArray[np.intp]:
    """Return the rows whose rounded numbers sum to zero, though they are not all zero and the exact ones do not.

    Some models detect padding by such a sum: FuxiCTR's pooling divides by the number of rows of a list whose sum is not
    zero. Codes of 2 bits often cancel.
    """
    told = np.abs(rounded).any(axis=1) & ~_add_to_nought(exact)
    return np.flatnonzero(told & _add_to_nought(rounded))


def _least_moves(rounded: Floats, exact: Floats, above: Floats, below: Floats) -> Floats:
    """Return rows, (rows, columns), with one number of each moved to a neighbour: the move that costs least.

    The neighbours of each number are in `above` and `below`, NaN for none.
    """
    moves = np.concatenate([above, below], axis=1)
    cost = np.square(moves - np.tile(exact, 2)) - np.square(np.tile(rounded - exact, 2))
    best = np.where(np.isnan(cost), np.inf, cost).argmin(axis=1)
    moved = rounded.copy()
    every = np.arange(len(rounded))
    moved[every, best % rounded.shape[1]] = moves[every, best]
    return moved


def _add_to_nought(rows: Floats) -> NDArray[np.bool_]:
    """Return whether each row sums to zero, (rows,)."""
    total, size = rows.sum(axis=1, dtype=np.float64), np.abs(rows).sum(axis=1, dtype=np.float64)
    found: NDArray[np.bool_] = np.abs(total) <= _NOUGHT * size
    return found
