"""Arrival times of requests: a pattern of traffic, drawn from a seed before the run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.request_log import read_trace

Pattern = Literal["poisson", "deterministic", "bursts", "diurnal", "replay"]
Floats = NDArray[np.float64]

_SHORTEST_SECONDS = 0.001
# Halvings of an interval as long as a third of the period: enough for a nanosecond of a year.
_HALVINGS = 60


@dataclass(frozen=True)
class Traffic:
    """A pattern of arrivals; the mean rate is given when a schedule is drawn.

    bursts: phases of exponential length with the means on_seconds and off_seconds, Poisson within a phase; quiet is
        the rate of the off phase as a share of that of the on phase.
    diurnal: Poisson at rate (1 + depth sin(2 pi t / period_seconds)), from t = 0.
    replay: the gaps of a trace, the path of a file by `request_log.write_trace`, stretched to the rate.
    """

    pattern: Pattern = "poisson"
    on_seconds: float = 0.5
    off_seconds: float = 0.5
    quiet: float = 0.0
    period_seconds: float = 60.0
    depth: float = 0.8
    trace: str | None = None

    def __post_init__(self) -> None:
        if self.pattern not in PATTERNS:
            raise ValueError(f"A pattern of traffic is one of {sorted(PATTERNS)}, but got {self.pattern!r}.")
        for name in ("on_seconds", "off_seconds", "period_seconds"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= _SHORTEST_SECONDS):
                raise ValueError(f"{name} is {_SHORTEST_SECONDS} or more, but got {value}.")
        for name in ("quiet", "depth"):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"{name} is from 0 to 1, but got {value}.")
        if (self.pattern == "replay") != (self.trace is not None):
            raise ValueError(
                f"Traffic has a trace exactly when it is a replay, but got {self.pattern!r} and {self.trace!r}."
            )


def gaps(traffic: Traffic, rate_rps: float, count: int, seed: int) -> NDArray[np.int64]:
    """Draw the gaps before each arrival, in nanoseconds, (count,), each at least 1; the same seed gives the same gaps.

    The mean rate of the whole pattern is rate_rps; a schedule that is short compared with the pattern's own times (a
    phase, the period, the trace) covers only a part of it, which may be busier or quieter.

    Raises:
        ValueError: the rate is not above 0, the count is below 1, or a trace cannot be read (RequestLogError).
    """
    if not (math.isfinite(rate_rps) and rate_rps > 0 and count >= 1):
        raise ValueError(f"A schedule has a rate above 0 and 1 request or more, but got {rate_rps} and {count}.")
    arrivals = PATTERNS[traffic.pattern](traffic, rate_rps, count, np.random.default_rng(seed))
    # Times are rounded, not gaps, so that rounding errors do not add up.
    return np.maximum(np.diff(np.rint(arrivals * 1e9).astype(np.int64), prepend=0), 1)


def _unit_poisson(count: int, random: np.random.Generator) -> Floats:
    """Draw arrivals at rate 1; at the inverse of a cumulative rate, they are Poisson at it (Çinlar 1975, p. 96)."""
    return np.cumsum(random.exponential(size=count))


def _poisson(traffic: Traffic, rate_rps: float, count: int, random: np.random.Generator) -> Floats:
    return _unit_poisson(count, random) / rate_rps


def _deterministic(traffic: Traffic, rate_rps: float, count: int, random: np.random.Generator) -> Floats:
    return np.arange(1, count + 1) / rate_rps


def _bursts(traffic: Traffic, rate_rps: float, count: int, random: np.random.Generator) -> Floats:
    """Draw a Poisson process whose rate a two-state Markov chain modulates, started in its steady state."""
    wanted = _unit_poisson(count, random)
    means, shares = np.array([traffic.on_seconds, traffic.off_seconds]), np.array([1.0, traffic.quiet])
    mean_share = float(means @ shares / means.sum())
    if random.random() >= means[0] / means.sum():  # the off phase is first
        means, shares = means[::-1], shares[::-1]
    moments, cumulative = np.zeros(1), np.zeros(1)
    while cumulative[-1] < wanted[-1]:
        cycles = 1 + int((wanted[-1] - cumulative[-1]) / (rate_rps * means.sum()))
        lengths = random.exponential(means, size=(cycles, 2))
        arriving = lengths * shares * (rate_rps / mean_share)
        moments = np.append(moments, moments[-1] + np.cumsum(lengths))
        cumulative = np.append(cumulative, cumulative[-1] + np.cumsum(arriving))
    return np.asarray(np.interp(wanted, cumulative, moments), dtype=np.float64)


def _diurnal(traffic: Traffic, rate_rps: float, count: int, random: np.random.Generator) -> Floats:
    """Draw arrivals whose cumulative rate, rate (t + swing (1 - cos(2 pi t / period))), is inverted by bisection."""
    wanted = _unit_poisson(count, random) / rate_rps
    turn = 2 * math.pi / traffic.period_seconds
    swing = traffic.depth / turn
    low, high = wanted - 2 * swing, wanted
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        early = middle + swing * (1 - np.cos(turn * middle)) < wanted
        low, high = np.where(early, middle, low), np.where(early, high, middle)
    return np.maximum(high, 0)


def _replay(traffic: Traffic, rate_rps: float, count: int, random: np.random.Generator) -> Floats:
    """Repeat the recorded gaps cyclically, from a position that the seed chooses, scaled by one constant."""
    recorded = np.diff(read_trace(Path(str(traffic.trace))).seconds)
    start = int(random.integers(len(recorded)))
    taken = np.resize(np.roll(recorded, -start), count)
    return np.cumsum(taken) / float(rate_rps * recorded.mean())


# Name -> the first `count` moments of arrival, in ascending seconds from the start, at that mean rate.
PATTERNS: Mapping[Pattern, Callable[[Traffic, float, int, np.random.Generator], Floats]] = {
    "poisson": _poisson,
    "deterministic": _deterministic,
    "bursts": _bursts,
    "diurnal": _diurnal,
    "replay": _replay,
}
