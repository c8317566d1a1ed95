"""Samples of a server's Prometheus metrics, and what happened between them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricsSample:
    """Metrics of a server at one moment.

    at_s: seconds since the epoch
    started_s: those of the start of the process, None where the server does not tell
    answered, latency_sum_s: answered requests, and the sum of their seconds
    buckets: answered requests by the upper limit of their seconds, cumulative; the last limit is infinite
    cpu_s: CPU time of the process
    """

    at_s: float
    started_s: float | None
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
class Work:
    """Work of a server in some time; the fields are differences of those of its samples, and add up.

    Latency is None where nothing was answered, and the p95 too where it lies above the largest bucket.
    """

    seconds: float
    answered: float
    latency_sum_s: float
    buckets: Mapping[float, float]
    requests: float
    refused: float
    rows_sum: float
    cpu_s: float

    def __add__(self, other: Work) -> Work:
        """Return the work of both times; of buckets with other limits, those that both have stay."""
        return Work(
            self.seconds + other.seconds,
            self.answered + other.answered,
            self.latency_sum_s + other.latency_sum_s,
            {limit: count + other.buckets[limit] for limit, count in self.buckets.items() if limit in other.buckets},
            self.requests + other.requests,
            self.refused + other.refused,
            self.rows_sum + other.rows_sum,
            self.cpu_s + other.cpu_s,
        )

    @property
    def rate_rps(self) -> float:
        return self.requests / self.seconds

    @property
    def refused_rps(self) -> float:
        return self.refused / self.seconds

    @property
    def mean_ms(self) -> float | None:
        return 1000 * self.latency_sum_s / self.answered if self.answered else None

    @property
    def p95_ms(self) -> float | None:
        found = histogram_quantile(self.buckets, 0.95)
        return None if found is None else 1000 * found

    @property
    def mean_rows(self) -> float | None:
        return self.rows_sum / self.answered if self.answered else None

    @property
    def cpu_cores(self) -> float:
        return self.cpu_s / self.seconds


def is_same_process(before: MetricsSample, after: MetricsSample) -> bool:
    """Return whether the server was not started again between two samples: no counter fell."""
    counters = ("answered", "latency_sum_s", "requests", "refused", "rows_sum", "cpu_s")
    return before.started_s == after.started_s and all(
        getattr(after, name) >= getattr(before, name) for name in counters
    )


def work_between(before: MetricsSample, after: MetricsSample) -> Work | None:
    """Return the work between two samples.

    None where the server was started again between them, or the second is not later, since a clock was set back.
    """
    if not (after.at_s > before.at_s and is_same_process(before, after)):
        return None
    return Work(
        after.at_s - before.at_s,
        after.answered - before.answered,
        after.latency_sum_s - before.latency_sum_s,
        {limit: count - before.buckets.get(limit, 0.0) for limit, count in after.buckets.items()},
        after.requests - before.requests,
        after.refused - before.refused,
        after.rows_sum - before.rows_sum,
        after.cpu_s - before.cpu_s,
    )


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
