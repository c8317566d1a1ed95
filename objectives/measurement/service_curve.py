"""Service curve of a deployment: how long a run takes by its rows, from which a virtual clock draws."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from objectives.measurement.statistics import Floats

# Number of sizes between which times are interpolated; each stands for equally many runs.
_KNOTS = 8
# Fewest runs from which a condition gets a curve of its own.
FEWEST_RUNS = 24
# How far a run may lie beyond the sizes that were measured.
_BEYOND = 1.05
_DRAWN_TOGETHER = 1000
# The first runs of requests that come at once have waited no longer.
_BURST_NS = 1000
# Quantiles that stand for the deviations of a line.
_DEVIATIONS = 199


class OutsideRangeError(ValueError):
    """A run of a size for which no time was measured; nothing is simulated there."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of a deployment's replicas as they were measured, (n,) each.

    ns: from the scheduled arrival to the answer where the replica was idle, else from the replica's answer before
    idle_ns: how long the replica had nothing to do before; negative where it was busy
    busy: other replicas that ran when it began
    """

    rows: NDArray[np.int64]
    ns: NDArray[np.int64]
    idle_ns: NDArray[np.int64]
    busy: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.ns) == len(self.idle_ns) == len(self.busy) >= FEWEST_RUNS:
            raise ValueError(f"A service curve needs {FEWEST_RUNS} runs or more, but got {len(self.rows)}.")


@dataclass(frozen=True)
class Line:
    """Times of runs by rows, and how single runs deviate from them.

    rows, ns: (knots,), ascending sizes and the median time at each, which does not fall; the first and the last are
        those of the smallest and the largest run
    deviations: (n,), quantiles of a run's time over that of the line
    """

    rows: tuple[float, ...]
    ns: tuple[float, ...]
    deviations: tuple[float, ...]

    @classmethod
    def through(cls, rows: NDArray[np.int64], ns: NDArray[np.int64]) -> Line:
        """Draw a line through the medians of groups of equal size, in the order of rows, (n,)."""
        groups = np.array_split(np.argsort(rows, kind="stable"), min(_KNOTS, len(rows) // (FEWEST_RUNS // _KNOTS)))
        # Groups of the same median size are one.
        knots, of = np.unique([np.median(rows[group]) for group in groups], return_inverse=True)
        joint = [np.concatenate([groups[i] for i in np.flatnonzero(of == knot)]) for knot in range(len(knots))]
        level: Floats = isotonic_regression([float(np.median(ns[group])) for group in joint]).x
        sizes, level = _continued(knots, level, float(rows.min()), float(rows.max()))
        deviations = ns / np.interp(rows, sizes, level)
        count = min(len(deviations), _DEVIATIONS)
        quantiles = np.quantile(deviations, (np.arange(count) + 0.5) / count)
        return cls(*(tuple(np.round(each, 4).tolist()) for each in (sizes, level, quantiles)))

    def __call__(self, rows: float) -> float:
        """Return the nanoseconds of a run of so many rows, interpolated."""
        above = bisect.bisect_left(self.rows, rows)
        if above == 0 or above == len(self.rows):
            return self.ns[min(above, len(self.rows) - 1)]
        low, high = self.rows[above - 1], self.rows[above]
        share = (rows - low) / (high - low)
        return self.ns[above - 1] + share * (self.ns[above] - self.ns[above - 1])

    def scaled(self, factor: float) -> Line:
        """Return the line of a machine on which a run takes so many times as long."""
        return replace(self, ns=tuple(factor * ns for ns in self.ns))


@dataclass(frozen=True)
class ServiceCurve:
    """Service times of a replica by its state before a run.

    A run after a long idle time takes longer: caches hold other data, and cores slow down or sleep. A small model at
    the load of a large one has only such runs.

    idle, rested: after a short and after a long idle time
    alone, crowded: kept busy, beside the fewest and beside the most other replicas that were
    idle_ns, rested_ns: the median idle times of `idle` and `rested`
    fewest, others: other replicas that ran beside the runs of `alone`, at most, and of `crowded`, at least
    least_rows, most_rows: sizes between which runs were measured
    slowdown: share by which each other replica that runs, up to `slowed_by` of them, prolongs the run of an idle one;
        None where too few such runs were measured. Those beyond `slowed_by`, and beyond `fewest`, prolong it by as much
        time as that of a busy one
    """

    idle: Line
    rested: Line
    alone: Line
    crowded: Line
    idle_ns: float
    rested_ns: float
    others: int
    least_rows: int
    most_rows: int
    fewest: int = 0
    slowdown: float | None = None
    slowed_by: int = 0

    @classmethod
    def fit(cls, runs: Runs, rested: Runs | None = None) -> ServiceCurve:
        """Fit the lines; a condition of too few runs takes the line of the nearest one that has enough.

        Args:
            rested: runs of which those of an idle replica have the line `rested`

        Raises:
            ValueError: no condition has enough runs.
        """
        idle = runs.idle_ns >= 0
        # What enough runs had beside them: replicas of a group are seldom alone, or all at work, when kept busy.
        beside = np.sort(runs.busy[~idle])
        fewest, others = (int(beside[:FEWEST_RUNS][-1]), int(beside[-FEWEST_RUNS:][0])) if len(beside) else (0, 0)
        kinds = {
            "idle": (runs, idle & (runs.busy == 0)),
            "alone": (runs, ~idle & (runs.busy <= fewest)),
            "crowded": (runs, ~idle & (runs.busy >= others)),
        }
        if rested is not None:
            kinds["rested"] = rested, (rested.idle_ns >= 0) & (rested.busy == 0)
        enough = {name: (part, of) for name, (part, of) in kinds.items() if np.count_nonzero(of) >= FEWEST_RUNS}
        lines = {name: Line.through(part.rows[of], part.ns[of]) for name, (part, of) in enough.items()}
        waited = {name: float(np.median(part.idle_ns[of])) for name, (part, of) in enough.items()}
        if not lines:
            raise ValueError(f"A service curve needs {FEWEST_RUNS} runs of one kind, but got {len(runs.rows)} in all.")
        alone = lines.get("alone") or lines.get("crowded") or lines["idle"]
        idle_line = lines.get("idle") or lines.get("rested", alone)
        idle_ns = waited.get("idle", 0.0)
        curve = cls(
            idle_line,
            lines.get("rested", idle_line),
            alone,
            lines.get("crowded", alone),
            idle_ns,
            max(waited.get("rested", 0.0), idle_ns),
            others,
            int(runs.rows.min()),
            int(runs.rows.max()),
            fewest,
        )
        waited_long = runs.idle_ns > _BURST_NS
        return curve._with_slowdown(runs, waited_long & (runs.busy > 0)) if "idle" in lines else curve

    def _with_slowdown(self, runs: Runs, beside: NDArray[np.bool_]) -> ServiceCurve:
        """Return the curve with the slowdown by these runs of idle replicas beside others, (n,), if they are enough."""
        if np.count_nonzero(beside) < FEWEST_RUNS:
            return self
        rows, waited, busy = runs.rows[beside], runs.idle_ns[beside], runs.busy[beside]
        share = np.array([self._rested_share(each) for each in waited.tolist()])
        short, long = (np.interp(rows, line.rows, line.ns) for line in (self.idle, self.rested))
        longer = runs.ns[beside] / ((1 - share) * short + share * long) - 1
        slowdown = round(max(float(np.median(longer / busy)), 0.0), 4)
        return replace(self, slowdown=slowdown, slowed_by=int(np.sort(busy)[-FEWEST_RUNS:][0]))

    def _rested_share(self, idle_ns: float) -> float:
        """Return the share of the line `rested` in the time of a run after so long an idle time; `idle` has the rest.

        It grows with the logarithm of the idle time, from 0 at `idle_ns` to 1 at `rested_ns`.
        """
        shortest = max(self.idle_ns, 1.0)
        if idle_ns <= shortest or not self.rested_ns > self.idle_ns > 0:
            return 0.0
        return min(math.log(idle_ns / shortest) / math.log(self.rested_ns / self.idle_ns), 1.0)

    def scaled(self, factor: float) -> ServiceCurve:
        """Return the curve of a machine on which a run takes so many times as long."""
        lines = {name: getattr(self, name).scaled(factor) for name in ("idle", "rested", "alone", "crowded")}
        return replace(self, **lines)

    def sampler(self, seed: int) -> Callable[[int, int | None, int], float]:
        """Return a function that draws the nanoseconds of a run.

        Its arguments are the rows of the run, the nanoseconds that the replica was idle before (None for a busy one),
        and the number of other replicas that are busy. It raises OutsideRangeError for a size that was not measured.
        """
        random = np.random.default_rng(seed)
        idle_draws, rested_draws, alone_draws, crowded_draws = (
            _endless(random, line.deviations) for line in (self.idle, self.rested, self.alone, self.crowded)
        )
        apart_by = self.others - self.fewest
        slowdown, slowed_by = self.slowdown or 0.0, self.slowed_by
        times: dict[int, tuple[float, float, float, float]] = {}

        def crowd(busy: int) -> float:
            """Return the share of `crowded` in the time of a busy replica's run beside so many others."""
            return min(max((busy - self.fewest) / apart_by, 0.0), 1.0) if apart_by > 0 else 0.0

        slowed = crowd(slowed_by)

        def draw(rows: int, idle_ns: int | None, busy: int) -> float:
            if rows not in times:
                times[rows] = self._times(rows)
            idle, rested, alone, crowded = times[rows]
            beside = (crowded - alone) * crowd(busy)
            if idle_ns is None:
                return (alone + beside) * next(crowded_draws if busy > self.fewest else alone_draws)
            share = self._rested_share(idle_ns)
            line = (1 - share) * idle + share * rested
            beyond = (crowded - alone) * max(crowd(busy) - slowed, 0.0)
            longer = line * (1 + slowdown * min(busy, slowed_by)) + beyond
            return longer * next(rested_draws if share > 0.5 else idle_draws)

        return draw

    def _times(self, rows: int) -> tuple[float, float, float, float]:
        """Return the nanoseconds of a run by each line; OutsideRangeError for a size that was not measured."""
        if not self.least_rows / _BEYOND <= rows <= self.most_rows * _BEYOND:
            measured = f"{self.least_rows} to {self.most_rows}"
            raise OutsideRangeError(f"A simulated run has {measured} rows, but got {rows}.")
        return self.idle(rows), self.rested(rows), self.alone(rows), self.crowded(rows)


