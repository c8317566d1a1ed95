"""Transport of requests to a server's pool and back: what it takes by the rate of a trace, and the machine's speed."""

from __future__ import annotations

import math
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
# Bounds of the calm rate, and the largest share of the time that transport itself may take at the busy one.
_LEAST_RPS, _MOST_RPS, _MOST_USED = 10.0, 250.0, 0.7
# Time of a slow request at least, over the median.
_SLOW = 2.0
# Longest idle time between two slow requests that follow each other closely, over what both took.
_CLOSE = 2.0
# Lowest speed of the machine, over the usual one.
_SLOWEST = 1e-4
# Steps of the machine's speed, and the length of the pieces of a sample that a trace is served by.
_STEP_S, _STEPS_IN_PIECE = 0.001, 2000


@dataclass(frozen=True, eq=False)
class TransportSample:
    """Transport of requests at one rate, one after another.

    usual_ms: (n,), milliseconds of each at the machine's usual speed
    speed: (steps,), speed of the machine over the usual one in each millisecond, the usual one after its end; at least
        two seconds
    mean_ms: milliseconds of a request at the speed of then
    """

    usual_ms: Floats
    speed: Floats
    mean_ms: float

    @classmethod
    def of(cls, seconds: Floats, latency_ms: Floats) -> TransportSample:
        """Separate what requests take by themselves from the speed of the machine at that moment.

        Where slow requests, which take above twice the median, follow each other closely, or others came while one
        was under way, the machine was slow: for so long any request would have been. A slow request alone took its
        time by itself. So slow moments are seen where some requests come in each; of sparser ones the requests keep
        what they took.

        Args:
            seconds: (n,), ascending arrival times from 0 on
            latency_ms: (n,), from the arrival to the end, the wait for those before included
        """
        ends = np.maximum.accumulate(seconds + latency_ms / 1e3)
        starts = np.maximum(seconds, np.concatenate(([0.0], ends[:-1])))
        own_s, idle_s = ends - starts, starts - np.concatenate(([0.0], ends[:-1]))
        slow = own_s > (_SLOW * float(np.median(own_s)) or own_s.max())
        # Of each request and the one before.
        close = slow & np.roll(slow, 1) & (idle_s < _CLOSE * (own_s + np.roll(own_s, 1)))
        close[0] = False
        waited_for = np.concatenate((seconds[1:] < ends[:-1], [False]))
        slowed = slow & (waited_for | close | np.concatenate((close[1:], [False])))
        # What a request that is not slow takes in the mean, since other requests will meet the slow machine.
        usual_s = np.where(slowed, np.maximum(own_s[~slow].mean(), _SLOWEST * own_s), own_s)
        speed = np.divide(usual_s, own_s, out=np.ones(len(own_s)), where=slowed)
        beside = np.where(close, np.maximum(speed, np.roll(speed, 1)), 1.0)
        # The usual seconds that have passed at each start and end, in turn.
        moments = np.concatenate(([0.0], np.stack((starts, ends), axis=1).ravel()))
        passed = np.concatenate(([0.0], np.stack((idle_s * beside, own_s * speed), axis=1).ravel().cumsum()))
        steps = np.arange(max(math.ceil(ends[-1] / _STEP_S), _STEPS_IN_PIECE) + 1) * _STEP_S
        after = np.maximum(steps - moments[-1], 0.0)
        speeds = np.diff(np.interp(steps, moments, passed) + after) / _STEP_S
        return cls(1e3 * usual_s, speeds, float(1e3 * own_s.mean()))


@dataclass(frozen=True, eq=False)
class DrawnTransport:
    """Transport of the requests of a trace, drawn from samples.

    usual_ms: (n,), milliseconds of each at the machine's usual speed
    speed: (steps,), speed of the machine over the usual one in each millisecond of the trace, the usual one afterwards
    """

    usual_ms: Floats
    speed: Floats


