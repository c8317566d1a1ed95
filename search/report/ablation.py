"""Effects of techniques: each one as values, as columns of a table, as a figure in plotly's terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.table import Table

from search.ablation.records import KINDS, Kind
from search.format import MISSING, column_percent, column_ratio, metric_name, significant
from search.report.axes import log_steps
from search.report.columns import Cell, Column, console_table, number
from search.report.front import FAINT, GRID, INK, LOOK, MUTED, PALETTE, Description

Document = Mapping[str, Any]
Interval = tuple[float, float]

WORDS: Mapping[Kind, str] = {"without": "at the trial", "alone": "alone"}
_COLOURS: Mapping[Kind, str] = {"without": PALETTE[3], "alone": PALETTE[1]}
_SYMBOLS: Mapping[Kind, str] = {"without": "circle", "alone": "circle-open"}
_SHIFTS: Mapping[Kind, float] = {"without": -0.15, "alone": 0.15}
_ROW_PIXELS = 46
# Ratios that differ by less than this are marked by these steps.
_NARROW = 8
_STEPS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True)
class Dot:
    """One measured effect; `row` is the technique's place from the top. Ratios, and the loss as a share."""

    row: int
    label: str
    kind: Kind
    p95_ratio: float
    p95_ratio_interval: Interval
    service_p50_ratio: float
    service_p50_ratio_interval: Interval
    loss: float
    loss_interval: Interval
    bytes_ratio: float


@dataclass(frozen=True)
class Comparison:
    """A technique at the trial or alone: what was measured, or the reason why nothing was."""

    label: str
    kind: Kind
    dot: Dot | None
    reason: str


@dataclass(frozen=True)
class Technique:
    """A technique with what it did, in words, and its comparisons in the order of `KINDS`."""

    label: str
    verdict: str
    comparisons: tuple[Comparison, ...]


def techniques(document: Document) -> tuple[Technique, ...]:
    """The techniques of the document of `leanrec ablate --json`."""
    return tuple(
        Technique(part["label"], part["verdict"], tuple(_comparison(row, part, kind) for kind in KINDS))
        for row, part in enumerate(document["techniques"])
    )


def dots(document: Document) -> tuple[Dot, ...]:
    """The effects that were measured."""
    return tuple(each.dot for technique in techniques(document) for each in technique.comparisons if each.dot)


def _comparison(row: int, part: Mapping[str, Any], kind: Kind) -> Comparison:
    dot = _dot(row, part, kind)
    reason = "" if dot else f"not measured: {part[kind]['reason']}" if part[kind] else "not measured yet"
    return Comparison(part["label"], kind, dot, reason)


def _dot(row: int, part: Mapping[str, Any], kind: Kind) -> Dot | None:
    difference = (part[kind] or {}).get("difference")
    if difference is None:
        return None
    latency, quality = difference["latency"], difference["quality"]
    return Dot(
        row, part["label"], kind,
        latency["p95_ratio"], tuple(latency["p95_ratio_interval"]),
        latency["service_p50_ratio"], tuple(latency["service_p50_ratio_interval"]),
        quality["loss"], tuple(quality["loss_interval"]), difference["bytes_ratio"],
    )  # fmt: skip


def ablation_figure(document: Document) -> Description:
    """A line for each technique, at the trial and alone one below the other. Left: p95 ratio on a logarithmic axis.
    Right: loss in percent."""
    drawn = dots(document)
    traces = []
    for kind in KINDS:
        mine = [dot for dot in drawn if dot.kind == kind]
        ratios = [(dot.p95_ratio, dot.p95_ratio_interval) for dot in mine]
        losses = [(100 * dot.loss, (100 * dot.loss_interval[0], 100 * dot.loss_interval[1])) for dot in mine]
        traces += [_trace(mine, kind, ratios, "x"), _trace(mine, kind, losses, "x2")]
    return {"data": traces, "layout": _layout(document, drawn)}


def _trace(dots: Sequence[Dot], kind: Kind, values: Sequence[tuple[float, Interval]], axis: str) -> Description:
    colour = _COLOURS[kind]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": WORDS[kind],
        "x": [value for value, _ in values],
        "y": [dot.row + _SHIFTS[kind] for dot in dots],
        "xaxis": axis,
        "error_x": {
            "type": "data",
            "array": [high - value for value, (_, high) in values],
            "arrayminus": [value - low for value, (low, _) in values],
            "color": colour,
            "thickness": 1.6,
            "width": 4,
        },
        "marker": {"symbol": _SYMBOLS[kind], "size": 10, "color": colour, "line": {"width": 2, "color": colour}},
        "hovertext": [_hover(dot) for dot in dots],
        "hoverinfo": "text",
        "showlegend": axis == "x",
        "legendgroup": kind,
    }


