"""The highest open-loop rate at which a percentile of latency stays within the SLO."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from objectives.measurement.schedule import Traffic, gaps
from objectives.measurement.statistics import Floats, block_percentiles, block_picks, percentile
from objectives.measurement.strain import calm_blocks
from objectives.measurement.traffic import Request, Submit, closed_loop, open_loop, saturated, spin_ns
from objectives.record import rows_of

_RESAMPLES = 400
_PROBE_BLOCKS = 5
_PROBE_REQUESTS = 200
_PROBE_SECONDS = 0.3
_SATURATION_BLOCKS = 5
_SATURATION_SECONDS = 0.1
# Of a look at the pace; looks that count.
_SERVICE_REQUESTS = 12
_PACE_LOOKS = 3
_UNCOUNTED = 2


@dataclass(frozen=True)
class Probe:
    """Latency in milliseconds at one offered rate, (blocks, requests); both as they are where slowness is 1."""

    rate_rps: float
    latency_ms: Floats


# How many times slower the machine is at the moment than at some other one.
Slowness = Callable[[], float]


def _steady() -> float:
    return 1.0


def saturation(submit: Submit, requests: Sequence[Request], replicas: int, slowness: Slowness = _steady) -> Floats:
    """Requests a second in a closed loop that always keeps two in flight for each replica, as it would be where
    slowness is 1: (blocks,).

    Raises:
        DisturbedError: the machine is busy with something else.
    """

    def block() -> float:
        slower = slowness()
        return slower * saturated(submit, requests, 2 * replicas, _SATURATION_SECONDS)

    return np.array(calm_blocks(block, _SATURATION_BLOCKS))


class Pace:
    """How long a replica takes for a request at the moment, one by one.

    A machine's speed may change by half within minutes. At a fixed rate the queue in its slow moments would be most of
    a window's p95, and a rate that was found in a fast moment could not be held against one of a slow moment.

    Raises:
        DisturbedError: the machine is busy with something else.
    """

    def __init__(self, submit: Submit, requests: Sequence[Request]) -> None:
        self._submit = submit
        by_rows = sorted(requests, key=rows_of)
        # Evenly spaced among the sizes, so that a few have the mean of all.
        places = (np.arange(_SERVICE_REQUESTS) + 0.5) / _SERVICE_REQUESTS * len(by_rows)
        self._requests = [by_rows[int(place)] for place in places]
        self._recent = deque(calm_blocks(self._service_ms, _PACE_LOOKS), maxlen=_PACE_LOOKS)

    def __call__(self) -> float:
        """Mean milliseconds of a request, by the middle of the last looks, of which this call's is one."""
        self._recent.append(self._service_ms())
        return statistics.median(self._recent)

    def _service_ms(self) -> float:
        return float(closed_loop(self._submit, self._requests).mean())


def open_loop_probe(
    submit: Submit,
    requests: Sequence[Request],
    traffic: Traffic,
    rate_rps: float,
    seed: int,
    slowness: Slowness = _steady,
) -> Probe:
    """A few short blocks at one rate; queues drain between them, so the early answers of each are not counted.

    Where the machine is slower, arrivals come that much slower, and latencies are told as they would be where slowness
    is 1: a queue at the same utilisation, on another clock.

    Raises:
        DisturbedError: the machine is busy with something else.
    """
    count = max(_PROBE_REQUESTS, int(rate_rps * _PROBE_SECONDS)) // _PROBE_BLOCKS
    early = count // 3
    spin = spin_ns(float(closed_loop(submit, requests[:_UNCOUNTED]).mean()))
    taken = itertools.count()

    def block() -> Floats:
        number, slower = next(taken), slowness()
        start = number * (early + count)
        chosen = [requests[(start + i) % len(requests)] for i in range(early + count)]
        played = open_loop(submit, chosen, gaps(traffic, rate_rps / slower, early + count, seed + number), spin)
        return played.latency_ms[early:] / slower

    blocks = calm_blocks(block, _PROBE_BLOCKS)
    # In single precision, as they are kept.
    return Probe(rate_rps, np.array(blocks, dtype=np.float32).astype(np.float64))