class DrawnTimes:
    """Service times of the runs of a deployment, drawn from the curve of each of its instance groups."""

    def __init__(self, curves: Sequence[ServiceCurve], seed: int) -> None:
        self._draws = [curve.sampler(seed) for curve in curves]

    def __call__(self, group: int, rows: int, idle_ns: int | None, busy: int) -> float:
        """Draw the nanoseconds of a run of an instance group; the other arguments are those of a curve's sampler."""
        return self._draws[group](rows, idle_ns, busy)


def _continued(rows: Floats, level: Floats, least: float, most: float) -> tuple[Floats, Floats]:
    """Continue a line to the least and the most rows that were run, with the slope of its lower and its upper half.

    The groups at its ends stand for their median size, and with log-normal sizes the largest is twice that.
    """
    if len(rows) < 2:
        return rows, level
    middle = len(rows) // 2
    lower = (level[middle] - level[0]) / (rows[middle] - rows[0])
    upper = (level[-1] - level[middle - 1]) / (rows[-1] - rows[middle - 1])
    first = max(level[0] - lower * (rows[0] - least), level[0] / 2)
    return np.array([least, *rows, most]), np.array([first, *level, level[-1] + upper * (most - rows[-1])])


def _endless(random: np.random.Generator, deviations: Sequence[float]) -> Iterator[float]:
    while True:
        yield from random.choice(deviations, _DRAWN_TOGETHER).tolist()