def _hover(dot: Dot) -> str:
    lines = [f"<b>{escape(dot.label)}</b>, {WORDS[dot.kind]}"]
    for name, value, (low, high) in (
        ("p95", dot.p95_ratio, dot.p95_ratio_interval),
        ("service p50", dot.service_p50_ratio, dot.service_p50_ratio_interval),
    ):
        lines.append(f"{name}: {column_ratio(value)} [{column_ratio(low)} to {column_ratio(high)}]")
    low, high = dot.loss_interval
    lines.append(f"loss: {column_percent(dot.loss)} [{column_percent(low)} to {column_percent(high)}]")
    return "<br>".join([*lines, f"bytes: {column_ratio(dot.bytes_ratio)}"])


def _layout(document: Document, drawn: Sequence[Dot]) -> Description:
    labels = [escape(part["label"]) for part in document["techniques"]]
    low = min([0.9, *(dot.p95_ratio_interval[0] for dot in drawn)])
    high = max([1.1, *(dot.p95_ratio_interval[1] for dot in drawn)])
    steps = log_steps(low, high) if high > _NARROW * low else [step for step in _STEPS if low <= step <= high]
    ratio = {
        "type": "log",
        "title": {"text": "p95 with it over p95 without it (faster to the left)"},
        "tickvals": list(steps),
        "ticktext": [f"{significant(step)}x" for step in steps],
        "domain": [0, 0.6],
    }
    loss = {"title": {"text": f"loss of {_metric(document)} in %"}, "domain": [0.66, 1], "anchor": "y"}
    names = {
        "tickvals": list(range(len(labels))),
        "ticktext": labels,
        "range": [len(labels) - 0.5, -0.5],
        "ticks": "",
        "automargin": True,
        "tickfont": {"size": 13, "color": INK},
    }
    return {
        **LOOK,
        "height": 140 + _ROW_PIXELS * len(labels),
        "margin": {"l": 24, "r": 24, "t": 48, "b": 56},
        "xaxis": {**GRID, **ratio},
        "xaxis2": {**GRID, **loss},
        "yaxis": {**GRID, **names, "linecolor": FAINT},
        "shapes": [_upright(1.0, "x"), _upright(0.0, "x2")],
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        "hoverlabel": {"align": "left", "bgcolor": "white", "bordercolor": MUTED, "font": {"size": 12, "color": INK}},
    }


def _upright(place: float, axis: str) -> Description:
    """Return a vertical line where a technique has no effect."""
    line = {"color": MUTED, "width": 1.2}
    return {"type": "line", "xref": axis, "yref": "paper", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": line}


def _metric(document: Document) -> str:
    told = (
        effect["difference"]["quality"]["metric"]
        for part in document["techniques"]
        for kind in KINDS
        if (effect := part[kind]) is not None and effect["difference"] is not None
    )
    return metric_name(next(told, "quality"))


def ablation_table(document: Document) -> Table:
    """The techniques on a terminal, a line for each comparison."""
    lines = [comparison for technique in techniques(document) for comparison in technique.comparisons]
    return console_table(f"What helped at trial {document['trial']} of {document['study']}", _CONSOLE_COLUMNS, lines)


def _measured(header: str, cell: Callable[[Dot], Cell]) -> Column[Comparison]:
    return Column(header, lambda comparison: cell(comparison.dot) if comparison.dot else Cell(MISSING))


COMPARISON_COLUMNS: tuple[Column[Comparison], ...] = (
    _measured("p95 ratio", lambda dot: number(dot.p95_ratio, column_ratio, dot.p95_ratio_interval)),
    _measured("service p50 ratio", lambda d: number(d.service_p50_ratio, column_ratio, d.service_p50_ratio_interval)),
    _measured("loss", lambda dot: number(dot.loss, column_percent, dot.loss_interval)),
    _measured("bytes ratio", lambda dot: number(dot.bytes_ratio, column_ratio)),
)
_CONSOLE_COLUMNS = (
    Column[Comparison]("technique", lambda of: Cell(of.label if of.kind == KINDS[0] else ""), "left"),
    Column[Comparison]("", lambda of: Cell(", ".join(filter(None, (WORDS[of.kind], of.reason)))), "left"),
    *COMPARISON_COLUMNS,
)
