"""Rules of operators for the units of their operands. An operator without a rule pins all that it reads.

Operators that torch decomposes for every program, such as `t`, `mv` and `all`, need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from objectives.compression.structure.units import Axis, Units, reshape

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
        return list(instances(Operand, self.arguments))

    def given(self, place: int) -> Any:
        """Return an argument; None where the overload has none in this place."""
        return self.arguments[place] if len(self.arguments) > place else None

    def axis(self, place: int) -> int:
        """Return the argument that numbers an axis of the first operand."""
        return int(self.given(place)) % max(1, len(self.first.shape))

    def numbered(self, place: int) -> set[int]:
        """Return the axes of the first operand that an argument numbers; all of them where it numbers none."""
        asked, rank = self.given(place), len(self.first.shape)
        numbers = [asked] if isinstance(asked, int) else asked if isinstance(asked, list) and asked else range(rank)
        return {number % max(1, rank) for number in numbers}

    def replaced(self, at: int, axis: Axis) -> tuple[Axis, ...]:
        """Return the axes of the first operand with another one in place of one of them."""
        axes = self.first.axes
        return (*axes[:at], axis, *axes[at + 1 :])


T = TypeVar("T")
Outputs = tuple[tuple[Axis, ...], ...]
Rule = Callable[[Call], Outputs]


def apply(call: Call) -> Outputs:
    """Return the units of each output's axes; an output that a rule leaves out has none."""
    rule = RULES.get(call.name) or (_pointwise if call.pointwise else _unknown)
    try:
        found = rule(call)
    except Exception:  # an overload, or a form of its arguments, that the rule does not support
        found = _unknown(call)
    if any(len(axes) != len(shape) for axes, shape in zip(found, call.shapes, strict=False)):
        found = _unknown(call)
    return (*found, *((None,) * len(shape) for shape in call.shapes[len(found) :]))


def instances(kind: type[T], nested: object) -> Iterator[T]:
    """Iterate over the instances of a class in any nesting of mappings, lists and tuples."""
    if isinstance(nested, kind):
        yield nested
    elif isinstance(nested, (Mapping, list, tuple)):
        for value in nested.values() if isinstance(nested, Mapping) else nested:
            yield from instances(kind, value)


def _unknown(call: Call) -> Outputs:
    for operand in call.operands:
        for axis in operand.axes:
            call.units.pin(axis, f"leanrec has no rule for {call.name}, which reads it")
    return ()


def _made(call: Call) -> Outputs:
    return ()


def _pointwise(call: Call) -> Outputs:
    (shape,) = call.shapes
    return (_broadcast(call.units, call.operands, shape),)


def _broadcast(units: Units, operands: Sequence[Operand], shape: Sequence[int]) -> tuple[Axis, ...]:
    """Join axes by broadcasting, matched from the last; an axis of size 1 is expanded to the others'."""
    found: list[Axis] = []
    for back in range(len(shape), 0, -1):
        read = [(operand.shape[-back], operand.axes[-back]) for operand in operands if len(operand.shape) >= back]
        for size, axis in read:
            if size != shape[-back]:
                units.pin(axis, _SPREAD)
        found.append(units.join([axis for size, axis in read if size == shape[-back]], _FIXED))
    return tuple(found)


def _same(call: Call) -> Outputs:
    return (call.first.axes,) * len(call.shapes)


def _mm(call: Call) -> Outputs:
    """Multiply matrices, or stacks of them, and add a bias where there is one."""
    *bias, left, right = call.operands
    call.units.join([left.axes[-1], right.axes[-2]], _FIXED)
    stacked = [call.units.join([a, b], _FIXED) for a, b in zip(left.axes[:-2], right.axes[:-2], strict=True)]
    made = Operand((*stacked, left.axes[-2], right.axes[-1]), call.shapes[0])
    return (_broadcast(call.units, [made, *bias], call.shapes[0]),)


def _permute(call: Call) -> Outputs:
    return (tuple(call.first.axes[axis] for axis in call.given(1)),)


def _reshape(call: Call) -> Outputs:
    return (reshape(call.units, call.first.axes, call.first.shape, call.shapes[0]),)


def _expand(call: Call, equal: bool = False) -> Outputs:
    """Expand a value along its axes, or along new outer ones: to positions that are all equal, or by repeating it."""
    added = len(call.shapes[0]) - len(call.first.shape)
    found: list[Axis] = [None] * added
    for axis, size, wanted in zip(call.first.axes, call.first.shape, call.shapes[0][added:], strict=True):
        if size != wanted:
            call.units.pin(axis, _SPREAD)
            axis = call.units.copies(wanted) if equal else None
        found.append(axis)
    return (tuple(found),)


def _unsqueeze(call: Call) -> Outputs:
    axes = list(call.first.axes)
    axes.insert(int(call.given(1)) % (len(axes) + 1), None)
    return (tuple(axes),)


def _squeeze(call: Call) -> Outputs:
    read, asked = call.first, call.numbered(1)
    return (tuple(axis for i, axis in enumerate(read.axes) if i not in asked or read.shape[i] != 1),)


