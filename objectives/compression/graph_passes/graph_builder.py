"""New nodes where values of one row meet values of N rows: concatenated parts, expanded rows, split products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from objectives.onnx_graph import add_before, array, initializer, operands, shape_of, turn_into

# Suffixes of the two halves of a split weight: `<weight>.user` and `<weight>.item`.
USER, ITEM = ".user", ".item"
# The end after the last position, as in Slice.
_LAST = np.iinfo(np.int64).max


class GraphBuilder:
    """Nodes added before a given one; equal nodes are made once, before the first that needs them."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def expand(self, node: ir.Node, value: ir.Value, rows_like: ir.Value, axis: int) -> ir.Value:
        """Expand a value with one row along the axis to the number of rows of another value."""
        rank, shape = len(shape_of(value)), self._rows(node, rows_like)
        if rank > 1:  # [..., 1, N, 1, ...]
            sizes = (axis, rank - 1 - axis)
            before, behind = ([self._integers(f"request.ones{n}", [1] * n)] if n else [] for n in sizes)
            name = f"{shape.name}{rank}" + (f".{axis}" if axis else "")
            shape = self._once(node, "Concat", [*before, shape, *behind], name, axis=0)
        return self._once(node, "Expand", [value, shape], f"{value.name}.expanded")

    def shape(self, node: ir.Node, axis: int, rows_like: ir.Value) -> None:
        """Make the Shape of a value with one row along the axis that of the number of rows of another value."""
        rank = len(shape_of(node.inputs[0]))
        ends = slice(node.attributes.get_int("start", 0), node.attributes.get_int("end", rank))
        start, end, _ = ends.indices(rank)
        if not start <= axis < end:
            return
        value, out = operands(node), node.outputs[0].name
        parts = [self._rows(node, rows_like)]
        if start < axis:
            parts.insert(0, add_before(node, "Shape", value, f"{out}.before", None, {"start": start, "end": axis}))
        if axis + 1 < end:
            parts.append(add_before(node, "Shape", value, f"{out}.behind", None, {"start": axis + 1, "end": end}))
        turn_into(node, "Concat", parts, f"node_{out}", {"axis": 0})

    def spread(self, node: ir.Node) -> None:
        """Keep an Expand of one row: its target is for N rows, and has as many entries as the value has axes."""
        value, target = operands(node)
        first = self._integers("request.one", [1])
        ends = [self._integers(f"request.{n}", [n]) for n in (1, _LAST, 0)]
        rest = self._once(node, "Slice", [target, *ends], f"{target.name}.behind")
        turn_into(node, "Expand", [value, self._once(node, "Concat", [first, rest], f"{target.name}.row", axis=0)])

    def join(self, node: ir.Node, parts: Sequence[ir.Value], concat: ir.Value, axis: int) -> ir.Value:
        """Concatenate some of the operands of a Concat with this output."""
        if len(parts) == 1:
            return parts[0]
        return self._once(node, "Concat", parts, f"{concat.name}.part{len(self._made)}", axis=axis)

    def split(self, product: ir.Node, halves: Mapping[str, ir.Value], mask: NDArray[np.bool_]) -> None:
        """Split a product: x W + b = x_item W_item + (x_user W_user + b), with the bracket at one row.

        Args:
            product: Gemm, or MatMul with a matrix
            halves: the operand x by side
            mask: the rows of W (its columns where it is transposed) that belong to the user's half
        """
        _, weight, *bias = operands(product)
        axis = product.attributes.get_int("transB", 0)
        inputs = {}
        for side, taken in ((USER, mask), (ITEM, ~mask)):
            half = np.compress(taken, array(weight), axis=axis)
            inputs[side] = [halves[side], initializer(self._graph, f"{weight.name}{side}", half)]
        out, given = product.outputs[0].name, dict(product.attributes)
        name = product.name or out
        user = [*inputs[USER], *bias]
        alone = add_before(product, product.op_type, user, f"{out}{USER}", f"{name}{USER}", given)
        if product.op_type == "Gemm":  # the user's row is the item's bias: engines add it within the product
            given.pop("beta", None)
            turn_into(product, "Gemm", [*inputs[ITEM], alone], f"{name}{ITEM}", given)
        else:
            item = add_before(product, "MatMul", inputs[ITEM], f"{out}{ITEM}", f"{name}{ITEM}")
            turn_into(product, "Add", [item, alone])

    def _integers(self, name: str, values: Sequence[int]) -> ir.Value:
        return initializer(self._graph, name, np.array(values))

    def _rows(self, node: ir.Node, rows_like: ir.Value) -> ir.Value:
        """Return the shape [N]."""
        shape = self._once(node, "Shape", [rows_like], f"{rows_like.name}.shape")
        return self._once(node, "Gather", [shape, self._integers("request.first", [0])], f"{rows_like.name}.rows")

    def _once(self, node: ir.Node, kind: str, inputs: Sequence[ir.Value], output: str, **attributes: int) -> ir.Value:
        key = (kind, *inputs, str(attributes))
        if key not in self._made:
            self._made[key] = add_before(node, kind, inputs, output, None, attributes)
        return self._made[key]
