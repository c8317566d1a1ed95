"""A placement on a virtual clock as a target of the load generator, and what it answers at a load."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.arrivals import gaps
from objectives.measurement.latency import Load, measured_limit
from objectives.measurement.load_generator import Arrivals, Request, drawn_requests, on_time, typical_requests
from objectives.measurement.service_curve import DrawnTimes, ServiceCurve
from objectives.measurement.statistics import Floats, fewest_samples, percentile
from objectives.measurement.throughput import SEGMENTS, Probe, RateSearch, next_rate, rate_under_slo
from objectives.records import SimulatedRatios, rows_of
from objectives.serving.pool.virtual_clock import simulate
from objectives.serving.pool.virtual_pool import ServiceTime
from spaces.techniques.placement import Placement

# Requests of the first try to saturate a placement for as long as is asked.
_SATURATING = 512
_MOST_SATURATING = 1 << 14
# A second try is longer than the first one makes it seem necessary.
_LONGER = 1.1
# Requests of a simulated schedule at the study's rate and, at least, at another one, of which so many lie above the
# percentile of the SLO; and those that bring a schedule to steady state. Another seed moves the ratios of small models
# by 9%, all of them alike, since they have the same arrivals and requests: those of two placements to each other by 3%.
_LATENCY_REQUESTS, _RATE_REQUESTS, _RATE_TAIL = 2000, 800, 40
_WARM_UP = 200
# Rates that are tried at most for the one under the SLO, besides that of the study; one that is so close to another, as
# a share, is not.
_PROBES, _CLOSE = 3, 0.02
# Typical requests, and the times that each is sent for the rate of the load: their times are drawn, and on two threads
# single ones differ by half.
_TYPICAL, _PASSES = 12, 50
_SERVICE_REQUESTS = 200


@dataclass(frozen=True)
class VirtualTarget:
    """A placement whose runs take the times that its groups' service curves give.

    Args:
        service: of a run, as for `simulate`
        outstanding: requests in flight that keep every replica busy
        transport_ms: of each request on its way to the pool and back; one request travels at a time
    """

    placement: Placement
    service: ServiceTime
    outstanding: int
    transport_ms: float = 0.0

    @classmethod
    def of(
        cls, placement: Placement, curves: Sequence[ServiceCurve], seed: int, outstanding: int, transport_ms: float = 0
    ) -> VirtualTarget:
        """Return a placement whose instance groups have these curves, with times drawn by a seed."""
        return cls(placement, DrawnTimes(curves, seed), outstanding, transport_ms)

    @property
    def served_together(self) -> int:
        return self.placement.served_together

    def open_loop(self, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
        return Arrivals(self.latency_ms(_sizes(requests), gaps_ns), np.zeros(len(gaps_ns)), 1.0)

    def closed_loop(self, requests: Sequence[Request]) -> Floats:
        return self.service_ms(_sizes(requests))

    def saturated(self, requests: Sequence[Request], seconds: float, together: int) -> float:
        return self.capacity_rps(_sizes(requests), seconds, together)

    def settle(self) -> None:
        """Return at once: nothing runs on in virtual time."""

    def latency_ms(self, sizes: Sequence[int], gaps_ns: NDArray[np.int64]) -> Floats:
        """Return the latency of requests by their rows in an open loop, (n,), infinite where one is refused."""
        due_ns, travel_ns = np.cumsum(gaps_ns), np.full(len(gaps_ns), round(1e6 * self.transport_ms))
        submitted_ns = on_time(due_ns, travel_ns) + travel_ns
        found = simulate(self.placement, sizes, submitted_ns.tolist(), self.service)
        return np.where(found.refused, np.inf, (found.finished_ns - due_ns) / 1e6)

    def service_ms(self, sizes: Sequence[int]) -> Floats:
        """Return the latency of requests by their rows, one at a time, (n,), infinite where one is refused."""
        found = simulate(self.placement, sizes, [0] * len(sizes), self.service, outstanding=1)
        latency_ms = (found.finished_ns - found.submitted_ns) / 1e6 + self.transport_ms
        return np.where(found.refused, np.inf, latency_ms)

    def capacity_rps(self, sizes: Sequence[int], seconds: float = 0.0, together: int = 1) -> float:
        """Return the requests per second of a saturated placement, which get the rows in turn, for so long at least.

        Their number is a multiple of `together`.
        """
        count = _SATURATING
        while True:
            count = math.ceil(count / together) * together
            rows = [sizes[i % len(sizes)] for i in range(count)]
            found = simulate(self.placement, rows, [0] * count, self.service, self.outstanding)
            took = found.finished_ns.max() / 1e9
            rate = float((~found.refused).sum() / took)
            if took >= seconds or count >= _MOST_SATURATING:
                return min(rate, 1000 / self.transport_ms) if self.transport_ms > 0 else rate
            count = min(math.ceil(_LONGER * count * seconds / took), _MOST_SATURATING)


def _sizes(requests: Sequence[Request]) -> list[int]:
    return [rows_of(request) for request in requests]


@dataclass(frozen=True)
class SimulatedLoad:
    """The load of a study on virtual time.

    Its rate is the load's share of what the baseline's replica serves. Its SLO is the study's own or, without one,
    twice the baseline's percentile.

    sizes: rows of the study's requests
    baseline_ms: mean milliseconds of a request to the baseline, one at a time
    """

    load: Load
    sizes: Sequence[int]
    seed: int
    baseline_ms: float
    rate_rps: float
    slo_ms: float
    baseline: SimulatedTimes

    @classmethod
    def of(cls, baseline: VirtualTarget, requests: Sequence[Request], load: Load, seed: int) -> SimulatedLoad:
        """Derive the rate and the SLO from the simulated baseline."""
        sizes = _sizes(requests)
        baseline_ms = float(baseline.closed_loop(typical_requests(requests, _TYPICAL) * _PASSES).mean())
        rate = load.share * 1000 / baseline_ms
        latency = _latency_ms(baseline, sizes, load, rate, _LATENCY_REQUESTS, seed)
        slo = float(measured_limit(percentile(latency, load.percent), load.slo_ms, load.overhead_ms))
        return cls(load, sizes, seed, baseline_ms, rate, slo, _times(baseline, sizes, load, rate, slo, seed))

    def ratios(self, candidate: VirtualTarget) -> SimulatedRatios:
        """Return what a placement answers over what the baseline does, by the same arrivals and requests.

        Raises:
            OutsideRangeError: a run has a size for which no time was measured.
        """
        ours = _times(candidate, self.sizes, self.load, self.rate_rps, self.slo_ms, self.seed)
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
    target: VirtualTarget, sizes: Sequence[int], load: Load, rate_rps: float, slo_ms: float, seed: int
) -> SimulatedTimes:
    service = target.service_ms(drawn_requests(sizes, _SERVICE_REQUESTS, seed))
    capacity = target.capacity_rps(drawn_requests(sizes, _SATURATING, seed))
    latency = _latency_ms(target, sizes, load, rate_rps, _LATENCY_REQUESTS, seed)
    search = RateSearch((_probe(rate_rps, latency),), np.array([capacity]), service[None])
    count = max(_RATE_REQUESTS, math.ceil(_RATE_TAIL / (1 - load.percent / 100) / SEGMENTS) * SEGMENTS)

    def probe(rate: float) -> Probe:
        return _probe(rate, _latency_ms(target, sizes, load, rate, count, seed))

    return SimulatedTimes(
        service_p50_ms=percentile(service, 50),
        p50_ms=percentile(latency, 50),
        p95_ms=percentile(latency, 95),
        p99_ms=percentile(latency, 99),
        rate_rps=_rate_under_slo(search, probe, slo_ms, load.percent),
        capacity_rps=capacity,
    )


def _rate_under_slo(search: RateSearch, probe: Callable[[float], Probe], slo_ms: float, percent: int) -> float:
    """Return the highest rate at which the percentile is within the SLO; 0 where there is none.

    The search is that of a running deployment.
    """
    if percentile(search.service_ms, percent) > slo_ms or search.capacity_rps[0] <= 0:
        return 0.0
    for _ in range(_PROBES):
        rate = next_rate(search, slo_ms, percent, fewest_samples(percent))
        if any(abs(one.rate_rps - rate) < _CLOSE * rate for one in search.probes):
            break
        search = search.with_probes([probe(rate)])
    return rate_under_slo(search, slo_ms, percent)


def _probe(rate_rps: float, latency_ms: Floats) -> Probe:
    return Probe(rate_rps, latency_ms.reshape(SEGMENTS, -1))


def _latency_ms(
    target: VirtualTarget, sizes: Sequence[int], load: Load, rate_rps: float, count: int, seed: int
) -> Floats:
    """Return the latency in milliseconds of requests in steady state, (count,)."""
    schedule = gaps(load.traffic, rate_rps, _WARM_UP + count, seed)
    return target.latency_ms(drawn_requests(sizes, _WARM_UP + count, seed), schedule)[_WARM_UP:]


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
