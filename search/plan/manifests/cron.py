"""Cron triggers that want the processes of a plan, in UTC and to the minute."""

from __future__ import annotations

import datetime
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from objectives.serving.control.plan_file import WEEK_SECONDS
from planning.demand import Counts
from search.plan.manifests.timetable import Calendar, Stretch

_MINUTE = 60
_DAY, _WEEK = 24 * 60, 7 * 24 * 60  # minutes


@dataclass(frozen=True)
class CronTrigger:
    """Number of processes from the moments of one cron expression to those of another."""

    start: str
    end: str
    processes: int


@dataclass(frozen=True)
class CronSchedule:
    """Processes over time: `least` always, and more while a trigger wants more."""

    least: int
    triggers: tuple[CronTrigger, ...]


class _Run(NamedTuple):
    """Minutes, from Monday 0:00 or since the epoch, from which on and until which so many processes are wanted."""

    start: int
    end: int
    processes: int


def cron_schedule(calendar: Calendar, processes: Sequence[Stretch], lead_s: float) -> CronSchedule:
    """Return the triggers of an offer.

    In each minute, the most processes are wanted that the plan has in it, or up to `lead_s` seconds after it, in which
    they start. A weekly plan repeats. Cron knows no year: outside of the dates of another plan its last processes stay.

    Args:
        processes: over the whole plan
    """
    if calendar.weekly:
        wanted, runs_to_triggers, first = _by_minute_of_week(processes, lead_s), _weekly_triggers, 0
    else:
        first, wanted = _by_minute(calendar, processes, lead_s)
        # The minute after the last stands for all others of the year.
        wanted, runs_to_triggers = np.append(wanted, round(processes[-1].value)), _dated_triggers
    least = int(wanted.min())
    runs = [run for run in _runs(wanted, first) if run.processes > least]
    return CronSchedule(least, tuple(runs_to_triggers(runs)))


def _by_minute_of_week(processes: Sequence[Stretch], lead_s: float) -> Counts:
    """Return the processes wanted in each minute of a week, (10080,)."""
    wanted = np.zeros(_WEEK, np.int64)
    for start, end, count in _spans(0.0, processes, min(lead_s, WEEK_SECONDS / 2)):
        at = np.arange(start, end) % _WEEK
        wanted[at] = np.maximum(wanted[at], count)
    return wanted


def _by_minute(calendar: Calendar, processes: Sequence[Stretch], lead_s: float) -> tuple[int, Counts]:
    """Return the first minute of a plan since the epoch, and the processes wanted in each, (minutes,)."""
    first = math.floor((calendar.start_s - lead_s) / _MINUTE)
    wanted = np.zeros(math.ceil(calendar.end_s / _MINUTE) - first, np.int64)
    for start, end, count in _spans(calendar.start_s, processes, lead_s):
        wanted[start - first : end - first] = np.maximum(wanted[start - first : end - first], count)
    # Until the plan begins, while its first machines start, those of its last phase serve.
    before = math.ceil(calendar.start_s / _MINUTE) - first
    wanted[:before] = np.maximum(wanted[:before], round(processes[-1].value))
    return first, wanted


def _spans(origin_s: float, processes: Sequence[Stretch], lead_s: float) -> list[_Run]:
    """Return the minutes that each stretch with processes touches, its start included."""
    return [
        _Run(
            math.floor((origin_s + each.start_s - lead_s) / _MINUTE),
            math.ceil((origin_s + each.end_s) / _MINUTE),
            round(each.value),
        )
        for each in processes
        if each.value > 0
    ]


def _runs(wanted: Counts, first: int) -> list[_Run]:
    """Join equal neighbours of a cycle of minutes; none where all are equal. The last may end at a minute before it."""
    starts = np.flatnonzero(wanted != np.roll(wanted, 1))
    ends = np.roll(starts, -1)
    return [
        _Run(first + start, first + end, int(wanted[start]))
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
    ]


def _weekly_triggers(runs: Sequence[_Run]) -> list[CronTrigger]:
    """Return a trigger for all runs of the week that differ by whole days."""
    alike: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for run in runs:
        alike[run.processes, run.start % _DAY, (run.end - run.start) % _WEEK].append(run.start // _DAY)
    return [
        CronTrigger(_on_days(start, days), _on_days(start + length, days), processes)
        for (processes, start, length), days in alike.items()
    ]


def _dated_triggers(runs: Sequence[_Run]) -> list[CronTrigger]:
    return [CronTrigger(_date(run.start), _date(run.end), run.processes) for run in runs]


def _date(minute: int) -> str:
    """Return the cron expression of a minute since the epoch; it matches in each year."""
    at = datetime.datetime.fromtimestamp(minute * _MINUTE, datetime.UTC)
    return f"{at.minute} {at.hour} {at.day} {at.month} *"


def _on_days(minute: int, days: Sequence[int]) -> str:
    """Return the cron expression of a minute counted from 0:00 of each of the days, of which 0 is Monday."""
    later, minute = divmod(minute, _DAY)
    named = sorted((day + later + 1) % 7 for day in days)  # cron's 0 is Sunday
    return f"{minute % 60} {minute // 60} * * {'*' if len(named) == 7 else ','.join(map(str, named))}"
