"""Ratios of several visits combined, with an interval that includes the variance between visits.

Resampled blocks of one visit show the uncertainty of that visit's ratio, not the variance between visits. That is
estimated from the visits themselves and, where they are few, from the visits of earlier benchmarks on the same machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from objectives.records import Interval

# Limit of the degrees of freedom of earlier benchmarks: other candidates may vary more or less.
_MOST_DEGREES = 8
# Standard deviation of the logarithm of a ratio between hours, per unit of that logarithm: a machine's pace changes
# from hour to hour, for a small model otherwise than for a large one. The visits of one benchmark are too close to show
# it; repeated benchmarks gave 0.02 to 0.03 for a student and a model twice as slow, and none for equal ones.
DRIFT = 0.03


@dataclass(frozen=True)
class VisitNoise:
    """Variance of the logarithm of a ratio between visits, and the degrees of freedom of its estimate."""

    variance: float = 0.0
    degrees: int = 0


NO_NOISE = VisitNoise()


@dataclass(frozen=True)
class LatencyNoise:
    """Variance of each percentile's ratio between visits."""

    p50: VisitNoise = NO_NOISE
    p95: VisitNoise = NO_NOISE
    p99: VisitNoise = NO_NOISE


@dataclass(frozen=True)
class RatioNoise(LatencyNoise):
    """Variance of each ratio between visits, from earlier benchmarks of the same study.

    with_overhead: that of the ratios with the time that is spent elsewhere
    """

    service_p50: VisitNoise = NO_NOISE
    throughput: VisitNoise = NO_NOISE
    capacity: VisitNoise = NO_NOISE
    with_overhead: LatencyNoise = LatencyNoise()


NO_RATIO_NOISE = RatioNoise()


def _from_elsewhere(deviation: float) -> VisitNoise:
    """Return a variance that is known from elsewhere: it weighs as much as that of a benchmark of five visits here."""
    return VisitNoise(deviation**2, 4)


_P50, _P95, _P99 = map(_from_elsewhere, (0.05, 0.16, 0.2))
# What is believed before a study has benchmarks of several visits of its own: the medians of five series of 15 to 30
# benchmarks on a shared host of two cores, whose deviations were 0.04 to 0.11 (p50), 0.09 to 0.30 (p95), 0.036 to 0.049
# (service), 0.12 to 0.21 (throughput) and 0.05 to 0.08 (capacity); the one of p99 was not measured.
PRIOR = RatioNoise(
    p50=_P50,
    p95=_P95,
    p99=_P99,
    service_p50=_from_elsewhere(0.045),
    throughput=_from_elsewhere(0.13),
    capacity=_from_elsewhere(0.07),
    with_overhead=LatencyNoise(_P50, _P95, _P99),
)


def pooled_noise(benchmarks: Sequence[Sequence[float]], prior: VisitNoise = NO_NOISE) -> VisitNoise:
    """Estimate the variance between the visits of each benchmark, pooled with what was believed before.

    A benchmark with a ratio of 0 is left out.
    """
    logs = [np.log(visits) for visits in benchmarks if len(visits) > 1 and min(visits) > 0]
    degrees = prior.degrees + sum(len(one) - 1 for one in logs)
    squares = prior.degrees * prior.variance + sum(float(((one - one.mean()) ** 2).sum()) for one in logs)
    return VisitNoise(squares / degrees, degrees) if degrees else VisitNoise()


def ratio_over_visits(
    ratios: Sequence[float],
    within: Sequence[float],
    earlier: VisitNoise = NO_NOISE,
    confidence: float = 0.95,
    blocks: int | None = None,
    drift: float = 0.0,
) -> tuple[float, Interval]:
    """Return the geometric mean of the visits' ratios and its interval, a t interval of their logarithms.

    Where a ratio is 0, return the arithmetic mean and the t interval of the ratios themselves.

    The variance of a visit is that between the visits, moderated by that of earlier benchmarks as in Smyth (2004,
    Statistical Applications in Genetics and Molecular Biology 3, eq. 3), and at least that within a visit.

    Args:
        ratios: (visits,), 0 or more
        within: (visits,), variance of each one's logarithm, from resampled blocks
        earlier: variance of the same kind of ratio on the same machine
        blocks: number of resampled blocks in each visit, where it is small: the variance within then has as many
            degrees of freedom less one, and that of the resamples is too small by one block's share; None for many
        drift: standard deviation of the logarithm between hours, per unit of that logarithm; not where a ratio is 0
    """
    scale = np.exp if min(ratios) > 0 else np.asarray
    values = np.log(ratios) if min(ratios) > 0 else np.asarray(ratios, dtype=np.float64)
    count, prior = len(values), min(earlier.degrees, _MOST_DEGREES)
    degrees = prior + count - 1
    variance = float(np.mean(within)) * (1.0 if blocks is None else blocks / (blocks - 1))
    if degrees:
        between = float(((values - values.mean()) ** 2).sum())
        variance = max(variance, (prior * earlier.variance + between) / degrees)
    tail = (1 + confidence) / 2
    known = degrees or (0 if blocks is None else blocks - 1)
    quantile = float(special.stdtrit(known, tail) if known else special.ndtri(tail))
    half = quantile * math.sqrt(variance / count)
    if min(ratios) > 0:
        half = math.hypot(half, float(special.ndtri(tail)) * drift * float(values.mean()))
    point, low, high = (float(scale(values.mean() + step)) for step in (0.0, -half, half))
    if max(ratios) == 0:
        return 0.0, (0.0, 0.0)
    return point, (max(low, 0.0), high)
