"""Highest open-loop rate at which a percentile of latency stays within the SLO, for several deployments in turn."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import isotonic_regression

from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.interference import InterferenceMonitor, least_disturbed
from objectives.measurement.latency import Load, Window
from objectives.measurement.load_generator import STRATA, Request, drawn_requests, in_strata
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.statistics import Floats, block_percentiles, block_picks, fewest_samples, percentile
from objectives.measurement.steady_state import variability, warm_up_requests
from objectives.records import rows_of

RESAMPLES = 400
# Number of segments of a probe for resampling.
SEGMENTS = 5
# Number of measurements of the capacity of each deployment.
BURSTS = 5
_PROBE_SECONDS = 0.3
# Limit of a probe's warm-up, as a multiple of the requests that count: near capacity no measurement reaches the steady
# state.
_MOST_WARM_UP = 2
# Share of the interval between two rates, at either end, in which no further rate is tried.
_EDGE = 0.1
# Share of the capacity below which no rate is tried, and the seconds that the fewest requests that show a percentile
# may take at a tried rate, unless the capacity itself is too low for that.
_LOWEST, _MOST_PROBE_SECONDS = 0.1, 30.0
# Share of the capacity above which a queue has no steady state within a measurement.
_NEAREST = 0.97
# Deviation from the monotone fit (logarithm of the percentile) from which a probe is repeated.
_CONTRADICTION = 0.2
_CAPACITY_SECONDS = 0.1
# Replaces an infinite percentile, which has no mean.
_LARGEST = 1e12


@dataclass(frozen=True)
class Probe:
    """Latency in milliseconds at one offered rate, (segments, requests), both scaled to a slowness of 1."""

    rate_rps: float
    latency_ms: Floats


@dataclass(frozen=True)
class RateSearch:
    """Results of the search for one deployment's rate under the SLO.

    probes: in the order of their rates
    capacity_rps: (bursts,), requests per second when saturated; no rate is above it
    service_ms: (blocks, requests), one request at a time: the latency at a rate of nearly 0
    """

    probes: tuple[Probe, ...]
    capacity_rps: Floats
    service_ms: Floats

    def with_probes(self, further: Sequence[Probe]) -> RateSearch:
        """Return the search with more probes."""
        return replace(self, probes=tuple(sorted((*self.probes, *further), key=lambda one: one.rate_rps)))


def measure_capacity(
    targets: Sequence[LoadTarget],
    requests: Sequence[Request],
    seed: int,
    slowness: Callable[[], float] = lambda: 1.0,
    calm: float = math.inf,
    monitor: Callable[[], InterferenceMonitor] = InterferenceMonitor,
) -> Floats:
    """Measure the requests per second of saturated deployments, (bursts, targets), in alternating bursts.

    They are scaled to a slowness of 1. Each burst orders the requests anew, in strata of sizes, of which each counts as
    often: a slow deployment, which answers few, gets no others than a fast one.

    Args:
        calm: share of the wall time that other processes take in undisturbed blocks
    """

    def burst(turn: int) -> list[float]:
        turns = _turns(len(targets), turn)
        slower = slowness()
        chosen = in_strata(requests, sizes, STRATA, seed, turn)
        found = [0.0] * len(targets)
        for which in turns:
            targets[which].settle()
            found[which] = slower * targets[which].saturated(chosen, _CAPACITY_SECONDS, min(STRATA, len(chosen)))
        return found

    sizes, turns = [rows_of(request) for request in requests], range(BURSTS)
    return np.array([least_disturbed(functools.partial(burst, turn), calm, monitor) for turn in turns])


def probe(
    target: LoadTarget,
    requests: Sequence[Request],
    traffic: Traffic,
    rate_rps: float,
    capacity_rps: float,
    count: int,
    seed: int,
    slower: float = 1.0,
    most_warm_up: int | None = None,
) -> Probe:
    """Measure one stream at one rate; the requests that bring it to steady state are not counted.

    Where the machine is slower, arrivals are slowed by the same factor, and latencies are scaled to a slowness of 1: a
    queue at the same utilisation, on another clock. The same seed gives the same arrivals at every rate, in another
    scale.

    Args:
        count: requests that count, a multiple of `SEGMENTS`
        most_warm_up: limit of those before them, twice as many if None
    """
    most = _MOST_WARM_UP * count if most_warm_up is None else most_warm_up
    arrivals = gaps(traffic, rate_rps / slower, most + count, seed)
    sizes = np.array([rows_of(request) for request in requests], dtype=np.float64)
    warm_up = warm_up_requests(rate_rps / capacity_rps, variability(arrivals, sizes), most)
    chosen = drawn_requests(requests, warm_up + count, seed)
    target.settle()
    played = target.open_loop(chosen, arrivals[: warm_up + count])
    latency = (played.latency_ms[warm_up:] / slower).reshape(SEGMENTS, -1)
    # In single precision, as it is stored.
    return Probe(rate_rps, latency.astype(np.float32).astype(np.float64))


def counted(rate_rps: float, wanted: int, fewest: int, seconds: float) -> int:
    """Return the number of requests that count at a rate, a multiple of `SEGMENTS`.

    They are more than wanted where those come within 0.3 s, and fewer, down to `fewest`, where they take longer than
    the seconds.
    """
    least, most = int(rate_rps * _PROBE_SECONDS), int(rate_rps * seconds)
    return math.ceil(min(max(wanted, least), max(fewest, most)) / SEGMENTS) * SEGMENTS


def search_rates(
    targets: Sequence[LoadTarget],
    searches: Sequence[RateSearch],
    requests: Sequence[Request],
    load: Load,
    slo_ms: float,
    window: Window,
    seed: int,
    slowness: Callable[[], float] = lambda: 1.0,
    calm: float = math.inf,
    monitor: Callable[[], InterferenceMonitor] = InterferenceMonitor,
) -> tuple[RateSearch, ...]:
    """Run the window's further probes of each deployment in turn, and repeat one that its neighbours contradict.

    Args:
        searches: earlier results of each deployment
        slo_ms: the SLO of this visit, whatever the load's
        calm: as in `measure_capacity`
    """
    found = list(searches)
    end = time.monotonic() + window.patience_seconds
    fewest = min(window.probe_requests, fewest_samples(load.percent))

    def step(which: int, rate: float) -> None:
        search = found[which]
        count = counted(rate, window.probe_requests, fewest, window.seconds)
        # A rate that is tried again gets other arrivals.
        number = seed + sum(one.rate_rps == rate for one in search.probes)
        capacity = float(search.capacity_rps.mean())
        # It takes no longer than the seconds of a rate either, unless as many count.
        longest = max(count, int(window.seconds * rate))
        warm_up = min(min(_MOST_WARM_UP, window.warm_up) * count, longest)

        def run() -> Probe:
            return probe(targets[which], requests, load.traffic, rate, capacity, count, number, slower, warm_up)

        slower = slowness()
        found[which] = search.with_probes([least_disturbed(run, calm, monitor, math.ceil(window.most), end)])

    for number in range(window.probes):
        for which in _turns(len(targets), number):
            if found[which].capacity_rps.mean() > 0:
                step(which, next_rate(found[which], slo_ms, load.percent, fewest))
    for which, search in enumerate(found):
        contradicted = contradicted_rate(search, load.percent)
        if contradicted is not None:
            step(which, contradicted)
    return tuple(found)


def _turns(count: int, turn: int) -> Sequence[int]:
    """Return the indices of the targets in the order of this turn; the first one alternates."""
    return range(count)[:: 1 if turn % 2 == 0 else -1]


def next_rate(search: RateSearch, slo_ms: float, percent: int, fewest: int) -> float:
    """Return the rate to try next: the estimate of where the percentile meets the SLO, apart from tried rates.

    No rate is tried that is below a tenth of the capacity, or at which the fewest requests take above half a minute:
    the lowest of the others is returned instead, the one nearest to the capacity where there is no other, or an earlier
    one below them all, as of the load, at which the SLO was broken.

    Args:
        fewest: the fewest requests that count at a rate
    """
    rates, percentiles = _known(search, percent)
    above, meeting = _meeting(rates, percentiles, slo_ms)
    capacity = float(rates[-1])
    lowest = min(max(_LOWEST * capacity, fewest / _MOST_PROBE_SECONDS), _NEAREST * capacity)
    if above == 0:  # not even one request at a time keeps the SLO: the lowest rate that could contradict this
        return lowest
    low, high = float(rates[above - 1]), float(rates[above])
    # The last rate is the capacity, which is known without a probe.
    highest = high - (1 - _NEAREST if above == len(rates) - 1 else _EDGE) * (high - low)
    return max(min(max(meeting, low + _EDGE * (high - low)), highest), min(lowest, high))


def contradicted_rate(search: RateSearch, percent: int) -> float | None:
    """Return the rate of the probe with the largest deviation from the monotone fit, None where none is large."""
    rates, blocks = _by_rate(search)
    if len(rates) < 3:
        return None
    raw = np.minimum([percentile(one, percent) for one in blocks[1:]], _LARGEST)
    distance = np.abs(np.log(raw / _monotone(raw, _sizes(blocks[1:]))))
    worst = int(distance.argmax())
    return float(rates[1 + worst]) if distance[worst] > _CONTRADICTION else None


def rate_under_slo(search: RateSearch, slo_ms: float, percent: int) -> float:
    """Return the requests per second, up to capacity, at which the percentile meets the SLO; 0 where none does."""
    return _meeting(*_known(search, percent), slo_ms)[1]


def resampled_rates(search: RateSearch, slo_ms: Floats, percent: int, seed: int) -> Floats:
    """Compute `rate_under_slo` on resampled segments, bursts and blocks, by the SLO of each: (resamples,)."""
    count = len(slo_ms)
    bursts = block_picks(len(search.capacity_rps), seed, count)
    capacity = search.capacity_rps[bursts].mean(axis=1)
    rates, blocks = _by_rate(search)
    columns = [
        block_percentiles(one, percent, block_picks(len(one), seed + 1 + place, count))
        for place, one in enumerate(blocks)
    ]
    resamples = zip(np.stack(columns, axis=1), capacity, slo_ms, strict=True)
    weights = _sizes(blocks)
    return np.array(
        [_meeting(*_curve(rates, row, weights, float(most)), float(limit))[1] for row, most, limit in resamples]
    )


def _known(search: RateSearch, percent: int) -> tuple[Floats, Floats]:
    """Return the rates and percentiles of `_curve` for the search's probes."""
    rates, blocks = _by_rate(search)
    found = np.array([percentile(one, percent) for one in blocks])
    return _curve(rates, found, _sizes(blocks), float(search.capacity_rps.mean()))


