"""Paired latency of candidates and the baseline: short alternating blocks, the same requests at the same times."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.interference import InterferenceMonitor, disturbance, taken_share, undisturbed
from objectives.measurement.load_generator import Request, drawn_requests, typical_requests
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.statistics import Floats, fewest_samples, percentile
from objectives.measurement.steady_state import variability, warm_up_requests
from objectives.records import InputSpec, Through

FEWEST_BLOCKS = 20
# Number of requests to estimate the utilisation of a deployment.
_SAMPLED = 50
# Number of times that each of them is sent.
_PASSES = 3
# Number of arrivals to estimate their variability.
_DRAWN = 10_000
# Default SLO: this multiple of the baseline's own percentile at the study's load.
SLO_TIMES = 2.0
Number = TypeVar("Number", float, Floats)


@dataclass(frozen=True)
class Load:
    """Load of both deployments.

    share: utilisation of the baseline: the request rate over the rate at which its replica, once awake, serves requests
        one by one, measured at the beginning of each visit, since machines differ from hour to hour
    percent: the percentile of the SLO
    slo_ms: the SLO in milliseconds; None for twice the baseline's own percentile at that load
    overhead_ms: of each request, spent elsewhere; the SLO covers it
    served_inputs: what the HTTP server in front of each deployment takes; None where requests go to the pools directly
    """

    traffic: Traffic
    share: float
    percent: int
    slo_ms: float | None
    overhead_ms: float = 0.0
    served_inputs: tuple[InputSpec, ...] | None = None

    @property
    def through(self) -> Through:
        return "pool" if self.served_inputs is None else "http"


def measured_limit(baseline_ms: Number, slo_ms: float | None, overhead_ms: float) -> Number | float:
    """Return the milliseconds that a request may take where it is measured, so that the SLO holds for all of it.

    Args:
        baseline_ms: the baseline's percentile as measured, of any shape
        slo_ms, overhead_ms: as in `Load`
    """
    if slo_ms is not None:
        return slo_ms - overhead_ms
    return SLO_TIMES * (baseline_ms + overhead_ms) - overhead_ms


@dataclass(frozen=True)
class Window:
    """Amount of measurement in one visit, and the number of visits.

    blocks: pairs of blocks of a visit
    requests: open-loop requests of a block that count, after those that bring it to steady state
    service_requests: closed-loop requests of a block
    probes: rates that the search for the rate under the SLO tries in a visit
    probe_requests: requests that count at each such rate, more where they come within 0.3 s
    fewest: requests of all blocks together that the percentiles need
    seconds: time that the requests of a rate may take, and with `at` those of all blocks of a deployment. Where they
        take longer there are fewer, down to what the percentiles need. The warm-up before a rate takes no longer
        either, unless it has as few requests as count.
    visits: number of times that both deployments are opened anew and measured
    warm_up: limit of the requests before those that count, as a multiple of them: in a block, where a candidate is
        busier than the baseline, since all deployments of a group have as many, and at a rate, where it is 2 at most
    most: pairs of blocks to run at most for each one that is wanted, since disturbed ones are repeated; so are probes
    patience_seconds: time from the start of a visit's blocks, and from that of its probes, after which those disturbed
        are not repeated
    """

    blocks: int = 20
    # A shared machine changes its speed within a second: short blocks give both deployments the same conditions. The
    # standard error of a p95 ratio was 0.026 with 160 blocks of 25 and 0.042 with 80 of 60, in the same time.
    requests: int = 25
    service_requests: int = 5
    probes: int = 3
    probe_requests: int = 500
    fewest: int = fewest_samples(95)
    seconds: float = 30.0
    visits: int = 1
    warm_up: int = 4
    most: float = 3.0
    patience_seconds: float = 60.0

    def __post_init__(self) -> None:
        if (
            self.blocks < FEWEST_BLOCKS
            or min(self.requests, self.service_requests, self.probe_requests, self.visits, self.most) < 1
        ):
            raise ValueError(f"A window must have {FEWEST_BLOCKS} or more blocks of requests, but got {self}.")

    def extended(self, percent: float) -> Window:
        """Return the window with enough blocks in each visit for a percentile, as the fewest requests that it needs."""
        fewest = fewest_samples(percent)
        return replace(self, blocks=max(self.blocks, -(-fewest // self.requests)), fewest=fewest)

    def at(self, rate_rps: float) -> Window:
        """Return the window with fewer requests in a block, where those of all blocks take too long at a rate.

        Visits that are joined need blocks of one length, so the rate must be the same for all of them.
        """
        most = max(self.fewest, self.seconds * rate_rps) / self.blocks
        return replace(self, requests=math.ceil(min(self.requests, most)))


@dataclass(frozen=True)
class Timings:
    """Raw times of candidate and baseline in milliseconds, in pairs of blocks in the order of their runs.

    candidate, baseline: (pairs, requests), open loop from the scheduled arrival; infinite where refused
    candidate_service, baseline_service: (pairs, service requests), closed loop
    lag: (2 pairs, requests), how late the generator was
    offered: (2 pairs,), planned time of a block's arrivals over the time it took
    interference: (pairs, 2, fields of Interference), candidate and baseline
    rate_rps: (pairs,), the same for both blocks of a pair
    wanted: pairs that were asked for
    warm_up: requests that were dropped from the start of each block
    """

    candidate: Floats
    baseline: Floats
    candidate_service: Floats
    baseline_service: Floats
    lag: Floats
    offered: Floats
    interference: Floats
    rate_rps: Floats
    wanted: int
    warm_up: int

    @property
    def taken(self) -> Floats:
        """Shares of the wall time that other processes took, (pairs, 2)."""
        return taken_share(self.interference)

    def undisturbed(self) -> NDArray[np.bool_]:
        """Select the pairs to keep, (pairs,), by the interference of others, never by the deployments' latency."""
        return undisturbed(disturbance(self.taken), self.wanted)

    def kept(self) -> Timings:
        """Keep the undisturbed pairs only."""
        mask = self.undisturbed()
        both = np.repeat(mask, 2)
        arrays = {name: values for name, values in vars(self).items() if np.ndim(values)}
        kept = {name: values[both if name in ("lag", "offered") else mask] for name, values in arrays.items()}
        return replace(self, **kept)

    def drift(self) -> float:
        """Return the ratio of the baseline's service times in both halves, the slower over the faster: 1 is steady."""
        service, half = self.baseline_service, len(self.baseline_service) // 2
        first, second = float(np.median(service[:half])), float(np.median(service[half:]))
        return max(first / second, second / first)

    def lateness(self) -> float:
        """Return the generator's p95 lag as a share of the p95 latency, for the deployment where it is larger."""
        pairs = ((self.candidate, self.lag[0::2]), (self.baseline, self.lag[1::2]))
        return max(percentile(lag, 95) / percentile(latency, 95) for latency, lag in pairs)


