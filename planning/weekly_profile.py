"""Plan of a week from a profile of its hours, where there is no trace: the profile is the forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planning.autoscaler import Arrived
from planning.capacity import CapacityTable
from planning.demand import Counts, Demand, Floats, Workload
from planning.hours_of_week import HOUR_SECONDS, HOURS
from planning.plan import Terms, judged, trajectories_of
from planning.policies import PhasePlans, by_parts, schedule_part
from planning.replay import Arrivals, Outcome

_POISSON_GAPS = 100_000
# Separates the random numbers of the requests of each second from those that are served.
_SECONDS = 1
_LEAST_SECONDS = 1e-6


@dataclass(frozen=True, eq=False)
class WeeklyProfile:
    """Rates of the hours of a week from Monday 0:00 on, (168,) each, in requests per second.

    mean_rps: on the average
    p95_rps: what machines suffice for, at least the mean
    """

    mean_rps: Floats
    p95_rps: Floats

    def __post_init__(self) -> None:
        if self.mean_rps.shape != (HOURS,) or self.p95_rps.shape != (HOURS,):
            raise ValueError(f"A week has {HOURS} hours, but got {self.mean_rps.shape} and {self.p95_rps.shape}.")
        if self.mean_rps.min() < 0 or np.any(self.p95_rps < self.mean_rps) or not self.mean_rps.any():
            raise ValueError("A profile has means of 0 or more and p95s of at least the mean, but got others.")

    def demand(self, phase_seconds: float) -> Demand:
        """Return the requests that are expected in the phases of a week, at the mean rates of the hours of each."""
        parts = hours_of_phases(phase_seconds)
        counts = np.bincount(parts.phase, self.mean_rps[parts.hour] * parts.seconds)
        return Demand(np.asarray(counts, np.float64), phase_seconds)

    def demanded_rps(self, phase_seconds: float) -> Floats:
        """Return the rate that machines suffice for in each phase of a week: the largest p95 of its hours."""
        parts = hours_of_phases(phase_seconds)
        largest = np.zeros(int(parts.phase[-1]) + 1)
        np.maximum.at(largest, parts.phase, self.p95_rps[parts.hour])
        return largest


@dataclass(frozen=True, eq=False)
class PhaseHours:
    """Parts of the phases of a week, (parts,) each: what a phase has of an hour of the week, in the order of time.

    start_s: from the start of the week
    """

    phase: Counts
    hour: Counts
    start_s: Floats
    seconds: Floats


def hours_of_phases(phase_seconds: float) -> PhaseHours:
    """Split the phases of a week where hours begin; where the last ends after the week, the next one's hours follow."""
    phases = max(1, round(HOURS * HOUR_SECONDS / phase_seconds))
    ends = np.arange(phases + 1) * phase_seconds
    edges = np.union1d(ends, np.arange(0.0, ends[-1], HOUR_SECONDS))
    # A phase whose end was rounded to just beside an hour has no part of the hour beside it.
    edges = edges[np.append(True, np.diff(edges) > _LEAST_SECONDS)]
    middles = (edges[1:] + edges[:-1]) / 2
    phase, hour = (np.asarray(middles // each, np.int64) for each in (phase_seconds, HOUR_SECONDS))
    return PhaseHours(phase, hour % HOURS, edges[:-1], np.diff(edges))


def poisson_workload(rows: Counts, seed: int) -> Workload:
    """Return a workload of Poisson arrivals, since a profile does not tell how requests cluster."""
    return Workload(np.random.default_rng(seed).exponential(size=_POISSON_GAPS), rows)


def plan_week(
    tables: Sequence[CapacityTable],
    profile: WeeklyProfile,
    rows: Counts,
    terms: Terms,
    say: Callable[[str], None],
) -> tuple[PhasePlans, Demand, Mapping[str, Outcome]]:
    """Plan a week, and serve Poisson arrivals at its mean rates by every policy; the oracle knows the mean rates.

    Raises:
        NoScheduleError: no choice keeps the limits.
    """
    demand, demanded = profile.demand(terms.phase_seconds), profile.demanded_rps(terms.phase_seconds)

    def part(start: int, end: int, serving: tuple[int, int] | None) -> PhasePlans:
        phase_s, limits = terms.phase_seconds, terms.limits
        counts, rates = demand.counts[start:end], demanded[start:end]
        return schedule_part(tables, counts, rates, phase_s, limits, serving, terms.horizon)

    plans = by_parts(len(demand), terms.horizon, part)
    rates = float(profile.mean_rps.mean()), float(profile.p95_rps.max())
    trajectories = trajectories_of(tables, *rates, plans, demand, _arrived(profile, terms.seed), terms)
    return plans, demand, judged(tables, trajectories, _arrivals(profile, rows, terms), terms, say)


def _arrived(profile: WeeklyProfile, seed: int) -> Arrived:
    """Draw Poisson numbers of requests of each second of a week, and return how many arrived before given times."""
    seconds = np.arange(HOURS * int(HOUR_SECONDS) + 1, dtype=np.float64)
    drawn = np.random.default_rng([seed, _SECONDS]).poisson(np.repeat(profile.mean_rps, int(HOUR_SECONDS)))
    before = np.concatenate([[0.0], np.cumsum(drawn, dtype=np.float64)])
    return lambda at: np.asarray(np.interp(at, seconds, before), np.float64)


def _arrivals(profile: WeeklyProfile, rows: Counts, terms: Terms) -> Arrivals:
    """Draw Poisson arrivals in a window of each hour of each phase, so that they are about as many as may be simulated.

    The windows have the same share of all hours, or parts of one, that the phases have.
    """
    random, parts = np.random.default_rng(terms.seed), hours_of_phases(terms.phase_seconds)
    expected = profile.mean_rps[parts.hour] * parts.seconds
    share = min(1.0, terms.simulated / max(float(expected.sum()), 1.0))
    counts = random.poisson(expected * share)
    starts = random.uniform(0, 1 - share, len(expected)) if share < 1 else np.zeros(len(expected))
    part = np.repeat(np.arange(len(expected)), counts)
    within = starts[part] + share * random.random(len(part))
    seconds = np.sort(parts.start_s[part] + parts.seconds[part] * within)
    weights = np.full(len(seconds), 1 / share)
    end_s = float(parts.start_s[-1] + parts.seconds[-1])
    return Arrivals(seconds, random.choice(rows, len(seconds)), weights, end_s)
