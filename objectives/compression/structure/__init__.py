"""Structure of a model, found by tracing it: groups of layers, prunable dimensions, and excluded modules.

The program of the model's forward (torch.export) determines which positions of which tensors must be removed together
(Fang et al., CVPR 2023, call it the dependency graph; here every position is followed separately, so that heads,
concatenations and vectors side by side need no rules of their own); each dimension is then verified on the model
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.fx import Node

from objectives.compression.module_edit import names_of, tensors
from objectives.compression.structure.attention import attention_weights
from objectives.compression.structure.dimensions import Found, widths_of
from objectives.compression.structure.groups import (
    TABLES,
    grouped,
    layers_of,
    left_alone,
    recurrent_of,
    tables_of,
    weight_of,
)
from objectives.compression.structure.program import Flow, TraceError, flow_of, program_of
from objectives.compression.structure.verify_dimension import (
    UnprunableError,
    answers_of,
    shared_copy,
    tried,
    trouble_with_factors,
    trouble_with_forms,
)
from objectives.compression.structure.walk import MOVES, PARTS, nearest, operator_name
from objectives.errors import located
from spaces.model_structure import Group, ModelStructure, PrunableDim, Table
from spaces.techniques.embeddings import SMALLEST

# Tensor, axis, and position along the axis.
_Position = tuple[str, int, int]

__all__ = ["TraceError", "Traced", "trace"]


@dataclass(frozen=True)
class Traced:
    """Groups of a model, and the reason for each module with parameters that is in none, by dotted name."""

    structure: ModelStructure
    left_alone: Mapping[str, str]


def trace(model: nn.Module, example: Mapping[str, Tensor]) -> Traced:
    """Trace a model's forward, and find its groups, tables and excluded modules.

    Args:
        example: inputs by name, as the forward takes them; a few rows

    Raises:
        TraceError: the forward cannot be traced, or the model cannot be copied.
    """
    program = program_of(model, example)
    flow = flow_of(model, program)
    read = {other for name in flow.held for other in names_of(model, name)}
    tables, layers = tables_of(model, read), layers_of(model, read)
    weights = attention_weights({node: name for name, nodes in flow.places.items() for node in nodes})
    attention = {layer for layer in layers if names_of(model, f"{layer}.weight")[0] in weights}
    groups = {TABLES: ("table", tables)} if tables else {}
    named = {**groups, **grouped(layers, attention, recurrent_of(model, read))}
    owners = {module: name for name, (_, modules) in named.items() for module in modules}
    expected = _expected(model, example)
    good, refused = _tried(model, example, expected, _candidates(model, flow), owners)
    found = []
    for name, (kind, modules) in named.items():
        widths = tuple(width for owner, width in good if owner == name)
        reason = None if widths else _why_not(model, name, modules, good, refused, flow)
        parameters = sum(p.numel() for module in modules for p in model.get_submodule(module).parameters())
        apart = kind in ("linear", "attention")
        whole = trouble_with_factors(model, modules, example, expected) if apart else None
        found.append(Group(name, kind, modules, parameters, widths, reason, whole))  # type: ignore[arg-type]
    looked_up = tuple(_table(model, table, flow, example, expected) for table in tables)
    return Traced(ModelStructure(tuple(found), looked_up), left_alone(model, set(owners), read))


def _expected(model: nn.Module, example: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the model's outputs for the example.

    Raises:
        TraceError: the model cannot be copied, so that nothing can be verified on it.
    """
    try:
        shared_copy(model)
    except Exception as error:  # a lock, a handle or anything else in the user's own model
        raise TraceError(f"The model must be one that copy.deepcopy takes, but got {located(error)}") from error
    return answers_of(model, example)


def _candidates(model: nn.Module, flow: Flow) -> list[Found]:
    """Return candidate dimensions by both readings of an ambiguous shape: removable heads, and narrower heads; earlier
    candidates are verified first.
    """
    found = widths_of(flow)
    if not flow.units.ambiguous:
        return found
    known = {(width.places, width.axis_slices) for width in found}
    inner = widths_of(flow_of(model, flow.program, "inner"))
    return [*found, *(width for width in inner if (width.places, width.axis_slices) not in known)]


def _tried(
    model: nn.Module,
    example: Mapping[str, Tensor],
    expected: Sequence[Tensor],
    found: Sequence[Found],
    owners: Mapping[str, str],
) -> tuple[list[tuple[str, PrunableDim]], list[tuple[Found, str]]]:
    """Verify candidates, and return dimensions with the groups that they narrow, no two of which share a position; and
    the refused candidates, each with its reason.
    """
    good: list[tuple[str, PrunableDim]] = []
    refused: list[tuple[Found, str]] = []
    taken: set[str] = set()
    borne: set[_Position] = set()
    for width in found:
        owner, positions = _owner(width, owners), _positions(width)
        if owner is None or positions & borne:
            continue
        if width.reason is not None:
            refused.append((width, width.reason))
            continue
        named = PrunableDim(_name(width, owners, taken), width.units, width.axis_slices, width.spanned)
        try:
            normalised = tried(model, named, example, expected)
        except UnprunableError as error:
            refused.append((width, str(error)))
            continue
        taken.add(named.name)
        borne |= positions
        good.append((owner, replace(named, normalised=width.spanned or normalised)))
    # Candidates that are removable together with another were refused by themselves.
    return good, [(width, reason) for width, reason in refused if not _positions(width) & borne]


