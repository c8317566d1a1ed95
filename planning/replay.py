"""Replay of arrivals on a fleet whose machines change over time, on the virtual clock of the pool that serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planning.capacity import Objective, latency_ms, service_of
from planning.demand import Counts, Floats
from planning.fleet import Offer, Trajectory


@dataclass(frozen=True, eq=False)
class Arrivals:
    """Requests to be served, in phases of which the whole or a window was drawn.

    seconds: (n,) ascending, from 0
    rows: (n,) 1 or more
    weights: (n,) requests that each stands for, 1 where all were drawn
    end_s: seconds of the whole time
    """

    seconds: Floats
    rows: Counts
    weights: Floats
    end_s: float


@dataclass(frozen=True)
class PhaseResult:
    """Requests served in one phase.

    late: share of the requests that were refused or answered after the SLO, None where none arrived
    p95_ms: None where it lies among the refused, or none arrived
    """

    start_s: float
    rate_rps: float
    offer: int
    machines: float
    late: float | None
    p95_ms: float | None


@dataclass(frozen=True)
class Outcome:
    """Outcome of a trajectory of machines for given arrivals.

    late: share of all requests that were refused or answered after the SLO
    refused: share of all requests
    phases_missed: share of the phases in which fewer requests than the SLO's per cent were in time
    loss: mean quality loss of the requests
    machine_seconds, replica_seconds: with those in which machines start
    requests: that arrived
    simulated: those of them on the virtual clock
    """

    late: float
    refused: float
    phases_missed: float
    loss: float
    p95_ms: float | None
    machine_seconds: float
    replica_seconds: float
    money: float
    starts: int
    requests: float
    simulated: int
    phases: tuple[PhaseResult, ...]


def windows(seconds: Floats, rows: Counts, phase_seconds: float, end_s: float, most: int, seed: int) -> Arrivals:
    """Draw at most about `most` of the requests, as a window of each phase.

    The windows have the same length in all phases, at places that the seed chooses. All requests are taken where they
    are no more than `most`.

    A window's requests stand for those of its phase. A phase whose window is empty is represented by its first request.
    Queues are empty where a window begins.
    """
    share = min(1.0, most / max(len(seconds), 1))
    phase = (seconds / phase_seconds).astype(np.int64)
    if share == 1.0:
        return Arrivals(seconds, rows, np.ones(len(seconds)), end_s)
    starts = np.random.default_rng(seed).uniform(0, 1 - share, int(phase.max()) + 1)
    within = seconds / phase_seconds - phase
    taken = (within >= starts[phase]) & (within < starts[phase] + share)
    every = np.bincount(phase)
    lacking = (every > 0) & (np.bincount(phase[taken], minlength=len(every)) == 0)
    taken[np.searchsorted(phase, np.flatnonzero(lacking))] = True
    drawn = np.bincount(phase[taken], minlength=len(every))
    weights = every[phase[taken]] / drawn[phase[taken]]
    return Arrivals(seconds[taken], rows[taken], weights.astype(np.float64), end_s)


def replay(
    offers: Sequence[Offer],
    trajectory: Trajectory,
    arrivals: Arrivals,
    phase_seconds: float,
    objective: Objective,
    seed: int,
) -> Outcome:
    """Serve arrivals by the machines of a trajectory.

    Requests are dealt in turn to all instances that serve at their time. An instance that ends answers what it has; one
    that comes back begins where it ended.

    Raises:
        OutsideRangeError: a request has a size for which no time was measured.
    """
    segment = np.searchsorted(trajectory.starts_s, arrivals.seconds, side="right") - 1
    offer = trajectory.offers[segment]
    copies = np.array([each.copies for each in offers])
    instance = np.arange(len(segment)) % (trajectory.machines[segment] * copies[offer])
    latency = np.zeros(len(segment))
    for number in np.unique(offer):
        deployment, speed = offers[number].deployment, offers[number].kind.speed
        for which in np.unique(instance[offer == number]):
            at = np.flatnonzero((offer == number) & (instance == which))
            service = service_of(deployment, speed, seed + int(which))
            latency[at] = latency_ms(deployment, service, arrivals.seconds[at], arrivals.rows[at])
    return _outcome(offers, trajectory, arrivals, latency, offer, phase_seconds, objective)


def _outcome(
    offers: Sequence[Offer],
    trajectory: Trajectory,
    arrivals: Arrivals,
    latency: Floats,
    offer: NDArray[np.int64],
    phase_seconds: float,
    objective: Objective,
) -> Outcome:
    weights = arrivals.weights
    late = latency > objective.slo_ms
    total = max(float(weights.sum()), 1e-300)
    losses = np.array([each.loss for each in offers])
    machine_s, replica_s, money, starts = _paid(offers, trajectory, arrivals.end_s)
    phases = _phases(trajectory, arrivals, latency, phase_seconds, objective)
    busy = [phase.late for phase in phases if phase.late is not None]
    allowed = 1 - objective.percent / 100
    return Outcome(
        late=float(weights[late].sum()) / total,
        refused=float(weights[np.isinf(latency)].sum()) / total,
        phases_missed=float(np.mean(np.array(busy) > allowed)) if busy else 0.0,
        loss=float((weights * losses[offer]).sum()) / total,
        p95_ms=_percentile(latency, weights, 95.0),
        machine_seconds=machine_s,
        replica_seconds=replica_s,
        money=money,
        starts=starts,
        requests=float(weights.sum()),
        simulated=len(latency),
        phases=phases,
    )


def _paid(offers: Sequence[Offer], trajectory: Trajectory, end_s: float) -> tuple[float, float, float, int]:
    """Return seconds of machines, seconds of replicas, money and starts."""
    seconds = np.diff(trajectory.starts_s, append=end_s) * trajectory.machines
    started = trajectory.started()
    waited = np.array([each.start_seconds for each in offers])[trajectory.offers] * started
    paid = seconds + waited
    replicas = np.array([each.replicas for each in offers])[trajectory.offers]
    prices = np.array([each.kind.price_per_hour for each in offers])[trajectory.offers]
    return float(paid.sum()), float((paid * replicas).sum()), float((paid * prices).sum()) / 3600, int(started.sum())


def _phases(
    trajectory: Trajectory, arrivals: Arrivals, latency: Floats, phase_seconds: float, objective: Objective
) -> tuple[PhaseResult, ...]:
    count = max(1, round(arrivals.end_s / phase_seconds))
    edges = np.linspace(0.0, count * phase_seconds, count + 1)
    places = np.searchsorted(arrivals.seconds, edges)
    mean = _mean_machines(trajectory, edges)
    at = np.searchsorted(trajectory.starts_s, edges[:-1], side="right") - 1
    found = []
    for number in range(count):
        part = slice(places[number], places[number + 1])
        weights, taken = arrivals.weights[part], latency[part]
        total = float(weights.sum())
        late = float(weights[taken > objective.slo_ms].sum()) / total if total else None
        p95 = _percentile(taken, weights, 95.0)
        offer = int(trajectory.offers[at[number]])
        found.append(PhaseResult(float(edges[number]), total / phase_seconds, offer, float(mean[number]), late, p95))
    return tuple(found)


def _mean_machines(trajectory: Trajectory, edges: Floats) -> Floats:
    """Return the mean number of machines between edges, (edges - 1,)."""
    area = np.concatenate([[0.0], np.cumsum(np.diff(trajectory.starts_s) * trajectory.machines[:-1])])
    at = np.searchsorted(trajectory.starts_s, edges, side="right") - 1
    until = area[at] + (edges - trajectory.starts_s[at]) * trajectory.machines[at]
    return np.asarray(np.diff(until) / np.diff(edges), np.float64)


def _percentile(latency: Floats, weights: Floats, percent: float) -> float | None:
    """Return the smallest latency that so many per cent of the weight do not exceed, None if that is infinite."""
    if not len(latency):
        return None
    order = np.argsort(latency)
    share = np.cumsum(weights[order])
    at = int(np.searchsorted(share, percent / 100 * share[-1] * (1 - 1e-12)))
    value = float(latency[order[min(at, len(order) - 1)]])
    return value if np.isfinite(value) else None
