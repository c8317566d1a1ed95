"""Dates on which a plan applies, and quantities of it over time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from objectives.serving.control.plan_file import MONDAY_S, WEEK_SECONDS
from search.plan.document import PhaseRow, PlanDocument


@dataclass(frozen=True)
class Calendar:
    """Dates of a plan, in seconds since the epoch.

    A weekly plan repeats from Monday 0:00 UTC on. Outside of the dates of any other, its last phase applies.
    """

    start_s: float
    end_s: float
    weekly: bool

    @classmethod
    def of(cls, plan: PlanDocument) -> Calendar:
        """Return the dates of a plan, whose start is known unless it is of a weekly profile."""
        if is_weekly(plan):
            return cls(MONDAY_S, MONDAY_S + WEEK_SECONDS, True)
        assert plan.start_s is not None
        return cls(plan.start_s, plan.start_s + len(plan.phases) * plan.phase_seconds, False)

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(frozen=True)
class Stretch:
    """A quantity that stays the same for a while, in seconds from the start of a plan."""

    start_s: float
    end_s: float
    value: float


def is_weekly(plan: PlanDocument) -> bool:
    """Return whether a plan is of a weekly profile, which is not forecast."""
    return plan.forecast is None


def stretches(phases: Sequence[PhaseRow], seconds: float, value: Callable[[PhaseRow], float]) -> tuple[Stretch, ...]:
    """Return a quantity of the phases over the seconds of a plan, equal neighbours joined.

    Phases that do not divide a week end with it: the last one is cut, or goes on.
    """
    kept = [phase for phase in phases if phase.start_s < seconds]
    changes = [phase for number, phase in enumerate(kept) if number == 0 or value(kept[number - 1]) != value(phase)]
    ends = [phase.start_s for phase in changes[1:]] + [seconds]
    return tuple(Stretch(phase.start_s, end, value(phase)) for phase, end in zip(changes, ends, strict=True))
