"""Document of a fleet, as fleet.json and `leanrec fleet --json` have it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from planning.virtual_fleet.comparison import Scenario
from planning.virtual_fleet.outcome import FleetOutcome
from spaces.domains import Scalar


@dataclass(frozen=True, kw_only=True)
class ScenarioRow(FleetOutcome):
    """A fleet as it is given, or with incidents left out.

    needed: fewest machines whose share of late requests is tolerated, None where they were not looked for, or not found
    needed_money: of them, for the whole time
    """

    scenario: str
    needed: int | None
    needed_money: float | None


@dataclass(frozen=True, kw_only=True)
class FleetDocument:
    """A fleet for a trace or a weekly profile.

    source: the trace, or the profile
    machines: by kind
    placement: knobs of the point that every machine serves
    rate_rps, peak_rps: of the traffic in the mean, and of its busiest phase
    capacity_rps: that saturates the fleet when nothing is wrong
    start_s: start of the traffic in seconds since the epoch, None where it is not known
    tolerated: share of late requests for which the fewest machines were looked for, None where they were not
    exact: every request was simulated
    distributions: groups and utilisations that were simulated
    """

    study: str
    trial: int
    source: str
    machines: Mapping[str, int]
    balancer: str
    placement: Mapping[str, Scalar]
    slo_ms: float
    percent: int
    rate_rps: float
    peak_rps: float
    capacity_rps: float
    phase_seconds: float
    start_s: float | None
    seed: int
    tolerated: float | None
    exact: bool
    distributions: int
    scenarios: tuple[ScenarioRow, ...]
    warnings: tuple[str, ...]


def scenario_row(found: Scenario) -> ScenarioRow:
    return ScenarioRow(scenario=found.name, needed=found.needed, needed_money=found.needed_money, **vars(found.outcome))
