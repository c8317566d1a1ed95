"""Program of a model in few operators (torch.export), and the units of its parameters."""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node

from objectives.compression.graph_passes.tracing import any_length
from objectives.compression.module_edit import tensors
from objectives.compression.structure.rules import POINTWISE, Call, Operand, Outputs, apply, operands_in
from objectives.compression.structure.units import Axis, Narrowing, Units
from objectives.compression.structure.walk import operator_name
from objectives.errors import located

# Longest axis that is followed: rows of larger tables are never removed, and are looked up by number.
_LONGEST = 1 << 16
_HELD = (InputKind.PARAMETER, InputKind.BUFFER)
# Each is one operator with a rule of its own; torch would unroll every step of the sequence.
_RECURRENT = (
    torch.ops.aten.gru.input,
    torch.ops.aten.lstm.input,
    torch.ops.aten.rnn_tanh.input,
    torch.ops.aten.rnn_relu.input,
)


class TraceError(ValueError):
    """The model cannot be traced; the message has the place of the failure."""


def program_of(model: nn.Module, example: Mapping[str, Tensor]) -> ExportedProgram:
    """Export the model's forward over these inputs in core ATen operators and recurrent layers, in evaluation mode,
    with every size fixed.

    Raises:
        TraceError: the forward cannot be exported, with the first line of the reason and its place.
    """
    model.eval()
    logger, fast = logging.getLogger("torch"), torch.backends.mha.get_fastpath_enabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad(), any_length():
            warnings.simplefilter("ignore")
            exported = torch.export.export(model, (), dict(example), strict=False)
            table = torch.export.default_decompositions()
            for recurrent in _RECURRENT:
                table.pop(recurrent)  # type: ignore[no-untyped-call]
            return exported.run_decompositions(table)  # type: ignore[no-any-return]
    except Exception as error:  # anything that the user's own forward may raise
        raise TraceError(f"The model's forward must be traceable by torch.export, but got {located(error)}") from error
    finally:
        logger.setLevel(level)
        torch.backends.mha.set_fastpath_enabled(fast)


# What a node of a program gives.
Value = Operand | list[Operand]


@dataclass(frozen=True, eq=False)
class Flow:
    """Result of following the units: the units, those of each parameter's and buffer's axes by its first name, the
    program, and the nodes that represent each name, for everything that the program reads.
    """

    units: Units
    held: Mapping[str, Operand]
    program: ExportedProgram
    places: Mapping[str, list[Node]]


def flow_of(model: nn.Module, program: ExportedProgram, narrowing: Narrowing = "outer") -> Flow:
    """Follow the units of all parameters through the program to its outputs, whose sizes are fixed."""
    units = Units(narrowing)
    held: dict[str, Operand] = {}
    places: dict[str, list[Node]] = defaultdict(list)
    values: dict[Node, Value] = {}
    named = _first_names(model)
    sources = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = sources[node.name]
            name = named.get(spec.target or "") if spec.kind in _HELD else None
            shape = _shape(node)
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
            for operand in operands_in(_known(node.args, values)):
                for axis in operand.axes:
                    units.pin(axis, "it is what the model gives")
    return Flow(units, held, program, places)


def _first_names(model: nn.Module) -> dict[str, str]:
    """Map every name of a tensor to its first one; tied weights have several."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in tensors(model).items()}


def _called(node: Node, values: Mapping[Node, Value], units: Units) -> Value:
    if node.target is operator.getitem:
        source, at = node.args
        assert isinstance(source, Node) and isinstance(at, int)
        several = values[source]
        assert isinstance(several, list)
        return several[at]
    made = node.meta.get("val")
    parts = made if isinstance(made, (list, tuple)) else [made]
    shapes = tuple(map(_sizes, parts))
    schema = getattr(node.target, "_schema", None)
    name = operator_name(node)
    if schema is not None and not schema.name.startswith("aten::"):
        name = schema.name
    arguments = _arguments(node, values, schema)
    outputs: Outputs = apply(Call(name, POINTWISE in getattr(node.target, "tags", ()), arguments, shapes, units))
    found = [Operand(axes, shape) for axes, shape in zip(outputs, shapes, strict=True)]
    return found if parts is made else found[0]


def _known(argument: object, values: Mapping[Node, Value]) -> object:
    """Replace the nodes in an argument by their operands."""
    if isinstance(argument, Node):
        return values.get(argument)
    if isinstance(argument, (list, tuple)):
        return [_known(item, values) for item in argument]
    return argument


def _arguments(node: Node, values: Mapping[Node, Value], schema: torch.FunctionSchema | None) -> tuple[object, ...]:
    """Return the arguments in the order of the operator's schema, keyword arguments included."""
    given = [_known(argument, values) for argument in node.args]
    if schema is not None:
        for argument in schema.arguments[len(given) :]:
            given.append(_known(node.kwargs.get(argument.name, argument.default_value), values))
    return tuple(given)


def _shape(node: Node) -> tuple[int, ...]:
    return _sizes(node.meta.get("val"))


def _sizes(value: object) -> tuple[int, ...]:
    """Return the sizes of a value; a data-dependent size becomes 0, which no other is."""
    return tuple(size if isinstance(size, int) else 0 for size in value.shape) if isinstance(value, Tensor) else ()


def axes_of(flow: Flow) -> Iterator[tuple[str, int, Axis]]:
    """Iterate over tensor, axis and units of everything that the program reads of the model."""
    for name, operand in flow.held.items():
        for axis, found in enumerate(operand.axes):
            yield name, axis, found
