"""Assignment of each executed step to a layer group.

A step that reads weights belongs to their group. A step without weights belongs to the last weights before it: those
that reach it past no other weights, and that none of the others follows. In x0 * (W x + b) that is W, not the tables
that x0 was looked up in. Where the last weights are of several groups (two towers joined) it belongs to `other`, and so
do layers that are in no group. A step that has no weights before it, or that narrows numbers for an int8 product,
belongs to the group of the steps that read its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from spaces.model_structure import Group

if TYPE_CHECKING:
    import onnx_ir as ir

OTHER = "other"
# The exporter names a weight by the module's parameter after this prefix.
PREFIX = "model."
_NARROWING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})


def weight_owners(graph: ir.Graph, groups: Sequence[Group], folded: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the group of each stored weight and of every value computed from stored weights alone.

    `other` is the owner of a matrix in no group. A vector in no group (a norm's scale, a shape) has no owner: it
    belongs to the group of its step.

    Args:
        folded: owners of values that an optimiser may have turned into weights
    """
    modules = {f"{PREFIX}{module}.": group.name for group in groups for module in group.modules}
    owners: dict[str, str] = {}
    for name, value in graph.initializers.items():
        if owner := _owner(name, len(value.shape or ()), modules) or _renamed(name, folded or {}):
            owners[name] = owner
    constant: set[ir.Value | None] = {None, *graph.initializers.values()}
    for node in graph:
        if node.inputs and constant.issuperset(node.inputs):
            constant.update(node.outputs)
            if found := _owners_of(node, owners):
                owners |= {value.name: _only(found) for value in node.outputs if value.name}
    return owners


def assign(optimised: ir.Graph, original: ir.Graph, groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the group of each step of the optimised graph, in order, by the rule in the module's docstring.

    A weight that was folded there (transposed, say) is named after a value of `original`, the graph before.
    """
    owners = weight_owners(optimised, groups, weight_owners(original, groups))
    return _by_readers(optimised, _by_last_weights(optimised, owners))


def _by_last_weights(graph: ir.Graph, owners: Mapping[str, str]) -> dict[ir.Node, str | None]:
    """Assign each step to the group of the last weights before it; None where there are none."""
    before: dict[ir.Node, frozenset[ir.Node]] = {}  # the steps with weights that come before each step
    last: dict[ir.Node, frozenset[ir.Node]] = {}
    found: dict[ir.Node, str | None] = {}
    for step in graph:
        sources = step.predecessors()
        reaching = frozenset().union(*(last[source] for source in sources))
        before[step] = reaching.union(*(before[source] for source in sources))
        own = _owners_of(step, owners)
        last[step] = frozenset({step}) if own else reaching.difference(*(before[other] for other in reaching))
        found[step] = _only(own or {found[other] or OTHER for other in last[step]}) if last[step] else None
    return found


def _by_readers(graph: ir.Graph, found: Mapping[ir.Node, str | None]) -> tuple[str, ...]:
    result = {step: group or OTHER for step, group in found.items()}
    for step in reversed(graph):
        if found[step] is None or step.op_type in _NARROWING:
            result[step] = _only(result[reader] for reader in step.successors())
    return tuple(result.values())


def _owners_of(step: ir.Node, owners: Mapping[str, str]) -> set[str]:
    """Return the groups of the weights that a step reads."""
    names = [value.name or "" for value in step.inputs if value is not None]
    return {owners[name] for name in names if name in owners}


def _owner(name: str, rank: int, modules: Mapping[str, str]) -> str | None:
    """Return the group of a weight; with nested modules the innermost counts."""
    holders = [prefix for prefix in modules if name.startswith(prefix)]
    if holders:
        return modules[max(holders, key=len)]
    return OTHER if name.startswith(PREFIX) and rank > 1 else None


def _renamed(name: str, known: Mapping[str, str]) -> str | None:
    """Return the owner of a weight that an optimiser changed, which keeps its name as a prefix."""
    origins = [o for o in known if name.startswith(o) and not name[len(o) : len(o) + 1].isalnum()]
    return known[max(origins, key=len)] if origins else None


def _only(groups: Iterable[str]) -> str:
    several = set(groups)
    return several.pop() if len(several) == 1 else OTHER
