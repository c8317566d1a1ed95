"""A placement on a virtual clock as a target of the load generator, and what it answers at a load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.arrivals import gaps
from objectives.measurement.latency import Load, measured_limit
from objectives.measurement.load_generator import Arrivals, Request, drawn_requests, on_time, typical_requests
from objectives.measurement.statistics import Floats, percentile
from objectives.records import SimulatedRatios, rows_of
from objectives.serving.pool.virtual_clock import simulate
from spaces.techniques.placement import Placement

# Requests of the first try to saturate a placement for as long as is asked.
_SATURATING = 1024
_MOST_SATURATING = 1 << 14
_CAPACITY_SECONDS = 0.1
# Requests of a simulated schedule, and those of them that bring it to steady state.
_LATENCY_REQUESTS, _RATE_REQUESTS = 3000, 1500
_WARM_UP = 300
# Halvings of the interval in which the rate under the SLO lies, and the share of the capacity where it ends.
_HALVINGS = 6
_HIGHEST = 0.97
_TYPICAL = 12
_SERVICE_REQUESTS = 200


@dataclass(frozen=True)
class VirtualTarget:
    """A placement whose runs take the times that its groups' service curves give.

    Args:
        services: for each instance group, the nanoseconds of a run by rows, the nanoseconds that the replica was idle
            (None for a busy one), and the number of other replicas that are busy
        outstanding: requests in flight that keep every replica busy
        transport_ms: of each request on its way to the pool and back; one request travels at a time
    """

    placement: Placement
    services: Sequence[Callable[[int, int | None, int], float]]
    outstanding: int
    transport_ms: float = 0.0

    @property
    def replicas(self) -> int:
        return self.placement.replicas

    def open_loop(self, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
        due_ns, travel_ns = np.cumsum(gaps_ns), np.full(len(gaps_ns), round(1e6 * self.transport_ms))
        submitted_ns = on_time(due_ns, travel_ns) + travel_ns
        found = simulate(self.placement, _sizes(requests), submitted_ns.tolist(), self._service)
        latency_ms = np.where(found.refused, np.inf, (found.finished_ns - due_ns) / 1e6)
        return Arrivals(latency_ms, np.zeros(len(due_ns)), 1.0)

    def closed_loop(self, requests: Sequence[Request]) -> Floats:
        found = simulate(self.placement, _sizes(requests), [0] * len(requests), self._service, outstanding=1)
        latency_ms = (found.finished_ns - found.submitted_ns) / 1e6 + self.transport_ms
        return np.where(found.refused, np.inf, latency_ms)

    def saturated(self, requests: Sequence[Request], seconds: float) -> float:
        sizes, count = _sizes(requests), _SATURATING
        while True:
            rows = [sizes[i % len(sizes)] for i in range(count)]
            found = simulate(self.placement, rows, [0] * count, self._service, self.outstanding)
            took = found.finished_ns.max() / 1e9
            if took >= seconds or count >= _MOST_SATURATING:
                rate = float((~found.refused).sum() / took)
                return min(rate, 1000 / self.transport_ms) if self.transport_ms > 0 else rate
            count *= 2

    def settle(self) -> None:
        """Return at once: nothing runs on in virtual time."""

    def _service(self, group: int, rows: int, idle_ns: int | None, busy: int) -> float:
        return self.services[group](rows, idle_ns, busy)


def _sizes(requests: Sequence[Request]) -> list[int]:
    return [rows_of(request) for request in requests]


@dataclass(frozen=True)
class SimulatedLoad:
    """The load of a study on virtual time: its rate is that share of what the baseline's replica serves, and its SLO
    the study's own or twice the baseline's percentile.

    requests: of the sizes of the study's
    """

    load: Load
    requests: Sequence[Request]
    seed: int
    rate_rps: float
    slo_ms: float
    baseline: SimulatedTimes

    @classmethod
    def of(cls, baseline: VirtualTarget, requests: Sequence[Request], load: Load, seed: int) -> SimulatedLoad:
        """Derive the rate and the SLO from the simulated baseline."""
        rate = load.share * 1000 / float(baseline.closed_loop(typical_requests(requests, _TYPICAL)).mean())
        latency = _latency(baseline, requests, load, rate, _LATENCY_REQUESTS, seed)
        slo = float(measured_limit(percentile(latency, load.percent), load.slo_ms, load.overhead_ms))
        return cls(load, requests, seed, rate, slo, _times(baseline, requests, load, rate, slo, seed))

    def ratios(self, candidate: VirtualTarget) -> SimulatedRatios:
        """Return what a placement answers over what the baseline does, by the same arrivals and requests.

        Raises:
            OutsideRangeError: a run has a size for which no time was measured.
        """
        ours = _times(candidate, self.requests, self.load, self.rate_rps, self.slo_ms, self.seed)
        theirs = self.baseline
        return SimulatedRatios(
            service_p50_ratio=ours.service_p50_ms / theirs.service_p50_ms,
            p50_ratio=_finite(ours.p50_ms / theirs.p50_ms),
            p95_ratio=_finite(ours.p95_ms / theirs.p95_ms),
            p99_ratio=_finite(ours.p99_ms / theirs.p99_ms),
            throughput_ratio=ours.rate_rps / theirs.rate_rps if theirs.rate_rps > 0 else None,
            capacity_ratio=ours.capacity_rps / theirs.capacity_rps,
        )


@dataclass(frozen=True)
class SimulatedTimes:
    """Latency in milliseconds at a load, and requests per second; infinite where requests are refused."""

    service_p50_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    rate_rps: float
    capacity_rps: float


def _times(
    target: VirtualTarget, requests: Sequence[Request], load: Load, rate_rps: float, slo_ms: float, seed: int
) -> SimulatedTimes:
    service = target.closed_loop(drawn_requests(requests, _SERVICE_REQUESTS, seed))
    capacity = target.saturated(drawn_requests(requests, _SATURATING, seed), _CAPACITY_SECONDS)
    latency = _latency(target, requests, load, rate_rps, _LATENCY_REQUESTS, seed)
    return SimulatedTimes(
        service_p50_ms=percentile(service, 50),
        p50_ms=percentile(latency, 50),
        p95_ms=percentile(latency, 95),
        p99_ms=percentile(latency, 99),
        rate_rps=_rate_under_slo(target, requests, load, slo_ms, capacity, seed),
        capacity_rps=capacity,
    )


def _rate_under_slo(
    target: VirtualTarget, requests: Sequence[Request], load: Load, slo_ms: float, capacity_rps: float, seed: int
) -> float:
    """Return the highest rate at which the percentile is within the SLO, by halving; 0 where none is found."""

    def keeps(rate: float) -> bool:
        latency = _latency(target, requests, load, rate, _RATE_REQUESTS, seed)
        return percentile(latency, load.percent) <= slo_ms

    low, high = 0.0, _HIGHEST * capacity_rps
    if high <= 0 or keeps(high):
        return high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def _latency(
    target: VirtualTarget, requests: Sequence[Request], load: Load, rate_rps: float, count: int, seed: int
) -> Floats:
    """Return the latency in milliseconds of requests in steady state, (count,)."""
    schedule = gaps(load.traffic, rate_rps, _WARM_UP + count, seed)
    chosen = drawn_requests(requests, _WARM_UP + count, seed)
    return target.open_loop(chosen, schedule).latency_ms[_WARM_UP:]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
