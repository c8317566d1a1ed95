"""Rules of operators for the units of their operands. An operator without a rule pins all that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from objectives.compression.structure.shapes import reshape
from objectives.compression.structure.units import Axis, Units

_FIXED = "it meets something of a fixed size"
_SPREAD = "it is spread over an axis of another size"
_COUNTED = "its positions are read by their numbers"
_STEPPED = "a recurrent layer steps along it"


@dataclass(frozen=True)
class Operand:
    """Input or output tensor of an operator: the units of its axes, and its shape."""

    axes: tuple[Axis, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """One operator with its arguments, tensors as operands, and the shapes of its outputs."""

    name: str
    pointwise: bool
    arguments: tuple[object, ...]
    shapes: tuple[tuple[int, ...], ...]
    units: Units

    @property
    def first(self) -> Operand:
        operand = self.arguments[0]
        assert isinstance(operand, Operand)
        return operand

    @property
    def operands(self) -> list[Operand]:
        return list(operands_in(self.arguments))

    def given(self, place: int, default: object = None) -> Any:
        return self.arguments[place] if len(self.arguments) > place else default

    def axis(self, place: int, default: int = 0) -> int:
        """Return the argument that numbers an axis of the first operand."""
        return int(self.given(place, default)) % max(1, len(self.first.shape))


Outputs = tuple[tuple[Axis, ...], ...]
Rule = Callable[[Call], Outputs]


def apply(call: Call) -> Outputs:
    """Return the units of each output's axes."""
    rule = RULES.get(call.name) or (_pointwise if call.pointwise else _unknown)
    try:
        found = rule(call)
    except Exception:  # an overload, or a form of its arguments, that the rule does not support
        return _unknown(call)
    return (
        found
        if all(len(axes) == len(shape) for axes, shape in zip(found, call.shapes, strict=True))
        else _unknown(call)
    )


def operands_in(arguments: object) -> Iterator[Operand]:
    """Iterate over operands in any nesting of lists."""
    if isinstance(arguments, Operand):
        yield arguments
    elif isinstance(arguments, (list, tuple)):
        for argument in arguments:
            yield from operands_in(argument)


def _unknown(call: Call) -> Outputs:
    for operand in call.operands:
        for axis in operand.axes:
            call.units.pin(axis, f"leanrec has no rule for {call.name}, which reads it")
    return tuple((None,) * len(shape) for shape in call.shapes)


def _pointwise(call: Call) -> Outputs:
    (shape,) = call.shapes
    return (_broadcast(call.units, call.operands, shape),)


def _broadcast(units: Units, operands: Sequence[Operand], shape: Sequence[int]) -> tuple[Axis, ...]:
    """Join axes by broadcasting, matched from the last; an axis of size 1 is expanded to the others'."""
    found: list[Axis] = []
    for back in range(len(shape), 0, -1):
        size, whole = shape[-back], []
        for operand in operands:
            if len(operand.shape) < back:
                continue
            if operand.shape[-back] == size:
                whole.append(operand.axes[-back])
            else:
                units.pin(operand.axes[-back], _SPREAD)
        found.append(units.join(whole, _FIXED))
    return tuple(found)


def _same(call: Call) -> Outputs:
    return (call.first.axes,) * len(call.shapes)


def _mm(call: Call) -> Outputs:
    left, right = call.operands
    return (_product(call.units, left, right),)


def _product(units: Units, left: Operand, right: Operand) -> tuple[Axis, ...]:
    units.join([left.axes[-1], right.axes[-2]], _FIXED)
    stacked = [units.join([a, b], _FIXED) for a, b in zip(left.axes[:-2], right.axes[:-2], strict=True)]
    return (*stacked, left.axes[-2], right.axes[-1])


def _addmm(call: Call) -> Outputs:
    bias, left, right = call.operands
    made = Operand(_product(call.units, left, right), call.shapes[0])
    return (_broadcast(call.units, [made, bias], call.shapes[0]),)


def _mv(call: Call) -> Outputs:
    matrix, vector = call.operands
    call.units.join([matrix.axes[1], vector.axes[0]], _FIXED)
    return ((matrix.axes[0],),)


def _dot(call: Call) -> Outputs:
    one, other = call.operands
    call.units.join([one.axes[0], other.axes[0]], _FIXED)
    return ((),)


def _permute(call: Call) -> Outputs:
    return (tuple(call.first.axes[axis] for axis in call.given(1)),)


def _t(call: Call) -> Outputs:
    return (tuple(reversed(call.first.axes)),)


def _transpose(call: Call) -> Outputs:
    axes, one, other = list(call.first.axes), call.axis(1), call.axis(2)
    axes[one], axes[other] = axes[other], axes[one]
    return (tuple(axes),)


def _reshape(call: Call) -> Outputs:
    return (reshape(call.units, call.first.axes, call.first.shape, call.shapes[0]),)


