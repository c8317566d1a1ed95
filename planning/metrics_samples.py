"""Samples of a server's Prometheus metrics, and what happened between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricsSample:
    """Metrics of a server at one moment.

    at_s: seconds of a clock
    answered, latency_sum_s: answered requests, and the sum of their seconds
    buckets: answered requests by the upper limit of their seconds, cumulative; the last limit is infinite
    cpu_s: CPU time of the process
    """

    at_s: float
    answered: float
    latency_sum_s: float
    buckets: Mapping[float, float]
    requests: float
    refused: float
    rows_sum: float
    cpu_s: float
    queue: float
    in_flight: float


@dataclass(frozen=True)
class Interval:
    """Work of a server between two samples; latency is None where nothing was answered.

    p95_ms: None too where it lies above the largest bucket
    """

    start_s: float
    seconds: float
    rate_rps: float
    refused_rps: float
    mean_ms: float | None
    p95_ms: float | None
    mean_rows: float | None
    cpu_cores: float
    queue: float
    in_flight: float


def interval(before: MetricsSample, after: MetricsSample, start_s: float = 0.0) -> Interval:
    """Return what happened between two samples; `start_s` is the moment from which seconds are counted.

    Raises:
        ValueError: the second is not later, or a counter fell, since the server was started again.
    """
    seconds = after.at_s - before.at_s
    answered = after.answered - before.answered
    if not seconds > 0 or answered < 0 or after.cpu_s < before.cpu_s:
        raise ValueError("the server must run on between two samples, but its counters fell")
    passed = {limit: count - before.buckets.get(limit, 0.0) for limit, count in after.buckets.items()}
    mean = (after.latency_sum_s - before.latency_sum_s) / answered if answered else None
    return Interval(
        start_s=before.at_s - start_s,
        seconds=seconds,
        rate_rps=(after.requests - before.requests) / seconds,
        refused_rps=(after.refused - before.refused) / seconds,
        mean_ms=None if mean is None else 1000 * mean,
        p95_ms=_milliseconds(histogram_quantile(passed, 0.95)),
        mean_rows=(after.rows_sum - before.rows_sum) / answered if answered else None,
        cpu_cores=(after.cpu_s - before.cpu_s) / seconds,
        queue=after.queue,
        in_flight=after.in_flight,
    )


def intervals(samples: Sequence[MetricsSample]) -> tuple[Interval, ...]:
    """Return what happened between neighbours."""
    start = samples[0].at_s
    return tuple(interval(*pair, start) for pair in itertools.pairwise(samples))


def histogram_quantile(buckets: Mapping[float, float], quantile: float) -> float | None:
    """Return a quantile of a cumulative histogram, linear within a bucket as in PromQL's `histogram_quantile`.

    None where the histogram is empty or the quantile lies in the bucket without a limit.
    """
    limits = sorted(buckets)
    total = buckets[limits[-1]] if limits else 0.0
    if total <= 0:
        return None
    rank, low, below = quantile * total, 0.0, 0.0
    for limit in limits:
        count = buckets[limit]
        if count >= rank and count > below:
            return None if math.isinf(limit) else low + (limit - low) * (rank - below) / (count - below)
        low, below = limit, count
    return None


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else 1000 * seconds
