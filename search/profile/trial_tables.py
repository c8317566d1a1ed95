"""Profile of a trial beside the baseline, as tables of a terminal and in sentences."""

from __future__ import annotations

from rich.table import Table

from search.format import milliseconds, percent, significant
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
    return " ".join(told)


def trial_tables(found: TrialProfile) -> tuple[Table, Table]:
    """Return the layer groups beside the baseline's, and the operators that take the most time."""
    threads = "default" if found.threads is None else found.threads
    title = (
        f"Trial {found.trial} of {found.study} (threads: {threads}) beside the baseline (default), {found.rows} rows"
    )
    return (
        console_table(title, COLUMNS, found.groups),
        console_table("By operator", OPERATOR_COLUMNS, found.operators[:_OPERATORS]),
    )