def search_rates(
    probe: Callable[[float], Probe], first: Probe, saturated_rps: float, slo_ms: float, percent: float, probes: int
) -> tuple[Probe, ...]:
    """Bisect (in log rate) for the rate at which the percentile meets the SLO, from a first probe that is given.

    Where the first keeps the SLO the answer lies between it and saturation, else between an eighth of it and it.
    """
    done = [first]
    if percentile(first.latency_ms, percent) <= slo_ms:
        low, high = first.rate_rps, max(saturated_rps, first.rate_rps)
        rate = max(0.85 * saturated_rps, math.sqrt(low * high))
    else:
        low, high = first.rate_rps / 8, first.rate_rps
        rate = math.sqrt(low * high)
    for _ in range(probes):
        done.append(probe(rate))
        if percentile(done[-1].latency_ms, percent) <= slo_ms:
            low = rate
        else:
            high = rate
        rate = math.sqrt(low * high)
    return tuple(sorted(done, key=lambda p: p.rate_rps))


def crossing(rates: Floats, percentiles: Floats, slo: float) -> float:
    """The rate at which the percentile meets the SLO, by interpolation in logarithms.

    Args:
        rates: (n,), ascending
        percentiles: (n,); more load never lowers a percentile, so a dip is noise and is levelled

    Returns:
        The highest rate where all keep the SLO; where none does, the lowest rate scaled down by SLO over percentile.
    """
    level = np.maximum.accumulate(percentiles)
    above = np.flatnonzero(level > slo)
    if len(above) == 0:
        return float(rates[-1])
    at = int(above[0])
    if at == 0:
        return float(rates[0] * slo / level[0])
    x0, x1 = math.log(rates[at - 1]), math.log(rates[at])
    y0, y1 = math.log(level[at - 1]), math.log(level[at])
    return math.exp(x0 + (x1 - x0) * (math.log(slo) - y0) / (y1 - y0))


def slo_rate(
    probes: Sequence[Probe], saturation_rps: Floats, slo: float | Floats, percent: float, seed: int
) -> tuple[float, Floats]:
    """The rate under the SLO, and its bootstrap over the blocks of each probe.

    A short probe above saturation ends before its queue has grown, so the rate is never above the saturated one.

    Args:
        saturation_rps: (blocks,)
        slo: milliseconds, or (blocks, requests) milliseconds of the baseline whose own percentile is the SLO; it is
            then resampled too

    Returns:
        Requests per second, and (resamples,) of the same.
    """
    rates = np.array([p.rate_rps for p in probes])
    table = np.stack(
        [
            block_percentiles(p.latency_ms, percent, block_picks(len(p.latency_ms), seed + i, _RESAMPLES))
            for i, p in enumerate(probes)
        ],
        axis=1,
    )
    if isinstance(slo, float):
        limit, limits = slo, np.full(_RESAMPLES, slo)
    else:
        limit = percentile(slo, percent)
        limits = block_percentiles(slo, percent, block_picks(len(slo), seed + len(rates), _RESAMPLES))
    picks = block_picks(len(saturation_rps), seed + len(rates) + 1, _RESAMPLES)
    most = saturation_rps[picks].mean(axis=1)
    point = crossing(rates, np.array([percentile(p.latency_ms, percent) for p in probes]), limit)
    drawn = np.array([crossing(rates, row, float(at)) for row, at in zip(table, limits, strict=True)])
    # Where every probe kept the SLO, all that is known is that the rate lies between the highest and saturation.
    unbroken = table.max(axis=1) <= limits
    beyond = rates[-1] + np.random.default_rng(seed).random(_RESAMPLES) * np.maximum(most - rates[-1], 0)
    return min(point, float(saturation_rps.mean())), np.minimum(np.where(unbroken, beyond, drawn), most)