def measure_latency(
    targets: Sequence[LoadTarget],
    requests: Sequence[Request],
    traffic: Traffic,
    rate: Callable[[], float],
    window: Window,
    seed: int,
    monitor: Callable[[], InterferenceMonitor] = InterferenceMonitor,
) -> tuple[Timings, ...]:
    """Measure alternating blocks of candidates and the baseline, which is the last target; one result each candidate.

    A turn is one block of each target, with the same requests at the same times; the order rotates from turn to turn,
    so a drift of the machine affects all. The schedule of a turn is stretched to the requests per second that `rate`
    gives before it. Turns are repeated until each candidate has enough undisturbed pairs of blocks, the window's most
    are run, or the time limit is reached; disturbed pairs are kept in the record.

    Each block begins with the warm-up that the busiest deployment needs, of a candidate at most the window's: near its
    capacity it would take the time of all other blocks. Such a candidate, busier than the baseline, is seen at less
    than its steady latency.

    Args:
        rate: called before each turn
    """
    first = rate()
    most = math.ceil(window.most * window.blocks)
    *others, baseline = _warm_ups(targets, requests, traffic, first, seed)
    warm_up = max(baseline, min(max(others), window.warm_up * window.requests))
    length = warm_up + window.requests
    schedule = gaps(traffic, first, most * length, seed).reshape(most, length)
    turns: list[list[_Block]] = []
    rates: list[float] = []
    end = time.monotonic() + window.patience_seconds
    while _goes_on(turns, window.blocks, most, end):
        number = len(turns)
        chosen = drawn_requests(requests, length + window.service_requests, seed, number)
        leads = number % len(targets)
        rates.append(rate())
        stretched = np.maximum(np.rint(schedule[number] * (first / rates[-1])), 1).astype(np.int64)
        order = [*range(leads, len(targets)), *range(leads)]
        blocks = {which: _block(targets[which], chosen, stretched, warm_up, monitor) for which in order}
        turns.append([blocks[which] for which in range(len(targets))])
    return tuple(_timings(pairs, rates, window.blocks, warm_up) for pairs in _pairs(turns))


