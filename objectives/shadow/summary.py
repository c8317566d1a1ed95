"""Summary of a shadowing: counts, differences of scores, and the latency of both models on the same requests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from objectives.measurement.statistics import Floats, fewest_samples, percentile, ratio_of_percentiles
from objectives.records import Interval
from objectives.shadow.state import Counts, ShadowState

# Requests of a block of the bootstrap, and the fewest blocks, as in a benchmark.
_BLOCK, _FEWEST_BLOCKS = 25, 20
_SEED = 0


@dataclass(frozen=True)
class Quantiles:
    """Percentiles of times in milliseconds; None with too few samples."""

    p50: float | None
    p95: float | None
    p99: float | None


@dataclass(frozen=True)
class ShadowSummary:
    """Summary of a shadowing; numbers are None until there are enough requests.

    mean_difference, max_difference, rank_agreement: as in `ScoreDifferences`
    ranked_requests: number of requests that have enough rows for `rank_agreement`
    p95_ratio: of the challenger to the champion, on the same requests, with a 95% interval
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
    p95_ratio: float | None
    p95_ratio_interval: Interval | None
    unusable: str | None
    last_failure: str | None


def summarize(state: ShadowState) -> ShadowSummary:
    """Summarize a state; the interval of the ratio is that of the paired block bootstrap, which takes about 0.1 s."""
    champion, challenger = np.array(state.champion_ms), np.array(state.challenger_ms)
    ratio, interval = _p95_ratio(champion, challenger)
    differences = state.differences
    return ShadowSummary(
        champion=state.champion,
        challenger=state.challenger,
        seconds=state.seconds,
        counts=state.counts,
        mean_difference=differences.mean_difference,
        max_difference=differences.max_difference,
        rank_agreement=differences.rank_agreement,
        ranked_requests=differences.ranked,
        timed_requests=len(champion),
        champion_ms=_quantiles(champion),
        challenger_ms=_quantiles(challenger),
        p95_ratio=ratio,
        p95_ratio_interval=interval,
        unusable=state.unusable,
        last_failure=state.last_failure,
    )


def _quantiles(times_ms: Floats) -> Quantiles:
    return Quantiles(
        *(percentile(times_ms, at) if times_ms.size >= fewest_samples(at) else None for at in (50, 95, 99))
    )


def _p95_ratio(champion: Floats, challenger: Floats) -> tuple[float | None, Interval | None]:
    """Return the ratio and its interval; None for both with too few requests."""
    blocks = len(champion) // _BLOCK
    if blocks < _FEWEST_BLOCKS:
        return None, None
    newest = blocks * _BLOCK
    ours, theirs = (times[-newest:].reshape(blocks, _BLOCK) for times in (challenger, champion))
    return ratio_of_percentiles(ours, theirs, 95, _SEED)
