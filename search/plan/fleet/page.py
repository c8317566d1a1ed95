"""Page of a fleet: a sentence, tables, and figures over time as one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planning.virtual_fleet.outcome import FleetHour
from search.format import MISSING, column_milliseconds, column_percent, milliseconds, rate, significant
from search.plan.columns import moment
from search.plan.figures import COLOURS, Line, Panel, panels_figure, place
from search.plan.fleet.document import FleetDocument, ScenarioRow
from search.report.columns import Cell, Column, number
from search.report.front import ACCENT, INK, MUTED, PALETTE, Description
from search.report.report import write_figures

# Hours of a table of the worst ones.
_WORST = 8

SCENARIO_COLUMNS: tuple[Column[ScenarioRow], ...] = (
    Column("fleet", lambda row: Cell(row.scenario), "left"),
    Column("late", lambda row: number(row.late, _percent)),
    Column("refused", lambda row: number(row.refused, _percent)),
    Column("hours missed", lambda row: number(row.hours_missed, column_percent)),
    Column("mean", lambda row: number(row.mean_ms, column_milliseconds)),
    Column("p50", lambda row: number(row.p50_ms, column_milliseconds)),
    Column("p95", lambda row: number(row.p95_ms, column_milliseconds)),
    Column("p99", lambda row: number(row.p99_ms, column_milliseconds)),
    Column("in rotation", lambda row: number(row.in_rotation, _percent)),
    Column("failures", lambda row: Cell(f"{row.failures:,}")),
    Column("money", lambda row: Cell(significant(row.money, 3))),
    Column("needed", lambda row: Cell(MISSING if row.needed is None else f"{row.needed:,}")),
)


def _percent(share: float) -> str:
    """Format a share in a column with the digits that rare events need."""
    return f"{100 * share:.3f}%"


def hour_columns(found: FleetDocument) -> tuple[Column[FleetHour], ...]:
    """Columns of hours."""
    return (
        Column("hour from", lambda row: Cell(moment(found.start_s, row.start_s)), "left"),
        Column("rate, rps", lambda row: Cell(significant(row.rate_rps, 3))),
        Column("in rotation", lambda row: Cell(significant(row.in_rotation, 4))),
        Column("slow", lambda row: Cell(significant(row.slow, 3))),
        Column("deploying", lambda row: Cell(significant(row.deploying, 3))),
        Column("utilisation", lambda row: number(row.utilisation, "{:.3f}".format)),
        Column("mean", lambda row: number(row.mean_ms, column_milliseconds)),
        Column("p50", lambda row: number(row.p50_ms, column_milliseconds)),
        Column("p95", lambda row: number(row.p95_ms, column_milliseconds)),
        Column("p99", lambda row: number(row.p99_ms, column_milliseconds)),
        Column("late", lambda row: number(row.late, _percent)),
        Column("refused", lambda row: number(row.refused, _percent)),
    )


def worst_hours(found: FleetDocument) -> Sequence[FleetHour]:
    """Return the hours with the largest shares of late requests, as the fleet is given, in the order of time."""
    hours = [hour for hour in found.scenarios[0].hours if hour.requests > 0]
    worst = sorted(hours, key=lambda hour: (-hour.late, -hour.requests))[:_WORST]
    return sorted(worst, key=lambda hour: hour.start_s)


def headline(found: FleetDocument) -> str:
    """Summarise a fleet in a sentence."""
    given, machines = found.scenarios[0], sum(found.machines.values())
    needed = ""
    if given.needed is not None and found.tolerated is not None:
        needed = f" {given.needed:,} machines keep it to {significant(100 * found.tolerated)}%."
    how = "every request simulated" if found.exact else "by sampled groups"
    paid = f"{given.machine_hours:,.0f} machine-hours, money {significant(given.money, 3)}"
    return (
        f"{machines:,} machines with trial {found.trial} at {rate(found.rate_rps)}, {how}: {_percent(given.late)} of "
        f"the requests later than {milliseconds(found.slo_ms)} or refused; {paid}.{needed}"
    )


def fleet_figure(found: FleetDocument) -> Description:
    """Draw rate, machines, utilisation, latency and late requests over time, the last for every scenario."""
    hours = found.scenarios[0].hours
    places = [place(found.start_s, hour.start_s) for hour in hours]

    def line(name: str, label: str, colour: str) -> Line:
        return Line(label, [getattr(hour, name) for hour in hours], colour, steps=True)

    latency = (line("p99_ms", "p99", PALETTE[3]), line("p95_ms", "p95", PALETTE[1]), line("p50_ms", "p50", PALETTE[4]))
    limit = Line("SLO", [found.slo_ms] * len(hours), ACCENT)
    late = tuple(
        Line(row.scenario, [100 * hour.late for hour in row.hours], colour, steps=True)
        for row, colour in zip(found.scenarios, (INK, *COLOURS), strict=False)
    )
    rotation = (line("in_rotation", "in rotation", MUTED),)
    away = (line("slow", "slow", PALETTE[3]), line("deploying", "deploying", PALETTE[0]))
    return panels_figure(
        places,
        (
            Panel("Rate", "requests/s", (line("rate_rps", "requests", INK),)),
            Panel("Machines in rotation", "machines", rotation, {"rangemode": "normal"}),
            Panel("Slow machines, and those being deployed to", "machines", away),
            Panel("Utilisation of the machines in rotation", "ratio", (line("utilisation", "utilisation", INK),)),
            Panel("Latency", "ms", (*latency, limit), {"type": "log", "rangemode": "normal"}),
            Panel("Requests later than the SLO, or refused", "%", late),
        ),
        "hours from the start" if found.start_s is None else "time, UTC",
    )


def write_page(found: FleetDocument, path: Path) -> None:
    """Write fleet.html, everything inside it."""
    write_figures(
        path,
        "fleet.html.j2",
        {"fleet": fleet_figure(found)},
        found=found,
        headline=headline(found),
        scenario_columns=SCENARIO_COLUMNS,
        hour_columns=hour_columns(found),
        worst=worst_hours(found),
        peak_utilisation=found.peak_rps / found.capacity_rps,
    )
