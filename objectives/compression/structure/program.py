"""Program of a model in few operators (torch.export), walks through it, and the units of the model's parameters."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from objectives.compression.graph_passes.tracing import any_length
from objectives.compression.module_edit import Positional, tensors
from objectives.compression.structure.rules import Call, Operand, apply, instances
from objectives.compression.structure.units import Narrowing, Units
from objectives.errors import located

# Operators that move values, of which some may be dropped.
PARTS = frozenset(("slice", "select", "split_with_sizes", "getitem", "index_select"))
# Operators that move values, and change none but for its type.
MOVES = PARTS | frozenset(("view", "permute", "expand", "clone", "unsqueeze", "squeeze", "_to_copy", "alias", "cat"))
# Longest axis that is followed: rows of larger tables are never removed, and are looked up by number.
_LONGEST = 1 << 16
_HELD = (InputKind.PARAMETER, InputKind.BUFFER)
# What the names of a model's tensors begin with in its program.
_WHOLE = "model."
# Each is one operator with a rule of its own; torch would unroll every step of the sequence.
_RECURRENT = [getattr(torch.ops.aten, name).input for name in ("gru", "lstm", "rnn_tanh", "rnn_relu")]


class TraceError(ValueError):
    """The model cannot be traced; the message has the place of the failure."""


@dataclass(frozen=True, eq=False)
class Program:
    """Program of a model's forward.

    inputs: name of the input that each placeholder stands for
    """

    exported: ExportedProgram
    inputs: Mapping[str, str]


def program_of(model: nn.Module, example: Mapping[str, Tensor]) -> Program:
    """Export the model's forward over these inputs in core ATen operators and recurrent layers.

    The model is in evaluation mode, and every size is fixed. Inputs go by position, since torch.export changes their
    names, and takes none that is no identifier of Python.

    Raises:
        TraceError: the forward cannot be exported, with the first line of the reason and its place.
    """
    model.eval()
    logger, fast = logging.getLogger("torch"), torch.backends.mha.get_fastpath_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        silent = contextlib.redirect_stdout(io.StringIO())
        with warnings.catch_warnings(action="ignore"), silent, torch.no_grad(), any_length():
            whole = Positional(model, tuple(example), lambda of, inputs: of(**inputs)).eval()
            exported = torch.export.export(whole, tuple(example.values()), strict=False)
            table = torch.export.default_decompositions()
            for recurrent in _RECURRENT:
                table.pop(recurrent)  # type: ignore[no-untyped-call]
            exported = exported.run_decompositions(table)
            return Program(exported, dict(zip(exported.graph_signature.user_inputs, example, strict=True)))
    except Exception as error:  # anything that the user's own forward may raise
        raise TraceError(f"The model's forward must be traceable by torch.export, but got {located(error)}") from error
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


def operator_name(node: object) -> str:
    """Return the operator's name without namespace and overload; empty for a node that is no call."""
    if not isinstance(node, Node) or node.op != "call_function":
        return ""
    schema = getattr(node.target, "_schema", None)
    return schema.name.rpartition("::")[2] if schema is not None else getattr(node.target, "__name__", "")


def nearest(
    start: Iterable[object],
    wanted: Callable[[Node], bool],
    through: Callable[[Node], bool],
    onward: Callable[[Node], Iterable[Node]],
) -> Iterator[Node]:
    """Yield the first wanted nodes on each path onward, as far as it leads through nodes that may be passed."""
    stack, seen = list(start), set()
    while stack:
        node = stack.pop()
        if not isinstance(node, Node) or node in seen:
            continue
        seen.add(node)
        if wanted(node):
            yield node
        elif through(node):
            stack.extend(onward(node))


# What a node of a program gives.
Value = Operand | list[Operand]


@dataclass(frozen=True, eq=False)
class Flow:
    """Result of following the units, for everything that the program reads.

    held: the units of each parameter's and buffer's axes, by its first name
    places: the nodes that represent each name
    """

    units: Units
    held: Mapping[str, Operand]
    program: Program
    places: Mapping[str, list[Node]]


def flow_of(model: nn.Module, program: Program, narrowing: Narrowing = "outer") -> Flow:
    """Follow the units of all parameters through the program to its outputs, whose sizes are fixed."""
    units = Units(narrowing)
    held: dict[str, Operand] = {}
    places: dict[str, list[Node]] = defaultdict(list)
    values: dict[Node, Value] = {}
    first: dict[int, str] = {}  # a tied weight has several names, and is followed under its first
    named = {name: first.setdefault(id(tensor), name) for name, tensor in tensors(model).items()}
    sources = {spec.arg.name: spec for spec in program.exported.graph_signature.input_specs}
    for node in program.exported.graph.nodes:
        if node.op == "placeholder":
            spec = sources[node.name]
            name = named.get((spec.target or "").removeprefix(_WHOLE)) if spec.kind in _HELD else None
            shape = _sizes(node.meta.get("val"))
            if name is None or not node.users:
                values[node] = Operand((None,) * len(shape), shape)
                continue
            places[name].append(node)
            if name not in held:
                held[name] = Operand(tuple(units.fresh(size) if size <= _LONGEST else None for size in shape), shape)
            values[node] = held[name]
        elif node.op == "call_function":
            values[node] = _called(node, values, units)
        elif node.op == "output":
            for operand in instances(Operand, _known(node.args, values)):
                for axis in operand.axes:
                    units.pin(axis, "it is what the model gives")
    return Flow(units, held, program, places)


def _called(node: Node, values: Mapping[Node, Value], units: Units) -> Value:
    if node.target is operator.getitem:
        source, at = node.args
        assert isinstance(source, Node) and isinstance(at, int)
        several = values[source]
        assert isinstance(several, list)
        return several[at]
    made, schema = node.meta.get("val"), getattr(node.target, "_schema", None)
    parts = made if isinstance(made, (list, tuple)) else [made]
    shapes = tuple(map(_sizes, parts))
    name, given = operator_name(node), list(node.args)
    if schema is not None:
        name = schema.name.removeprefix("aten::")
        given += [node.kwargs.get(later.name, later.default_value) for later in schema.arguments[len(given) :]]
    arguments = tuple(_known(argument, values) for argument in given)
    pointwise = torch.Tag.pointwise in getattr(node.target, "tags", ())
    outputs = apply(Call(name, pointwise, arguments, shapes, units))
    found = [Operand(axes, shape) for axes, shape in zip(outputs, shapes, strict=True)]
    return found if parts is made else found[0]


def _known(argument: object, values: Mapping[Node, Value]) -> object:
    """Replace the nodes in an argument by their operands."""
    if isinstance(argument, Node):
        return values.get(argument)
    if isinstance(argument, (list, tuple)):
        return [_known(item, values) for item in argument]
    return argument


def _sizes(value: object) -> tuple[int, ...]:
    """Return the sizes of a value; a data-dependent size becomes 0, which no other is."""
    return tuple(size if isinstance(size, int) else 0 for size in value.shape) if isinstance(value, Tensor) else ()
