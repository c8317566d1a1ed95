"""Profile of the baseline in the report: as a table and as a figure in plotly's terms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from rich.table import Table

from objectives.measurement.profile.profile import OperatorCost
from search.format import milliseconds, percent, significant, size
from search.profile.study_profile import GroupShare, StudyProfile
from search.report.columns import Cell, Column, console_table, number
from search.report.front import FAINT, GRID, HOVER, INK, LEGEND, LOOK, PALETTE, Description
from search.report.theme import LIGHT

_TIME, _PERFECT, _BYTES = PALETTE[3], PALETTE[0], LIGHT.steel
_ROW_PIXELS = 62
_SHARE, _THOUSANDTHS = "{:.1%}".format, "{:.3f}".format


def headline(profile: StudyProfile) -> str:
    """One sentence: what takes the time, and what the search is narrowed to."""
    slowest, *_ = ordered = slowest_first(profile.groups)
    inside = [group.name for group in ordered if group.in_focus]
    narrowed = f"worth compressing: {', '.join(inside)}" if inside else "no layer group is worth compressing"
    return (
        f"A request of {profile.rows} rows takes {_time(profile.p50_ms)}, "
        f"{percent(slowest.time_share)} of it in {slowest.name}; {narrowed}."
    )


def user_once(profile: StudyProfile) -> str:
    """Describe what computing the user's side once a request would save, in a sentence."""
    found = profile.user_once
    if found.refused is not None:
        return f"the user's side cannot be computed once a request: {found.refused}"
    left = found.multiply_adds_share
    if left is None:
        return "the user's side can be computed once a request; what it saves is known only when the graph runs"
    return f"the user's side once a request leaves {left:.0%} of the baseline's multiply-adds at {profile.rows} rows"


def profile_table(profile: StudyProfile) -> Table:
    """The groups, the slowest first."""
    return console_table(headline(profile), GROUP_COLUMNS, slowest_first(profile.groups))


def operator_table(profile: StudyProfile, most: int = 10) -> Table:
    """The operators that take the most time."""
    return console_table("By operator", OPERATOR_COLUMNS, profile.operators[:most])


def profile_figure(profile: StudyProfile) -> Description:
    """Describe the time and bytes of the groups, a row for each, the slowest on top.

    Left: the group's time in ms, or in µs where all are below 0.1 ms, with the perfect kernel's inside it. Right: its
    share of the weights' bytes.
    """
    groups = slowest_first(profile.groups)
    names = [_label(group) for group in groups]
    kernels = [group for group in groups if group.flops or group.bytes]
    # Units in a millisecond: µs where every bar is short.
    per_ms, unit = (1.0, "ms") if max(group.ms for group in groups) >= 0.1 else (1000.0, "µs")
    time = _bars(names, [per_ms * group.ms for group in groups], _TIME, "time taken")
    time["hovertext"] = [_hover(group) for group in groups]
    ideal = [per_ms * group.perfect_ms for group in kernels]
    perfect = _bars([_label(group) for group in kernels], ideal, _PERFECT, "perfect kernels would need")
    perfect |= {"width": 0.26, "hoverinfo": "skip"}
    shares = [100 * group.weight_share for group in groups]
    held = _bars(names, shares, _BYTES, "bytes of the weights") | {"hoverinfo": "skip", "xaxis": "x2"}
    # Beyond both bars: an int8 group can be faster than perfect single-precision kernels.
    ends = [per_ms * max(group.ms, group.perfect_ms) for group in groups]
    labels = [
        _texts(names, ends, [f"{_time(g.ms)} · {g.time_share:.1%}" for g in groups], "x"),
        _texts(names, shares, [_held(group) for group in groups], "x2"),
    ]
    return {"data": [time, perfect, held, *labels], "layout": _layout(groups, per_ms, unit)}


def slowest_first(groups: Sequence[GroupShare]) -> list[GroupShare]:
    return sorted(groups, key=lambda group: -group.time_share)


def _time(ms: float) -> str:
    return milliseconds(ms) if ms >= 0.1 else f"{significant(1000 * ms, 3)} µs"


def _of_kernels(group: GroupShare, value: float, word: Callable[[float], str]) -> Cell:
    """A number of a group that runs kernels; the engine's own time has none."""
    return number(value if group.flops or group.bytes else None, word)


