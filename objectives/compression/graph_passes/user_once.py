"""Rewriting of a graph that computes the user's side once a request, for one row instead of each of N."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import numpy as np
import onnx_ir as ir

from objectives.compression.graph_passes.batch_independence import ELEMENTWISE, is_row_wise, rows_after
from objectives.onnx_graph import (
    add_before,
    array,
    finish,
    forget_shapes,
    has_control_flow,
    infer,
    initializer,
    name_of,
    operands,
    shape_of,
    turn_into,
)

_ROWS = "rows of the request"
# Suffixes of the two halves of a split weight: `<weight>.user` and `<weight>.item`.
_USER, _ITEM = ".user", ".item"
# The end after the last position, as in Slice.
_LAST = np.iinfo(np.int64).max
# Operators that move values; to do so once a request saves no arithmetic.
# fmt: off
_MOVES = frozenset((
    "Cast", "Concat", "Expand", "Flatten", "Gather", "GatherElements", "Identity", "Reshape", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
))
# fmt: on


class UserOnceError(ValueError):
    """Nothing in the graph can be computed once a request; the message has the reason."""


def compute_once(model: ir.Model, user_inputs: frozenset[str]) -> ir.Model:
    """Copy a graph that takes one row of the user's inputs, and N of the others, and gives the same N scores.

    Values that depend only on the user and on constants have one row, as far as operators treat rows independently,
    along any axis: recurrent layers have the rows second. Where such a value meets one of N rows, a product with the
    concatenation of both is split in two, each half with its own part of the weight (`<weight>.user`, `<weight>.item`);
    an elementwise operator broadcasts it; for any other operator it is expanded to N rows, which is always valid.

    Args:
        model: in fp32; inputs of (rows, ...), output of (rows,)
        user_inputs: names of the inputs that are equal in all rows of a request; their first dimension becomes 1

    Raises:
        UserOnceError: the names are none, unknown or all of the inputs, a score depends on no item, or nothing but
            lookups depends on the user only.
    """
    _check(model, user_inputs)
    made = infer(model, _ROWS)
    _Rewriting(made.graph, user_inputs).run()
    forget_shapes(made.graph)
    for values, given in ((made.graph.inputs, model.graph.inputs), (made.graph.outputs, model.graph.outputs)):
        for value, before in zip(values, given, strict=True):
            value.shape = before.shape and before.shape.copy()
            if value.shape and value.name in user_inputs:
                value.shape[0] = 1
    return finish(made)


def _check(model: ir.Model, user_inputs: frozenset[str]) -> None:
    names = {name_of(value) for value in model.graph.inputs}
    if not user_inputs or not user_inputs < names:
        raise UserOnceError(f"The user's inputs are some of {sorted(names)}, not all, but got {sorted(user_inputs)}.")
    rowed = {name_of(v) for v in model.graph.inputs if v.shape and not isinstance(v.shape[0], int)}
    if not user_inputs < rowed:
        raise UserOnceError(
            "The user's inputs and one of an item have a first dimension that is not fixed, "
            f"but got {sorted(user_inputs)} and only {sorted(rowed)} are not fixed."
        )
    if has_control_flow(model):
        raise UserOnceError("A graph without branches and loops can be rewritten, but got one with them.")


class _Rewriting:
    """A graph whose nodes are rewritten in their order; shapes are those of N rows in every input.

    Nodes that several need are made once, before the first of these.
    """

    def __init__(self, graph: ir.Graph, user_inputs: frozenset[str]) -> None:
        self._graph = graph
        self._constant = set(graph.initializers.values())
        # Axis along which each value has one row.
        self._once = {value: 0 for value in graph.inputs if value.name in user_inputs}
        # Values that have N rows by shape inference.
        values = {*graph.inputs, *(value for node in graph for value in node.outputs)} - self._once.keys()
        self._rowed = {value for value in values if value.shape and value.shape[0] == _ROWS}
        self._rows_like = next(value for value in graph.inputs if value in self._rowed)
        self._rows_fixed = False
        # The operands and the axis of each concatenation of both sides.
        self._concats: dict[ir.Value, tuple[list[ir.Value], int]] = {}
        self._cuts: dict[ir.Value, tuple[int, ...]] = {}
        self._made: dict[tuple[object, ...], ir.Value] = {}
        self._saves = False
        self._met: list[str] = []

    def run(self) -> None:
        """Rewrite all nodes, or raise UserOnceError."""
        for node in tuple(self._graph):
            self._visit(node)
        alone = [value.name for value in self._graph.outputs if value in self._once or value in self._constant]
        if alone:
            raise UserOnceError(f"Scores hang on an item's inputs too, but got {alone} of the user's alone.")
        if not self._saves:
            met = ", ".join(dict.fromkeys(self._met)) or "its inputs are not used"
            raise UserOnceError(f"Arithmetic after the lookups must hang on the user alone, but got none: {met}.")

    def _visit(self, node: ir.Node) -> None:
        read = set(operands(node))
        once, constant = read & self._once.keys(), read & self._constant
        if self._can_split(node):
            self._split(node)
        elif not once:
            self._pass_on(node, read == constant)
        elif node.op_type == "Shape":
            self._count_rows(node)
        elif read == once | constant and (axes := self._axes_after(node, once)) is not None:
            self._mark_once(node, axes)
        elif self._can_spread(node, once):
            self._spread(node)
            self._mark_once(node, (0,))
        elif node.op_type == "Concat" and not constant and self._first(once) and is_row_wise(node, read):
            self._concat(node)
        else:
            reason = "may mix rows" if read == once | constant else "takes other inputs too"
            self._met.append(f"{node.op_type} {reason}")
            if not self._broadcasts(node, once, read & self._rowed):
                for place, given in enumerate(node.inputs):
                    if given is not None and given in once:
                        node.replace_input_with(place, self._expanded(node, given))

    def _axes_after(self, node: ir.Node, once: set[ir.Value]) -> tuple[int, ...] | None:
        """Return the axis along which each output has one row, given the user's values; None where rows may mix."""
        axes = {self._once[value] for value in once}
        return rows_after(node, axes.pop(), once) if len(axes) == 1 else None

    def _can_spread(self, node: ir.Node, once: set[ir.Value]) -> bool:
        """Return whether a node is an Expand of the user's row to a computed size, with as many axes as it has."""
        if node.op_type != "Expand" or once != {node.inputs[0]} or not self._first(once):
            return False
        value, target = operands(node)
        return target.shape == (len(shape_of(value)),)

    def _first(self, once: set[ir.Value]) -> bool:
        return not any(self._once[value] for value in once)

    def _broadcasts(self, node: ir.Node, once: set[ir.Value], rowed: set[ir.Value]) -> bool:
        plain = bool(rowed) and self._first(once) and node.op_type in ELEMENTWISE | {"MatMul"}
        return plain and is_row_wise(node, once | rowed)

    def _pass_on(self, node: ir.Node, constant: bool) -> None:
        if constant:
            self._constant.update(node.outputs)
        elif not self._rows_fixed and node.op_type == "Gather" and node.outputs[0] in self._rowed:
            # N is read from an embedding rather than from ids, so that the ids are needed for their lookup only.
            self._rows_like, self._rows_fixed = node.outputs[0], True

    def _mark_once(self, node: ir.Node, axes: tuple[int, ...]) -> None:
        self._once |= dict(zip(node.outputs, axes, strict=True))
        self._rowed -= set(node.outputs)
        self._saves |= node.op_type not in _MOVES

    def _expanded(self, node: ir.Node, value: ir.Value) -> ir.Value:
        """Expand a value of one row to N rows."""
        sizes = self._sizes(node, self._once[value], len(shape_of(value)))
        return self._add(node, "Expand", [value, sizes], f"{value.name}.expanded")

    def _count_rows(self, node: ir.Node) -> None:
        """Make the Shape of a value of one row that of N rows."""
        (value,) = operands(node)
        rank, given = len(shape_of(value)), node.attributes
        start, end, _ = slice(given.get_int("start", 0), given.get_int("end", rank)).indices(rank)
        if start <= self._once[value] < end:
            alone = add_before(node, "Shape", [value], f"{node.outputs[0].name}.row", None, dict(given))
            turn_into(node, "Mul", [alone, self._sizes(node, self._once[value] - start, end - start)])

    def _sizes(self, node: ir.Node, axis: int, rank: int) -> ir.Value:
        """Return the shape [1, ..., N, ..., 1] of this rank."""
        self._rows_fixed = True
        name = self._rows_like.name
        whole = self._add(node, "Shape", [self._rows_like], f"{name}.shape")
        rows = self._add(node, "Gather", [whole, self._integers("request.first", [0])], f"{name}.rows")
        if rank == 1:
            return rows
        before, behind = ([self._integers(f"request.ones{n}", [1] * n)] if n else [] for n in (axis, rank - 1 - axis))
        return self._add(node, "Concat", [*before, rows, *behind], f"{name}.rows{rank}.{axis}", axis=0)

    def _spread(self, node: ir.Node) -> None:
        """Keep an Expand of one row: its target is for N rows, and has as many entries as the value has axes."""
        value, target = operands(node)
        first = self._integers("request.one", [1])
        ends = [self._integers(f"request.{n}", [n]) for n in (1, _LAST, 0)]
        rest = self._add(node, "Slice", [target, *ends], f"{target.name}.behind")
        turn_into(node, "Expand", [value, self._add(node, "Concat", [first, rest], f"{target.name}.row", axis=0)])

    def _concat(self, node: ir.Node) -> None:
        """Expand a concatenation's user parts, adjacent ones as one, for readers of all of it; products read halves."""
        whole, axis = node.outputs[0], node.attributes.get_int("axis", 0)
        self._concats[whole] = operands(node), axis
        inputs: list[ir.Value] = []
        for once, run in groupby(operands(node), self._once.__contains__):
            parts = list(run)
            inputs += [self._expanded(node, self._join(node, whole, parts))] if once else parts
        turn_into(node, "Concat", inputs, None, {"axis": axis})

    def _join(self, node: ir.Node, concat: ir.Value, parts: Sequence[ir.Value]) -> ir.Value:
        """Concatenate some of the operands of a Concat with this output."""
        if len(parts) == 1:
            return parts[0]
        name, axis = f"{concat.name}.part{len(self._made)}", self._concats[concat][1]
        joined = self._add(node, "Concat", parts, name, axis=axis)
        joined.shape = shape_of(parts[0])  # for its rank
        self._once |= {joined: 0} if parts[0] in self._once else {}
        return joined

    def _can_split(self, node: ir.Node) -> bool:
        """Return whether a node is a product of a concatenation of both sides, along its axis, with a matrix."""
        if node.op_type not in ("Gemm", "MatMul") or node.domain or node.inputs[0] not in self._concats:
            return False
        x, weight, *bias = operands(node)
        last = self._concats[x][1] in (len(shape_of(x)) - 1, -1)
        matrix = weight.is_initializer() and len(shape_of(weight)) == 2
        once = all(
            value in self._constant or (self._once.get(value) == 0 and len(shape_of(value)) == 2) for value in bias
        )
        plain = last and matrix and once and not node.attributes.get_int("transA", 0)
        mask = self._user_columns(x) if plain else None
        if mask is None:
            return False
        # The halves of a weight have one name: a product that needs another split of the same weight reads it whole.
        cut = (node.attributes.get_int("transB", 0), *mask)
        return self._cuts.setdefault(weight, cut) == cut

    def _user_columns(self, concat: ir.Value) -> tuple[bool, ...] | None:
        """Return a mask of the user's columns in a concatenation; None where a size is unknown."""
        parts = self._concats[concat][0]
        widths = [width for part in parts if isinstance(width := shape_of(part)[-1], int)]
        once = [part in self._once for part in parts]
        return tuple(np.repeat(once, widths).tolist()) if len(widths) == len(parts) else None

    def _split(self, product: ir.Node) -> None:
        """Split a product: x W + b = x_item W_item + (x_user W_user + b), with the bracket at one row.

        The halves of W have its rows (its columns where it is transposed) for the parts of x.
        """
        x, weight, *bias = operands(product)
        mask, axis = np.array(self._user_columns(x)), product.attributes.get_int("transB", 0)
        inputs = {}
        for side, taken in ((_USER, mask), (_ITEM, ~mask)):
            parts = [part for part in self._concats[x][0] if (part in self._once) == (side == _USER)]
            half = initializer(self._graph, f"{weight.name}{side}", np.compress(taken, array(weight), axis=axis))
            inputs[side] = [self._join(product, x, parts), half]
        out, given = product.outputs[0].name, dict(product.attributes)
        name, user = product.name or out, [*inputs[_USER], *bias]
        alone = add_before(product, product.op_type, user, f"{out}{_USER}", f"{name}{_USER}", given)
        if product.op_type == "Gemm":  # the user's row is the item's bias: engines add it within the product
            given.pop("beta", None)
            turn_into(product, "Gemm", [*inputs[_ITEM], alone], f"{name}{_ITEM}", given)
        else:
            item = add_before(product, "MatMul", inputs[_ITEM], f"{out}{_ITEM}", f"{name}{_ITEM}")
            turn_into(product, "Add", [item, alone])
        self._saves = True

    def _integers(self, name: str, values: Sequence[int]) -> ir.Value:
        return initializer(self._graph, name, np.array(values))

    def _add(self, node: ir.Node, kind: str, inputs: Sequence[ir.Value], output: str, **attributes: int) -> ir.Value:
        key = (kind, *inputs, str(attributes))
        if key not in self._made:
            self._made[key] = add_before(node, kind, inputs, output, None, attributes)
        return self._made[key]
