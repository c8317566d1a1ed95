"""Latency of a candidate beside the baseline's: short alternating blocks, the same requests at the same times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from objectives.measurement.statistics import Floats, ratio_of_percentiles
from objectives.measurement.traffic import Request, Submit, closed_loop, open_loop, poisson_gaps, settle
from objectives.record import Latency, Percentiles

# Fewest samples for a p99: then its 95% interval by order statistics has both ends inside the sample
# (MLPerf's rule for a p99 asks for 662).
FEWEST_FOR_P99 = 662


@dataclass(frozen=True)
class Window:
    """How long to look: blocks of each arm, open-loop and closed-loop requests of a block."""

    blocks: int = 20
    requests: int = 35
    service_requests: int = 5

    def __post_init__(self) -> None:
        if self.blocks < 20 or self.requests < 1 or self.service_requests < 1:
            raise ValueError(f"A window has 20 blocks or more with requests in each, but got {self}.")


SCREEN = Window()
CONFIRM = Window(blocks=60, requests=50, service_requests=10)


@dataclass(frozen=True)
class Timings:
    """Raw milliseconds of both arms: open loop (blocks, requests), closed loop (blocks, service requests)."""

    candidate: Floats
    baseline: Floats
    candidate_service: Floats
    baseline_service: Floats
    lag: Floats

    def drift(self) -> float:
        """How many times slower the baseline served in one half of the window than in the other: 1 is steady."""
        half = len(self.baseline_service) // 2
        first, second = (
            float(np.median(part)) for part in (self.baseline_service[:half], self.baseline_service[half:])
        )
        return max(first / second, second / first)


def time_side_by_side(
    candidate: Submit, baseline: Submit, requests: Sequence[Request], rate_rps: float, window: Window, seed: int
) -> Timings:
    """Alternate blocks of both arms; which goes first alternates too, so a drift of the machine meets both alike."""
    generator = np.random.default_rng(seed)
    arms = (candidate, baseline)
    per_block = window.requests + window.service_requests
    loop: list[list[Floats]] = [[], []]
    service: list[list[Floats]] = [[], []]
    lag: list[Floats] = []
    last = -1
    for block in range(window.blocks):
        start = block * per_block
        chosen = [requests[(start + i) % len(requests)] for i in range(per_block)]
        gaps = poisson_gaps(rate_rps, window.requests, generator)
        for arm in (0, 1) if block % 2 == 0 else (1, 0):
            if arm != last:
                settle()
            last = arm
            # The first answers after the other arm ran find cold caches and sleeping threads; they are not counted.
            closed_loop(arms[arm], chosen[-2:])
            arrivals = open_loop(arms[arm], chosen[: window.requests], gaps)
            loop[arm].append(arrivals.latency_ms)
            lag.append(arrivals.lag_ms)
            service[arm].append(closed_loop(arms[arm], chosen[window.requests :]))
    return Timings(
        np.array(loop[0]), np.array(loop[1]), np.array(service[0]), np.array(service[1]), np.concatenate(lag)
    )


def summarise(timings: Timings, rate_rps: float, seed: int) -> Latency:
    """Pooled percentiles of both arms and their paired ratios; the same numbers again from the same timings."""
    p95_ratio, p95_interval = ratio_of_percentiles(timings.candidate, timings.baseline, 95, seed)
    service_ratio, service_interval = ratio_of_percentiles(
        timings.candidate_service, timings.baseline_service, 50, seed
    )
    ours = _percentiles(timings.candidate, timings.candidate_service)
    theirs = _percentiles(timings.baseline, timings.baseline_service)
    return Latency(
        candidate=ours,
        baseline=theirs,
        p50_ratio=ours.p50_ms / theirs.p50_ms,
        p95_ratio=p95_ratio,
        p95_ratio_interval=p95_interval,
        p99_ratio=None if ours.p99_ms is None or theirs.p99_ms is None else ours.p99_ms / theirs.p99_ms,
        service_p50_ratio=service_ratio,
        service_p50_ratio_interval=service_interval,
        rate_rps=rate_rps,
        requests=int(timings.candidate.size),
        blocks=len(timings.candidate),
        lag_p95_ms=float(np.percentile(timings.lag, 95)),
    )


def _percentiles(loop: Floats, service: Floats) -> Percentiles:
    p50, p95, p99 = (float(p) for p in np.percentile(loop, [50, 95, 99]))
    return Percentiles(p50, p95, p99 if loop.size >= FEWEST_FOR_P99 else None, float(np.median(service)))
