"""A fleet of any size and rate: in each of its states, requests have the stationary latency of a group of machines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from planning.capacity import Objective
from planning.demand import Counts, Demand, Floats
from planning.hours_of_week import HOUR_SECONDS
from planning.virtual_fleet.backlog import BacklogSpan, backlog_of
from planning.virtual_fleet.dispatch import BLIND
from planning.virtual_fleet.incidents import FleetSpec
from planning.virtual_fleet.latency_shares import REFUSED, SUM_MS, quantiles, refused_shares, shares
from planning.virtual_fleet.latency_table import LEVELS, Composition, LatencyTable, Mixture, levels_of, mixtures
from planning.virtual_fleet.outcome import NEAR_SATURATION, FleetOutcome, Pieces, outcome_of, pieces_of
from planning.virtual_fleet.timeline import FleetTimeline, fleet_timeline

# Quantiles of a latency, and of the waits of a span, of which a backlog's latencies are made.
_QUANTILES, _WAITS = 40, 10


def approximate(spec: FleetSpec, demand: Demand, table: LatencyTable, objective: Objective, seed: int) -> FleetOutcome:
    """Return the approximate outcome of a fleet that serves a demand.

    The state of the fleet follows its events exactly, and requests have the latency of the steady state. While more
    arrive than can be answered, and until that is made up for, they wait for the backlog (fluid limit).

    Args:
        table: of this fleet, or of one that differs in the number of machines or in what goes wrong

    Raises:
        OutsideRangeError: a request has a size for which no time was measured.
    """
    timeline = fleet_timeline(spec, len(demand) * demand.phase_seconds, seed)
    pieces = pieces_of(timeline, demand)
    capacity = table.capacity_rps(pieces.states[:, 0], pieces.states[:, 1])
    served = _served(spec, table, pieces, capacity, objective)
    _lose(spec, timeline, demand, table, served)
    return outcome_of(spec, pieces, capacity, served, objective.percent)


def _served(spec: FleetSpec, table: LatencyTable, pieces: Pieces, capacity: Floats, objective: Objective) -> Floats:
    """Return the distributions of the requests of each hour, (hours, ENTRIES), weighted by their number."""
    room = table.room(pieces.states[:, 0], pieces.states[:, 1])[pieces.state]
    backlog = backlog_of(pieces.rates_rps, pieces.seconds, capacity[pieces.state], room)
    groups = [mixtures(spec, *state) if can > 0 else () for state, can in zip(pieces.states, capacity, strict=True)]
    utilisation = pieces.rates_rps / np.where(capacity > 0, capacity, np.inf)[pieces.state]
    refused = np.bincount(pieces.hour, weights=backlog.refused, minlength=pieces.hours)
    found = np.asarray(refused[:, None] * refused_shares(), np.float64)
    utilisation = _relaxed(utilisation, pieces.seconds, 1 / table.saturated_rps)
    for composition, weights in _weights(pieces, groups, utilisation, backlog.calm):
        for level in np.flatnonzero(weights.any(axis=0)).tolist():
            found += weights[:, level, None] * table.distribution(composition, level)
    waits = _Waits(table, groups, objective.slo_ms)
    for span in backlog.spans:
        state, used = int(pieces.state[span.piece]), float(utilisation[span.piece])
        found[pieces.hour[span.piece]] += span.requests * waits.shares(state, used, span)
    return found


def _relaxed(utilisation: Floats, seconds: Floats, service_s: float) -> Floats:
    """Return the utilisations whose steady state is reached, (n,).

    Near saturation a queue needs about a service time over (1 - utilisation)^2 to reach it (Kleinrock 1976, 2.2), and a
    fleet may be near saturation for a shorter while.
    """
    near = utilisation > NEAR_SATURATION
    run = np.cumsum(np.diff(near, prepend=near[:1]))
    lasted_s = np.bincount(run, weights=seconds)[run]
    most = np.maximum(1 - np.sqrt(service_s / np.maximum(lasted_s, service_s)), NEAR_SATURATION)
    return np.where(near, np.minimum(utilisation, most), utilisation)


def _weights(
    pieces: Pieces, groups: Sequence[tuple[Mixture, ...]], utilisation: Floats, requests: Floats
) -> Iterator[tuple[Composition, Floats]]:
    """Yield each group with the requests of each hour that it serves at each level, (hours, levels).

    Args:
        groups: (states,), groups that stand for each state
        utilisation, requests: (n,), of each piece
    """
    numbers: dict[Composition, int] = {}
    group, share = np.zeros((2, len(groups)), np.int64), np.zeros((2, len(groups)))
    for at, mixed in enumerate(groups):
        for slot, mixture in enumerate(mixed):
            group[slot, at] = numbers.setdefault(mixture.composition, len(numbers))
            share[slot, at] = mixture.weight
    levels, parts = levels_of(utilisation)
    found = np.zeros((len(numbers), pieces.hours, len(LEVELS)))
    for slot in range(2):
        of, weight = group[slot, pieces.state], share[slot, pieces.state] * requests
        own = np.flatnonzero(weight > 0)
        for level, part in zip(levels, parts, strict=True):
            np.add.at(found, (of[own], pieces.hour[own], level[own]), (part * weight)[own])
    yield from zip(numbers, found, strict=True)


class _Waits:
    """Distributions of the latency of requests that find a backlog.

    The latency is the wait and a service, or that of the steady state at the utilisation where it is longer, quantile
    by quantile.
    """

    def __init__(self, table: LatencyTable, groups: Sequence[tuple[Mixture, ...]], slo_ms: float) -> None:
        self._table, self._groups, self._slo_ms = table, groups, slo_ms
        self._known: dict[tuple[int, int], Floats] = {}

    def shares(self, state: int, utilisation: float, span: BacklogSpan) -> Floats:
        """Return the distribution of the requests of a span, (ENTRIES,)."""
        level = int(levels_of(np.array([utilisation]))[0][1, 0])
        steady, service = self._quantiles(state, level), self._quantiles(state, 0)
        middles = (np.arange(_WAITS) + 0.5) / _WAITS
        waits_ms = 1e3 * (span.first_s + middles * (span.last_s - span.first_s))
        return shares(np.maximum(steady, waits_ms[:, None] + service).ravel(), self._slo_ms)

    def _quantiles(self, state: int, level: int) -> Floats:
        key = state, level
        if key not in self._known:
            mixed = sum(each.weight * self._table.distribution(each.composition, level) for each in self._groups[state])
            self._known[key] = quantiles(np.asarray(mixed), _QUANTILES)
        return self._known[key]


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
