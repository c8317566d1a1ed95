"""New nodes where values of one row meet values of N rows: concatenated parts, expanded rows, split products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from objectives.compression.graph_passes.external_data import tensor_values
from objectives.compression.graph_passes.graph_reading import attribute

# Suffixes of the two halves of a split weight: `<weight>.user` and `<weight>.item`.
USER, ITEM = ".user", ".item"
# The end after the last position, as in Slice.
_LAST = np.iinfo(np.int64).max


class GraphBuilder:
    """Nodes in topological order and the initialisers made for them; equal nodes are made once."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.tensors: dict[str, TensorProto] = {}
        self._made: dict[tuple[str, ...], str] = {}

    def keep(self, node: NodeProto, inputs: Sequence[str] | None = None) -> None:
        """Keep a node of the old graph, with these inputs in place of its own where they are given."""
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = node.input if inputs is None else inputs
        self.nodes.append(copy)

    def expand(self, value: str, rank: int, rows_like: str, axis: int = 0) -> str:
        """Expand a value with one row along the axis to the number of rows of another value."""
        shape = self._row_shape(rank, rows_like, axis)
        return self._once("Expand", [value, shape], f"{value}.expanded")

    def shape(self, node: NodeProto, axis: int, rank: int, rows_like: str) -> None:
        """Add the Shape of a value with one row along the axis, as if it had the number of rows of another value."""
        start, end, _ = slice(attribute(node, "start", 0), attribute(node, "end", rank)).indices(rank)
        if not start <= axis < end:
            self.keep(node)
            return
        (value,), out = node.input, node.output[0]
        parts = [self._rows(rows_like)]
        if start < axis:
            parts.insert(0, f"{out}.before")
            self._add("Shape", [value], parts[0], f"node_{parts[0]}", start=start, end=axis)
        if axis + 1 < end:
            parts.append(f"{out}.behind")
            self._add("Shape", [value], parts[-1], f"node_{parts[-1]}", start=axis + 1, end=end)
        self._add("Concat", parts, out, f"node_{out}", axis=0)

    def spread(self, node: NodeProto) -> None:
        """Keep an Expand of one row: its target is for N rows, and has as many entries as the value has axes."""
        target = node.input[1]
        first = self.tensor("request.one", np.ones(1, np.int64))
        ends = [self.tensor(f"request.{n}", np.array([n])) for n in (1, _LAST, 0)]
        rest = self._once("Slice", [target, *ends], f"{target}.behind")
        self.keep(node, [node.input[0], self._once("Concat", [first, rest], f"{target}.row", axis=0)])

    def join(self, concat: NodeProto, parts: Sequence[str]) -> str:
        """Concatenate some of a Concat's operands."""
        if len(parts) == 1:
            return parts[0]
        name = f"{concat.output[0]}.part{len(self._made)}"
        return self._once("Concat", parts, name, axis=attribute(concat, "axis", 0))

    def split(self, product: NodeProto, halves: dict[str, str], matrix: TensorProto, mask: NDArray[np.bool_]) -> None:
        """Split a product: x W + b = x_item W_item + (x_user W_user + b), with the bracket at one row.

        Args:
            product: Gemm, or MatMul with a matrix
            halves: the operand x by side
            mask: the rows of W (its columns where it is transposed) that belong to the user's half
        """
        _, weight, *bias = product.input
        axis = 1 if attribute(product, "transB", 0) else 0
        operands = {}
        for side, taken in ((USER, mask), (ITEM, ~mask)):
            half = np.compress(taken, tensor_values(matrix), axis=axis)
            operands[side] = [halves[side], self.tensor(weight + side, np.ascontiguousarray(half))]
        out, name = product.output[0], product.name or product.output[0]
        given = {a.name: helper.get_attribute_value(a) for a in product.attribute}
        self._add(product.op_type, [*operands[USER], *bias], out + USER, name + USER, **given)
        if product.op_type == "Gemm":  # the user's row is the item's bias: engines add it within the product
            given.pop("beta", None)
            self._add("Gemm", [*operands[ITEM], out + USER], out, name + ITEM, **given)
        else:
            self._add("MatMul", operands[ITEM], out + ITEM, name + ITEM)
            self._add("Add", [out + ITEM, out + USER], out, name)

    def tensor(self, name: str, values: NDArray[np.generic]) -> str:
        self.tensors[name] = numpy_helper.from_array(values, name)
        return name

    def _row_shape(self, rank: int, rows_like: str, axis: int) -> str:
        """Return the shape [..., 1, N, 1, ...] for a broadcast."""
        rows = self._rows(rows_like)
        if rank == 1:
            return rows
        sides = [self.tensor(f"request.ones{n}", np.ones(n, np.int64)) if n else "" for n in (axis, rank - 1 - axis)]
        parts = [part for part in (sides[0], rows, sides[1]) if part]
        return self._once("Concat", parts, f"{rows}{rank}" + (f".{axis}" if axis else ""), axis=0)

    def _rows(self, rows_like: str) -> str:
        """Return the shape [N]."""
        first = self.tensor("request.first", np.zeros(1, np.int64))
        shape = self._once("Shape", [rows_like], f"{rows_like}.shape")
        return self._once("Gather", [shape, first], f"{rows_like}.rows")

    def _once(self, kind: str, inputs: Sequence[str], output: str, **attributes: int) -> str:
        key = (kind, *inputs, str(attributes))
        if key not in self._made:
            self._made[key] = output
            self._add(kind, inputs, output, f"node_{output}", **attributes)
        return self._made[key]

    def _add(self, kind: str, inputs: Sequence[str], output: str, name: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, inputs, [output], name, **attributes))
