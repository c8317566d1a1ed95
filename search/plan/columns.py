"""Tables of a plan and of an observation, in the columns that a console and a page share."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from planning.forecast import Score
from planning.hours_of_week import WEEKDAYS
from planning.observation.traffic import HourOfWeek
from planning.observation.weekly_service import ServiceHour
from search.format import MISSING, column_milliseconds, column_percent, significant
from search.plan.document import OfferRow, PhaseRow, PlanDocument, PolicyRow
from search.report.columns import Cell, Column, number


@dataclass(frozen=True)
class Stretch:
    """Consecutive phases that the same machines serve."""

    start_s: float
    end_s: float
    first: PhaseRow
    most_rps: float
    short: bool


def stretches(phases: Sequence[PhaseRow], phase_seconds: float) -> list[Stretch]:
    """Join the phases of a plan that have the same offer and machines."""
    found: list[Stretch] = []
    for phase in phases:
        end, last = phase.start_s + phase_seconds, found[-1] if found else None
        if last is not None and (last.first.offer, last.first.machines) == (phase.offer, phase.machines):
            most = max(last.most_rps, phase.demand_rps)
            found[-1] = Stretch(last.start_s, end, last.first, most, last.short or phase.short)
        else:
            found.append(Stretch(phase.start_s, end, phase, phase.demand_rps, phase.short))
    return found


def moment(start_s: float | None, seconds: float) -> str:
    """Return a moment of a plan as UTC time, or as time since its start where the date is not known."""
    if start_s is None:
        whole = round(seconds)
        return f"+{whole // 3600}:{whole // 60 % 60:02}" + (f":{whole % 60:02}" if whole % 60 else "")
    at = datetime.datetime.fromtimestamp(round(start_s + seconds), datetime.UTC)
    return f"{at:%a %Y-%m-%d %H:%M:%S}" if at.second else f"{at:%a %Y-%m-%d %H:%M}"


def plan_columns(found: PlanDocument) -> tuple[Column[Stretch], ...]:
    """Columns of the stretches of a plan."""
    places = {offer.offer: _placement(offer) for offer in found.offers}
    losses = {offer.offer: offer.loss for offer in found.offers}
    return (
        Column("from", lambda row: Cell(moment(found.start_s, row.start_s)), "left"),
        Column("serves", lambda row: Cell(f"trial {row.first.trial}", places[row.first.offer]), "left"),
        Column("machines", lambda row: Cell(f"{row.first.machines} x {row.first.machine}")),
        Column("replicas", lambda row: Cell(str(row.first.replicas))),
        Column("loss", lambda row: number(losses[row.first.offer], column_percent)),
        Column("at most, rps", lambda row: Cell(significant(row.most_rps, 3), tags=("short",) if row.short else ())),
        Column("capacity, rps", lambda row: Cell(significant(row.first.capacity_rps, 3))),
    )


def _placement(offer: OfferRow) -> str:
    knobs = offer.placement
    return f"{knobs['engine']} {knobs['replicas']}x{knobs['threads']}, {offer.copies} a machine"


POLICY_COLUMNS: tuple[Column[PolicyRow], ...] = (
    Column("policy", lambda row: Cell(row.policy), "left"),
    Column("late", lambda row: number(row.late, column_percent)),
    Column("phases missed", lambda row: number(row.phases_missed, column_percent)),
    Column("p95", lambda row: number(row.p95_ms, column_milliseconds)),
    Column("loss", lambda row: number(row.loss, column_percent)),
    Column("replica-hours", lambda row: Cell(significant(row.replica_seconds / 3600, 3))),
    Column("money", lambda row: Cell(significant(row.money, 3))),
    Column("starts", lambda row: Cell(f"{row.starts:,}")),
)

SCORE_COLUMNS: tuple[Column[Score], ...] = (
    Column("model", lambda row: Cell(row.model), "left"),
    Column("MAPE", lambda row: number(row.mape, column_percent)),
    Column("pinball loss", lambda row: number(row.pinball, column_percent)),
    *(
        Column(f"covered by {quantile:g}", lambda row, at=quantile: number(row.coverage[at], column_percent))  # type: ignore[misc]
        for quantile in (0.5, 0.8, 0.9, 0.95)
    ),
    Column("origins", lambda row: Cell(str(row.origins))),
)

HOUR_COLUMNS: tuple[Column[HourOfWeek], ...] = (
    Column("weekday", lambda row: Cell(WEEKDAYS[row.weekday]), "left"),
    Column("hour", lambda row: Cell(f"{row.hour}:00"), "left"),
    Column("requests", lambda row: Cell(f"{row.requests:,}")),
    Column("mean rate", lambda row: Cell(significant(row.mean_rps, 3))),
    Column("p95 rate", lambda row: Cell(significant(row.p95_rps, 3))),
    Column("dispersion", lambda row: Cell(MISSING if row.dispersion is None else significant(row.dispersion))),
    Column("rows", lambda row: Cell(MISSING if row.mean_rows is None else significant(row.mean_rows, 3))),
)

SERVICE_COLUMNS: tuple[Column[ServiceHour], ...] = (
    Column("weekday", lambda row: Cell(WEEKDAYS[row.weekday]), "left"),
    Column("hour", lambda row: Cell(f"{row.hour}:00"), "left"),
    Column("hours known", lambda row: Cell(significant(row.hours))),
    Column("rate", lambda row: number(row.rate_rps, _three_digits)),
    Column("answered", lambda row: Cell(f"{row.answered:,}")),
    Column("mean latency", lambda row: number(row.mean_ms, column_milliseconds)),
    Column("p95 latency", lambda row: number(row.p95_ms, column_milliseconds)),
    Column("cores busy", lambda row: number(row.cpu_cores, _three_digits)),
    Column("queue, mean", lambda row: number(row.queue_mean, _three_digits)),
    Column("queue, most", lambda row: number(row.queue_max, _three_digits)),
)


def _three_digits(value: float) -> str:
    return significant(value, 3)
