"""Effects of techniques: each one as values, as columns of a table, as a figure in plotly's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from rich.table import Table

from objectives.records import Interval
from search.ablation.records import KINDS, AblationSummary, Difference, Kind, TechniqueSummary
from search.format import MISSING, column_percent, column_ratio, metric_name, significant, span
from search.report.axes import log_steps
from search.report.columns import Cell, Column, console_table, number
from search.report.front import FAINT, GRID, HOVER, INK, LEGEND, LOOK, MUTED, PALETTE, Description, error_bars

WORDS: Mapping[Kind, str] = {"without": "at the trial", "alone": "alone"}
_COLOURS: Mapping[Kind, str] = {"without": PALETTE[3], "alone": PALETTE[1]}
_SYMBOLS: Mapping[Kind, str] = {"without": "circle", "alone": "circle-open"}
_SHIFTS: Mapping[Kind, float] = {"without": -0.15, "alone": 0.15}
_ROW_PIXELS = 46
# Ratios that differ by less than this are marked by these steps.
_NARROW = 8
_STEPS = (0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0)


@dataclass(frozen=True)
class Comparison:
    """A technique, in this row from the top, at the trial or alone: what was measured, or why nothing was."""

    row: int
    label: str
    kind: Kind
    difference: Difference | None
    reason: str = ""


def comparisons(row: int, part: TechniqueSummary) -> Iterator[Comparison]:
    """Yield the comparisons of the technique in the given row, in the order of `KINDS`."""
    for kind, effect in zip(KINDS, (part.without, part.alone), strict=True):
        if effect is None:
            yield Comparison(row, part.label, kind, None, "not measured yet")
        else:
            reason = "" if effect.reason is None else f"not measured: {effect.reason}"
            yield Comparison(row, part.label, kind, effect.difference, reason)


def _all_comparisons(summary: AblationSummary) -> Iterator[Comparison]:
    for row, part in enumerate(summary.techniques):
        yield from comparisons(row, part)


_Dot = tuple[Comparison, Difference]


def dots(summary: AblationSummary) -> list[_Dot]:
    """The comparisons that were measured."""
    return [(each, each.difference) for each in _all_comparisons(summary) if each.difference is not None]


def ablation_figure(summary: AblationSummary) -> Description:
    """Describe the effects of the techniques, a line for each, at the trial and alone one below the other.

    Left: p95 ratio on a logarithmic axis. Right: loss in percent.
    """
    drawn = dots(summary)
    traces = []
    for kind in KINDS:
        mine = [dot for dot in drawn if dot[0].kind == kind]
        ratios = [_p95(difference) for _, difference in mine]
        losses = [(100 * loss, (100 * low, 100 * high)) for loss, (low, high) in (_loss(of) for _, of in mine)]
        traces += [_trace(mine, kind, ratios, "x"), _trace(mine, kind, losses, "x2")]
    return {"data": traces, "layout": _layout(summary, [difference for _, difference in drawn])}


# A ratio, or the loss as a share, with its interval.
_Ranged = tuple[float, Interval]


def _p95(of: Difference) -> _Ranged:
    return of.latency.p95_ratio, of.latency.p95_ratio_interval


def _loss(of: Difference) -> _Ranged:
    return of.quality.loss, of.quality.loss_interval


def _service_p50(of: Difference) -> _Ranged:
    return of.latency.service_p50_ratio, of.latency.service_p50_ratio_interval


_Value = Callable[[Difference], tuple[float, Interval | None]]
# What is told of a comparison: its name, the number with its interval, and how it is written.
_NUMBERS: tuple[tuple[str, _Value, Callable[[float], str]], ...] = (
    ("p95 ratio", _p95, column_ratio),
    ("service p50 ratio", _service_p50, column_ratio),
    ("loss", _loss, column_percent),
    ("bytes ratio", lambda of: (of.bytes_ratio, None), column_ratio),
)


def _trace(dots: Sequence[_Dot], kind: Kind, values: Sequence[_Ranged], axis: str) -> Description:
    colour, bars = _COLOURS[kind], error_bars([value for value, _ in values], [ends for _, ends in values])
    return {
        "type": "scatter",
        "mode": "markers",
        "name": WORDS[kind],
        "x": [value for value, _ in values],
        "y": [dot.row + _SHIFTS[kind] for dot, _ in dots],
        "xaxis": axis,
        "error_x": {**bars, "color": colour, "thickness": 1.6, "width": 4},
        "marker": {"symbol": _SYMBOLS[kind], "size": 10, "color": colour, "line": {"width": 2, "color": colour}},
        "hovertext": [_hover(*dot) for dot in dots],
        "hoverinfo": "text",
        "showlegend": axis == "x",
        "legendgroup": kind,
    }


def _hover(dot: Comparison, difference: Difference) -> str:
    lines = [f"<b>{escape(dot.label)}</b>, {WORDS[dot.kind]}"]
    for name, value, word in _NUMBERS:
        told, interval = value(difference)
        ends = "" if interval is None else f" [{span(interval, word)}]"
        lines.append(f"{name.removesuffix(' ratio')}: {word(told)}{ends}")
    return "<br>".join(lines)


def _layout(summary: AblationSummary, drawn: Sequence[Difference]) -> Description:
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
    metric = metric_name(next((of.quality.metric for of in drawn), "quality"))
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


def _column(header: str, value: _Value, word: Callable[[float], str]) -> Column[Comparison]:
    def cell(of: Comparison) -> Cell:
        if of.difference is None:
            return Cell(MISSING)
        told, interval = value(of.difference)
        return number(told, word, interval)

    return Column(header, cell)


COMPARISON_COLUMNS = tuple(_column(*one) for one in _NUMBERS)
_CONSOLE_COLUMNS = (
    Column[Comparison]("technique", lambda of: Cell(of.label if of.kind == KINDS[0] else ""), "left"),
    Column[Comparison]("", lambda of: Cell(", ".join(filter(None, (WORDS[of.kind], of.reason)))), "left"),
    *COMPARISON_COLUMNS,
)
