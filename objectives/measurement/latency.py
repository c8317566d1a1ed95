"""Latency of a candidate beside the baseline's: short alternating blocks, the same requests at the same times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.schedule import Traffic, gaps
from objectives.measurement.statistics import (
    Floats,
    TooFewSamplesError,
    fewest_samples,
    percentile,
    percentile_interval,
    ratio_of_percentiles,
)
from objectives.measurement.strain import DisturbedError, Strain, Watch, disturbed
from objectives.measurement.traffic import Request, Submit, check_offered, closed_loop, open_loop, settle, spin_ns
from objectives.record import Interval, Latency, Percentiles

# The baseline's service time may change this much within a timing.
_MOST_DRIFT = 1.5
# Pairs of blocks that are run in all, for one that is asked for: the disturbed ones are run again.
_MOST_PAIRS = 3
_FEWEST_BLOCKS = 20
_UNCOUNTED = 2
_BASELINE = 1


@dataclass(frozen=True)
class Window:
    """How long to look: blocks of each arm, open-loop and closed-loop requests of a block; probes of the search for the
    rate under the SLO; how long a disturbed look is begun anew."""

    blocks: int = 20
    # A shared machine changes its speed within a second: short blocks let both arms meet the same. The standard error
    # of a p95 ratio was 0.026 with 160 blocks of 25 and 0.042 with 80 of 60, in as many seconds.
    requests: int = 25
    service_requests: int = 5
    probes: int = 3
    patience_seconds: float = 60.0

    def __post_init__(self) -> None:
        if self.blocks < _FEWEST_BLOCKS or self.requests < 1 or self.service_requests < 1:
            raise ValueError(f"A window has {_FEWEST_BLOCKS} blocks or more with requests in each, but got {self}.")

    def extended(self, percent: float) -> Window:
        """With blocks enough for a percentile."""
        blocks = -(-fewest_samples(percent) // self.requests)
        return replace(self, blocks=max(self.blocks, blocks))


@dataclass(frozen=True)
class Timings:
    """Raw milliseconds of both arms in pairs of blocks, in the order they were run.

    candidate, baseline: (pairs, requests), open loop from the scheduled arrival; a refused request took for ever
    candidate_service, baseline_service: (pairs, service requests), closed loop
    lag: (2 pairs, requests), how late the generator was
    offered: (2 pairs,), planned time of a block's arrivals over the time it took
    strain: (pairs, 2, fields of Strain), candidate and baseline
    rate_rps: (pairs,), the same for both arms of a pair
    """

    candidate: Floats
    baseline: Floats
    candidate_service: Floats
    baseline_service: Floats
    lag: Floats
    offered: Floats
    strain: Floats
    rate_rps: Floats

    def calm(self) -> NDArray[np.bool_]:
        """(pairs,) whether neither arm was disturbed."""
        return _calm(self.strain)

    def kept(self) -> Timings:
        """The calm pairs alone."""
        calm = self.calm()
        both = np.repeat(calm, 2)
        return Timings(
            self.candidate[calm],
            self.baseline[calm],
            self.candidate_service[calm],
            self.baseline_service[calm],
            self.lag[both],
            self.offered[both],
            self.strain[calm],
            self.rate_rps[calm],
        )

    def drift(self) -> float:
        """How many times slower the baseline served in one half of the window than in the other: 1 is steady."""
        half = len(self.baseline_service) // 2
        first, second = (
            float(np.median(part)) for part in (self.baseline_service[:half], self.baseline_service[half:])
        )
        return max(first / second, second / first)


def time_side_by_side(
    candidate: Submit,
    baseline: Submit,
    requests: Sequence[Request],
    traffic: Traffic,
    rate: Callable[[], float],
    window: Window,
    seed: int,
    watch: Callable[[], Watch] = Watch,
    in_turn: tuple[int | None, int | None] = (None, None),
) -> Timings:
    """Alternate blocks of both arms; which goes first alternates too, so a drift of the machine meets both alike.

    A pair's part of the schedule is stretched to the requests per second that `rate` gave when the baseline's turn came
    in the pair before.

    A pair in which an arm was disturbed is kept as it was and another is run, until there are calm ones enough or
    thrice as many in all.

    Args:
        in_turn: of either arm, as `open_loop` takes it
    """
    arms = (candidate, baseline)
    most = _MOST_PAIRS * window.blocks
    first = now = rate()
    schedule = gaps(traffic, first, most * window.requests, seed).reshape(most, window.requests)
    pairs: list[_Pair] = []
    strain: list[Floats] = []
    rates: list[float] = []
    while len(pairs) < window.blocks or (_calm(np.array(strain)).sum() < window.blocks and len(pairs) < most):
        block = len(pairs)
        start = block * (window.requests + window.service_requests)
        chosen = [requests[(start + i) % len(requests)] for i in range(window.requests + window.service_requests)]
        order = (0, 1) if block % 2 == 0 else (1, 0)
        rates.append(now)
        stretched = np.maximum(np.rint(schedule[block] * (first / now)), 1).astype(np.int64)
        blocks: dict[int, _Block] = {}
        for arm in order:
            settle()
            if arm == _BASELINE:
                now = rate()
                settle()  # its threads would hold a core through the first requests, and the candidate's would not
            blocks[arm] = _block(arms[arm], chosen, stretched, watch, in_turn[arm])
        pairs.append((blocks[0], blocks[1]))
        strain.append(np.array([b.strain.row() for b in pairs[-1]]))
    return _timings(pairs, rates)


def _calm(strain: Floats) -> NDArray[np.bool_]:
    """(pairs,), of the strain of both arms, (pairs, 2, fields)."""
    return ~(disturbed(strain[:, 0]) | disturbed(strain[:, 1]))


@dataclass(frozen=True)
class _Block:
    loop: Floats
    service: Floats
    lag: Floats
    offered: float
    strain: Strain


_Pair = tuple[_Block, _Block]


def _block(
    submit: Submit,
    chosen: Sequence[Request],
    schedule: NDArray[np.int64],
    watch: Callable[[], Watch],
    in_turn: int | None,
) -> _Block:
    # The first answers after the other arm ran find cold caches and sleeping threads; they are not counted.
    spin = spin_ns(float(closed_loop(submit, chosen[-_UNCOUNTED:]).mean()))
    watched = watch()
    arrivals = open_loop(submit, chosen[: len(schedule)], schedule, spin, in_turn)
    service = closed_loop(submit, chosen[len(schedule) :])
    return _Block(arrivals.latency_ms, service, arrivals.lag_ms, arrivals.offered_share, watched.strain())


def _timings(pairs: Sequence[_Pair], rates: Sequence[float]) -> Timings:
    """In single precision, as they are kept: what is judged again later is judged on the same numbers."""

    def stack(rows: Sequence[Any]) -> Floats:
        return np.array(rows, dtype=np.float32).astype(np.float64)

    ours, theirs = zip(*pairs, strict=True)
    both = [block for pair in pairs for block in pair]
    return Timings(
        stack([b.loop for b in ours]),
        stack([b.loop for b in theirs]),
        stack([b.service for b in ours]),
        stack([b.service for b in theirs]),
        stack([b.lag for b in both]),
        stack([b.offered for b in both]),
        stack([[b.strain.row() for b in pair] for pair in pairs]),
        stack(rates),
    )


def check_calm(timings: Timings, blocks: int) -> None:
    """Raises:
    DisturbedError: too few calm pairs of blocks, or the baseline's own time drifted.
    BehindError: the generator was behind its schedule.
    """
    kept = timings.kept()
    if len(kept.candidate) < blocks:
        raise DisturbedError(
            f"Only {len(kept.candidate)} of {len(timings.candidate)} pairs of blocks were undisturbed, {blocks} are "
            "needed: the machine is busy with something else."
        )
    if (drift := kept.drift()) > _MOST_DRIFT:
        raise DisturbedError(
            f"The baseline's own time changed {drift:.2g} times within a timing: the machine is busy with something "
            "else."
        )
    for arm, latency in ((0, kept.candidate), (1, kept.baseline)):
        check_offered(latency, kept.lag[arm::2], float(np.median(kept.offered[arm::2])))


def summarise(timings: Timings, seed: int) -> Latency:
    """Pooled percentiles of both arms over the calm pairs and their paired ratios; the same numbers again from the
    same timings.

    Raises:
        TooFewSamplesError: fewer samples than a p95 needs.
    """
    kept = timings.kept()
    p95_ratio, p95_interval = ratio_of_percentiles(kept.candidate, kept.baseline, 95, seed)
    service_ratio, service_interval = ratio_of_percentiles(kept.candidate_service, kept.baseline_service, 50, seed)
    ours = _percentiles(kept.candidate, kept.candidate_service)
    theirs = _percentiles(kept.baseline, kept.baseline_service)
    p99_ratio: float | None = None
    p99_interval: Interval | None = None
    if ours.p99_ms is not None and theirs.p99_ms is not None:
        p99_ratio, p99_interval = ratio_of_percentiles(kept.candidate, kept.baseline, 99, seed)
    return Latency(
        candidate=ours,
        baseline=theirs,
        p50_ratio=ours.p50_ms / theirs.p50_ms,
        p95_ratio=p95_ratio,
        p95_ratio_interval=p95_interval,
        p99_ratio=p99_ratio,
        service_p50_ratio=service_ratio,
        service_p50_ratio_interval=service_interval,
        rate_rps=float(np.median(kept.rate_rps)),
        requests=int(kept.candidate.size),
        blocks=len(kept.candidate),
        lag_p95_ms=percentile(kept.lag, 95),
        p99_ratio_interval=p99_interval,
        repeated_blocks=len(timings.candidate) - len(kept.candidate),
    )


def _percentiles(loop: Floats, service: Floats) -> Percentiles:
    p50, p50_interval = percentile_interval(loop, 50)
    p95, p95_interval = percentile_interval(loop, 95)
    p99: float | None = None
    p99_interval: Interval | None = None
    with suppress(TooFewSamplesError):  # no p99 is told then
        p99, p99_interval = percentile_interval(loop, 99)
    if p99_interval is not None and math.isinf(p99_interval[1]):  # nor where it may have been refused
        p99, p99_interval = None, None
    return Percentiles(
        p50, p95, p99, percentile(service, 50), p50_interval, p95_interval, p99_interval, float(np.isinf(loop).mean())
    )
