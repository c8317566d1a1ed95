"""Fleets and demands that are given, for tests of virtual fleets."""

from __future__ import annotations

import numpy as np

from planning.capacity import Objective
from planning.demand import Demand, Floats
from planning.fleet import Deployment, MachineKind, Offer
from planning.virtual_fleet.incidents import FleetSpec, Incidents
from planning.virtual_fleet.latency_table import Composition, LatencyTable, levels_of
from tests.planning_tests.fleets import deployment, exponential_quantiles

HOUR = 3600.0
ROWS = np.array([100])
OBJECTIVE = Objective(50.0)
CALM = Incidents()


def exponential(ms: float = 10.0) -> Deployment:
    """A deployment of one replica whose runs take exponential times."""
    return deployment(ms, deviations=exponential_quantiles())


def fleet(
    *counts: int,
    policy: str = "two-choices",
    incidents: Incidents = CALM,
    speeds: tuple[float, ...] = (1.0, 1.0),
    spread: float = 0.0,
    copies: int = 1,
    ms: float = 10.0,
) -> FleetSpec:
    """A fleet of a machine of each speed, with so many of each."""
    one = exponential(ms)
    kinds = [MachineKind(f"kind {at}", copies, speed=speed) for at, speed in enumerate(speeds)]
    offers = tuple(Offer(one, kind, copies) for kind in kinds[: len(counts)])
    return FleetSpec(offers, counts, policy, spread, incidents)


def table_of(spec: FleetSpec, seed: int = 0) -> LatencyTable:
    return LatencyTable(spec, ROWS, OBJECTIVE, seed)


def distribution_at(table: LatencyTable, composition: Composition, utilisation: float) -> Floats:
    """Return the distribution of a group at a utilisation, between the levels that are simulated."""
    levels, weights = levels_of(np.array([utilisation]))
    parts = [table.distribution(composition, level) for level in levels[:, 0].tolist()]
    return np.average(parts, axis=0, weights=weights[:, 0])


def flat(rate_rps: float, hours: int = 1, phase_s: float = HOUR) -> Demand:
    """A demand of one rate."""
    phases = round(hours * HOUR / phase_s)
    return Demand(np.full(phases, rate_rps * phase_s), phase_s)
