"""Comparison of a fleet with the same one without a kind of incident, and the machines that each needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace

from planning.virtual_fleet.incidents import FleetSpec, Incidents
from planning.virtual_fleet.outcome import FleetOutcome

AS_GIVEN, NO_INCIDENTS = "as given", "without incidents"
_NAMES = {
    "failures": "without failures",
    "slow": "without slow machines",
    "deployments": "without deployments",
    "zones": "without zone outages",
}
# Machines of the largest fleet that is looked for, over those that are given.
_MOST_TIMES = 32
# From a fleet to its outcome for one demand, with the same random numbers for all.
Evaluate = Callable[[FleetSpec], FleetOutcome]


@dataclass(frozen=True)
class Scenario:
    """A fleet with a kind of incident left out, or all.

    needed: fewest machines with which the tolerated share is kept, None where they were not looked for or 32 times as
        many as given do not keep it
    needed_money: of them, for the whole time
    """

    name: str
    outcome: FleetOutcome
    needed: int | None = None
    needed_money: float | None = None


def left_out(spec: FleetSpec) -> Iterator[tuple[str, FleetSpec]]:
    """Yield the fleet as it is given, and with each kind of its incidents left out, and with all."""
    yield AS_GIVEN, spec
    present = [name for name in _NAMES if getattr(spec.incidents, name) is not None]
    for name in present:
        yield _NAMES[name], replace(spec, incidents=_without(spec.incidents, name))
    if len(present) > 1:
        yield NO_INCIDENTS, replace(spec, incidents=_without(spec.incidents, *present))


def _without(incidents: Incidents, *names: str) -> Incidents:
    kept = {each.name: getattr(incidents, each.name) for each in fields(incidents)}
    return Incidents(**(kept | dict.fromkeys(names)))


def scenarios(spec: FleetSpec, evaluate: Evaluate, tolerated: float | None) -> Iterator[Scenario]:
    """Yield the outcome of the fleet as it is given and without each kind of incident.

    Args:
        tolerated: share of late requests for which the fewest machines are looked for; None looks for none
    """
    for name, fleet in left_out(spec):
        outcome = evaluate(fleet)
        needed = None if tolerated is None else fewest_machines(fleet, evaluate, tolerated)
        hours = outcome.machine_hours / fleet.machines
        yield Scenario(name, outcome, needed, needed and fleet.resized(needed).price_per_hour * hours)


def fewest_machines(spec: FleetSpec, evaluate: Evaluate, tolerated: float) -> int | None:
    """Return the fewest machines with which at most the tolerated share of the requests is late.

    The fleet keeps its proportions, and its size is found by bisection. None where 32 times as many do not suffice.
    """
    low, high = 0, spec.machines
    while evaluate(spec.resized(high)).late > tolerated:
        if high >= _MOST_TIMES * spec.machines:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if evaluate(spec.resized(middle)).late <= tolerated else (middle, high)
    return high
