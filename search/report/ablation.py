"""What helped: each technique's effect as values, as a table, as a figure in plotly's terms, as a section."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from rich.table import Table

from search.ablation.records import KINDS, Kind
from search.format import MISSING, column_percent, column_ratio, metric_name, significant
from search.report.axes import log_steps
from search.report.front import FAINT, GRID, INK, LOOK, MUTED, PALETTE, Description
from search.report.html import cell, section

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
_COLUMNS = ("p95 ratio", "service p50 ratio", "loss", "bytes ratio")


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


def dots(document: Document) -> tuple[Dot, ...]:
    """Of the document of `leanrec ablate --json`; what was not measured has none."""
    return tuple(
        dot
        for row, part in enumerate(document["techniques"])
        for kind in KINDS
        if (dot := _dot(row, part, kind)) is not None
    )


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
    """Where a technique changes nothing."""
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


def ablation_section(document: Document | None, figure: str | None) -> str:
    """HTML; `figure` is a fragment, None where nothing was measured. Empty without an ablation."""
    if document is None:
        return ""
    lead = (
        f"Trial {document['trial']}, one technique at a time. At the trial: the trial beside itself with the technique "
        "taken back. Alone: the baseline with nothing but the technique, beside the baseline. Below 1x is faster or "
        "smaller; a loss above 0 is what the technique costs on validation."
    )
    control = document["control"]
    said = f"<p><b>{escape(control['sentence'])}</b></p>" if control else ""
    plot = f'<figure class="plot">{figure}</figure>' if figure else ""
    note = (
        '<p class="note">Ranges are 95% intervals, not adjusted for the number of techniques or slices. Measured on '
        f"{escape(document['machine'])}.</p>"
    )
    return section("What helped", lead, f"{said}{plot}{_table(document)}{note}")


def _table(document: Document) -> str:
    """Two heads: at the trial and alone."""
    above = "".join(f'<th colspan="{len(_COLUMNS)}">{escape(WORDS[kind])}</th>' for kind in KINDS)
    heads = "".join(f"<th>{escape(name)}</th>" for _ in KINDS for name in _COLUMNS)
    rows = []
    for row, part in enumerate(document["techniques"]):
        measured = "".join(_html_cells(_dot(row, part, kind), _reason(part, kind)) for kind in KINDS)
        rows.append(f"<tr><td>{escape(part['label'])}</td><td>{escape(part['verdict'])}</td>{measured}</tr>\n")
    return (
        '<div class="scroll"><table class="helped"><thead>'
        f'<tr><th rowspan="2">technique</th><th rowspan="2">what it did</th>{above}</tr><tr>{heads}</tr></thead>'
        f"<tbody>\n{''.join(rows)}</tbody></table></div>"
    )


def _reason(part: Mapping[str, Any], kind: Kind) -> str:
    """Why there are no numbers."""
    return f"not measured: {part[kind]['reason']}" if part[kind] else "not measured yet"


def _html_cells(dot: Dot | None, reason: str) -> str:
    if dot is None:
        return f'<td colspan="{len(_COLUMNS)}" class="missing">{escape(reason)}</td>'
    cells = (
        cell(dot.p95_ratio, column_ratio, dot.p95_ratio_interval),
        cell(dot.service_p50_ratio, column_ratio, dot.service_p50_ratio_interval),
        cell(dot.loss, column_percent, dot.loss_interval),
        cell(dot.bytes_ratio, column_ratio),
    )
    return "".join(f"<td>{text}</td>" for text in cells)


def ablation_table(document: Document) -> Table:
    """The same on a terminal, a line for each comparison."""
    table = Table(title=f"What helped at trial {document['trial']} of {document['study']}", title_justify="left")
    table.add_column("technique")
    table.add_column("", max_width=40)
    for name in ("p95 ratio [95%]", "service p50 ratio [95%]", "loss [95%]", "bytes ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    for row, part in enumerate(document["techniques"]):
        for kind in KINDS:
            dot = _dot(row, part, kind)
            what = WORDS[kind] if dot else f"{WORDS[kind]}, {_reason(part, kind)}"
            table.add_row(part["label"] if kind == KINDS[0] else "", what, *_text_cells(dot))
    return table


def _text_cells(dot: Dot | None) -> Sequence[str]:
    if dot is None:
        return (MISSING,) * len(_COLUMNS)
    (low, high), (least, most) = dot.p95_ratio_interval, dot.service_p50_ratio_interval
    best, worst = dot.loss_interval
    return (
        f"{dot.p95_ratio:.3f} [{low:.3f}, {high:.3f}]",
        f"{dot.service_p50_ratio:.3f} [{least:.3f}, {most:.3f}]",
        f"{dot.loss:+.2%} [{best:+.2%}, {worst:+.2%}]",
        f"{dot.bytes_ratio:.3f}",
    )
