"""Which layer group each executed step belongs to.

A step that reads weights belongs to their group. One without weights belongs with the last weights before it: those
that reach it past no other weights, and that none of the others comes after. In x0 * (W x + b) that is W, not the
tables that x0 was looked up in. Where the last weights are of several groups (two towers joined) it belongs to `other`,
and so do layers that are in no group. A step that has no weights before it, or that narrows numbers for an int8
product, belongs with those that read its result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from objectives.measurement.profile.model_steps import Graph, Step
from spaces.model_structure import Group

OTHER = "other"
# The exporter names a weight after the module's parameter behind this.
PREFIX = "model."
_NARROWING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})


def weight_owners(graph: Graph, groups: Sequence[Group], folded: Mapping[str, str] | None = None) -> dict[str, str]:
    """The group of each stored weight and of whatever is computed from stored weights alone.

    `other` is the owner of a matrix in no group. A vector in no group (a norm's scale, a shape) has no owner: it goes
    where its step goes.

    Args:
        folded: owners of values that an optimiser may have made weights of
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
    """The group of each step of the graph that runs, in its order; the rule stands above.

    Args:
        original: the graph before optimisation. A weight that was folded there (transposed, say) is named after a value
            of this graph.
    """
    owners = weight_owners(optimised, groups, weight_owners(original, groups))
    return _by_readers(optimised.steps, _by_last_weights(optimised.steps, owners))


def _by_last_weights(steps: Sequence[Step], owners: Mapping[str, str]) -> list[str | None]:
    """None where no weights come before a step."""
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
    """Of nested modules the innermost counts."""
    holders = [prefix for prefix in modules if name.startswith(prefix)]
    if holders:
        return modules[max(holders, key=len)]
    return OTHER if name.startswith(PREFIX) and rank > 1 else None


def _renamed(name: str, known: Mapping[str, str]) -> str | None:
    """An optimiser that changes a weight keeps its name or adds to it."""
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
