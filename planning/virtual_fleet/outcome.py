"""Outcome of a fleet for a demand, by the hour: what served, and the latency of the requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planning.demand import Counts, Demand, Floats
from planning.hours_of_week import HOUR_SECONDS
from planning.virtual_fleet.incidents import FleetSpec
from planning.virtual_fleet.latency_shares import LatencySummary, summary
from planning.virtual_fleet.timeline import FleetTimeline

# Utilisation from which the approximation errs most; the documentation tells by how much.
NEAR_SATURATION = 0.9


@dataclass(frozen=True, kw_only=True)
class FleetHour(LatencySummary):
    """Hour of an outcome, or the part of it that the demand has.

    in_rotation, slow, deploying: machines in the mean; slow ones are in rotation
    utilisation: mean over the requests of the rate over what saturates the machines in rotation, None where no request
        met a machine
    """

    start_s: float
    rate_rps: float
    in_rotation: float
    slow: float
    deploying: float
    utilisation: float | None


@dataclass(frozen=True, kw_only=True)
class FleetOutcome(LatencySummary):
    """The whole time.

    hours_missed: share of the hours with requests in which fewer than the SLO's per cent were in time
    in_rotation: share of the machines, in the mean
    near_saturation: share of the requests that arrived at a utilisation of 0.9 or more
    failures: of machines in rotation, by themselves or with their zone
    """

    hours_missed: float
    in_rotation: float
    near_saturation: float
    failures: int
    machine_hours: float
    money: float
    hours: tuple[FleetHour, ...]


@dataclass(frozen=True, eq=False)
class Pieces:
    """Spans in which neither the state of the fleet nor the rate changes, (n,) each; the last one ends at `end_s`.

    states: machines in rotation that are healthy, and that are slow, (states, 2, kinds)
    state: number of each span's state
    hour: number of the hour that a span lies in
    """

    start_s: Floats
    end_s: float
    rates_rps: Floats
    deploying: Counts
    state: Counts
    states: Counts
    failures: int

    @property
    def seconds(self) -> Floats:
        return np.diff(self.start_s, append=self.end_s)

    @property
    def requests(self) -> Floats:
        return self.rates_rps * self.seconds

    @property
    def hour(self) -> Counts:
        return np.asarray(self.start_s // HOUR_SECONDS, np.int64)

    @property
    def hours(self) -> int:
        return int(self.hour[-1]) + 1


def pieces_of(timeline: FleetTimeline, demand: Demand) -> Pieces:
    """Cut the time of a demand where the state of the fleet, the rate or the hour changes."""
    end_s = len(demand) * demand.phase_seconds
    phases = np.arange(len(demand)) * demand.phase_seconds
    starts = np.unique(np.concatenate([timeline.starts_s, np.arange(0.0, end_s, HOUR_SECONDS), phases]))
    segment = np.searchsorted(timeline.starts_s, starts, side="right") - 1
    rates = demand.rates_rps[np.searchsorted(phases, starts, side="right") - 1]
    states, state = np.unique(np.stack([timeline.healthy, timeline.slow], axis=1), axis=0, return_inverse=True)
    deploying = timeline.deploying[segment]
    return Pieces(starts, end_s, rates, deploying, state.reshape(-1)[segment], states, len(timeline.failed_s))


def outcome_of(spec: FleetSpec, pieces: Pieces, capacity_rps: Floats, served: Floats, percent: int) -> FleetOutcome:
    """Summarise what was served.

    Args:
        capacity_rps: (states,), rate that saturates the machines of each state
        served: (hours, ENTRIES), distributions of the latency of the requests of each hour, weighted by their number
        percent: of the SLO
    """
    capacity = capacity_rps[pieces.state]
    utilisation = pieces.rates_rps / np.where(capacity > 0, capacity, np.inf)
    hours = _hours(pieces, utilisation, capacity > 0, served)
    missed = [hour.late > 1 - percent / 100 for hour in hours if hour.requests > 0]
    near = pieces.requests[(utilisation >= NEAR_SATURATION) | (capacity <= 0)].sum()
    in_rotation = pieces.seconds @ pieces.states.sum(axis=(1, 2))[pieces.state] / pieces.end_s
    return FleetOutcome(
        **vars(summary(served.sum(axis=0))),
        hours_missed=float(np.mean(missed)) if missed else 0.0,
        in_rotation=float(in_rotation) / spec.machines,
        near_saturation=float(near) / max(float(pieces.requests.sum()), 1e-300),
        failures=pieces.failures,
        machine_hours=spec.machines * pieces.end_s / 3600,
        money=spec.price_per_hour * pieces.end_s / 3600,
        hours=hours,
    )


def _hours(pieces: Pieces, utilisation: Floats, up: NDArray[np.bool_], served: Floats) -> tuple[FleetHour, ...]:
    def summed(values: Floats) -> Floats:
        return np.asarray(np.bincount(pieces.hour, weights=values, minlength=len(served)), np.float64)

    seconds, requests, met = summed(pieces.seconds), summed(pieces.requests), summed(pieces.requests * up)
    machines = pieces.states.sum(axis=2)[pieces.state]
    in_rotation, slow, deploying = (
        summed(pieces.seconds * each) / seconds for each in (machines.sum(axis=1), machines[:, 1], pieces.deploying)
    )
    used = summed(pieces.requests * utilisation) / np.maximum(met, 1e-300)
    return tuple(
        FleetHour(
            **vars(summary(served[hour])),
            start_s=hour * HOUR_SECONDS,
            rate_rps=float(requests[hour] / seconds[hour]),
            in_rotation=float(in_rotation[hour]),
            slow=float(slow[hour]),
            deploying=float(deploying[hour]),
            utilisation=float(used[hour]) if met[hour] > 0 else None,
        )
        for hour in range(len(served))
    )
