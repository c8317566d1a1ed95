"""The front as a plain description of traces and layout, in plotly's terms but without plotly."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from objectives.records import Interval
from search.format import metric_name, percent, significant
from search.report.axes import log_steps
from search.report.data import hover, metric_of, stairs
from search.report.theme import LIGHT
from search.results import Front, Point

# A trace or a layout, in plotly's terms.
Description = dict[str, object]

INK, MUTED, FAINT, ACCENT, PAPER = LIGHT.ink, LIGHT.muted, LIGHT.line, LIGHT.accent, LIGHT.paper
FONT = {"family": "Inter, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif", "size": 13, "color": INK}
LOOK: Description = {"font": FONT, "paper_bgcolor": PAPER, "plot_bgcolor": PAPER}
GRID: Description = {"gridcolor": FAINT, "linecolor": MUTED, "ticks": "outside", "tickcolor": FAINT, "zeroline": False}
HOVER: Description = {"align": "left", "bgcolor": PAPER, "bordercolor": MUTED, "font": {"size": 12, "color": INK}}
# Above the figure, in a line.
LEGEND: Description = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
ZERO: Description = {"zeroline": True, "zerolinecolor": MUTED}
PALETTE = LIGHT.palette
SYMBOLS = {"baseline": "circle", "student": "square", "pruned": "diamond"}
ORIGINS = {"baseline": "baseline's weights", "student": "student", "pruned": "pruned"}
IN_RATIOS = "p95 latency as a share of the baseline's (faster to the left)"
# Place of the front's own trace among those that `describe_front` draws.
_MEMBERS = 3
IN_MILLISECONDS = "p95 latency in ms (faster to the left)"


def describe_front(front: Front) -> Description:
    """Describe a figure of p95 (log axis; ratio or ms) by loss in percent, throughput as colour, origin as symbol."""
    infeasible = [point for point in front.points if not point.feasible]
    dominated = [point for point in front.points if point.feasible and not point.on_front]
    edge, members = stairs(front), list(front.members)
    layers: list[tuple[Sequence[Point], Description]] = [
        (edge, {**_EDGE, "showlegend": bool(edge)}),
        (infeasible, _faint(infeasible)),
        (dominated, {"marker": {**_coloured(dominated), "size": 9, "opacity": 0.3}, "showlegend": False}),
        (members, _with_bars(members)),
    ]
    if front.baseline:
        layers.append(([front.baseline], _BASELINE))
    if front.chosen:
        trial = front.chosen.row.trial
        chosen = [point for point in front.points if point.trial == trial]
        layers += [([point], {**_CHOSEN, "name": f"chosen: trial {trial}"}) for point in chosen]
    traces = [_at(points) | look for points, look in layers]
    legend = [_legend_entry(origin) for origin in dict.fromkeys(point.origin for point in front.points)]
    toggle = _toggle([points for points, _ in layers])
    return {"data": [*traces, *legend], "layout": _layout(front, toggle)}


def loss_window(front: Front) -> tuple[float, float]:
    """Return the range of the loss axis in per cent; far too large a loss lies beyond, lest it flatten the front."""
    feasible = [point for point in front.points if point.feasible]
    low = min([0.0, *(p.quality.loss_interval[0] if p.on_front else p.quality.loss for p in feasible)])
    high = max([1.6 * front.max_loss, *(p.quality.loss_interval[1] for p in feasible if p.on_front)])
    # Where most lose too much, the frame goes up until half of them are seen.
    losses = sorted(point.quality.loss for point in front.points if point.trial != 0)
    high = max(high, losses[len(losses) // 2] if losses else high)
    margin = 0.06 * (high - low)
    return 100 * (low - margin), 100 * (high + margin)


def _at(points: Sequence[Point]) -> Description:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [point.p95_ratio for point in points],
        "y": [100 * point.quality.loss for point in points],
        "hovertext": [hover(point) for point in points],
        "hoverinfo": "text",
        "showlegend": True,
    }


_BASELINE: Description = {
    "name": "baseline",
    "marker": {"symbol": "cross-thin-open", "size": 20, "color": INK, "line": {"width": 2.5, "color": INK}},
}
_CHOSEN: Description = {
    "marker": {"symbol": "circle-open", "size": 26, "color": ACCENT, "line": {"width": 3, "color": ACCENT}},
}


_EDGE: Description = {
    "mode": "lines",
    "line": {"shape": "hv", "color": MUTED, "width": 1.3, "dash": "dot"},
    "name": "edge of the front",
    "hovertext": None,
    "hoverinfo": "skip",
}


def _faint(points: Sequence[Point]) -> Description:
    symbols = [SYMBOLS.get(point.origin, "x") + "-open" for point in points]
    marker = {"symbol": symbols, "size": 8, "color": MUTED, "opacity": 0.45}
    return {"marker": marker, "name": "loses too much", "showlegend": bool(points)}


def _with_bars(points: Sequence[Point]) -> Description:
    losses = [(100 * low, 100 * high) for low, high in (p.quality.loss_interval for p in points)]
    return {
        "marker": {**_coloured(points), "size": 13, "line": {"width": 1, "color": INK}},
        "error_x": error_bars([p.p95_ratio for p in points], [p.p95_ratio_interval for p in points]),
        "error_y": error_bars([100 * p.quality.loss for p in points], losses),
        "showlegend": False,
    }


def _coloured(points: Sequence[Point]) -> Description:
    return {
        "symbol": [SYMBOLS.get(point.origin, "x") for point in points],
        "color": [math.log10(point.throughput_ratio or 1.0) for point in points],
        "coloraxis": "coloraxis",
    }


def error_bars(values: Sequence[float], intervals: Sequence[Interval]) -> Description:
    """Describe intervals as distances from their values, as plotly wants them.

    A bootstrap may put the whole interval to one side of the value; the distance to the other side is 0 then.
    """
    above = [max(0.0, high - value) for value, (_, high) in zip(values, intervals, strict=True)]
    below = [max(0.0, value - low) for value, (low, _) in zip(values, intervals, strict=True)]
    look = {"color": LIGHT.bars, "thickness": 1.2, "width": 3}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **look}


def _legend_entry(origin: str) -> Description:
    marker = {"symbol": SYMBOLS.get(origin, "x"), "size": 10, "color": MUTED}
    name = ORIGINS.get(origin, html.escape(origin))
    return {"type": "scatter", "mode": "markers", "x": [None], "y": [None], "marker": marker, "name": name}


def _toggle(groups: Sequence[Sequence[Point]]) -> Description:
    """Two buttons that put the same points on the axis in ratios or in milliseconds; only the front has bars."""
    buttons = []
    for label, title in (("ratio", IN_RATIOS), ("milliseconds", IN_MILLISECONDS)):
        scales = [[1.0 if label == "ratio" else p.latency_ms.p95 / p.p95_ratio for p in points] for points in groups]
        xs = [[p.p95_ratio * by for p, by in zip(ps, bys, strict=True)] for ps, bys in zip(groups, scales, strict=True)]
        ends = zip((p.p95_ratio_interval for p in groups[_MEMBERS]), scales[_MEMBERS], strict=True)
        bars = error_bars(xs[_MEMBERS], [(low * by, high * by) for (low, high), by in ends])
        restyle: Description = {"x": xs}
        for end in ("array", "arrayminus"):
            restyle[f"error_x.{end}"] = [bars[end] if place == _MEMBERS else None for place in range(len(groups))]
        relayout = {"xaxis.title.text": title, "xaxis.autorange": True}
        buttons.append({"label": label, "method": "update", "args": [restyle, relayout, list(range(len(groups)))]})
    look = {"bgcolor": PAPER, "bordercolor": FAINT, "font": {"size": 12}, "pad": {"r": 0, "t": 0}}
    spot = {"x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    return {"type": "buttons", "direction": "right", "active": 0, "buttons": buttons, **look, **spot}


def _layout(front: Front, toggle: Description) -> Description:
    limit = 100 * front.max_loss
    line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": limit, "y1": limit}
    note = {"text": f"tolerated loss {percent(front.max_loss)}", "font": {"color": ACCENT, "size": 12}}
    spot = {"xref": "paper", "x": 0.005, "xanchor": "left", "y": limit, "yanchor": "bottom", "showarrow": False}
    title = f"loss of {html.escape(metric_name(metric_of(front)))} in % of the baseline's (better below)"
    return {
        **LOOK,
        "height": 580,
        "margin": {"l": 64, "r": 16, "t": 64, "b": 56},
        "coloraxis": _colour_axis([p.throughput_ratio for p in front.points if p.throughput_ratio]),
        "xaxis": {**GRID, "type": "log", "title": {"text": IN_RATIOS}, "dtick": "D2", "tickformat": ".3~g"},
        "yaxis": {**GRID, "title": {"text": title}, "range": loss_window(front), **ZERO},
        "shapes": [{**line, "line": {"dash": "dash", "color": ACCENT, "width": 1.5}}],
        "annotations": [{**note, **spot}],
        "legend": {**LEGEND, "itemclick": False},
        "updatemenus": [toggle] if front.points else [],
        "hoverlabel": HOVER,
    }


def _colour_axis(carried: Sequence[float]) -> Description:
    low, high = min([1.0, *carried]), max([2.0, *carried])
    steps = log_steps(low, high)
    bar = {
        "title": {"text": "throughput<br>ratio"},
        "tickvals": [math.log10(step) for step in steps],
        "ticktext": [f"{significant(step)}x" for step in steps],
        "outlinewidth": 0,
        "thickness": 14,
        "len": 0.8,
    }
    ends = {"cmin": math.log10(low), "cmax": math.log10(high)}
    return {"colorscale": list(PALETTE), **ends, "showscale": bool(carried), "colorbar": bar}
