"""A small fleet, request by request: every machine, every event and every queue on the virtual clock."""

from __future__ import annotations

import numpy as np

from planning.capacity import Objective
from planning.demand import Counts, Demand, Floats
from planning.hours_of_week import HOUR_SECONDS
from planning.virtual_fleet.dispatch import POLICIES, Instance, VirtualFleet, simulate_fleet
from planning.virtual_fleet.incidents import FleetSpec, speeds
from planning.virtual_fleet.latency_shares import ENTRIES, shares
from planning.virtual_fleet.latency_table import LatencyTable
from planning.virtual_fleet.outcome import FleetOutcome, outcome_of, pieces_of
from planning.virtual_fleet.timeline import fleet_timeline, machine_events


def exact(
    spec: FleetSpec, demand: Demand, rows: Counts, table: LatencyTable, objective: Objective, seed: int
) -> FleetOutcome:
    """Serve every request of a demand, which arrive as a Poisson process at the rate of each phase.

    Args:
        rows: (n,) rows of requests, which are drawn from them
        table: that tells what saturates a state; nothing is simulated for it

    Raises:
        OutsideRangeError: a request has a size for which no time was measured.
    """
    end_s = len(demand) * demand.phase_seconds
    seconds, sizes = _arrivals(demand, rows, seed)
    fleet = VirtualFleet(spec.offers[0].deployment, _instances(spec, seed), POLICIES[spec.policy], seed)
    events, detection_s = machine_events(spec, end_s, seed), spec.incidents.detection_s
    latency = simulate_fleet(fleet, seconds, sizes, events, spec.slow_speed, detection_s)
    pieces = pieces_of(fleet_timeline(spec, end_s, seed), demand)
    served = np.zeros((pieces.hours, ENTRIES))
    hour = np.asarray(seconds // HOUR_SECONDS, np.int64)
    for at in np.unique(hour).tolist():
        own = latency[hour == at]
        served[at] = len(own) * shares(own, objective.slo_ms)
    capacity = table.capacity_rps(pieces.states[:, 0], pieces.states[:, 1])
    return outcome_of(spec, pieces, capacity, served, objective.percent)


def _arrivals(demand: Demand, rows: Counts, seed: int) -> tuple[Floats, Counts]:
    random = np.random.default_rng(seed)
    counts = random.poisson(demand.counts)
    phase = np.repeat(np.arange(len(demand)), counts)
    seconds = np.sort(demand.phase_seconds * (phase + random.random(len(phase))))
    return np.asarray(seconds, np.float64), random.choice(rows, len(seconds))


def _instances(spec: FleetSpec, seed: int) -> list[Instance]:
    """Return the instances; speeds are dealt to the machines of a kind at random."""
    random, found, machine = np.random.default_rng(seed), list[Instance](), 0
    for offer, count in zip(spec.offers, spec.counts, strict=True):
        for speed in (offer.kind.speed * random.permutation(speeds(count, spec.spread))).tolist():
            found += [Instance(machine, speed, offer.kind.speed)] * offer.copies
            machine += 1
    return found
