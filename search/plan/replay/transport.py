"""Transport of requests to a server's pool and back: what it takes by the rate of a trace, and the machine's speed."""

from __future__ import annotations

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
# Quantile of the times of requests above which the machine was slow.
_USUAL = 0.75
# Lowest speed of the machine, over the usual one.
_SLOWEST = 1e-3
# Steps of the machine's speed, and the length of the pieces of a sample that a trace is served by.
_STEP_S, _STEPS_IN_PIECE = 0.002, 250


@dataclass(frozen=True, eq=False)
class TransportSample:
    """Transport of requests at one rate, one after another.

    usual_ms: (n,), milliseconds of each at the machine's usual speed
    speed: (steps,), speed of the machine over the usual one in each step of 2 ms
    """

    usual_ms: Floats
    speed: Floats

    @classmethod
    def of(cls, seconds: Floats, latency_ms: Floats) -> TransportSample:
        """Separate what requests take by themselves from the speed of the machine at that moment.

        A request that takes longer than three of four met a slow machine: for so long, any request would have. Between
        two requests the machine has the speed of the faster one.

        Args:
            seconds: (n,), ascending arrival times from 0 on
            latency_ms: (n,), from the arrival to the end, the wait for those before included
        """
        ends = np.maximum.accumulate(seconds + latency_ms / 1e3)
        starts = np.maximum(seconds, np.concatenate(([0.0], ends[:-1])))
        own_s = ends - starts
        usual_s = np.minimum(own_s, np.quantile(own_s, _USUAL))
        speed = np.divide(usual_s, own_s, out=np.ones(len(own_s)), where=own_s > 0).clip(min=_SLOWEST)
        idle = starts - np.concatenate(([0.0], ends[:-1]))
        beside = np.maximum(speed, np.concatenate((speed[:1], speed[:-1])))
        # The usual seconds that pass until each start and end, in turn.
        moments = np.concatenate(([0.0], np.stack((starts, ends), axis=1).ravel()))
        passed = np.concatenate(([0.0], np.stack((idle * beside, own_s * speed), axis=1).ravel().cumsum()))
        steps = np.arange(max(int(ends[-1] / _STEP_S), _STEPS_IN_PIECE) + 1) * _STEP_S
        after = np.maximum(steps - moments[-1], 0.0)
        return cls(1e3 * usual_s, np.diff(np.interp(steps, moments, passed) + after) / _STEP_S)

    def joined(self, other: TransportSample) -> TransportSample:
        """Return both samples as one."""
        usual_ms, speed = zip((self.usual_ms, self.speed), (other.usual_ms, other.speed), strict=True)
        return TransportSample(np.concatenate(usual_ms), np.concatenate(speed))


@dataclass(frozen=True, eq=False)
class Transport:
    """Transport of requests at rates in requests per second, ascending: a sample at each."""

    rates_rps: Floats
    samples: tuple[TransportSample, ...]

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
        busy = min(busy, 1000 * _MOST_USED / max(float(first.usual_ms.mean()), 1e-9))
        if busy < _ALIKE * calm:
            return cls(np.array([calm]), (first,))
        return cls(np.array([calm, busy]), (first, sample(busy)))

    def measured_again(self, sample: Callable[[float], TransportSample]) -> Transport:
        """Return the transport with a further sample at each rate; `sample` is as in `measured`."""
        pairs = zip(self.rates_rps.tolist(), self.samples, strict=True)
        return Transport(self.rates_rps, tuple(before.joined(sample(rate)) for rate, before in pairs))

    def drawn(self, seconds: Floats, seed: int) -> TransportSample:
        """Return what each request of a trace takes by itself, and the speed of the machine until its end.

        Every half second has a piece of a sample (moving blocks, Kuensch 1989), with what its requests took in their
        order, since a machine that is slow for a moment delays those that come then. Between two rates, by their
        logarithms, a piece is of one or the other sample at random.

        Args:
            seconds: (n,), ascending arrival times from 0 on
        """
        random, usual_ms = np.random.default_rng(seed), np.zeros(len(seconds))
        place = np.interp(np.log(local_rates(seconds)), np.log(self.rates_rps), np.arange(len(self.rates_rps)))
        pieces = int(seconds[-1] / (_STEP_S * _STEPS_IN_PIECE)) + 1
        edges = np.searchsorted(seconds, np.arange(pieces + 1) * _STEP_S * _STEPS_IN_PIECE)
        speed = np.ones((pieces, _STEPS_IN_PIECE))
        for number, (first, end) in enumerate(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)):
            near = place[first:end].mean() if end > first else 0.0
            of = self.samples[int(near + random.random() * (len(self.samples) - 1))]
            begins = random.random()
            start = int(begins * (len(of.speed) - _STEPS_IN_PIECE + 1))
            speed[number] = of.speed[start : start + _STEPS_IN_PIECE]
            order = int(begins * len(of.usual_ms)) + np.arange(end - first)
            usual_ms[first:end] = of.usual_ms[order % len(of.usual_ms)]
        return TransportSample(usual_ms, speed.ravel())


def local_rates(seconds: Floats) -> Floats:
    """Return the requests per second around each of (n,) ascending arrivals, itself included, (n,)."""
    first, end = (np.searchsorted(seconds, seconds + side * _WINDOW_S / 2) for side in (-1, 1))
    return np.asarray(np.maximum(end - first, 1) / _WINDOW_S, np.float64)


def travelled_s(seconds: Floats, drawn: TransportSample) -> Floats:
    """Return the seconds from each arrival until its request is at the pool, (n,): one travels at a time.

    Args:
        seconds: (n,), ascending arrival times from 0 on
        drawn: what each takes by itself, and the speed of the machine meanwhile, which is the usual one afterwards
    """
    moments = np.arange(len(drawn.speed) + 1) * _STEP_S
    passed = np.concatenate(([0.0], (drawn.speed * _STEP_S).cumsum()))
    due = np.interp(seconds, moments, passed) + np.maximum(seconds - moments[-1], 0.0)
    due_ns, travel_ns = (np.rint(1e9 * each).astype(np.int64) for each in (due, drawn.usual_ms / 1e3))
    ends = (on_time(due_ns, travel_ns) + travel_ns) / 1e9
    ends_s = np.interp(ends, passed, moments) + np.maximum(ends - passed[-1], 0.0)
    return np.asarray(np.maximum(ends_s - seconds, 0.0))
