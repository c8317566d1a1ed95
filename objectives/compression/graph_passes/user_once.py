"""Rewriting of a graph that computes the user's side once a request, for one row instead of each of N."""

from __future__ import annotations

from itertools import groupby

import numpy as np
import onnx
from onnx import NodeProto

from objectives.compression.graph_passes.batch_independence import ELEMENTWISE, is_row_wise, moved_rows
from objectives.compression.graph_passes.external_data import check_graph
from objectives.compression.graph_passes.graph_builder import ITEM, USER, GraphBuilder
from objectives.compression.graph_passes.graph_reading import (
    attribute,
    has_control_flow,
    infer,
    initializers,
    integer_constants,
    keep_needed,
    shapes,
)

_ROWS = "rows of the request"
# Operators that move values; to do so once a request saves no arithmetic.
# fmt: off
_MOVES = frozenset((
    "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
))
# fmt: on


class UserOnceError(ValueError):
    """Nothing in the graph can be computed once a request; the message has the reason."""


def compute_once(graph: onnx.ModelProto, user_inputs: frozenset[str]) -> onnx.ModelProto:
    """Copy a graph that takes one row of the user's inputs, and N of the others, and gives the same N scores.

    Values that depend only on the user and on constants have one row, as far as operators treat rows independently,
    along any axis: recurrent layers have the rows second. Where such a value meets one of N rows, a product with the
    concatenation of both is split in two, each half with its own part of the weight (`<weight>.user`, `<weight>.item`);
    an elementwise operator broadcasts it; for any other operator it is expanded to N rows, which is always valid.

    Args:
        graph: in fp32; inputs of (rows, ...), output of (rows,)
        user_inputs: names of the inputs that are equal in all rows of a request; their first dimension becomes 1

    Raises:
        UserOnceError: the names are none, unknown or all of the inputs, or no arithmetic depends on the user only.
    """
    _check(graph, user_inputs)
    rewriting = _Rewriting(graph, user_inputs)
    for node in graph.graph.node:
        rewriting.visit(node)
    return rewriting.result()


def _check(graph: onnx.ModelProto, user_inputs: frozenset[str]) -> None:
    first = {i.name: i.type.tensor_type.shape.dim[:1] for i in graph.graph.input}
    if not user_inputs or not user_inputs < set(first):
        raise UserOnceError(f"The user's inputs are some of {sorted(first)}, not all, but got {sorted(user_inputs)}.")
    rowed = {name for name, dim in first.items() if dim and not dim[0].HasField("dim_value")}
    if not user_inputs < rowed:
        raise UserOnceError(
            "The user's inputs and one of an item have a first dimension that is not fixed, "
            f"but got {sorted(user_inputs)} and only {sorted(rowed)} are not fixed."
        )
    if has_control_flow(graph):
        raise UserOnceError("A graph without branches and loops can be rewritten, but got one with them.")