def _positions(width: Found) -> set[_Position]:
    every = range(width.units)
    return {(cut.tensor, cut.axis, position) for cut in width.axis_slices for position in cut.positions(every)}


def _table(model: nn.Module, name: str, flow: Flow, example: Mapping[str, Tensor], expected: Sequence[Tensor]) -> Table:
    rows = tensors(model)[f"{name}.weight"].shape[0]
    # No form is offered for a smaller table.
    refused = trouble_with_forms(model, name, example, expected) if rows >= SMALLEST else None
    return Table(name, rows, _inputs(model, name, flow), refused)


def _owner(width: Found, owners: Mapping[str, str]) -> str | None:
    """Return the tables' group where one holds the units, else the group of the first layer that outputs them."""
    if any(owners.get(_module(tensor)) == TABLES for tensor, _ in width.places):
        return TABLES
    made = [owners[_module(t)] for t, axis in width.places if axis == 0 and _module(t) in owners]
    return made[0] if made else None


def _name(width: Found, owners: Mapping[str, str], taken: set[str]) -> str:
    """Name a dimension after the layer that outputs the units; heads and embedding dimensions are marked as such."""
    modules = [_module(tensor) for tensor, axis in width.places if axis == 0 and _module(tensor) in owners]
    on_tables = [_module(tensor) for tensor, _ in width.places if owners.get(_module(tensor)) == TABLES]
    name = modules[0] if modules else on_tables[0]
    if on_tables:
        every = [module for module, owner in owners.items() if owner == TABLES]
        name = "embedding_dim" if len(set(on_tables)) == len(every) else f"{on_tables[0]}.dim"
    elif max(cut.size for cut in width.axis_slices) > 1:
        name = f"{name.rpartition('.')[0] or name}.heads"
    return name if name not in taken else f"{name}.{sum(t.startswith(name) for t in taken)}"


def _why_not(
    model: nn.Module,
    name: str,
    modules: Sequence[str],
    good: Sequence[tuple[str, PrunableDim]],
    refused: Sequence[tuple[Found, str]],
    flow: Flow,
) -> str:
    """Return the reason why nothing of a group can be pruned: the first that applies to one of its layers."""
    axis = 1 if name == TABLES else 0
    names = [names_of(model, f"{module}.{weight_of(model.get_submodule(module))}")[0] for module in modules]
    for found, reason in refused:
        if any((tensor, axis) in found.places for tensor in names):
            return reason
    for owner, width in good:
        if owner != name and any(cut.tensor in names and cut.axis == axis for cut in width.axis_slices):
            return f"its width is tied to that of {owner}, and narrows with it"
    for tensor in names:
        units = flow.held[tensor].axes[axis]
        reasons = {} if units is None else dict.fromkeys(flow.units.pinned(int(unit)) for unit in units)
        if (pinned := next(filter(None, reasons), None)) is not None:
            return pinned
    return "none of its units can leave without all others"


def _inputs(model: nn.Module, table: str, flow: Flow) -> tuple[str, ...]:
    """Return the inputs all of whose values are codes that the table looks up; none where only a part of one is, as for
    ids packed into a matrix.
    """
    given = {spec.arg.name for spec in flow.program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"}
    found: dict[str, None] = {}
    for place in flow.places[names_of(model, f"{table}.weight")[0]]:
        for lookup in place.users:
            if len(lookup.args) > 1 and isinstance(lookup.args[1], Node):
                found |= dict.fromkeys(n.name for n in _codes_from(lookup.args[1]) if n.name in given)
    return tuple(found)


def _codes_from(ids: Node) -> Iterator[Node]:
    """Iterate over the inputs that ids come from through operators that keep all of their values."""
    return nearest(
        [ids],
        lambda n: n.op == "placeholder" and not n.meta["val"].is_floating_point(),
        lambda n: operator_name(n) in MOVES | {"constant_pad_nd", "stack"} and not _parts(n),
        lambda n: n.all_input_nodes,
    )


def _parts(node: Node) -> bool:
    """Return whether some of the values that a node reads are dropped."""
    read = node.args[0]
    return operator_name(node) in PARTS and not (
        isinstance(read, Node)
        and isinstance(read.meta["val"], Tensor)
        and node.meta["val"].numel() == read.meta["val"].numel()
    )


def _module(tensor: str) -> str:
    return tensor.rpartition(".")[0]
