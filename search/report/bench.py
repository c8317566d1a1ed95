"""A bench as one page: what came out in a sentence, and four panels over the same time. Without plotly."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

from objectives.measurement.statistics import fewest_samples
from objectives.measurement.timeline import Timeline
from search.bench.bench import BenchResult
from search.format import listed, milliseconds, percent, rate, significant, times
from search.report.front import ACCENT, FAINT, GRID, INK, LOOK, MUTED, PALETTE, PAPER, Description
from search.report.theme import LIGHT

# From bottom to top, as the axes are numbered; between them there is room for a title.
_DOMAINS = ((0.0, 0.17), (0.26, 0.43), (0.52, 0.73), (0.82, 1.0))
_MIDDLE, _DARK = PALETTE[1], PALETTE[3]
# Latencies that differ by more than this are drawn on a logarithmic axis.
_WIDE = 20
_LOGARITHMIC: Description = {"type": "log", "dtick": "D2", "tickformat": ".3~g"}
_HEIGHT = 860
# A title stands at the left above its panel.
_TITLE: Description = {
    "xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "yanchor": "bottom",
    "yshift": 5, "showarrow": False, "font": {"size": 14, "color": INK},
}  # fmt: skip


def headline(found: BenchResult) -> str:
    """Summarise the result in a sentence or two."""
    percentiles = listed([f"{name} is {milliseconds(told.value)}" for name, told in found.latency_ms.items() if told])
    if found.rate_rps is None or found.load is None:
        answers = f"One request at a time, {rate(found.served_rps)}"
    else:
        load = f"{percent(found.load)} of what it can answer"
        answers = f"Under {_WORDS[found.pattern]} at {rate(found.rate_rps)}, {load}"
    if found.url is not None:
        answers = f"Through {found.url}, {answers[0].lower()}{answers[1:]}"
    sentences = [f"{answers}: {percentiles or 'no percentile can be told'}."]
    beside = found.poisson
    if beside is not None:
        p99, p95 = (beside.p99_ratio, beside.p99_ratio_interval), (beside.p95_ratio, beside.p95_ratio_interval)
        name, (ratio, interval) = ("p95", p95) if beside.p99_ratio is None else ("p99", p99)
        if ratio is not None and interval is not None:
            brackets = f"[{significant(interval[0])}, {significant(interval[1])}]"
            sentences.append(f"That {name} is {times(ratio)} {brackets} of Poisson's at the same rate.")
    if found.refused:
        sentences.append(f"{percent(found.refused / found.requests)} of the requests were refused.")
    return " ".join(sentences)


_WORDS = {
    "poisson": "Poisson arrivals",
    "deterministic": "evenly spaced arrivals",
    "bursts": "bursts",
    "diurnal": "a day's rise and fall",
    "replay": "the log's arrivals",
}


def doubts(found: BenchResult) -> list[str]:
    """List the reasons why the run is invalid or disturbed, and the missing percentiles with their reasons."""
    said = [f"Not valid. {found.reason}"] if found.reason else []
    if found.disturbed:
        said.append(
            "The machine was busy with something else meanwhile: threads that were ready ran "
            f"{percent(found.cpu_share)} of the time. Latencies are longer for it."
        )
    for name, told in found.latency_ms.items():
        if told is None:
            fewest, count = fewest_samples(float(name[1:])), found.requests
            why = f"it needs {fewest} requests, but got {count}" if count < fewest else "it lies among the refused"
            said.append(f"{name} is not told: {why}.")
    return said


@dataclass(frozen=True)
class _Line:
    """A value for each bin of the timeline, or None where the line is broken."""

    name: str
    values: Sequence[float | None]
    colour: str
    width: float = 2
    fill: str | None = None


@dataclass(frozen=True)
class _Panel:
    """Lines in one unit; `axis` is what differs from the axes of the other panels."""

    title: str
    unit: str
    lines: tuple[_Line, ...]
    axis: Description = field(default_factory=dict)

    @property
    def heading(self) -> str:
        """The title with the names of several lines in their colours: no legend to look up."""
        shown = (f'<span style="color:{line.colour}"><b>{line.name}</b></span>' for line in self.lines)
        return f"{self.title}: {', '.join(shown)}" if len(self.lines) > 1 else self.title


def bench_figure(found: BenchResult) -> Description:
    """Rates, percentiles, queue and CPU in four panels over one axis of seconds, as plotly's traces and layout."""
    edges = found.timeline.edges_s
    seconds = [edge for ends in itertools.pairwise(edges) for edge in ends]
    data: list[Description] = []
    titles: list[Description] = []
    layout: Description = {
        **LOOK,
        "height": _HEIGHT,
        "margin": {"l": 76, "r": 20, "t": 34, "b": 52},
        "showlegend": False,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "hoverlabel": {"bgcolor": PAPER, "bordercolor": FAINT, "font": {"size": 12, "color": INK}},
        "xaxis": {**GRID, **_axis("seconds"), "anchor": "y", "range": [0, edges[-1]]},
        "annotations": titles,
    }
    for number, (panel, domain) in enumerate(zip(_panels(found.timeline), _DOMAINS, strict=True), 1):
        suffix = "" if number == 1 else str(number)
        axis = {"rangemode": "tozero", **GRID, "nticks": 5, "domain": list(domain), **_axis(panel.unit), **panel.axis}
        layout[f"yaxis{suffix}"] = axis
        data += [_steps(line, seconds, panel.unit) | {"yaxis": f"y{suffix}"} for line in panel.lines]
        titles.append({"text": panel.heading, "y": domain[1], **_TITLE})
    return {"data": data, "layout": layout}