class _Rewriting:
    """The new graph as far as nodes were visited, in their order."""

    def __init__(self, graph: onnx.ModelProto, user_inputs: frozenset[str]) -> None:
        self._graph = graph
        self._user_inputs = user_inputs
        self._shapes = shapes(infer(graph, _ROWS))
        self._integers = integer_constants(graph)
        self._weights = initializers(graph)
        self._constant = set(self._weights)
        # Axis along which each value has one row.
        self._once = dict.fromkeys(user_inputs, 0)
        # Values that have N rows by shape inference.
        self._rowed = {name for name, shape in self._shapes.items() if shape[:1] == (_ROWS,)} - user_inputs
        self._rows_like = next(i.name for i in graph.graph.input if i.name in self._rowed)
        self._rows_fixed = False
        self._concats: dict[str, NodeProto] = {}
        self._cuts: dict[str, tuple[int, ...]] = {}
        self._emission = GraphBuilder()
        self._saves = False
        self._met: list[str] = []

    def visit(self, node: NodeProto) -> None:
        read = {name for name in node.input if name}
        once, constant = read & set(self._once), read & self._constant
        if self._can_split(node):
            self._split(node)
        elif not once:
            self._pass_on(node, read == constant)
        elif node.op_type == "Shape":
            (value,) = once
            self._rows_fixed = True
            self._emission.shape(node, self._once[value], len(self._shapes[value]), self._rows_like)
        elif read == once | constant and (axes := self._rows_after(node, once)) is not None:
            self._emission.keep(node)
            self._mark_once(node, axes)
        elif self._can_spread(node, once):
            self._emission.spread(node)
            self._mark_once(node, (0,))
        elif node.op_type == "Concat" and not constant and self._first(once) and self._is_row_wise(node, read):
            self._concat(node)
        else:
            reason = "may mix rows" if read == once | constant else "takes other inputs too"
            self._met.append(f"{node.op_type} {reason}")
            meets = self._broadcasts(node, once, read & self._rowed)
            self._emission.keep(node, None if meets else [self._expanded(name) for name in node.input])

    def result(self) -> onnx.ModelProto:
        """Return the whole graph, after the last visit.

        Raises:
            UserOnceError: the scores depend on no item, or nothing but lookups depends on the user only.
        """
        alone = [v.name for v in self._graph.graph.output if v.name in self._once or v.name in self._constant]
        if alone:
            raise UserOnceError(f"Scores hang on an item's inputs too, but got {alone} of the user's alone.")
        if not self._saves:
            met = ", ".join(dict.fromkeys(self._met)) or "its inputs are not used"
            raise UserOnceError(f"Arithmetic after the lookups must hang on the user alone, but got none: {met}.")
        made = onnx.ModelProto()
        made.CopyFrom(self._graph)
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend(self._emission.nodes)
        made.graph.initializer.extend(self._emission.tensors.values())
        keep_needed(made)
        for value in made.graph.input:
            if value.name in self._user_inputs:
                value.type.tensor_type.shape.dim[0].dim_value = 1
        check_graph(made)
        return made

    def _rows_after(self, node: NodeProto, once: set[str]) -> tuple[int, ...] | None:
        """Return the axis along which each output of a node has one row, given the user's values that it reads; None
        where it may mix rows.
        """
        if self._first(once) and self._is_row_wise(node, once):
            return (0,) * len(node.output)
        axes = {self._once[name] for name in once}
        return moved_rows(node, axes.pop(), once, self._shapes, self._integers) if len(axes) == 1 else None

    def _can_spread(self, node: NodeProto, once: set[str]) -> bool:
        """Return whether a node is an Expand of the user's row to a computed size, with as many axes as it has."""
        if node.op_type != "Expand" or once != {node.input[0]} or not self._first(once):
            return False
        return self._shapes.get(node.input[1]) == (len(self._shapes[node.input[0]]),)

    def _first(self, once: set[str]) -> bool:
        return not any(self._once[name] for name in once)

    def _is_row_wise(self, node: NodeProto, rowed: set[str]) -> bool:
        return is_row_wise(node, rowed, self._shapes, self._integers)

    def _broadcasts(self, node: NodeProto, once: set[str], rowed: set[str]) -> bool:
        plain = bool(rowed) and self._first(once) and node.op_type in ELEMENTWISE | {"MatMul"}
        return plain and self._is_row_wise(node, once | rowed)

    def _pass_on(self, node: NodeProto, constant: bool) -> None:
        if constant:
            self._constant |= set(node.output)
        elif not self._rows_fixed and node.op_type == "Gather" and node.output[0] in self._rowed:
            # N is read from an embedding rather than from ids, so that the ids are needed for their lookup only.
            self._rows_like, self._rows_fixed = node.output[0], True
        self._emission.keep(node)

    def _mark_once(self, node: NodeProto, axes: tuple[int, ...]) -> None:
        self._once |= dict(zip(node.output, axes, strict=True))
        self._rowed -= set(node.output)
        self._saves |= node.op_type not in _MOVES

    def _expanded(self, name: str) -> str:
        if name not in self._once:
            return name
        self._rows_fixed = True
        return self._emission.expand(name, len(self._shapes[name]), self._rows_like, self._once[name])

    def _concat(self, node: NodeProto) -> None:
        """Keep a concatenation for readers that need it whole, with adjacent user parts expanded as one; products read
        its halves.
        """
        self._concats[node.output[0]] = node
        inputs: list[str] = []
        for once, run in groupby(node.input, self._once.__contains__):
            parts = list(run)
            inputs += [self._expanded(self._join(node, parts))] if once else parts
        self._emission.keep(node, inputs)

    def _join(self, concat: NodeProto, parts: list[str]) -> str:
        joined = self._emission.join(concat, parts)
        self._shapes.setdefault(joined, self._shapes[parts[0]])  # for its rank
        self._once |= {joined: 0} if parts[0] in self._once else {}
        return joined

    def _can_split(self, node: NodeProto) -> bool:
        """Return whether a node is a product of a concatenation of both sides with a matrix, along the concatenation's
        axis.
        """
        if node.op_type not in ("Gemm", "MatMul") or node.domain or node.input[0] not in self._concats:
            return False
        x, weight, *bias = node.input
        rank = len(self._shapes[x])
        last = attribute(self._concats[x], "axis", 0) in (rank - 1, -1)
        matrix = weight in self._weights and len(self._weights[weight].dims) == 2
        once = all(not name or name in self._constant or self._is_user_row(name) for name in bias)
        if not (last and matrix and once) or attribute(node, "transA", 0):
            return False
        mask = self._user_columns(x)
        if mask is None:
            return False
        # The halves of a weight have one name: a product that needs another split of the same weight reads it whole.
        cut = (attribute(node, "transB", 0), *mask)
        return self._cuts.setdefault(weight, cut) == cut

    def _is_user_row(self, bias: str) -> bool:
        return self._once.get(bias) == 0 and len(self._shapes[bias]) == 2

    def _user_columns(self, concat: str) -> tuple[bool, ...] | None:
        """Return a mask of the user's columns in a concatenation; None where a size is unknown."""
        mask: list[bool] = []
        for part in self._concats[concat].input:
            width = self._shapes[part][-1]
            if not isinstance(width, int):
                return None
            mask += [part in self._once] * width
        return tuple(mask)

    def _split(self, node: NodeProto) -> None:
        concat = self._concats[node.input[0]]
        sides = {side: [p for p in concat.input if (p in self._once) == (side == USER)] for side in (USER, ITEM)}
        halves = {side: self._join(concat, parts) for side, parts in sides.items()}
        mask = np.array(self._user_columns(concat.output[0]))
        self._emission.split(node, halves, self._weights[node.input[1]], mask)
        self._saves = True
