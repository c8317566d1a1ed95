"""Quick benchmark: a comparison with the baseline in one or two seconds, to decide on a full benchmark."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from objectives.held_out_rows import read_requests
from objectives.measure.deployment import Deployment, open_targets
from objectives.measurement.load_generator import Request
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.throughput import ServiceTimer

_TIMER_REPEATS = 5
_SATURATION_REPEATS = 3
_SATURATION_SECONDS = 0.1


@dataclass(frozen=True)
class QuickBenchmark:
    """Ratios of candidate to baseline: the time of a request, one by one, and the requests per second when saturated.
    There are no intervals, and the result is never reported as a measurement.
    """

    service_ratio: float
    saturated_ratio: float


def quick_benchmark(holdout: Path, candidate: Deployment, baseline: Deployment) -> QuickBenchmark:
    """Compare both deployments in closed loops that alternate."""
    requests = read_requests(holdout)
    with open_targets(candidate, baseline, requests) as targets:
        return compare_quickly(*targets, requests)


def compare_quickly(candidate: LoadTarget, baseline: LoadTarget, requests: list[Request]) -> QuickBenchmark:
    """Return the median ratios of a few paired measurements."""
    candidate.settle()
    timer = ServiceTimer(candidate, requests)
    candidate.settle()
    their_timer = ServiceTimer(baseline, requests)
    service, most = [], []
    for _ in range(_TIMER_REPEATS):
        baseline.settle()
        mine = timer()
        candidate.settle()
        service.append(mine / their_timer())
    for _ in range(_SATURATION_REPEATS):
        baseline.settle()
        mine = candidate.saturated(requests, _SATURATION_SECONDS)
        candidate.settle()
        most.append(mine / baseline.saturated(requests, _SATURATION_SECONDS))
    return QuickBenchmark(statistics.median(service), statistics.median(most))
