"""Page of a replay: a sentence, a table, and a timeline of every policy as one HTML file."""

from __future__ import annotations

from pathlib import Path

from planning.elastic import ELASTIC
from search.format import MISSING, column_milliseconds, column_percent, significant
from search.plan.figures import COLOURS, Line, Panel, panels_figure
from search.plan.replay.document import ReplayDecision, ReplayDocument, ReplayRow
from search.report.columns import Cell, Column, number
from search.report.front import ACCENT, INK, Description
from search.report.report import write_figures


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{significant(value)} s"


REPLAY_COLUMNS: tuple[Column[ReplayRow], ...] = (
    Column("policy", lambda row: Cell(row.policy), "left"),
    Column("clock", lambda row: Cell(row.clock), "left"),
    Column("transport", lambda row: number(row.transport_ms or None, column_milliseconds)),
    Column("late", lambda row: number(row.late, column_percent)),
    Column("refused", lambda row: number(row.refused, column_percent)),
    Column("p50", lambda row: number(row.p50_ms, column_milliseconds)),
    Column("p95", lambda row: number(row.p95_ms, column_milliseconds)),
    Column("p99", lambda row: number(row.p99_ms, column_milliseconds)),
    Column("loss", lambda row: number(row.loss, column_percent)),
    Column("replica-seconds", lambda row: Cell(significant(row.replica_seconds, 3))),
    Column("money", lambda row: Cell(significant(row.money, 3))),
    Column("switches", lambda row: Cell(str(row.switches))),
    Column("a switch", lambda row: Cell(_seconds(row.switch_seconds))),
    Column("planned", lambda row: Cell(_seconds(row.planned_switch_seconds))),
)
DECISION_COLUMNS: tuple[Column[ReplayDecision], ...] = (
    Column("second", lambda row: Cell(f"{row.second:.1f}")),
    Column("serves", lambda row: Cell(row.option), "left"),
    Column("reason", lambda row: Cell(row.reason), "left"),
)


def headline(found: ReplayDocument) -> str:
    """Summarise a replay in a sentence: what the planned and elastic policy did, on the server where it ran there."""
    told = [row for row in found.rows if row.policy == ELASTIC] or list(found.rows)
    row = told[-1]
    where = "a real server" if row.clock == "server" else "the virtual clock"
    return (
        f"{row.policy}, on {where}: {column_percent(row.late)} of {found.requests:,} requests late, a mean loss of "
        f"{column_percent(row.loss)}, {significant(row.replica_seconds, 3)} replica-seconds."
    )


def timeline_figure(found: ReplayDocument) -> Description:
    """Draw the rate, and of each policy what served and how late it answered, over the compressed time."""
    places = [interval.start_s for interval in found.rows[0].intervals]
    rate = Line("requests", [interval.rate_rps for interval in found.rows[0].intervals], INK, steps=True)

    def lines(value: str, scale: float = 1.0) -> tuple[Line, ...]:
        return tuple(
            Line(f"{row.policy}, {row.clock}", _values(row, value, scale), colour, steps=True)
            for row, colour in zip(found.rows, COLOURS * 2, strict=False)
        )

    limit = Line("SLO", [found.slo_ms] * len(places), ACCENT)
    return panels_figure(
        places,
        (
            Panel("Rate of the requests, and capacity", "requests/s", (rate, *lines("capacity_rps"))),
            Panel("Replicas", "replicas", lines("replicas")),
            Panel("Quality loss of what serves", "%", lines("loss", 100.0)),
            Panel("Requests later than the SLO, or refused", "%", lines("late", 100.0)),
            Panel("p95 of the latency", "ms", (*lines("p95_ms"), limit), {"type": "log", "rangemode": "normal"}),
        ),
        f"seconds; {found.speed:g} times as fast as the trace",
    )


def _values(row: ReplayRow, name: str, scale: float) -> list[float | None]:
    found = [getattr(interval, name) for interval in row.intervals]
    return [None if value is None else scale * value for value in found]


def write_page(found: ReplayDocument, path: Path) -> None:
    """Write replay.html, everything inside it."""
    write_figures(
        path,
        "replay.html.j2",
        {"timeline": timeline_figure(found)},
        found=found,
        headline=headline(found),
        columns=REPLAY_COLUMNS,
        decision_columns=DECISION_COLUMNS,
    )
