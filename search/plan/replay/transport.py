"""Transport of requests to a server's pool and back, at the rates of a trace."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from objectives.measurement.load_generator import on_time
from planning.demand import Floats

# Seconds around a request in which its rate is counted.
_WINDOW_S = 1.0
# Quantiles of the requests whose rates transport is measured at; the first alone where they, within their bounds,
# differ by less than a factor.
_CALM, _BUSY, _ALIKE = 0.25, 0.95, 1.3
# Seconds of a trace whose requests get consecutive ones of a sample.
_RUN_S = 0.5
# Bounds of the calm rate, and the largest share of the time that transport itself may take at the busy one.
_LEAST_RPS, _MOST_RPS, _MOST_USED = 10.0, 250.0, 0.7


@dataclass(frozen=True, eq=False)
class Transport:
    """Milliseconds of requests beyond the pool's at rates in requests per second, ascending: a sample at each."""

    rates_rps: Floats
    samples_ms: tuple[Floats, ...]

    @classmethod
    def none(cls) -> Transport:
        """Return the transport of requests that are at the pool at once."""
        return cls(np.ones(1), (np.zeros(1),))

    @classmethod
    def measured(cls, seconds: Floats, sample: Callable[[float], Floats]) -> Transport:
        """Measure the transport of a trace.

        Requests that come often take less each, since processes that have slept are slower, but wait for the cores.
        So a calm and a busy rate are measured, by the requests of the trace, where these differ.

        Args:
            seconds: (n,) ascending arrival times
            sample: measures the milliseconds of requests at a rate
        """
        calm, busy = np.quantile(local_rates(seconds), (_CALM, _BUSY)).tolist()
        calm = min(max(calm, _LEAST_RPS), _MOST_RPS)
        first = sample(calm)
        busy = min(busy, 1000 * _MOST_USED / max(float(first.mean()), 1e-9))
        if busy < _ALIKE * calm:
            return cls(np.array([calm]), (first,))
        return cls(np.array([calm, busy]), (first, sample(busy)))

    def measured_again(self, sample: Callable[[float], Floats]) -> Transport:
        """Return the transport with a further sample at each rate; `sample` is as in `measured`."""
        pairs = zip(self.rates_rps.tolist(), self.samples_ms, strict=True)
        return Transport(self.rates_rps, tuple(np.concatenate((before, sample(rate))) for rate, before in pairs))

    def drawn_ms(self, seconds: Floats, seed: int) -> Floats:
        """Return the milliseconds of each request by itself, (n,), drawn from the samples.

        They are runs of consecutive requests of a sample (moving blocks, Kuensch 1989), since a machine that is slow
        for a moment delays those that come then, which wait for each other; how long the moment is follows the
        requests. Between two rates, by their logarithms, a run is of one or the other at random.
        """
        random, drawn = np.random.default_rng(seed), np.zeros(len(seconds))
        place = np.interp(np.log(local_rates(seconds)), np.log(self.rates_rps), np.arange(len(self.rates_rps)))
        runs = np.flatnonzero(np.diff(seconds // _RUN_S, prepend=-1.0))
        for first, end in itertools.pairwise([*runs.tolist(), len(seconds)]):
            sample = self.samples_ms[int(place[first:end].mean() + random.random() * (len(self.samples_ms) - 1))]
            drawn[first:end] = sample[(random.integers(len(sample)) + np.arange(end - first)) % len(sample)]
        return drawn


def local_rates(seconds: Floats) -> Floats:
    """Return the requests per second around each of (n,) ascending arrivals, itself included, (n,)."""
    first, end = (np.searchsorted(seconds, seconds + side * _WINDOW_S / 2) for side in (-1, 1))
    return np.asarray(np.maximum(end - first, 1) / _WINDOW_S, np.float64)


def travelled_s(seconds: Floats, transport_ms: Floats) -> Floats:
    """Return the seconds from each arrival until its request is at the pool, (n,): one travels at a time.

    Args:
        seconds: (n,) ascending arrival times
        transport_ms: (n,) of each request by itself
    """
    travel_ns = np.rint(1e6 * transport_ms).astype(np.int64)
    due_ns = np.rint(1e9 * seconds).astype(np.int64)
    return np.asarray((on_time(due_ns, travel_ns) + travel_ns - due_ns) / 1e9)


def own_times(arrivals: Floats, latency: Floats) -> Floats:
    """Return the times that requests take by themselves, without the wait for those before.

    Requests are served one at a time.

    Args:
        arrivals: (n,) ascending
        latency: (n,) from the arrival to the end, waits included, in the unit of the arrivals
    """
    ends = np.maximum.accumulate(arrivals + latency)
    return np.asarray(ends - np.maximum(arrivals, np.concatenate(([-np.inf], ends[:-1]))))
