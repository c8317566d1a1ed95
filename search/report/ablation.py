"""Effects of techniques: each one as values, as columns of a table, as a figure in plotly's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich.table import Table

from objectives.records import Interval
from search.ablation.records import KINDS, AblationSummary, Difference, Kind, TechniqueSummary
from search.format import MISSING, column_percent, column_ratio, metric_name, significant
from search.report.axes import log_steps
from search.report.columns import Cell, Column, console_table, number
from search.report.front import FAINT, GRID, HOVER, INK, LEGEND, LOOK, MUTED, PALETTE, Description

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
    """One measured effect; `row` is the technique's place from the top."""

    row: int
    label: str
    kind: Kind
    difference: Difference


@dataclass(frozen=True)
class Comparison:
    """A technique at the trial or alone: what was measured, or the reason why nothing was."""

    label: str
    kind: Kind
    dot: Dot | None
    reason: str


def comparisons(row: int, part: TechniqueSummary) -> Iterator[Comparison]:
    """Yield the comparisons of the technique in the given place, in the order of `KINDS`."""
    for kind, effect in zip(KINDS, (part.without, part.alone), strict=True):
        if effect is None or effect.difference is None:
            reason = "not measured yet" if effect is None else f"not measured: {effect.reason}"
            yield Comparison(part.label, kind, None, reason)
        else:
            yield Comparison(part.label, kind, Dot(row, part.label, kind, effect.difference), "")


def _all_comparisons(summary: AblationSummary) -> Iterator[Comparison]:
    for row, part in enumerate(summary.techniques):
        yield from comparisons(row, part)


def dots(summary: AblationSummary) -> tuple[Dot, ...]:
    """The effects that were measured."""
    return tuple(each.dot for each in _all_comparisons(summary) if each.dot)


def ablation_figure(summary: AblationSummary) -> Description:
    """A line for each technique, at the trial and alone one below the other. Left: p95 ratio on a logarithmic axis.
    Right: loss in percent."""
    drawn = dots(summary)
    traces = []
    for kind in KINDS:
        mine = [dot for dot in drawn if dot.kind == kind]
        ratios = [_p95(dot) for dot in mine]
        losses = [(100 * loss, (100 * low, 100 * high)) for loss, (low, high) in map(_loss, mine)]
        traces += [_trace(mine, kind, ratios, "x"), _trace(mine, kind, losses, "x2")]
    return {"data": traces, "layout": _layout(summary, drawn)}


# A ratio, or the loss as a share, with its interval.
_Ranged = tuple[float, Interval]


def _p95(dot: Dot) -> _Ranged:
    return dot.difference.latency.p95_ratio, dot.difference.latency.p95_ratio_interval


def _service_p50(dot: Dot) -> _Ranged:
    return dot.difference.latency.service_p50_ratio, dot.difference.latency.service_p50_ratio_interval


def _loss(dot: Dot) -> _Ranged:
    return dot.difference.quality.loss, dot.difference.quality.loss_interval


def _trace(dots: Sequence[Dot], kind: Kind, values: Sequence[_Ranged], axis: str) -> Description:
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
    for name, (value, (low, high)), word in (
        ("p95", _p95(dot), column_ratio),
        ("service p50", _service_p50(dot), column_ratio),
        ("loss", _loss(dot), column_percent),
    ):
        lines.append(f"{name}: {word(value)} [{word(low)} to {word(high)}]")
    return "<br>".join([*lines, f"bytes: {column_ratio(dot.difference.bytes_ratio)}"])


def _layout(summary: AblationSummary, drawn: Sequence[Dot]) -> Description:
    labels = [escape(part.label) for part in summary.techniques]
    intervals = [interval for _, interval in map(_p95, drawn)]
    low = min([0.9, *(low for low, _ in intervals)])
    high = max([1.1, *(high for _, high in intervals)])
    steps = log_steps(low, high) if high > _NARROW * low else [step for step in _STEPS if low <= step <= high]
    ratio = {
        "type": "log",
        "title": {"text": "p95 with it over p95 without it (faster to the left)"},
        "tickvals": list(steps),
        "ticktext": [f"{significant(step)}x" for step in steps],
        "domain": [0, 0.6],
    }
    metric = metric_name(next((dot.difference.quality.metric for dot in drawn), "quality"))
    loss = {"title": {"text": f"loss of {metric} in %"}, "domain": [0.66, 1], "anchor": "y"}
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
        "legend": {**LEGEND, "traceorder": "normal"},
        "hoverlabel": HOVER,
    }


def _upright(place: float, axis: str) -> Description:
    """Return a vertical line where a technique has no effect."""
    line = {"color": MUTED, "width": 1.2}
    return {"type": "line", "xref": axis, "yref": "paper", "x0": place, "x1": place, "y0": 0, "y1": 1, "line": line}


def ablation_table(summary: AblationSummary) -> Table:
    """The techniques on a terminal, a line for each comparison."""
    title = f"What helped at trial {summary.trial} of {summary.study}"
    return console_table(title, _CONSOLE_COLUMNS, _all_comparisons(summary))


def _measured(
    header: str, value: Callable[[Dot], tuple[float, Interval | None]], word: Callable[[float], str]
) -> Column[Comparison]:
    def cell(of: Comparison) -> Cell:
        if of.dot is None:
            return Cell(MISSING)
        told, interval = value(of.dot)
        return number(told, word, interval)

    return Column(header, cell)


COMPARISON_COLUMNS: tuple[Column[Comparison], ...] = (
    _measured("p95 ratio", _p95, column_ratio),
    _measured("service p50 ratio", _service_p50, column_ratio),
    _measured("loss", _loss, column_percent),
    _measured("bytes ratio", lambda dot: (dot.difference.bytes_ratio, None), column_ratio),
)
_CONSOLE_COLUMNS = (
    Column[Comparison]("technique", lambda of: Cell(of.label if of.kind == KINDS[0] else ""), "left"),
    Column[Comparison]("", lambda of: Cell(", ".join(filter(None, (WORDS[of.kind], of.reason)))), "left"),
    *COMPARISON_COLUMNS,
)
