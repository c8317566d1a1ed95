"""A bench as one page: what came out in a sentence, and four panels over the same time. Without plotly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from objectives.measurement.statistics import fewest_samples
from objectives.measurement.timeline import Timeline
from search.bench.bench import BenchResult
from search.format import listed, milliseconds, percent, rate, significant, times
from search.report.front import ACCENT, FAINT, GRID, INK, LOOK, MUTED, PALETTE, Description
from search.report.render import render

# From bottom to top, as the axes are numbered; between them there is room for a title.
_DOMAINS = ((0.0, 0.17), (0.26, 0.43), (0.52, 0.73), (0.82, 1.0))
_MIDDLE, _DARK = PALETTE[1], PALETTE[3]
# Latencies that differ by more than this are drawn on a logarithmic axis.
_WIDE = 20
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


def bench_figure(found: BenchResult) -> Description:
    """Rates, percentiles, queue and CPU in four panels over one axis of seconds, as plotly's traces and layout."""
    line = found.timeline
    panels = (_cpu(line), _queue(line), _latency(line), _rates(line))
    data: list[Description] = []
    titles: list[Description] = []
    layout: Description = {
        **LOOK,
        "height": _HEIGHT,
        "margin": {"l": 76, "r": 20, "t": 34, "b": 52},
        "showlegend": False,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "hoverlabel": {"bgcolor": "white", "bordercolor": FAINT, "font": {"size": 12, "color": INK}},
        "xaxis": {**GRID, **_axis("seconds"), "anchor": "y", "range": [0, line.edges_s[-1]]},
        "annotations": titles,
    }
    for number, ((title, axis, traces), domain) in enumerate(zip(panels, _DOMAINS, strict=True), 1):
        suffix = "" if number == 1 else str(number)
        layout[f"yaxis{suffix}"] = {"rangemode": "tozero", **GRID, "nticks": 5, "domain": list(domain), **axis}
        data += [{**trace, "xaxis": "x", "yaxis": f"y{suffix}"} for trace in traces]
        titles.append({"text": title, "y": domain[1], **_TITLE})
    return {"data": data, "layout": layout}


Panel = tuple[str, Description, list[Description]]


def _rates(line: Timeline) -> Panel:
    traces = [
        _steps(line, line.offered_rps, "offered", MUTED, "requests/s", width=1.2),
        _steps(line, line.served_rps, "served", _DARK, "requests/s"),
    ]
    names = [("offered", MUTED), ("served", _DARK)]
    if any(line.refused):
        width = line.edges_s[1]
        traces.append(_steps(line, [n / width for n in line.refused], "refused", ACCENT, "requests/s"))
        names.append(("refused", ACCENT))
    return _named("Rate", names), _axis("requests/s"), traces


def _latency(line: Timeline) -> Panel:
    told = [value for value in (*line.p50_ms, *line.p95_ms) if value is not None]
    axis: Description = _axis("ms")
    if told and max(told) > _WIDE * min(told) > 0:
        axis |= {"type": "log", "dtick": "D2", "tickformat": ".3~g"}
    traces = [_steps(line, line.p95_ms, "p95", _DARK, "ms"), _steps(line, line.p50_ms, "p50", _MIDDLE, "ms")]
    return _named("Latency from the scheduled arrival", [("p50", _MIDDLE), ("p95", _DARK)]), axis, traces


def _queue(line: Timeline) -> Panel:
    highest = _steps(line, line.queue_max, "highest", MUTED, "requests", width=1)
    traces = [
        {**highest, "fill": "tozeroy", "fillcolor": "rgba(93, 107, 122, 0.12)"},
        _steps(line, line.queue_mean, "mean", _DARK, "requests"),
    ]
    title = _named("Requests scheduled and not answered", [("mean", _DARK), ("highest", MUTED)])
    return title, _axis("requests"), traces


def _cpu(line: Timeline) -> Panel:
    trace = _steps(line, line.cpu_cores, "cores", _DARK, "cores")
    return _named("CPU time of the process, generator included", []), _axis("cores busy"), [trace]


def _axis(unit: str) -> Description:
    return {"title": {"text": unit, "font": {"size": 13}}}


def _steps(
    line: Timeline, values: Sequence[float | None], name: str, colour: str, unit: str, width: float = 2
) -> Description:
    """A value holds over its bin, and where there is none the line is broken."""
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [edge for ends in itertools.pairwise(line.edges_s) for edge in ends],
        "y": [value for value in values for _ in range(2)],
        "line": {"color": colour, "width": width},
        "hovertemplate": f"{name} %{{y:,.3~g}} {unit}<extra></extra>",
    }


def _named(title: str, names: Sequence[tuple[str, str]]) -> str:
    """The panel's title with its lines' names in their colours: no legend to look up."""
    shown = ", ".join(f'<span style="color:{colour}"><b>{name}</b></span>' for name, colour in names)
    return f"{title}: {shown}" if names else title


def bench_page(found: BenchResult, plotly_js: str, config: Mapping[str, object]) -> str:
    """One HTML file with everything inside it."""
    return render(
        "bench.html.j2",
        found=found,
        headline=headline(found),
        facts=facts(found),
        doubts=doubts(found),
        drawing=[*bench_figure(found).values(), config],
        plotly_js=plotly_js,
    )


def facts(found: BenchResult) -> list[str]:
    return [
        f"{found.requests:,} requests in {significant(found.seconds, 3)} s",
        f"{significant(found.rows.median, 3)} rows at the median, {found.rows.max:,} at most",
        f"queue {significant(found.queue.mean)} in the mean, {found.queue.max:,} at most",
        f"{significant(found.cpu_cores)} cores busy",
    ]
