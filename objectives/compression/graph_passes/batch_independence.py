"""Operators that treat rows independently: a row of a result depends on that row of each operand, and on constants."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from objectives.onnx_graph import integers, operands, shape_of

# fmt: off
ELEMENTWISE = frozenset((
    "Abs", "Add", "And", "BitShift", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Elu", "Equal", "Erf", "Exp",
    "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "Pow",
    "Reciprocal", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum",
    "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
))
# fmt: on
_KINDS = ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
_REDUCTIONS = frozenset(f"Reduce{kind}" for kind in _KINDS)


@dataclass(frozen=True)
class Operation:
    """A node whose values have known ranks, and its operands that have rows; the others do not depend on the rows."""

    node: ir.Node
    rowed: Set[ir.Value]

    @property
    def operands(self) -> list[ir.Value]:
        return operands(self.node)

    @property
    def rank(self) -> int:
        """Rank of the first operand."""
        return len(shape_of(self.node.inputs[0]))

    @property
    def first_alone(self) -> bool:
        """Return True if the first operand has rows and no other."""
        return self.node.inputs[0] in self.rowed and self.count == 1

    @property
    def count(self) -> int:
        """Number of operands that have rows."""
        return sum(value in self.rowed for value in self.operands)

    def integer(self, name: str, default: int) -> int:
        return self.node.attributes.get_int(name, default)

    def axis(self, default: int = 0) -> int:
        """Return the attribute `axis`, counted from the front."""
        return self.integer("axis", default) % self.rank

    def axes(self, operand: int, rank: int) -> tuple[int, ...]:
        """Return axes, counted from the front, of an operand or of older operators' attribute; () where unknown."""
        read = self.node.inputs[operand : operand + 1]
        given = integers(read[0]) if read else self.node.attributes.get_ints("axes", ())
        return tuple(axis + rank if axis < 0 else axis for axis in given)


def is_row_wise(node: ir.Node, rowed: Set[ir.Value]) -> bool:
    """Return whether `rows_after` proves that the rows, the first axis of `rowed`, stay the first of every output."""
    return rows_after(node, 0, rowed) == (0,) * len(node.outputs)


def rows_after(node: ir.Node, axis: int, rowed: Set[ir.Value]) -> tuple[int, ...] | None:
    """Return the axis of the rows in each output; None where it is not proven that no row depends on another.

    In the node's inputs of `rowed`, the axis of the rows is `axis`. Recurrent layers take the steps of a sequence first
    and the rows second, so the axes are transposed before them.

    Args:
        rowed: values that have rows; the node reads at least one of them
    """
    values = (*operands(node), *(value for value in node.outputs if value.name))
    if node.domain or any(value.shape is None for value in values):  # not ONNX's own, or a rank is unknown
        return None
    op = Operation(node, rowed)
    if axis == 0 and _stays_first(op):
        return (0,) * len(node.outputs)
    if node.op_type in ("GRU", "LSTM", "RNN"):
        return _stepped(op, axis)
    if node.op_type in ELEMENTWISE:
        return (axis,) if _broadcasts(op, axis) else None
    moved = _moved(op, axis)
    return None if moved is None else (moved,)


def _stays_first(op: Operation) -> bool:
    """Return whether rows stay the first axis, for operators, or forms of them, that `_moved` has no rule for."""
    alone = op.first_alone
    match op.node.op_type:
        case "ArgMax" | "ArgMin" | "Split":
            return alone and op.axis() >= 1
        case "LayerNormalization" | "LogSoftmax" | "Softmax":
            return alone and op.axis(-1) >= 1
        case "BatchNormalization":
            return alone and op.rank >= 2 and not op.integer("training_mode", 0)
        case "DequantizeLinear":  # one scale for all rows, or one for each
            codes, scale, *zero = op.operands
            by_row = len(shape_of(scale)) == 1 and op.integer("axis", 1) == 0 and not zero
            return _is_per_tensor(op) or ({codes, scale} <= op.rowed and by_row)
        case "Expand":
            target = integers(op.node.inputs[1])
            return alone and len(target) == op.rank and target[0] == 1
        case "Flatten":
            return op.axis(1) == 1
        case "Gather":  # rows of ids index a constant table
            return op.count == 1 and not alone and op.integer("axis", 0) == 0
        case "GatherElements":  # rows of values are indexed by the same rows of positions along another axis
            return op.count == 2 and op.axis() >= 1
        case "Gemm":
            values, weight, *bias = op.operands
            rowed = values in op.rowed and weight not in op.rowed and not op.integer("transA", 0)
            return rowed and _broadcasts(op, 0, (values, *bias))
        case "MatMul" if all(len(shape_of(value)) < 3 for value in op.operands):
            return alone and op.rank == 2
        case "MatMul":  # a stack of products: the rows are its first axis
            return _broadcasts(op, 0)
        case "PRelu":
            return alone and _broadcasts(op, 0)
        case "QuantizeLinear":
            return _is_per_tensor(op)
        case "Reshape":
            return alone and _is_kept(op)
        case kind if kind == "Unsqueeze" or kind in _REDUCTIONS:  # of no axes, all are meant, or any of size one
            axes = op.axes(1, max(op.rank, len(shape_of(op.node.outputs[0]))))  # Unsqueeze counts those of its output
            return alone and bool(axes) and min(axes) >= 1
    return False