def _of_weights(group: GroupShare, value: float, word: Callable[[float], str]) -> Cell:
    return number(value if group.weight_bytes else None, word)


GROUP_COLUMNS: tuple[Column[GroupShare], ...] = (
    Column("group", lambda group: Cell(group.name), "left"),
    Column("kind", lambda group: Cell(group.kind), "left"),
    Column("time", lambda group: number(group.time_share, _SHARE)),
    Column("ms", lambda group: number(group.ms, _THOUSANDTHS)),
    Column("perfect ms", lambda group: _of_kernels(group, group.perfect_ms, _THOUSANDTHS)),
    Column("MFLOP", lambda group: _of_kernels(group, group.flops / 1e6, "{:.2f}".format)),
    Column("moved", lambda group: _of_kernels(group, group.bytes, size)),
    Column("weights", lambda group: _of_weights(group, group.weight_bytes, size)),
    Column("of the weights", lambda group: _of_weights(group, group.weight_share, _SHARE)),
    Column("why", lambda group: Cell(group.reason), "left"),
)
OPERATOR_COLUMNS: tuple[Column[OperatorCost], ...] = (
    Column("operator", lambda each: Cell(each.operator), "left"),
    Column("calls", lambda each: Cell(str(each.calls))),
    Column("ms", lambda each: number(each.ms, _THOUSANDTHS)),
    Column("share of the time", lambda each: number(each.time_share, _SHARE)),
)


def _bars(names: Sequence[str], values: Sequence[float], colour: str, name: str) -> Description:
    return {
        "type": "bar",
        "orientation": "h",
        "y": list(names),
        "x": list(values),
        "name": name,
        "marker": {"color": colour},
        "width": 0.62,
    }


def _texts(names: Sequence[str], places: Sequence[float], texts: Sequence[str], axis: str) -> Description:
    return {
        "type": "scatter",
        "mode": "text",
        "y": list(names),
        "x": list(places),
        "text": [f" {text}" for text in texts],
        "textposition": "middle right",
        "textfont": {"color": INK, "size": 13},
        "cliponaxis": False,
        "showlegend": False,
        "hoverinfo": "skip",
        "xaxis": axis,
    }


def _held(group: GroupShare) -> str:
    return f"{size(group.weight_bytes)} · {group.weight_share:.1%}" if group.weight_bytes else ""


def _label(group: GroupShare) -> str:
    name = escape(group.name)
    return f"<b>{name}</b>" if group.in_focus else name


def _hover(group: GroupShare) -> str:
    lines = [f"<b>{escape(group.name)}</b> ({group.kind})", escape(group.reason)]
    if group.flops or group.bytes:
        lines.append(f"{significant(group.flops / 1e6, 3)} MFLOP, {size(group.bytes)} moved")
    if group.efficiency is not None:
        lines.append(f"perfect {_time(group.perfect_ms)}, {percent(group.efficiency)} of the time taken")
    return "<br>".join(lines)


def _layout(groups: Sequence[GroupShare], per_ms: float, unit: str) -> Description:
    longest = per_ms * max(max(group.ms, group.perfect_ms) for group in groups)
    most = 100 * max(group.weight_share for group in groups)
    # The slowest stands on top. Room to the right of the longest bar is for its label.
    rows = {"autorange": "reversed", "ticks": "", "automargin": True, "tickfont": {"size": 14, "color": INK}}
    time = {"title": {"text": f"time of one request in {unit}"}, "range": [0, 1.35 * longest], "domain": [0, 0.62]}
    held = {"title": {"text": "share of the weights' bytes in %"}, "range": [0, 1.45 * (most or 1.0)]}
    return {
        **LOOK,
        "height": 150 + _ROW_PIXELS * len(groups),
        "margin": {"l": 24, "r": 24, "t": 56, "b": 56},
        "barmode": "overlay",
        "xaxis": {**GRID, **time},
        "xaxis2": {**GRID, **held, "domain": [0.68, 1], "anchor": "y"},
        "yaxis": {**GRID, **rows, "gridcolor": "rgba(0,0,0,0)", "linecolor": FAINT},
        "legend": {**LEGEND, "itemclick": False, "traceorder": "normal"},
        "hoverlabel": HOVER,
    }
