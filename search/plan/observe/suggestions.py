"""Suggestions of what to start with, from the service by hour and weekday."""

from __future__ import annotations

from collections.abc import Sequence

from planning.hours_of_week import HOURS, named_hours
from planning.observation.weekly_service import ServiceHour
from search.format import milliseconds, percent, significant

# The SLO that a study takes by default is so many times the p95.
P95_TIMES = 2.0
# Share of the cores above which little is left for a burst, and the mean queue above which requests are said to wait.
_BUSY, _WAITING = 0.7, 1.0


def service_suggestions(
    hours: Sequence[ServiceHour], p95_ms: float | None, slo_ms: float | None, cores: int
) -> tuple[str, ...]:
    """Return what the hours suggest, in sentences.

    Args:
        p95_ms: of all requests, None where it is not known
        slo_ms: None: a multiple of the p95 of all
        cores: that the load is held against, those of the observing machine: a server's metrics and a log do not tell
    """
    return (*_latency(hours, p95_ms, slo_ms), *_load(hours, cores))


def _latency(hours: Sequence[ServiceHour], p95_ms: float | None, slo_ms: float | None) -> list[str]:
    answered = [hour for hour in hours if hour.answered]
    if slo_ms is not None:
        limit, name = slo_ms, f"the SLO of {milliseconds(slo_ms)}"
    elif p95_ms is not None:
        limit, name = P95_TIMES * p95_ms, f"{P95_TIMES:g} times that of all ({milliseconds(p95_ms)})"
    else:
        return []
    if not answered:
        return []
    late = [hour.number for hour in answered if hour.p95_ms is None or hour.p95_ms > limit]
    if late:
        return [
            f"p95 exceeds {name} in {len(late)} of {len(answered)} hours of the week ({named_hours(late)}): begin with "
            "these; leanrec plan gives them more machines or a faster point"
        ]
    if slo_ms is None:
        return []
    worst = max(answered, key=lambda hour: hour.p95_ms or 0.0)
    highest = f"at most {milliseconds(worst.p95_ms or 0.0)}, {named_hours([worst.number])}"
    return [f"p95 keeps {name} in all {len(answered)} hours of the week that are known ({highest})"]


def _load(hours: Sequence[ServiceHour], cores: int) -> list[str]:
    said = []
    if busy := [hour.number for hour in hours if (hour.cpu_cores or 0.0) > _BUSY * cores]:
        said.append(
            f"more than {percent(_BUSY)} of {cores} cores, as this machine has, are busy in {len(busy)} hours of the "
            f"week ({named_hours(busy)}): with no more, bursts may queue; leanrec plan for their rates"
        )
    waiting = {hour.number: hour.queue_mean for hour in hours if (hour.queue_mean or 0.0) >= _WAITING}
    if waiting:
        longest = max(value or 0.0 for value in waiting.values())
        said.append(
            f"requests wait, {significant(longest)} in the mean of the worst hour, in {len(waiting)} hours of the week "
            f"({named_hours(waiting)})"
        )
    return said


def unknown_hours(hours: Sequence[ServiceHour]) -> list[int]:
    """Return the hours of the week of which no work is known."""
    known = {hour.number for hour in hours if hour.hours > 0}
    return [hour for hour in range(HOURS) if hour not in known]
