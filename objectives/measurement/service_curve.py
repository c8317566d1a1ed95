"""Service curve of a deployment: how long a run takes by its rows, from which a virtual clock draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

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


class OutsideRangeError(ValueError):
    """A run of a size for which no time was measured; nothing is simulated there."""


@dataclass(frozen=True, eq=False)
class Runs:
    """Runs of a deployment's replicas as they were measured, (n,) each.

    ns: from the scheduled arrival to the answer where the replica was idle, else from the replica's answer before
    idle: the replica had nothing to do before
    busy: other replicas that ran when it began
    """

    rows: NDArray[np.int64]
    ns: NDArray[np.int64]
    idle: NDArray[np.bool_]
    busy: NDArray[np.int64]

    def __post_init__(self) -> None:
        if not len(self.rows) == len(self.ns) == len(self.idle) == len(self.busy) >= FEWEST_RUNS:
            raise ValueError(f"A service curve needs {FEWEST_RUNS} runs or more, but got {len(self.rows)}.")


@dataclass(frozen=True, eq=False)
class Line:
    """Times of runs by rows, and how single runs deviate from them.

    rows, ns: (knots,), ascending sizes and the median time at each, which does not fall; the first and the last are
        those of the smallest and the largest run
    deviations: (n,), time of a run over that of the line
    """

    rows: Floats
    ns: Floats
    deviations: Floats

    @classmethod
    def through(cls, rows: NDArray[np.int64], ns: NDArray[np.int64]) -> Line:
        """Draw a line through the medians of groups of equal size, in the order of rows, (n,)."""
        groups = np.array_split(np.argsort(rows, kind="stable"), min(_KNOTS, len(rows) // (FEWEST_RUNS // _KNOTS)))
        # Groups of the same median size are one.
        knots, of = np.unique([np.median(rows[group]) for group in groups], return_inverse=True)
        joint = [np.concatenate([groups[i] for i in np.flatnonzero(of == knot)]) for knot in range(len(knots))]
        level: Floats = isotonic_regression([float(np.median(ns[group])) for group in joint]).x
        sizes, level = _continued(knots, level, float(rows.min()), float(rows.max()))
        return cls(sizes, level, ns / np.interp(rows, sizes, level))

    def __call__(self, rows: float) -> float:
        return float(np.interp(rows, self.rows, self.ns))


@dataclass(frozen=True, eq=False)
class ServiceCurve:
    """Service times of a replica that was idle, of one that is kept busy alone, and of one beside busy others.

    others: number of other replicas in `crowded`
    least_rows, most_rows: sizes between which runs were measured
    """

    idle: Line
    alone: Line
    crowded: Line
    others: int
    least_rows: int
    most_rows: int

    @classmethod
    def fit(cls, runs: Runs) -> ServiceCurve:
        """Fit the three lines; a condition of too few runs takes the line of the nearest one that has enough.

        Raises:
            ValueError: no condition has enough runs.
        """
        others = int(runs.busy.max())
        kinds = {
            "idle": runs.idle & (runs.busy == 0),
            "alone": ~runs.idle & (runs.busy == 0),
            "crowded": ~runs.idle & (runs.busy == others),
        }
        enough = {name: of for name, of in kinds.items() if np.count_nonzero(of) >= FEWEST_RUNS}
        lines = {name: Line.through(runs.rows[of], runs.ns[of]) for name, of in enough.items()}
        if not lines:
            raise ValueError(f"A service curve needs {FEWEST_RUNS} runs of one kind, but got {len(runs.rows)} in all.")
        alone = lines.get("alone") or lines.get("crowded") or lines["idle"]
        crowded, idle = lines.get("crowded", alone), lines.get("idle", alone)
        return cls(idle, alone, crowded, others, int(runs.rows.min()), int(runs.rows.max()))

    def sampler(self, seed: int) -> Callable[[int, bool, int], float]:
        """Return a function that draws the nanoseconds of a run of so many rows, by a replica that was idle or not,
        beside so many busy others. It raises OutsideRangeError for a size that was not measured.
        """
        random = np.random.default_rng(seed)
        idle_draws, alone_draws, crowded_draws = (
            _endless(random, line.deviations) for line in (self.idle, self.alone, self.crowded)
        )

        def draw(rows: int, idle: bool, busy: int) -> float:
            if not self.least_rows / _BEYOND <= rows <= self.most_rows * _BEYOND:
                measured = f"{self.least_rows} to {self.most_rows}"
                raise OutsideRangeError(f"A simulated run has {measured} rows, but got {rows}.")
            alone = self.alone(rows)
            beside = (self.crowded(rows) - alone) * min(busy / self.others, 1.0) if self.others else 0.0
            if idle:
                return (self.idle(rows) + beside) * next(idle_draws)
            return (alone + beside) * next(crowded_draws if busy else alone_draws)

        return draw


def _continued(rows: Floats, level: Floats, least: float, most: float) -> tuple[Floats, Floats]:
    """Continue a line to the least and the most rows that were run, with the slope of its lower and its upper half: the
    groups at its ends stand for their median size, and with log-normal sizes the largest is twice that.
    """
    if len(rows) < 2:
        return rows, level
    middle = len(rows) // 2
    lower = (level[middle] - level[0]) / (rows[middle] - rows[0])
    upper = (level[-1] - level[middle - 1]) / (rows[-1] - rows[middle - 1])
    first = max(level[0] - lower * (rows[0] - least), level[0] / 2)
    return np.array([least, *rows, most]), np.array([first, *level, level[-1] + upper * (most - rows[-1])])


def _endless(random: np.random.Generator, deviations: Floats) -> Iterator[float]:
    while True:
        yield from random.choice(deviations, _DRAWN_TOGETHER).tolist()