def _expand(call: Call) -> Outputs:
    """Expand a value to the requested number of positions, all of them equal."""
    added = len(call.shapes[0]) - len(call.first.shape)
    found: list[Axis] = [None] * added
    for axis, size, wanted in zip(call.first.axes, call.first.shape, call.shapes[0][added:], strict=True):
        if size != wanted:
            call.units.pin(axis, _SPREAD)
        found.append(axis if size == wanted else call.units.copies(wanted))
    return (tuple(found),)


def _repeat(call: Call) -> Outputs:
    times = list(call.given(1))
    added = len(times) - len(call.first.shape)
    found: list[Axis] = [None] * added
    for axis, count in zip(call.first.axes, times[added:], strict=True):
        if count != 1:
            call.units.pin(axis, _SPREAD)
        found.append(axis if count == 1 else None)
    return (tuple(found),)


def _unsqueeze(call: Call) -> Outputs:
    axes = list(call.first.axes)
    axes.insert(int(call.given(1)) % (len(axes) + 1), None)
    return (tuple(axes),)


def _squeeze(call: Call) -> Outputs:
    asked = call.given(1)
    rank = len(call.first.shape)
    dims = range(rank) if asked is None else [asked] if isinstance(asked, int) else asked
    gone = {dim % max(1, rank) for dim in dims if rank and call.first.shape[dim] == 1}
    return (tuple(axis for i, axis in enumerate(call.first.axes) if i not in gone),)


def _slice(call: Call) -> Outputs:
    axes, at = list(call.first.axes), call.axis(1)
    axis = axes[at]
    axes[at] = None if axis is None else axis[call.given(2) : call.given(3) : call.given(4, 1)]
    return (tuple(axes),)


def _select(call: Call) -> Outputs:
    at = call.axis(1)
    call.units.pin(call.first.axes[at], _COUNTED)
    return (tuple(axis for i, axis in enumerate(call.first.axes) if i != at),)


def _index_select(call: Call) -> Outputs:
    axes, at = list(call.first.axes), call.axis(1)
    call.units.pin(axes[at], _COUNTED)
    axes[at] = None
    return (tuple(axes),)


def _index(call: Call) -> Outputs:
    """Index the first axes, as in a lookup, and leave the others unchanged."""
    indices = list(call.given(1))
    if any(index is None for index in indices):
        return _unknown(call)
    for axis in call.first.axes[: len(indices)]:
        call.units.pin(axis, _COUNTED)
    rest = call.first.axes[len(indices) :]
    return ((None,) * (len(call.shapes[0]) - len(rest)) + rest,)


def _gather(call: Call) -> Outputs:
    """Gather along one axis by position, and along the others entry by entry."""
    at, index = call.axis(1), call.given(2)
    found: list[Axis] = []
    for i, (axis, size) in enumerate(zip(call.first.axes, call.first.shape, strict=True)):
        if i == at or size != index.shape[i]:
            call.units.pin(axis, _COUNTED)
            call.units.pin(index.axes[i], _COUNTED)
            found.append(None)
        else:
            found.append(call.units.join([axis, index.axes[i]], _FIXED))
    return (tuple(found),)


def _split(call: Call) -> Outputs:
    at = call.axis(2)
    axis, parts, start = call.first.axes[at], [], 0
    for shape in call.shapes:
        axes = list(call.first.axes)
        axes[at] = None if axis is None else axis[start : start + shape[at]]
        start += shape[at]
        parts.append(tuple(axes))
    return tuple(parts)


def _cat(call: Call) -> Outputs:
    operands = [operand for operand in call.operands if operand.shape != (0,)]
    rank = len(call.shapes[0])
    at = int(call.given(1, 0)) % rank
    found: list[Axis] = []
    for i in range(rank):
        axes = [operand.axes[i] for operand in operands]
        if i != at:
            found.append(call.units.join(axes, _FIXED))
        elif all(axis is None for axis in axes):
            found.append(None)
        else:
            sizes = [operand.shape[i] for operand in operands]
            found.append(np.concatenate([_known(call.units, *pair) for pair in zip(axes, sizes, strict=True)]))
    return (tuple(found),)


def _known(units: Units, axis: Axis, size: int) -> NDArray[np.int64]:
    if axis is None:
        axis = units.fresh(size)
        units.pin(axis, _FIXED)
    return axis


def _reduced(call: Call, spans: bool | None = None, place: int = 1) -> Outputs:
    """Reduce axes: a sum adds up units; a mean divides by their number (spans); any other reduction (None) pins them.

    Args:
        place: index of the argument that holds the axes
    """
    rank = len(call.first.shape)
    asked = call.given(place)
    dims = [asked] if isinstance(asked, int) else asked if isinstance(asked, list) and asked else range(rank)
    gone = {dim % max(1, rank) for dim in dims}
    for dim in gone:
        if spans is None:
            call.units.pin(call.first.axes[dim], f"{call.name} is taken over it")
        elif spans:
            call.units.span(call.first.axes[dim])
    keep = len(call.shapes[0]) == rank
    axes = ((None if i in gone else axis) for i, axis in enumerate(call.first.axes) if keep or i not in gone)
    return (tuple(axes),) * len(call.shapes)