def _pairs(turns: Sequence[Sequence[_Block]]) -> Iterator[list[tuple[_Block, _Block]]]:
    """Yield each candidate's blocks with the baseline's of the same turns."""
    for which in range(len(turns[0]) - 1):
        yield [(blocks[which], blocks[-1]) for blocks in turns]


def _goes_on(turns: Sequence[Sequence[_Block]], wanted: int, most: int, end: float) -> bool:
    """Return whether another turn is to be run."""
    if len(turns) < wanted:
        return True
    return len(turns) < most and time.monotonic() < end and not all(_enough(pairs, wanted) for pairs in _pairs(turns))


def _enough(pairs: Sequence[Sequence[_Block]], wanted: int) -> bool:
    """Return whether so many pairs of blocks are undisturbed."""
    interference = np.array([[block.interference for block in pair] for pair in pairs])
    return bool((disturbance(taken_share(interference)) <= 1).sum() >= wanted)


def _warm_ups(
    targets: Sequence[LoadTarget], requests: Sequence[Request], traffic: Traffic, rate_rps: float, seed: int
) -> list[int]:
    """Return the number of warm-up requests that each deployment needs at this rate.

    Each request counts with the median of several times: a single stall of the machine would lengthen every block.
    """
    arrivals = gaps(traffic, rate_rps, _DRAWN, seed)
    sample = typical_requests(requests, _SAMPLED)
    found = []
    for target in targets:
        service = np.median([_from_idle(target, sample) for _ in range(_PASSES)], axis=0)
        finite = service[np.isfinite(service)]
        utilisation = rate_rps * float(finite.mean()) / 1e3 / target.served_together if finite.size else 1.0
        found.append(warm_up_requests(utilisation, variability(arrivals, service)))
    return found


def _from_idle(target: LoadTarget, sample: Sequence[Request]) -> Floats:
    target.settle()
    return target.closed_loop(sample)


class _Block(NamedTuple):
    loop: Floats
    service: Floats
    lag: Floats
    offered: float
    interference: Floats


def _block(
    target: LoadTarget,
    chosen: Sequence[Request],
    schedule: NDArray[np.int64],
    warm_up: int,
    monitor: Callable[[], InterferenceMonitor],
) -> _Block:
    target.settle()
    watching = monitor()
    arrivals = target.open_loop(chosen[: len(schedule)], schedule)
    service = target.closed_loop(chosen[len(schedule) :])
    taken = watching.stop().row()
    return _Block(arrivals.latency_ms[warm_up:], service, arrivals.lag_ms[warm_up:], arrivals.offered_share, taken)


def _timings(pairs: Sequence[Sequence[_Block]], rates: Sequence[float], wanted: int, warm_up: int) -> Timings:
    """Stack blocks in single precision, as they are stored, so that later computations start from the same numbers."""
    blocks = zip(*(block for pair in pairs for block in pair), strict=True)
    loop, service, lag, offered, interference, rate_rps = (
        np.array(column, dtype=np.float32).astype(np.float64) for column in (*blocks, rates)
    )
    return Timings(
        candidate=loop[0::2],
        baseline=loop[1::2],
        candidate_service=service[0::2],
        baseline_service=service[1::2],
        lag=lag,
        offered=offered,
        interference=interference.reshape(len(pairs), 2, -1),
        rate_rps=rate_rps,
        wanted=wanted,
        warm_up=warm_up,
    )
