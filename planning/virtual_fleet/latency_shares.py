"""Distributions of latency that can be added and weighted: shares of requests by bins of latency."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planning.demand import Floats

# Edges of the bins in milliseconds, 1.2% apart: so many to a factor of ten.
_FIRST, _LAST, _TO_TEN = -4, 8, 200
_EDGES = np.logspace(_FIRST, _LAST, (_LAST - _FIRST) * _TO_TEN + 1)
_BINS = len(_EDGES) - 1
# Entries behind the bins: refused, late, and the sum of the milliseconds of those that were answered.
REFUSED, LATE, SUM_MS, ENTRIES = _BINS, _BINS + 1, _BINS + 2, _BINS + 3


def shares(latency_ms: Floats, slo_ms: float) -> Floats:
    """Return the distribution of latencies, (n,) with infinity where refused, as shares, (ENTRIES,)."""
    answered = latency_ms[np.isfinite(latency_ms)]
    found = np.zeros(ENTRIES)
    bins = (_TO_TEN * (np.log10(np.maximum(answered, _EDGES[0])) - _FIRST)).astype(np.int64)
    found[:_BINS] = np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)
    found[REFUSED] = len(latency_ms) - len(answered)
    found[LATE] = np.count_nonzero(latency_ms > slo_ms)
    found[SUM_MS] = answered.sum()
    return found / max(len(latency_ms), 1)


def quantiles(distribution: Floats, count: int) -> Floats:
    """Return latencies of equal weight that stand for the answered requests of a distribution, (count,)."""
    below = np.concatenate([[0.0], np.cumsum(distribution[:_BINS])])
    middles = (np.arange(count) + 0.5) / count * below[-1]
    return np.asarray(np.exp(np.interp(middles, below, np.log(_EDGES))), np.float64)


def refused_shares() -> Floats:
    """Return the distribution of requests that are all refused, (ENTRIES,)."""
    found = np.zeros(ENTRIES)
    found[[REFUSED, LATE]] = 1.0
    return found


@dataclass(frozen=True)
class LatencySummary:
    """Latency of requests in milliseconds; late and refused are shares of all of them.

    mean_ms: of those that were answered, None where none was
    p50_ms, p95_ms, p99_ms: of all, None where it lies among the refused, or none arrived
    late: answered after the SLO, or refused
    refused: by a full queue, or lost with a machine
    """

    requests: float
    mean_ms: float | None
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    late: float
    refused: float


def summary(weighted: Floats) -> LatencySummary:
    """Summarise weighted distributions that were added, (ENTRIES,), whose weights are requests."""
    answered = float(weighted[:_BINS].sum())
    total = answered + float(weighted[REFUSED])
    each = max(total, 1e-300)
    p50, p95, p99 = (_percentile(weighted, total, percent) for percent in (50.0, 95.0, 99.0))
    mean = float(weighted[SUM_MS]) / answered if answered > 0 else None
    return LatencySummary(total, mean, p50, p95, p99, float(weighted[LATE]) / each, float(weighted[REFUSED]) / each)


def _percentile(weighted: Floats, total: float, percent: float) -> float | None:
    """Return the latency that so many per cent do not exceed, interpolated within its bin."""
    below = np.concatenate([[0.0], np.cumsum(weighted[:_BINS])])
    wanted = percent / 100 * total
    if total <= 0 or wanted > below[-1]:
        return None
    at = int(np.searchsorted(below, wanted, side="left"))
    if at == 0:
        at = 1
    within = (wanted - below[at - 1]) / max(below[at] - below[at - 1], 1e-300)
    return float(_EDGES[at - 1] * (_EDGES[at] / _EDGES[at - 1]) ** within)
