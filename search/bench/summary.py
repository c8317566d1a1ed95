"""Summary of a played run: the percentiles with enough samples, and their ratios to those of Poisson arrivals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from objectives.measurement.statistics import Floats, fewest_samples, percentile_interval, ratio_of_percentiles
from objectives.measurement.timeline import Played
from objectives.records import Interval

PERCENTS = (50, 95, 99)
# Number of blocks of the bootstrap; a play of two deployments has a multiple of this many requests.
BLOCKS = 20


@dataclass(frozen=True)
class Percentile:
    """A percentile with its interval, an end of which is None where it lies among the refused."""

    value: float
    interval: tuple[float | None, float | None]


@dataclass(frozen=True)
class BesidePoisson:
    """Latency under Poisson arrivals at the same rate, and the ratios of a pattern's percentiles to those."""

    latency_ms: Mapping[str, Percentile | None]
    p95_ratio: float | None
    p95_ratio_interval: Interval | None
    p99_ratio: float | None
    p99_ratio_interval: Interval | None


def percentiles(latency_ms: Floats) -> dict[str, Percentile | None]:
    """Return p50, p95 and p99 in milliseconds, None where the answers are too few or where it was refused."""
    return {f"p{percent}": _percentile(latency_ms, percent) for percent in PERCENTS}


def _percentile(latency_ms: Floats, percent: int) -> Percentile | None:
    if latency_ms.size < fewest_samples(percent):
        return None
    point, (low, high) = percentile_interval(latency_ms, percent)
    return Percentile(point, (_finite(low), _finite(high))) if math.isfinite(point) else None


def beside_poisson(ours: Played, theirs: Played, seed: int) -> BesidePoisson:
    """Ratios of the percentiles to those of Poisson arrivals at the same rate; None as the percentiles are."""
    p95, p99 = (_ratio(ours.latency_ms, theirs.latency_ms, percent, seed) for percent in PERCENTS[1:])
    return BesidePoisson(percentiles(theirs.latency_ms), *p95, *p99)


def _ratio(ours: Floats, theirs: Floats, percent: int, seed: int) -> tuple[float, Interval] | tuple[None, None]:
    if ours.size < fewest_samples(percent):
        return None, None
    # What was refused took for ever, and for ever over for ever is no number.
    with np.errstate(invalid="ignore"):
        ratio, interval = ratio_of_percentiles(ours.reshape(BLOCKS, -1), theirs.reshape(BLOCKS, -1), percent, seed)
    return (ratio, interval) if all(math.isfinite(value) for value in (ratio, *interval)) else (None, None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
