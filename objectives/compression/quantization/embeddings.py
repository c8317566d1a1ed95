"""Quantized embedding tables: rows are stored in fewer bits, and widened after the lookup."""

from __future__ import annotations

from functools import partial

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from objectives.compression.graph_passes.graph_reading import replace, shapes
from objectives.compression.quantization.rounding import (
    Floats,
    block_codes,
    block_size,
    by_rows,
    cancelled_rows,
    int8_codes,
    least_moves,
    packed,
)
from objectives.compression.quantization.weights import ENGINE, add_initializers, array, import_engine, lookups, to_half

Codes = NDArray[np.int8]


def half_rows(graph: onnx.ModelProto, weight: str) -> None:
    """Store the rows of a table in fp16."""
    nodes = lookups(graph, weight)
    if not nodes:
        return
    (rows,) = by_rows(array(graph, weight), lambda part: (_half_rows(weight, part),))
    add_initializers(graph, {f"{weight}_rows": rows})
    for gather in nodes:
        ids, out = gather.input[1], gather.output[0]
        half = helper.make_node("Gather", [f"{weight}_rows", ids], [f"{out}_half"], f"{out}_rows")
        widen = helper.make_node("Cast", [f"{out}_half"], [out], f"{out}_widen", to=TensorProto.FLOAT)
        replace(graph, gather, [half, widen])


def int8_rows(graph: onnx.ModelProto, weight: str) -> None:
    """Store the rows of a table in int8, each with its own scale: value = code * scale."""
    nodes = lookups(graph, weight)
    if not nodes:
        return
    known = shapes(graph)
    codes, scale = by_rows(array(graph, weight), _int8_rows)
    add_initializers(graph, {f"{weight}_rows": codes, f"{weight}_rows_scale": scale})
    for gather in nodes:
        ids, out = gather.input[1], gather.output[0]
        made = [
            helper.make_node("Gather", [f"{weight}_rows", ids], [f"{out}_codes"], f"{out}_rows"),
            helper.make_node("Gather", [f"{weight}_rows_scale", ids], [f"{out}_scale"], f"{out}_scales"),
        ]
        flat = len(known.get(ids, ())) == 1
        replace(graph, gather, [*made, *(_dequantised(out) if flat else _rescaled(graph, out))])


def _dequantised(out: str) -> list[onnx.NodeProto]:
    """Return the node that widens one row for each id: for ten thousand, ONNX Runtime needs 0.5 to 0.6 of the time of a
    product with a column.
    """
    return [helper.make_node("DequantizeLinear", [f"{out}_codes", f"{out}_scale"], [out], f"{out}_widen", axis=0)]


def _rescaled(graph: onnx.ModelProto, out: str) -> list[onnx.NodeProto]:
    add_initializers(graph, {f"{out}_last": np.array([-1])})
    return [
        helper.make_node("Cast", [f"{out}_codes"], [f"{out}_float"], f"{out}_widen", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", [f"{out}_scale", f"{out}_last"], [f"{out}_column"], f"{out}_stand"),
        helper.make_node("Mul", [f"{out}_float", f"{out}_column"], [out], f"{out}_rescale"),
    ]


def block_rows(graph: onnx.ModelProto, weight: str, bits: int) -> None:
    """Store a table in codes of 4 or 2 bits, with a scale for each block of adjacent numbers, decoded by
    GatherBlockQuantized.

    A row fills whole bytes: added columns are sliced off after the lookup. In ONNX Runtime a row may end within a
    block; OpenVINO reads only rows of whole blocks.
    """
    nodes = lookups(graph, weight)
    if not nodes:
        return
    table = array(graph, weight)
    columns = table.shape[1]
    size = block_size(columns)
    width = columns + -columns % (8 // bits)
    stored, scales = by_rows(table, partial(_block_rows, bits=bits, width=width))
    add_initializers(graph, {f"{weight}_rows": stored, f"{weight}_rows_scale": scales})
    import_engine(graph)
    for gather in nodes:
        ids, out = gather.input[1], gather.output[0]
        full = out if width == columns else f"{out}_padded"
        lookup = helper.make_node(
            "GatherBlockQuantized",
            [f"{weight}_rows", ids, f"{weight}_rows_scale"],
            [full],
            f"{out}_rows",
            domain=ENGINE,
            gather_axis=0,
            quantize_axis=1,
            block_size=size,
            bits=bits,
        )
        replace(graph, gather, [lookup, *([] if full == out else [_slice(graph, full, out, columns)])])


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


def _half_rows(weight: str, table: Floats) -> NDArray[np.float16]:
    """Round to fp16; in a row whose sum would become zero the largest number is moved, since the others' steps may be
    too small.
    """
    half = to_half(weight, table)
    rows = cancelled_rows(half.astype(np.float32), table)
    of = half[rows]
    largest = np.abs(of) == np.abs(of).max(axis=1, keepdims=True)
    above, below = (np.where(largest, np.nextafter(of, np.float16(end)), np.nan) for end in (np.inf, -np.inf))
    half[rows] = least_moves(of.astype(np.float32), table[rows], above.astype(np.float32), below.astype(np.float32))
    return half


def _telling(codes: Codes, step: Floats, table: Floats, least: int, most: int) -> Codes:
    """Return codes (rows, columns) in [least, most] whose rows sum to zero only where the table's do."""
    rows = cancelled_rows(codes * step, table)
    of, size = codes[rows].astype(np.float32), np.broadcast_to(step, codes.shape)[rows]
    above, below = (np.where(of == end, np.nan, (of + d) * size) for end, d in ((most, 1), (least, -1)))
    told = codes.copy()
    told[rows] = np.rint(least_moves(of * size, table[rows], above, below) / size)
    return told


def _slice(graph: onnx.ModelProto, value: str, out: str, columns: int) -> onnx.NodeProto:
    """Return a node that keeps the first columns."""
    names = [f"{out}_{part}" for part in ("first", "end", "axis")]
    add_initializers(graph, dict(zip(names, np.array([[0], [columns], [-1]]), strict=True)))
    return helper.make_node("Slice", [value, *names], [out], f"{out}_slice")
