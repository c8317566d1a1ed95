"""Plan of a week from a profile of its hours, where there is no trace: the profile is the forecast."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planning.autoscaler import Arrived
from planning.capacity import CapacityTable
from planning.demand import Counts, Demand, Floats, Workload
from planning.observation import HOUR_SECONDS
from planning.plan import Terms, judged, trajectories_of
from planning.policies import PhasePlans, by_parts, schedule
from planning.replay import Arrivals, Outcome

HOURS = 7 * 24
_POISSON_GAPS = 100_000
# Separates the random numbers of the requests of each second from those that are served.
_SECONDS = 1


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
        """Return the requests that are expected in the phases of a week, at the mean rates."""
        return Demand(self.mean_rps[hours_of_phases(phase_seconds)] * phase_seconds, phase_seconds)


def hours_of_phases(phase_seconds: float) -> Counts:
    """Return the hour of the week in which each phase of a week starts, (phases,)."""
    starts = np.arange(round(HOURS * HOUR_SECONDS / phase_seconds)) * phase_seconds
    return (starts / HOUR_SECONDS).astype(np.int64)


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
    hours = hours_of_phases(terms.phase_seconds)
    expected, demanded = profile.mean_rps[hours] * terms.phase_seconds, profile.p95_rps[hours]

    def part(start: int, end: int, serving: tuple[int, int] | None) -> PhasePlans:
        phase_s, limits = terms.phase_seconds, terms.limits
        return schedule(tables, expected[start:end], demanded[start:end], phase_s, limits, serving)

    plans = by_parts(len(hours), terms.horizon, part)
    rates = float(profile.mean_rps.mean()), float(profile.p95_rps.max())
    after = profile.demand(terms.phase_seconds)
    trajectories = trajectories_of(tables, *rates, plans, after, _arrived(profile, terms.seed), terms)
    return plans, after, judged(tables, trajectories, _arrivals(profile.mean_rps[hours], rows, terms), terms, say)


def _arrived(profile: WeeklyProfile, seed: int) -> Arrived:
    """Draw Poisson numbers of requests of each second of a week, and return how many arrived before given times."""
    seconds = np.arange(HOURS * int(HOUR_SECONDS) + 1, dtype=np.float64)
    drawn = np.random.default_rng([seed, _SECONDS]).poisson(np.repeat(profile.mean_rps, int(HOUR_SECONDS)))
    before = np.concatenate([[0.0], np.cumsum(drawn, dtype=np.float64)])
    return lambda at: np.asarray(np.interp(at, seconds, before), np.float64)


def _arrivals(rates_rps: Floats, rows: Counts, terms: Terms) -> Arrivals:
    """Draw Poisson arrivals in a window of each phase, so that they are about as many as may be simulated."""
    random, phase_s = np.random.default_rng(terms.seed), terms.phase_seconds
    share = min(1.0, terms.simulated / max(float(rates_rps.sum()) * phase_s, 1.0))
    counts = random.poisson(rates_rps * phase_s * share)
    starts = random.uniform(0, 1 - share, len(rates_rps)) if share < 1 else np.zeros(len(rates_rps))
    phase = np.repeat(np.arange(len(rates_rps)), counts)
    seconds = np.sort(phase_s * (phase + starts[phase] + share * random.random(len(phase))))
    weights = np.full(len(seconds), 1 / share)
    return Arrivals(seconds, random.choice(rows, len(seconds)), weights, len(rates_rps) * phase_s)