def _softmax(call: Call) -> Outputs:
    at = call.axis(1)
    call.units.pin(call.first.axes[at], "a softmax is taken over it")
    return (tuple(None if i == at else axis for i, axis in enumerate(call.first.axes)),)


def _embedding(call: Call) -> Outputs:
    table, ids = call.operands[:2]
    call.units.pin(table.axes[0], _COUNTED)
    return ((*(None for _ in ids.shape), table.axes[1]),)


def _embedding_bag(call: Call) -> Outputs:
    table = call.first
    call.units.pin(table.axes[0], _COUNTED)
    return ((None, table.axes[1]), *((None,) * len(shape) for shape in call.shapes[1:]))


def _layer_norm(call: Call) -> Outputs:
    read, over = call.first, len(call.given(1))
    axes = list(read.axes)
    for back in range(1, over + 1):
        weights = [w.axes[-back] for w in (call.given(2), call.given(3)) if isinstance(w, Operand)]
        axes[-back] = call.units.join([axes[-back], *weights], _FIXED)
        if over > 1:
            call.units.pin(axes[-back], "a normalisation is taken over several axes")
        call.units.span(axes[-back])
    return (tuple(axes), *((None,) * len(shape) for shape in call.shapes[1:]))


def _batch_norm(call: Call) -> Outputs:
    axes = list(call.first.axes)
    held = [operand.axes[0] for operand in call.operands[1:]]
    axes[1] = call.units.join([axes[1], *held], _FIXED)
    return (tuple(axes), *((None,) * len(shape) for shape in call.shapes[1:]))


def _recurrent(call: Call, gates: int, states: int = 1) -> Outputs:
    """Run a recurrent layer. All layers and directions have one hidden size: a unit is a row of every gate, and the
    columns of the next step, the next layer and the output that read it.

    Args:
        gates: blocks of rows that each weight holds
        states: states that are carried from step to step, each of them input and output
    """
    units, read, weights = call.units, call.first, list(operands_in([call.given(2)]))
    biased, layers, both_ways = call.given(3), int(call.given(4)), call.given(7)
    directions = 2 if both_ways else 1
    each = 4 if biased else 2
    hidden = weights[1].shape[1]
    if len(weights) != each * layers * directions or any(w.shape[0] != gates * hidden for w in weights):
        return _unknown(call)  # an LSTM with a projection
    one = units.fresh(hidden)
    for axis in read.axes[:-1]:
        units.pin(axis, _STEPPED)
    below: Axis = read.axes[-1]
    for layer in range(layers):
        for of in (weights[i : i + each] for i in range(layer * directions * each, len(weights), each)[:directions]):
            units.join([below, of[0].axes[1]], _FIXED)
            units.join([one, of[1].axes[1]], _FIXED)
            for held in of:
                units.join([np.tile(one, gates), held.axes[0]], _FIXED)
        below = np.tile(one, directions)
    for state in operands_in([call.given(1)]):
        # Default states of zeros follow the layer's size; others are verified on the model.
        if state.axes[-1] is not None:
            units.tie(one, state.axes[-1])
    leading = (None,) * (len(read.axes) - 1)
    return ((*leading, below), *((*((None,) * (len(shape) - 1)), one) for shape in call.shapes[1 : 1 + states]))


def _made(call: Call) -> Outputs:
    return tuple((None,) * len(shape) for shape in call.shapes)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("clone", "alias", "detach", "_to_copy", "lift_fresh_copy", "full_like", "native_dropout"), _same),
    **dict.fromkeys(("full", "arange", "zeros", "ones", "scalar_tensor", "empty", "eye"), _made),
    # It has no output; export writes one wherever a type is changed.
    "_assert_tensor_metadata": _made,
    **dict.fromkeys(("view", "reshape", "_unsafe_view"), _reshape),
    **dict.fromkeys(("mm", "bmm"), _mm),
    "squeeze": _squeeze,
    "sum": partial(_reduced, spans=False),
    "mean": partial(_reduced, spans=True),
    # Removing a unit equals zeroing it.
    "linalg_vector_norm": partial(_reduced, spans=False, place=2),
    **dict.fromkeys(("amax", "amin", "max", "min", "prod", "var", "any", "all", "argmax", "argmin"), _reduced),
    **dict.fromkeys(("_softmax", "_log_softmax", "_safe_softmax"), _softmax),
    **dict.fromkeys(("_embedding_bag", "_embedding_bag_forward_only"), _embedding_bag),
    "addmm": _addmm,
    "mv": _mv,
    "dot": _dot,
    "permute": _permute,
    "t": _t,
    "transpose": _transpose,
    "expand": _expand,
    "repeat": _repeat,
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "select": _select,
    "index_select": _index_select,
    "index": _index,
    "gather": _gather,
    "gru": partial(_recurrent, gates=3),
    "lstm": partial(_recurrent, gates=4, states=2),
    **dict.fromkeys(("rnn_tanh", "rnn_relu"), partial(_recurrent, gates=1)),
    "split_with_sizes": _split,
    "cat": _cat,
    "embedding": _embedding,
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    "_native_batch_norm_legit_no_training": _batch_norm,
}

POINTWISE = torch.Tag.pointwise
