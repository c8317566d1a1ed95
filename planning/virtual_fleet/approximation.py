"""A fleet of any size and rate: in each of its states, requests have the stationary latency of a group of machines."""

from __future__ import annotations

import numpy as np

from planning.demand import Counts, Demand, Floats
from planning.observation import HOUR_SECONDS
from planning.virtual_fleet.dispatch import BLIND
from planning.virtual_fleet.incidents import FleetSpec
from planning.virtual_fleet.latency_shares import ENTRIES, REFUSED, SUM_MS, refused_shares
from planning.virtual_fleet.latency_table import LEVELS, Composition, LatencyTable, levels_of, mixtures
from planning.virtual_fleet.outcome import FleetOutcome, Pieces, outcome_of, pieces_of
from planning.virtual_fleet.timeline import FleetTimeline, fleet_timeline


def approximate(spec: FleetSpec, demand: Demand, table: LatencyTable, percent: int, seed: int) -> FleetOutcome:
    """Serve a demand by a fleet: its state follows its events exactly, and remembers no queues of the state before.

    Args:
        table: of this fleet, or of one that differs in the number of machines or in what goes wrong
        percent: of the SLO

    Raises:
        OutsideRangeError: a request has a size for which no time was measured.
    """
    timeline = fleet_timeline(spec, len(demand) * demand.phase_seconds, seed)
    pieces = pieces_of(timeline, demand)
    capacity = table.capacity_rps(pieces.states[:, 0], pieces.states[:, 1])
    served = _served(spec, table, pieces, capacity)
    _lose(spec, timeline, demand, table, served)
    return outcome_of(spec, pieces, capacity, served, percent)


def _served(spec: FleetSpec, table: LatencyTable, pieces: Pieces, capacity: Floats) -> Floats:
    """Return the distributions of the requests of each hour, (hours, ENTRIES), weighted by their number."""
    compositions, weights = _weights(spec, pieces, capacity)
    found = np.zeros((pieces.hours, ENTRIES))
    for composition, own in zip(compositions, weights, strict=True):
        for level in np.flatnonzero(own.any(axis=0)).tolist():
            found += own[:, level, None] * table.distribution(composition, level)
    requests = np.bincount(pieces.hour, weights=pieces.requests, minlength=pieces.hours)
    refused = np.maximum(requests - weights.sum(axis=(0, 2)), 0.0)
    return np.asarray(found + refused[:, None] * refused_shares(), np.float64)


def _weights(spec: FleetSpec, pieces: Pieces, capacity: Floats) -> tuple[list[Composition], Floats]:
    """Return groups, and the requests of each hour that each of them serves at each level, (groups, hours, levels)."""
    numbers: dict[Composition, int] = {}
    group = np.zeros((2, len(pieces.states)), np.int64)
    share = np.zeros((2, len(pieces.states)))
    for at in np.flatnonzero(capacity > 0).tolist():
        for slot, mixture in enumerate(mixtures(spec, *pieces.states[at])):
            group[slot, at] = numbers.setdefault(mixture.composition, len(numbers))
            share[slot, at] = mixture.weight
    of = pieces.state
    levels, parts = levels_of(pieces.rates_rps / np.where(capacity > 0, capacity, np.inf)[of])
    found = np.zeros((len(numbers), pieces.hours, len(LEVELS)))
    for slot in range(2):
        own = np.flatnonzero(share[slot, of] > 0)
        requests = share[slot, of] * pieces.requests
        for level, part in zip(levels, parts, strict=True):
            np.add.at(found, (group[slot, of[own]], pieces.hour[own], level[own]), (part * requests)[own])
    return list(numbers), found


def _lose(spec: FleetSpec, timeline: FleetTimeline, demand: Demand, table: LatencyTable, served: Floats) -> None:
    """Count the requests as refused that a failing machine had, or was sent before its failure was noticed.

    A policy that looks at what is outstanding sends a machine that answers nothing few more than it had.
    """
    hour, lost = _lost(spec, timeline, demand, table, served)
    requests = served[:, : REFUSED + 1].sum(axis=1)
    share = np.zeros(len(served))
    np.add.at(share, hour, lost / np.maximum(requests[hour], 1e-300))
    share = np.minimum(share, 1.0)[:, None]
    served *= 1 - share
    served += share * requests[:, None] * refused_shares()


def _lost(
    spec: FleetSpec, timeline: FleetTimeline, demand: Demand, table: LatencyTable, served: Floats
) -> tuple[Counts, Floats]:
    """Return the hour of each failure and the requests lost with it, (failures,) each."""
    hour = np.asarray(timeline.failed_s // HOUR_SECONDS, np.int64)
    phase = np.minimum((timeline.failed_s / demand.phase_seconds).astype(np.int64), len(demand) - 1)
    before = np.maximum(np.searchsorted(timeline.starts_s, timeline.failed_s) - 1, 0)
    capacity = table.capacity_rps(timeline.healthy[before], timeline.slow[before])
    own_capacity = table.saturated_rps * np.array(spec.instance_speeds)[timeline.failed_kinds]
    rate = demand.rates_rps[phase] * np.minimum(own_capacity / np.maximum(capacity, 1e-300), 1.0)
    mean_s = served[hour, SUM_MS] / np.maximum(served[hour, : REFUSED + 1].sum(axis=1), 1e-300) / 1e3
    outstanding, sent = rate * mean_s, rate * spec.incidents.detection_s
    if spec.policy not in BLIND:
        copies = np.array([offer.copies for offer in spec.offers])[timeline.failed_kinds]
        sent = np.minimum(sent, outstanding + copies)
    return hour, outstanding + sent
