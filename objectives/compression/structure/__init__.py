"""Structure of a model, found by tracing it: groups of layers, prunable dimensions, and excluded modules.

The program of the model's forward (torch.export) determines which positions of which tensors must be removed together
(Fang et al., CVPR 2023, call it the dependency graph; here every position is followed separately, so that heads,
concatenations and vectors side by side need no rules of their own); each dimension is then verified on the model
itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

from torch import Tensor, nn
from torch.fx import Node

from objectives.compression.module_edit import names_of, parameters_of, tensors
from objectives.compression.structure.dimensions import Found, widths_of
from objectives.compression.structure.groups import TABLES, grouped, left_alone, weight_of
from objectives.compression.structure.program import MOVES, PARTS, Flow, flow_of, nearest, operator_name, program_of
from objectives.compression.structure.verify_dimension import UnprunableError, Verifier
from spaces.model_structure import Group, ModelStructure, PrunableDim, Table
from spaces.techniques.embeddings import SMALLEST

# Dimensions with the groups that they narrow, and candidates that were refused, each with its reason.
_Good = Sequence[tuple[str, PrunableDim]]
_Refused = Sequence[tuple[Found, str]]


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
    flow = flow_of(model, program_of(model, example))
    read = {other for name in flow.held for other in names_of(model, name)}
    named = grouped(model, flow, read)
    owners = {module: name for name, (_, modules) in named.items() for module in modules}
    verifier = Verifier(model, example)
    good, refused = _verified(verifier, _candidates(model, flow), owners)
    groups = []
    for name, (kind, modules) in named.items():
        dims = tuple(width for owner, width in good if owner == name)
        reason = None if dims else _why_not(model, flow, name, modules, good, refused)
        unfactorable = verifier.trouble_with_factors(modules) if kind in ("linear", "attention") else None
        groups.append(Group(name, kind, modules, parameters_of(model, modules), dims, reason, unfactorable))
    looked_up = tuple(_table(verifier, flow, name) for name in (named[TABLES][1] if TABLES in named else ()))
    return Traced(ModelStructure(tuple(groups), looked_up), left_alone(model, owners.keys(), read))


def _candidates(model: nn.Module, flow: Flow) -> list[Found]:
    """Return candidates by both readings of an ambiguous shape, in order: removable heads, then narrower heads."""
    found = widths_of(flow)
    if not flow.units.ambiguous:
        return found
    known = {(width.places, width.axis_slices) for width in found}
    inner = widths_of(flow_of(model, flow.program, "inner"))
    return [*found, *(width for width in inner if (width.places, width.axis_slices) not in known)]


def _verified(verifier: Verifier, found: Sequence[Found], owners: Mapping[str, str]) -> tuple[_Good, _Refused]:
    """Verify candidates, and return dimensions, no two of which share a position, and the refused candidates."""
    good: list[tuple[str, PrunableDim]] = []
    refused: list[tuple[Found, str]] = []
    borne: set[tuple[str, int, int]] = set()
    for width in found:
        place, positions = _place(width, owners, {dim.name for _, dim in good}), _positions(width)
        if place is None or positions & borne:
            continue
        if width.reason is not None:
            refused.append((width, width.reason))
            continue
        owner, name = place
        dim = PrunableDim(name, width.units, width.axis_slices, width.spanned)
        try:
            normalised = verifier.check_dimension(dim)
        except UnprunableError as error:
            refused.append((width, str(error)))
            continue
        borne |= positions
        good.append((owner, replace(dim, normalised=width.spanned or normalised)))
    # Candidates that are removable together with another were refused by themselves.
    return good, [(width, reason) for width, reason in refused if not _positions(width) & borne]


def _positions(width: Found) -> set[tuple[str, int, int]]:
    """Return tensor, axis, and position along the axis of everything that the units hold."""
    every = range(width.units)
    return {(cut.tensor, cut.axis, position) for cut in width.axis_slices for position in cut.positions(every)}


def _place(width: Found, owners: Mapping[str, str], taken: Set[str]) -> tuple[str, str] | None:
    """Return the group of a dimension and the dimension's name; None where its units are of no group.

    The group is that of the tables where one holds the units, else that of the first layer that outputs them, after
    which the dimension is named; heads and embedding dimensions are marked as such.
    """
    modules = [_module(tensor) for tensor, axis in width.places if axis == 0 and _module(tensor) in owners]
    on_tables = [_module(tensor) for tensor, _ in width.places if owners.get(_module(tensor)) == TABLES]
    if not modules and not on_tables:
        return None
    owner, name = TABLES if on_tables else owners[modules[0]], (modules or on_tables)[0]
    if on_tables:
        every = [module for module, group in owners.items() if group == TABLES]
        name = "embedding_dim" if len(set(on_tables)) == len(every) else f"{on_tables[0]}.dim"
    elif any(cut.size > 1 for cut in width.axis_slices):
        name = f"{name.rpartition('.')[0] or name}.heads"
    return owner, name if name not in taken else f"{name}.{sum(t.startswith(name) for t in taken)}"


def _table(verifier: Verifier, flow: Flow, name: str) -> Table:
    rows = tensors(verifier.model)[f"{name}.weight"].shape[0]
    # No form is offered for a smaller table.
    refused = verifier.trouble_with_forms(name) if rows >= SMALLEST else None
    return Table(name, rows, _inputs(verifier.model, name, flow), refused)


def _why_not(model: nn.Module, flow: Flow, name: str, modules: Sequence[str], good: _Good, refused: _Refused) -> str:
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
        reasons = map(flow.units.pinned, [] if units is None else units.tolist())
        if (pinned := next(filter(None, reasons), None)) is not None:
            return pinned
    return "none of its units can leave without all others"


def _inputs(model: nn.Module, table: str, flow: Flow) -> tuple[str, ...]:
    """Return the inputs whose values are all codes that the table looks up; ids packed into a matrix are none."""
    given = flow.program.inputs
    found: dict[str, None] = {}
    for lookup in (user for place in flow.places[names_of(model, f"{table}.weight")[0]] for user in place.users):
        codes = nearest(
            lookup.args[1:2],
            lambda n: n.op == "placeholder" and not n.meta["val"].is_floating_point(),
            lambda n: operator_name(n) in MOVES | {"constant_pad_nd", "stack"} and not _parts(n),
            lambda n: n.all_input_nodes,
        )
        found |= dict.fromkeys(given[code.name] for code in codes if code.name in given)
    return tuple(found)


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
