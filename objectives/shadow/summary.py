"""Summary of a shadowing: counts, differences of scores, and the latency of both models on the same requests.

The ratio of latency is decided by windows of time, whose ratios differ by more than their requests can show: of four
intervals in five that resampled the requests of one stretch of time, two equal models' ratio of 1 lay outside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from objectives.measurement.statistics import fewest_samples, percentile
from objectives.records import Interval
from objectives.shadow.batch_means import mean_interval
from objectives.shadow.score_differences import ScoreDifferences
from objectives.shadow.state import Counts, ShadowState


@dataclass(frozen=True)
class Quantiles:
    """Percentiles of times in milliseconds; None with too few samples."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class ShadowSummary:
    """Summary of a shadowing; numbers are None until there are enough requests.

    seconds: of shadowing; of several servers, the longest
    mean_difference, max_difference, rank_agreement: as in `ScoreDifferences`
    ranked_requests: number of requests that have enough rows for `rank_agreement`
    windows: of time, in which both models' p95 was taken on the same requests
    p95_ratio: geometric mean of the windows' ratios, challenger over champion, with an interval that holds with 95%
        confidence at all looks together
    """

    champion: str
    challenger: str
    seconds: float
    counts: Counts
    mean_difference: float | None
    max_difference: float | None
    rank_agreement: float | None
    ranked_requests: int
    timed_requests: int
    champion_ms: Quantiles
    challenger_ms: Quantiles
    windows: int
    p95_ratio: float | None
    p95_ratio_interval: Interval | None
    unusable: str | None
    last_failure: str | None


def summarize(first: ShadowState, *others: ShadowState) -> ShadowSummary:
    """Summarize the states of one champion and one challenger, one of each server."""
    states = (first, *others)
    differences = sum((state.differences for state in states), ScoreDifferences())
    ratio, interval = _p95_ratio(states)
    return ShadowSummary(
        champion=first.champion,
        challenger=first.challenger,
        seconds=max(state.seconds for state in states),
        counts=sum((state.counts for state in states), Counts()),
        mean_difference=differences.mean_difference,
        max_difference=differences.max_difference,
        rank_agreement=differences.rank_agreement,
        ranked_requests=differences.ranked,
        timed_requests=sum(len(state.champion_ms) for state in states),
        champion_ms=_quantiles([state.champion_ms for state in states]),
        challenger_ms=_quantiles([state.challenger_ms for state in states]),
        windows=sum(state.log_p95_ratios.values for state in states),
        p95_ratio=ratio,
        p95_ratio_interval=interval,
        unusable=next((state.unusable for state in states if state.unusable is not None), None),
        last_failure=next((state.last_failure for state in states if state.last_failure is not None), None),
    )


def _quantiles(times_ms: Sequence[Sequence[float]]) -> Quantiles:
    times = np.concatenate([np.array(one) for one in times_ms])
    return Quantiles(*(percentile(times, at) if times.size >= fewest_samples(at) else None for at in (50, 95, 99)))


def _p95_ratio(states: Sequence[ShadowState]) -> tuple[float, Interval] | tuple[None, None]:
    """Return the ratio and its interval; None for both with too few windows."""
    if (found := mean_interval([state.log_p95_ratios for state in states])) is None:
        return None, None
    mean, (low, high) = found
    return math.exp(mean), (math.exp(low), math.exp(high))
