"""Assignment of each executed step to a layer group.

A step that reads weights belongs to their group. A step without weights belongs to the last weights before it: those
that reach it past no other weights, and that none of the others follows. In x0 * (W x + b) that is W, not the tables
that x0 was looked up in. Where the last weights are of several groups (two towers joined) it belongs to `other`, and so
do layers that are in no group. A step that has no weights before it, or that narrows numbers for an int8 product,
belongs to the group of the steps that read its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from objectives.measurement.profile.model_steps import Graph, Step
from spaces.model_structure import Group

OTHER = "other"
# The exporter names a weight by the module's parameter after this prefix.
PREFIX = "model."
_NARROWING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})


def weight_owners(graph: Graph, groups: Sequence[Group], folded: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the group of each stored weight and of every value computed from stored weights alone.

    `other` is the owner of a matrix in no group. A vector in no group (a norm's scale, a shape) has no owner: it
    belongs to the group of its step.

    Args:
        folded: owners of values that an optimiser may have turned into weights
    """
    modules = {f"{PREFIX}{module}.": group.name for group in groups for module in group.modules}
    owners: dict[str, str] = {}
    for name, value in graph.weights.items():
        if owner := _owner(name, len(value.shape), modules) or _renamed(name, folded or {}):
            owners[name] = owner
    constant = set(graph.weights)
    for step in graph.steps:
        if step.reads and constant.issuperset(step.reads):
            constant.update(step.puts)
            if found := {owners[name] for name in step.reads if name in owners}:
                owners |= dict.fromkeys(step.puts, _only(found))
    return owners


def assign(optimised: Graph, original: Graph, groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the group of each step of the optimised graph, in its order, by the rule in the module's docstring.

    Args:
        original: the graph before optimisation. A weight that was folded there (transposed, say) is named after a value
            of this graph.
    """
    owners = weight_owners(optimised, groups, weight_owners(original, groups))
    return _by_readers(optimised.steps, _by_last_weights(optimised.steps, owners))


def _by_last_weights(steps: Sequence[Step], owners: Mapping[str, str]) -> list[str | None]:
    """Assign each step to the group of the last weights before it; None where there are none."""
    maker = {name: place for place, step in enumerate(steps) for name in step.puts}
    before: list[int] = []  # bits: the steps with weights that come before each step
    last: list[frozenset[int]] = []
    found: list[str | None] = []
    for place, step in enumerate(steps):
        sources = [maker[name] for name in step.reads if name in maker]
        reaching = frozenset().union(*(last[s] for s in sources))
        before.append(_union(before[s] for s in sources) | _union(1 << s for s in reaching))
        own = {owners[name] for name in step.reads if name in owners}
        passed = _union(before[s] for s in reaching)
        last.append(frozenset({place}) if own else frozenset(s for s in reaching if not passed >> s & 1))
        found.append(_only(own or {found[s] or OTHER for s in last[place]}) if last[place] else None)
    return found


def _by_readers(steps: Sequence[Step], found: Sequence[str | None]) -> tuple[str, ...]:
    readers: dict[str, list[int]] = {}
    for place, step in enumerate(steps):
        for name in step.reads:
            readers.setdefault(name, []).append(place)
    result: list[str] = [group or OTHER for group in found]
    for place in reversed(range(len(steps))):
        if found[place] is None or steps[place].operator in _NARROWING:
            result[place] = _only({result[r] for name in steps[place].puts for r in readers.get(name, [])})
    return tuple(result)


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


def _union(bits: Iterable[int]) -> int:
    result = 0
    for each in bits:
        result |= each
    return result