def _by_rate(search: RateSearch) -> tuple[Floats, list[Floats]]:
    """Return the rates, ascending from 0 (one request at a time), and the latencies at each, equal rates joined."""
    streams: dict[float, list[Floats]] = {}
    for one in sorted(search.probes, key=lambda one: one.rate_rps):
        streams.setdefault(one.rate_rps, []).append(one.latency_ms)
    return np.array([0.0, *streams]), [search.service_ms, *map(_joined, streams.values())]


def _joined(parts: Sequence[Floats]) -> Floats:
    """Concatenate streams of different lengths within the same number of segments."""
    if len(parts) == 1:
        return parts[0]
    cut = [part.ravel()[: part.size // SEGMENTS * SEGMENTS].reshape(SEGMENTS, -1) for part in parts]
    return np.concatenate(cut, axis=1)


def _sizes(blocks: Sequence[Floats]) -> Floats:
    return np.array([one.size for one in blocks], dtype=np.float64)


def _curve(rates: Floats, percentiles: Floats, weights: Floats, capacity_rps: float) -> tuple[Floats, Floats]:
    """Return ascending rates and the percentile at each, which never falls, from (n,) measured values by rate.

    The rates run from 0, where requests do not queue, to capacity, where the queue grows without limit.
    """
    below = rates < max(capacity_rps, np.finfo(float).tiny)
    level = _monotone(percentiles[below], weights[below])
    return np.append(rates[below], capacity_rps), np.append(level, np.inf)


def _monotone(percentiles: Floats, weights: Floats) -> Floats:
    """Return the nearest non-decreasing values in the logarithm, since a percentile does not fall with load."""
    logs = np.log(np.minimum(percentiles, _LARGEST))
    level: Floats = np.exp(isotonic_regression(logs, weights=weights).x)
    return level


def _meeting(rates: Floats, percentiles: Floats, slo_ms: float) -> tuple[int, float]:
    """Return the place of the first rate of a `_curve` above the SLO, and the rate that meets it, 0 where none does.

    Between two neighbours the percentile's inverse is taken as linear in the rate, which is exact for M/M/1, where the
    response time is exponential with the rate mu - lambda.
    """
    above = int(np.flatnonzero(percentiles > slo_ms)[0])
    if above == 0:
        return 0, 0.0
    low, high = 1 / percentiles[above - 1], 1 / percentiles[above]
    share = (low - 1 / slo_ms) / (low - high)
    return above, float(rates[above - 1] + share * (rates[above] - rates[above - 1]))