def _slice(call: Call) -> Outputs:
    at = call.axis(1)
    axis = call.first.axes[at]
    return (call.replaced(at, None if axis is None else axis[call.given(2) : call.given(3) : call.given(4)]),)


def _index(call: Call) -> Outputs:
    indices = call.given(1)
    return _unknown(call) if any(index is None for index in indices) else _lookup(call, len(indices))


def _lookup(call: Call, indexed: int = 1) -> Outputs:
    """Look values up by their numbers along the first axes, and leave the others unchanged."""
    for axis in call.first.axes[:indexed]:
        call.units.pin(axis, _COUNTED)
    rest = call.first.axes[indexed:]
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
    axis = call.first.axes[at]
    ends = accumulate((shape[at] for shape in call.shapes), initial=0)
    return tuple(call.replaced(at, None if axis is None else axis[start:end]) for start, end in pairwise(ends))


def _cat(call: Call) -> Outputs:
    operands = [operand for operand in call.operands if operand.shape != (0,)]
    rank = len(call.shapes[0])
    at = int(call.given(1)) % rank
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


def _reduced(call: Call, reason: str | None = None, spans: bool = False, place: int = 1) -> Outputs:
    """Reduce axes, or leave them in place without units.

    Args:
        reason: why their units are pinned; None where removing a unit equals zeroing it, as for a sum
        spans: whether the result depends on the number of units, as a mean does
        place: index of the argument that holds the axes
    """
    read, gone = call.first, call.numbered(place)
    for dim in gone:
        if reason is not None:
            call.units.pin(read.axes[dim], reason)
        elif spans:
            call.units.span(read.axes[dim])
    keep = len(call.shapes[0]) == len(read.shape)
    axes = ((None if i in gone else axis) for i, axis in enumerate(read.axes) if keep or i not in gone)
    return (tuple(axes),) * len(call.shapes)


def _layer_norm(call: Call) -> Outputs:
    axes, over = list(call.first.axes), len(call.given(1))
    for back in range(1, over + 1):
        weights = [operand.axes[-back] for operand in call.operands[1:]]
        axes[-back] = call.units.join([axes[-back], *weights], _FIXED)
        if over > 1:
            call.units.pin(axes[-back], "a normalisation is taken over several axes")
        call.units.span(axes[-back])
    return (tuple(axes),)


def _batch_norm(call: Call) -> Outputs:
    held = [operand.axes[0] for operand in call.operands[1:]]
    return (call.replaced(1, call.units.join([call.first.axes[1], *held], _FIXED)),)


def _recurrent(call: Call, gates: int) -> Outputs:
    """Run a recurrent layer, whose weights hold a block of rows for each gate.

    Layers and directions have one hidden size: a unit is a row of every gate, and the columns of the next step, the
    next layer and the output that read it.
    """
    units, read, weights = call.units, call.first, list(instances(Operand, call.given(2)))
    each, layers, directions = 4 if call.given(3) else 2, int(call.given(4)), 2 if call.given(7) else 1
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
    for state in instances(Operand, call.given(1)):
        # Default states of zeros follow the layer's size; others are verified on the model.
        if state.axes[-1] is not None:
            units.tie(one, state.axes[-1])
    last: list[Axis] = [below, *(one for _ in call.shapes[1:])]
    return tuple((*(None,) * (len(shape) - 1), axis) for shape, axis in zip(call.shapes, last, strict=True))


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("clone", "alias", "_to_copy", "lift_fresh_copy", "full_like", "native_dropout"), _same),
    **dict.fromkeys(("full", "arange", "scalar_tensor", "empty"), _made),
    # It has no output; export writes one wherever a type is changed.
    "_assert_tensor_metadata": _made,
    "view": _reshape,
    **dict.fromkeys(("mm", "bmm", "addmm"), _mm),
    "squeeze": _squeeze,
    **dict.fromkeys(("select", "index_select"), partial(_reduced, reason=_COUNTED)),
    "sum": _reduced,
    "mean": partial(_reduced, spans=True),
    "linalg_vector_norm": partial(_reduced, place=2),
    **{
        name: partial(_reduced, reason=f"{name} is taken over it")
        for name in ("amax", "amin", "max", "min", "prod", "var", "any", "argmax", "argmin")
    },
    **dict.fromkeys(
        ("_softmax", "_log_softmax", "_safe_softmax"), partial(_reduced, reason="a softmax is taken over it")
    ),
    **dict.fromkeys(("embedding", "_embedding_bag", "_embedding_bag_forward_only"), _lookup),
    "permute": _permute,
    "expand": partial(_expand, equal=True),
    "repeat": _expand,
    "unsqueeze": _unsqueeze,
    "slice": _slice,
    "index": _index,
    "gather": _gather,
    "gru": partial(_recurrent, gates=3),
    "lstm": partial(_recurrent, gates=4),
    **dict.fromkeys(("rnn_tanh", "rnn_relu"), partial(_recurrent, gates=1)),
    "split_with_sizes": _split,
    "cat": _cat,
    **dict.fromkeys(("native_layer_norm", "_fused_rms_norm"), _layer_norm),
    "_native_batch_norm_legit_no_training": _batch_norm,
}