@dataclass(frozen=True, eq=False)
class Transport:
    """Transport of requests at rates in requests per second, ascending: one or more samples at each."""

    rates_rps: Floats
    samples: tuple[tuple[TransportSample, ...], ...]

    @classmethod
    def measured(cls, seconds: Floats, sample: Callable[[float], TransportSample]) -> Transport:
        """Measure the transport of a trace.

        Requests that come often take less each, since processes that have slept are slower, but wait for the cores.
        So a calm and a busy rate are measured, by the requests of the trace, where these differ.

        Args:
            seconds: (n,) ascending arrival times
            sample: measures requests at a rate
        """
        calm, busy = np.quantile(local_rates(seconds), (_CALM, _BUSY)).tolist()
        calm = min(max(calm, _LEAST_RPS), _MOST_RPS)
        first = sample(calm)
        busy = min(busy, 1000 * _MOST_USED / max(first.mean_ms, 1e-9))
        if busy < _ALIKE * calm:
            return cls(np.array([calm]), ((first,),))
        return cls(np.array([calm, busy]), ((first,), (sample(busy),)))

    def measured_again(self, sample: Callable[[float], TransportSample]) -> Transport:
        """Return the transport with a further sample at each rate; `sample` is as in `measured`."""
        pairs = zip(self.rates_rps.tolist(), self.samples, strict=True)
        return Transport(self.rates_rps, tuple((*before, sample(rate)) for rate, before in pairs))

    def drawn(self, seconds: Floats, seed: int) -> DrawnTransport:
        """Draw what each request of a trace takes, and the speed of the machine until its end.

        Every two seconds have a piece of a sample (moving blocks, Kuensch 1989), and their requests take what those of
        the sample did, in their order from about there on. Between two rates, by their logarithms, a piece is of one or
        the other at random. Slow moments at the edges of two pieces may join.

        Args:
            seconds: (n,), ascending arrival times from 0 on
        """
        random, usual_ms = np.random.default_rng(seed), np.zeros(len(seconds))
        place = np.interp(np.log(local_rates(seconds)), np.log(self.rates_rps), np.arange(len(self.rates_rps)))
        pieces = int(seconds[-1] / (_STEP_S * _STEPS_IN_PIECE)) + 1
        edges = np.searchsorted(seconds, np.arange(pieces + 1) * _STEP_S * _STEPS_IN_PIECE)
        edges[-1] = len(seconds)
        speed = np.ones((pieces, _STEPS_IN_PIECE))
        for number, (first, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            near = place[first:end].mean() if end > first else 0.0
            at_rate = self.samples[int(near + random.random() * (len(self.samples) - 1))]
            of, begins = at_rate[random.integers(len(at_rate))], random.random()
            start = int(begins * (len(of.speed) - _STEPS_IN_PIECE + 1))
            speed[number] = of.speed[start : start + _STEPS_IN_PIECE]
            order = int(begins * len(of.usual_ms)) + np.arange(end - first)
            usual_ms[first:end] = of.usual_ms[order % len(of.usual_ms)]
        return DrawnTransport(usual_ms, speed.ravel())


def local_rates(seconds: Floats) -> Floats:
    """Return the requests per second around each of (n,) ascending arrivals, itself included, (n,)."""
    first, end = (np.searchsorted(seconds, seconds + side * _WINDOW_S / 2) for side in (-1, 1))
    return np.asarray(np.maximum(end - first, 1) / _WINDOW_S, np.float64)


def travelled_s(seconds: Floats, drawn: DrawnTransport) -> Floats:
    """Return the seconds from each arrival until its request is at the pool, (n,): one travels at a time.

    Args:
        seconds: (n,), ascending arrival times from 0 on
    """
    moments = np.arange(len(drawn.speed) + 1) * _STEP_S
    passed = np.concatenate(([0.0], (drawn.speed * _STEP_S).cumsum()))
    due = np.interp(seconds, moments, passed) + np.maximum(seconds - moments[-1], 0.0)
    due_ns, travel_ns = (np.rint(1e9 * each).astype(np.int64) for each in (due, drawn.usual_ms / 1e3))
    ends = (on_time(due_ns, travel_ns) + travel_ns) / 1e9
    ends_s = np.interp(ends, passed, moments) + np.maximum(ends - passed[-1], 0.0)
    return np.asarray(np.maximum(ends_s - seconds, 0.0))
