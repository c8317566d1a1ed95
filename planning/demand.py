"""Demand: requests in consecutive phases of equal length, and the burstiness of arrivals within them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.request_log import RequestLog

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
DAY_SECONDS = 86_400.0


@dataclass(frozen=True, eq=False)
class Demand:
    """Requests of consecutive phases: those that arrived, or that are expected.

    counts: (phases,), 0 or more; whole numbers where they were counted
    start_s: seconds since the epoch of the first phase, None where the log does not tell
    """

    counts: Floats
    phase_seconds: float
    start_s: float | None = None

    def __post_init__(self) -> None:
        if self.counts.ndim != 1 or len(self.counts) < 1 or self.counts.min() < 0 or not self.phase_seconds > 0:
            raise ValueError(f"A demand has one phase or more of 0 requests or more, but got {self.counts[:4]}...")

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def rates_rps(self) -> Floats:
        """Mean requests per second of each phase, (phases,)."""
        return self.counts / self.phase_seconds

    @property
    def per_day(self) -> int:
        """Phases of a day, 0 where they do not divide one."""
        whole = round(DAY_SECONDS / self.phase_seconds)
        return whole if math.isclose(whole * self.phase_seconds, DAY_SECONDS) else 0

    def at_rate(self, mean_rps: float) -> Demand:
        """Return the demand, which has requests, scaled to a mean rate; its counts are expectations, not rounded."""
        factor = mean_rps / float(self.rates_rps.mean())
        return Demand(self.counts * factor, self.phase_seconds, self.start_s)

    def split(self, phases: int) -> tuple[Demand, Demand]:
        """Return the first so many phases, and the others."""
        later = None if self.start_s is None else self.start_s + phases * self.phase_seconds
        return (
            Demand(self.counts[:phases], self.phase_seconds, self.start_s),
            Demand(self.counts[phases:], self.phase_seconds, later),
        )


@dataclass(frozen=True, eq=False)
class Workload:
    """Arrivals at rate 1 with the burstiness of a trace, and the rows of requests, from which any rate is played.

    unit_gaps: (n,) gaps in units of the mean gap of their own phase, so that their mean is about 1
    rows: (m,) 1 or more
    """

    unit_gaps: Floats
    rows: Counts

    def __post_init__(self) -> None:
        if len(self.unit_gaps) < 1 or len(self.rows) < 1 or self.unit_gaps.min() < 0 or self.rows.min() < 1:
            raise ValueError("A workload has gaps of 0 or more and rows of 1 or more, but got none or others.")

    def draw(self, rate_rps: float, count: int, seed: int) -> tuple[Floats, Counts]:
        """Return arrival times in seconds, (count,), and rows, (count,).

        The gaps are played in their order, over and over, from a place that the seed chooses, and stretched to the
        rate; rows are drawn independently.
        """
        random = np.random.default_rng(seed)
        start = int(random.integers(len(self.unit_gaps)))
        taken = np.resize(np.roll(self.unit_gaps, -start), count)
        return np.cumsum(taken) / (rate_rps * float(self.unit_gaps.mean())), random.choice(self.rows, count)


def demand_of(log: RequestLog, phase_seconds: float) -> Demand:
    """Count the requests of each whole phase of a log; the last phase is left out where the log ends within it.

    Raises:
        ValueError: the log is shorter than a phase.
    """
    phases = int(log.seconds[-1] / phase_seconds)
    if phases < 1:
        raise ValueError(f"A log is one phase of {phase_seconds:g} s or longer, but got {log.seconds[-1]:g} s.")
    numbers = (log.seconds / phase_seconds).astype(np.int64)
    return Demand(np.bincount(numbers, minlength=phases)[:phases].astype(np.float64), phase_seconds, log.start_s)


def unit_gaps(seconds: Floats, phase_seconds: float) -> Floats:
    """Return the gaps of arrivals, (n,) to (n - 1,), on the clock of the expected count.

    This clock runs at each phase's own rate, so that only the burstiness within phases is left (time-rescaling theorem;
    Brown et al. 2002). The last phase ends with the last arrival.

    Args:
        seconds: ascending from the begin of a phase on: of a log that is cut, no phase is known whole at the cut
    """
    position = seconds / phase_seconds
    phase = position.astype(np.int64)
    within = position - phase
    if within[-1] > 0:
        within[phase == phase[-1]] /= within[-1]
    counts = np.bincount(phase)
    before = np.concatenate([[0], np.cumsum(counts)])
    return np.diff(before[phase] + counts[phase] * within)