def _panels(line: Timeline) -> tuple[_Panel, ...]:
    """The panels from bottom to top; the last line of each lies on top of the others."""
    told = [value for value in (*line.p50_ms, *line.p95_ms) if value is not None]
    wide = bool(told) and max(told) > _WIDE * min(told) > 0
    refused = _Line("refused", [number / line.edges_s[1] for number in line.refused], ACCENT)
    rates = (_Line("offered", line.offered_rps, MUTED, 1.2), _Line("served", line.served_rps, _DARK))
    percentiles = (_Line("p95", line.p95_ms, _DARK), _Line("p50", line.p50_ms, _MIDDLE))
    highest = _Line("highest", line.queue_max, MUTED, 1, fill=LIGHT.band)
    return (
        _Panel("CPU time of the process, generator included", "cores busy", (_Line("CPU", line.cpu_cores, _DARK),)),
        _Panel("Requests scheduled and not answered", "requests", (highest, _Line("mean", line.queue_mean, _DARK))),
        _Panel("Latency from the scheduled arrival", "ms", percentiles, _LOGARITHMIC if wide else {}),
        _Panel("Rate", "requests/s", (*rates, refused) if any(line.refused) else rates),
    )


def _axis(unit: str) -> Description:
    return {"title": {"text": unit, "font": {"size": 13}}}


def _steps(line: _Line, seconds: Sequence[float], unit: str) -> Description:
    """A value holds over its bin."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": line.name,
        "x": seconds,
        "xaxis": "x",
        "y": [value for value in line.values for _ in range(2)],
        "line": {"color": line.colour, "width": line.width},
        "hovertemplate": f"{line.name} %{{y:,.3~g}} {unit}<extra></extra>",
        **({"fill": "tozeroy", "fillcolor": line.fill} if line.fill else {}),
    }


def facts(found: BenchResult) -> list[str]:
    return [
        f"{found.requests:,} requests in {significant(found.seconds, 3)} s",
        f"{significant(found.rows.median, 3)} rows at the median, {found.rows.max:,} at most",
        f"queue {significant(found.queue.mean)} in the mean, {found.queue.max:,} at most",
        f"{significant(found.cpu_cores)} cores busy",
    ]
