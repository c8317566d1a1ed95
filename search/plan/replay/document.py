"""Document of a replay, as replay.json and `leanrec replay --json` have it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from objectives.measurement.statistics import percentile
from objectives.serving.control.options import Option
from planning.demand import Floats
from planning.elastic import MachineOutcome, Served

# Intervals of a timeline.
_INTERVALS = 120


@dataclass(frozen=True, kw_only=True)
class ReplayInterval:
    """Record of a machine in an interval.

    start_s: of the compressed time
    option, replicas, loss: of what served at its end
    capacity_rps: of the same on one machine of the fleet, in the plan's phase at the interval's start
    late: share of its requests that were refused or answered after the SLO, None where none arrived
    p95_ms: None where it lies among the refused, or none arrived
    """

    start_s: float
    rate_rps: float
    option: str
    replicas: int
    loss: float
    capacity_rps: float
    late: float | None
    p95_ms: float | None


@dataclass(frozen=True, kw_only=True)
class ReplayDecision:
    """A decision for another option, in seconds of the compressed time."""

    second: float
    option: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class ReplayRow(MachineOutcome):
    """A policy on the virtual clock, or on a server.

    transport_ms: median of what is added to the simulated requests at the machine's usual speed, where a server was at
        hand: what requests took there beyond their simulated times
    """

    policy: str
    clock: str
    transport_ms: float
    decisions: tuple[ReplayDecision, ...]
    intervals: tuple[ReplayInterval, ...]


@dataclass(frozen=True, kw_only=True)
class ReplayDocument:
    """Replay of a trace on one machine of a plan.

    speed: how many times faster than the trace
    seconds: of the compressed time
    windows: stable, panic and tick in seconds of the compressed time
    """

    study: str
    trace: str
    plan: str
    machine: str
    speed: float
    seed: int
    slo_ms: float
    percent: int
    requests: int
    seconds: float
    windows: tuple[float, float, float]
    rows: tuple[ReplayRow, ...]


def intervals_of(
    served: Served,
    seconds: Floats,
    options: Sequence[Option],
    end_s: float,
    slo_ms: float,
    capacity_factor: Callable[[float], float],
) -> tuple[ReplayInterval, ...]:
    """Return what was served in equal intervals.

    Args:
        seconds: (n,) ascending arrival times
        capacity_factor: factor by which the capacity of the machine exceeds that alone at a second
    """
    edges = np.linspace(0.0, end_s, _INTERVALS + 1)
    places = [*np.searchsorted(seconds, edges[:-1]).tolist(), len(seconds)]
    starts = np.array([segment.start_s for segment in served.segments])
    at = np.maximum(np.searchsorted(starts, edges[1:], side="left") - 1, 0)
    found = []
    for number in range(_INTERVALS):
        part = served.latency_ms[places[number] : places[number + 1]]
        option = options[served.segments[at[number]].option]
        p95 = percentile(part, 95) if len(part) else np.inf
        found.append(
            ReplayInterval(
                start_s=float(edges[number]),
                rate_rps=len(part) / float(edges[number + 1] - edges[number]),
                option=option.name,
                replicas=option.placement.replicas,
                loss=option.loss,
                capacity_rps=capacity_factor(float(edges[number])) * option.capacity_rps,
                late=float((part > slo_ms).mean()) if len(part) else None,
                p95_ms=p95 if np.isfinite(p95) else None,
            )
        )
    return tuple(found)
