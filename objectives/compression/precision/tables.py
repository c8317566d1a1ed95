"""Tables in fewer bits: narrow rows are stored, and widened after the lookup."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from objectives.compression.graph import replace, shapes
from objectives.compression.precision.rounding import block_codes, block_size, int8_rows_codes, packed
from objectives.compression.precision.weights import ENGINE, add_initialisers, array, import_engine, lookups


def half_rows(graph: onnx.ModelProto, weight: str) -> None:
    """Rows in fp16."""
    nodes = lookups(graph, weight)
    if not nodes:
        return
    add_initialisers(graph, {f"{weight}_rows": array(graph, weight).astype(np.float16)})
    for gather in nodes:
        ids, out = gather.input[1], gather.output[0]
        half = helper.make_node("Gather", [f"{weight}_rows", ids], [f"{out}_half"], f"{out}_rows")
        widen = helper.make_node("Cast", [f"{out}_half"], [out], f"{out}_widen", to=TensorProto.FLOAT)
        replace(graph, gather, [half, widen])


def int8_rows(graph: onnx.ModelProto, weight: str) -> None:
    """Each row has a scale of its own: value = code * scale."""
    nodes = lookups(graph, weight)
    if not nodes:
        return
    known = shapes(graph)
    codes, scale = int8_rows_codes(array(graph, weight))
    add_initialisers(graph, {f"{weight}_rows": codes, f"{weight}_rows_scale": scale})
    for gather in nodes:
        ids, out = gather.input[1], gather.output[0]
        made = [
            helper.make_node("Gather", [f"{weight}_rows", ids], [f"{out}_codes"], f"{out}_rows"),
            helper.make_node("Gather", [f"{weight}_rows_scale", ids], [f"{out}_scale"], f"{out}_scales"),
        ]
        flat = len(known.get(ids, ())) == 1
        replace(graph, gather, [*made, *(_dequantised(out) if flat else _rescaled(graph, out))])


def _dequantised(out: str) -> list[onnx.NodeProto]:
    """One row for each id: of ten thousand, ONNX Runtime takes 0.5 to 0.6 of the time of a product with a column."""
    return [helper.make_node("DequantizeLinear", [f"{out}_codes", f"{out}_scale"], [out], f"{out}_widen", axis=0)]


def _rescaled(graph: onnx.ModelProto, out: str) -> list[onnx.NodeProto]:
    add_initialisers(graph, {f"{out}_last": np.array([-1])})
    return [
        helper.make_node("Cast", [f"{out}_codes"], [f"{out}_float"], f"{out}_widen", to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", [f"{out}_scale", f"{out}_last"], [f"{out}_column"], f"{out}_stand"),
        helper.make_node("Mul", [f"{out}_float", f"{out}_column"], [out], f"{out}_rescale"),
    ]


def block_rows(graph: onnx.ModelProto, weight: str, bits: int) -> None:
    """A few neighbours in a row share a scale: codes of 4 or 2 bits, decoded by GatherBlockQuantized.

    A row fills whole bytes: columns that this adds are sliced off behind the lookup. In ONNX Runtime a row may end
    within a block; OpenVINO reads only rows of whole blocks.
    """
    nodes = lookups(graph, weight)
    if not nodes:
        return
    table = array(graph, weight)
    rows, columns = table.shape
    size = block_size(columns)
    width = columns + -columns % (8 // bits)
    codes, scales = block_codes(table, bits)
    add_initialisers(
        graph, {f"{weight}_rows": packed(codes.reshape(rows, -1)[:, :width], bits), f"{weight}_rows_scale": scales}
    )
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


def _slice(graph: onnx.ModelProto, value: str, out: str, columns: int) -> onnx.NodeProto:
    """The first columns."""
    names = [f"{out}_{part}" for part in ("first", "end", "axis")]
    add_initialisers(graph, dict(zip(names, np.array([[0], [columns], [-1]]), strict=True)))
    return helper.make_node("Slice", [value, *names], [out], f"{out}_slice")
