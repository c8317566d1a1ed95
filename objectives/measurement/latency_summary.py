"""Latency of several visits in numbers: percentiles, paired ratios and their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from objectives.measurement.latency import Timings
from objectives.measurement.statistics import (
    Floats,
    TooFewSamplesError,
    fewest_samples,
    paired_log_variance,
    percentile,
    percentile_interval,
)
from objectives.measurement.visits import DRIFT, LatencyNoise, RatioNoise, VisitNoise, ratio_over_visits
from objectives.records import Interval, Latency, NotFiniteError, OverheadRatios, Percentiles, Through

# The latencies of candidate and baseline in one visit, (blocks, samples of each).
_Pair = tuple[Floats, Floats]
# A ratio over the visits, its interval, and that of each visit.
_Ratio = tuple[float, Interval, tuple[float, ...]]


def summarize_latency(
    every: Sequence[Timings], seed: int, noise: RatioNoise, through: Through = "pool", overhead_ms: float = 0.0
) -> Latency:
    """Compute percentiles, ratios and their intervals from the timings of each visit, deterministically.

    Args:
        noise: variance of each ratio between visits, by earlier benchmarks
        overhead_ms: of each request, spent elsewhere; 0 for none, whose ratios are those that were measured

    Raises:
        NotFiniteError: a percentile is infinite, since too many requests were refused.
        TooFewSamplesError: fewer samples than a p95 needs.
    """
    kept = [timings.kept() for timings in every]
    ours = _percentiles([one.candidate for one in kept], [one.candidate_service for one in kept])
    theirs = _percentiles([one.baseline for one in kept], [one.baseline_service for one in kept])
    loops = [(one.candidate, one.baseline) for one in kept]
    services = [(one.candidate_service, one.baseline_service) for one in kept]
    has_p99 = ours.p99_ms is not None and theirs.p99_ms is not None
    p50, p95, p99 = _ratios(loops, seed, noise, has_p99)
    service, service_interval, service_visits = _ratio(services, 50, seed, noise.service_p50)
    return Latency(
        candidate=ours,
        baseline=theirs,
        p50_ratio=p50[0],
        p95_ratio=p95[0],
        p95_ratio_interval=p95[1],
        p99_ratio=p99[0],
        service_p50_ratio=service,
        service_p50_ratio_interval=service_interval,
        rate_rps=float(np.median(np.concatenate([one.rate_rps for one in kept]))),
        requests=sum(one.candidate.size for one in kept),
        blocks=sum(len(one.candidate) for one in kept),
        lag_p95_ms=percentile(np.concatenate([one.lag for one in kept]), 95),
        p95_ratio_all=_ratio_of_all(every, seed, noise),
        p99_ratio_interval=p99[1],
        pairs=sum(len(one.candidate) for one in every),
        busy_share=float(np.mean(np.concatenate([one.taken for one in every]))),
        drift=max(one.drift() for one in kept),
        lateness=max(one.lateness() for one in kept),
        p95_visits=p95[2],
        service_p50_visits=service_visits,
        p99_visits=p99[2],
        p50_visits=p50[2],
        p50_ratio_interval=p50[1],
        through=through,
        with_overhead=_with_overhead(loops, seed, noise.with_overhead, has_p99, overhead_ms) if overhead_ms else None,
    )


def _ratio_of_all(every: Sequence[Timings], seed: int, noise: RatioNoise) -> float | None:
    """Return the p95 ratio over all pairs; None where a disturbance refused too many of those that do not count."""
    with suppress(NotFiniteError):
        return _ratio([(one.candidate, one.baseline) for one in every], 95, seed, noise.p95)[0]
    return None


def _with_overhead(
    loops: Sequence[_Pair], seed: int, noise: LatencyNoise, has_p99: bool, overhead_ms: float
) -> OverheadRatios:
    """Compute the ratios with a time added to every latency, by the same resamples."""
    added = [(ours + overhead_ms, theirs + overhead_ms) for ours, theirs in loops]
    p50, p95, p99 = _ratios(added, seed, noise, has_p99)
    return OverheadRatios(
        overhead_ms=overhead_ms,
        p50_ratio=p50[0],
        p50_ratio_interval=p50[1],
        p95_ratio=p95[0],
        p95_ratio_interval=p95[1],
        p99_ratio=p99[0],
        p99_ratio_interval=p99[1],
        p50_visits=p50[2],
        p95_visits=p95[2],
        p99_visits=p99[2],
    )


def _ratios(
    loops: Sequence[_Pair], seed: int, noise: LatencyNoise, has_p99: bool
) -> tuple[_Ratio, _Ratio, _Ratio | tuple[None, None, tuple[float, ...]]]:
    """Compute the ratios of p50, p95 and p99, the last from all visits together where each has too few samples.

    There is no ratio of a p99 whose interval reaches into refused requests, which says nothing against the others.
    """
    p50, p95 = (_ratio(loops, percent, seed, of) for percent, of in ((50, noise.p50), (95, noise.p95)))
    if not has_p99:
        return p50, p95, (None, None, ())
    enough = all(ours.size >= fewest_samples(99) for ours, _ in loops)
    pooled = [(np.concatenate([ours for ours, _ in loops]), np.concatenate([theirs for _, theirs in loops]))]
    with suppress(NotFiniteError):
        p99 = _ratio(loops if enough else pooled, 99, seed, noise.p99)
        if all(map(math.isfinite, p99[1])):
            return p50, p95, p99
    return p50, p95, (None, None, ())


def _ratio(pairs: Sequence[_Pair], percent: int, seed: int, noise: VisitNoise) -> _Ratio:
    ratios = tuple(percentile(ours, percent) / percentile(theirs, percent) for ours, theirs in pairs)
    if not all(map(math.isfinite, ratios)):
        raise NotFiniteError(f"p{percent} must be finite, but too many requests were refused in a visit.")
    with np.errstate(invalid="ignore"):
        within = [paired_log_variance(ours, theirs, percent, seed + i) for i, (ours, theirs) in enumerate(pairs)]
    if not all(map(math.isfinite, within)):
        raise NotFiniteError(
            f"p{percent} must be finite whichever blocks are drawn, but too many requests were refused in some."
        )
    return (*ratio_over_visits(ratios, within, noise, drift=DRIFT), ratios)


def _percentiles(loops: Sequence[Floats], services: Sequence[Floats]) -> Percentiles:
    """Compute percentiles with intervals from the open and closed loops of each visit, (blocks, samples) each."""
    loop = np.concatenate(loops)
    p50, p50_interval = percentile_interval(loop, 50)
    p95, p95_interval = percentile_interval(loop, 95)
    own = [percentile(visit, 95) for visit in loops]
    if len(own) > 1 and all(map(math.isfinite, own)):
        # The pooled samples do not show the variance between visits.
        _, (low, high) = ratio_over_visits(own, [0.0] * len(own))
        p95_interval = (min(low, p95_interval[0]), max(high, p95_interval[1]))
    p99: tuple[float | None, Interval | None] = (None, None)
    with suppress(TooFewSamplesError):  # no p99 is reported then, nor where an upper end is among refused requests
        point, ends = percentile_interval(loop, 99)
        p99 = (point, ends) if math.isfinite(ends[1]) else p99
    service, refused = percentile(np.concatenate(services), 50), float(np.isinf(loop).mean())
    return Percentiles(p50, p95, p99[0], service, p50_interval, p95_interval, p99[1], refused)