def _is_per_tensor(op: Operation) -> bool:
    return op.first_alone and all(shape_of(value) in ((), (1,)) for value in op.operands[1:])


def _is_kept(op: Operation) -> bool:
    """Return whether the target of a Reshape keeps the first axis by -1, as all the other sizes are given and fit."""
    target = integers(op.node.inputs[1])
    before = shape_of(op.node.inputs[0])[1:]
    if target[:1] != (-1,) or (op.integer("allowzero", 0) and 0 in target):
        return False
    after = [before[i - 1] if size == 0 and i <= len(before) else size for i, size in enumerate(target)][1:]
    sizes = [size for size in (*before, *after) if isinstance(size, int) and size > 0]
    return len(sizes) == len(before) + len(after) and prod(sizes[: len(before)]) == prod(sizes[len(before) :])


def _broadcasts(op: Operation, axis: int, values: Sequence[ir.Value] = ()) -> bool:
    """Return whether the rows keep their axis in the broadcast shape of values (all operands); no constant has it."""
    shapes = [(shape_of(value), value in op.rowed) for value in values or op.operands]
    rank = max(len(shape) for shape, _ in shapes)
    for shape, rowed in shapes:
        at = axis - rank + len(shape)
        if len(shape) != rank if rowed else at >= 0 and shape[at] != 1:
            return False
    return True


def _moved(op: Operation, axis: int) -> int | None:
    """Return the axis of the rows in the output of an operator that moves values, or multiplies their last axis."""
    if op.node.op_type == "Concat":
        return axis if op.count == len(op.node.inputs) and op.axis() != axis else None
    if not op.first_alone:
        return None
    match op.node.op_type:
        case "Gather" if (along := op.axis()) != axis:  # positions of another axis are selected
            return axis if along > axis else axis - 1 + len(shape_of(op.node.inputs[1]))
        case "MatMul" if axis < op.rank - 1 and len(shape_of(op.node.inputs[1])) == 2:
            return axis
        case "Reshape" if integers(op.node.inputs[1])[: axis + 1] == (0,) * (axis + 1):  # all axes up to it are kept
            return None if op.integer("allowzero", 0) else axis
        case "Slice" if (others := op.axes(3, op.rank)) and axis not in others:
            return axis
        case "Squeeze" if (gone := op.axes(1, op.rank)) and axis not in gone:
            return axis - sum(a < axis for a in gone)
        case "Transpose":
            return list(op.node.attributes.get_ints("perm", tuple(reversed(range(op.rank))))).index(axis)
    return None


def _stepped(op: Operation, axis: int) -> tuple[int, ...] | None:
    """Return the axes of the rows in the outputs of a recurrent layer; None where its inputs have another form.

    The layer takes (steps, rows, inputs), and first states of (directions, rows, hidden). It gives (steps, directions,
    rows, hidden), and the last states. Sequence lengths are not accepted.
    """
    read = op.node.inputs
    alone = axis == 1 and read[0] in op.rowed and op.rowed.isdisjoint(read[1:4]) and not any(read[4:5])
    known = all(state is None or state in op.rowed for state in read[5:7]) and not any(read[7:])
    return (2, 1, 1)[: len(op.node.outputs)] if alone and known else None
