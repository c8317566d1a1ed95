"""Profile of a trial beside the baseline, as tables of a terminal and in sentences."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from rich.table import Table

from search.format import milliseconds, percent, ranged, significant
from search.profile.floor import AtLoad, Floor
from search.profile.trial_profile import GroupTimes, TrialProfile
from search.report.columns import Cell, Column, console_table, number
from search.report.profile import OPERATOR_COLUMNS

_OPERATORS = 10
_THOUSANDTHS, _SHARE = "{:.3f}".format, "{:.1%}".format
COLUMNS: tuple[Column[GroupTimes], ...] = (
    Column("group", lambda group: Cell(group.name), "left"),
    Column("kind", lambda group: Cell(group.kind), "left"),
    Column("baseline ms", lambda group: number(group.baseline_ms, _THOUSANDTHS)),
    Column("trial ms", lambda group: number(group.ms, _THOUSANDTHS)),
    Column("of the trial's time", lambda group: number(group.time_share, _SHARE)),
    Column("perfect ms", lambda group: number(group.perfect_ms or None, _THOUSANDTHS)),
)


class _Side(NamedTuple):
    name: str
    at_load: AtLoad


def _ratio(ratio: str, form: str = ".3f") -> Callable[[_Side], Cell]:
    """Return the cell of a ratio with its interval."""
    return lambda side: Cell(ranged(getattr(side.at_load, ratio), getattr(side.at_load, f"{ratio}_interval"), form))


FLOOR_COLUMNS: tuple[Column[_Side], ...] = (
    Column("graph", lambda side: Cell(side.name), "left"),
    Column("p50 ms", lambda side: number(side.at_load.p50_ms, _THOUSANDTHS)),
    Column("p95 ms", lambda side: number(side.at_load.p95_ms, _THOUSANDTHS)),
    Column("p50 ratio", _ratio("p50_ratio")),
    Column("p95 ratio", _ratio("p95_ratio")),
    Column("throughput ratio", _ratio("throughput_ratio", ".2f")),
    Column("capacity ratio", _ratio("capacity_ratio", ".2f")),
)


def trial_headline(found: TrialProfile) -> str:
    """Return what the trial's time is spent on, in a few sentences."""
    slowest, perfect = found.groups[0], sum(group.perfect_ms for group in found.groups)
    told = [
        f"Trial {found.trial}: a request of {found.rows} rows takes {milliseconds(found.p50_ms)}, about "
        f"{significant(found.p50_ms / found.baseline_p50_ms, 2)} of the baseline's "
        f"{milliseconds(found.baseline_p50_ms)} (not paired); {percent(slowest.time_share)} of it in {slowest.name}, "
        f"and perfect single-precision kernels would need {milliseconds(perfect)}."
    ]
    if found.service_p50_ms is not None:
        way = "the pool" if found.through == "pool" else "the HTTP server"
        took = milliseconds(found.service_p50_ms)
        told.append(f"In its benchmark requests of all sizes took {took} in the median, one at a time through {way}.")
    if found.place != "onnxruntime":
        told.append(f"The trial runs in {found.place}; these are times of ONNX Runtime on the CPU.")
    if found.floor is not None:
        told.append(_floor_told(found.floor))
    return " ".join(told)


def _floor_told(floor: Floor) -> str:
    """Return how much faster a smaller model could be."""
    empty = ranged(floor.empty.p95_ratio, floor.empty.p95_ratio_interval)
    ours = ranged(floor.trial.p95_ratio, floor.trial.p95_ratio_interval)
    return (
        f"At {floor.trial.rate_rps:.0f} requests/s its p95 is {ours} of the baseline's, and that of a graph which "
        f"computes nothing, in the same placement, {empty}: no smaller model is faster than that there."
    )


def trial_tables(found: TrialProfile) -> tuple[Table, ...]:
    """Return the layer groups beside the baseline's, the operators that take the most time, and the floor."""
    threads = "default" if found.threads is None else found.threads
    title = (
        f"Trial {found.trial} of {found.study} (threads: {threads}) beside the baseline (default), {found.rows} rows"
    )
    tables = (
        console_table(title, COLUMNS, found.groups),
        console_table("By operator", OPERATOR_COLUMNS, found.operators[:_OPERATORS]),
    )
    if found.floor is None:
        return tables
    sides = (_Side("the trial", found.floor.trial), _Side("an empty graph", found.floor.empty))
    return (*tables, console_table("In its placement, beside the baseline", FLOOR_COLUMNS, sides))
