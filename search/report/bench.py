"""A bench as one page: what came out in a sentence, and four panels over the same time. Without plotly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from objectives.measurement.statistics import fewest_samples
from search.format import milliseconds, percent, rate, significant, times
from search.report.front import ACCENT, FAINT, GRID, INK, LOOK, MUTED, PALETTE, Description
from search.report.render import render

Document = Mapping[str, Any]

# From bottom to top, as the axes are numbered; between them there is room for a title.
_DOMAINS = ((0.0, 0.17), (0.26, 0.43), (0.52, 0.73), (0.82, 1.0))
_MIDDLE, _DARK = PALETTE[1], PALETTE[3]
# Latencies that differ by more than this are drawn on a logarithmic axis.
_WIDE = 20
_HEIGHT = 860


def headline(document: Document) -> str:
    """Summarise the result in a sentence or two."""
    latency = document["latency_ms"]
    told = [f"{name} is {_value(latency[name])}" for name in ("p50", "p95", "p99") if latency[name] is not None]
    percentiles = " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)
    if document["pattern"] == "closed":
        answers = f"One request at a time, {rate(document['served_rps'])}"
    else:
        answers = (
            f"Under {_WORDS[document['pattern']]} at {rate(document['rate_rps'])}, {percent(document['load'])} of "
            "what it can answer"
        )
    sentences = [f"{answers}: {percentiles or 'no percentile can be told'}."]
    beside = document["poisson"]
    for name in ("p99", "p95"):
        if beside is not None and beside[f"{name}_ratio"] is not None:
            low, high = beside[f"{name}_ratio_interval"]
            ratio = f"{times(beside[f'{name}_ratio'])} [{significant(low)}, {significant(high)}]"
            sentences.append(f"That {name} is {ratio} of Poisson's at the same rate.")
            break
    if document["refused"]:
        sentences.append(f"{percent(document['refused'] / document['requests'])} of the requests were refused.")
    return " ".join(sentences)


_WORDS = {
    "poisson": "Poisson arrivals",
    "deterministic": "evenly spaced arrivals",
    "bursts": "bursts",
    "diurnal": "a day's rise and fall",
    "replay": "the log's arrivals",
}


def doubts(document: Document) -> list[str]:
    """List the reasons why the run is invalid or disturbed, and the missing percentiles with their reasons."""
    found = [f"Not valid. {document['reason']}"] if document["reason"] else []
    if document["disturbed"]:
        found.append(
            "The machine was busy with something else meanwhile: threads that were ready ran "
            f"{percent(document['cpu_share'])} of the time. Latencies are longer for it."
        )
    for name, told in document["latency_ms"].items():
        if told is None:
            fewest, count = fewest_samples(float(name[1:])), document["requests"]
            why = f"it needs {fewest} requests, but got {count}" if count < fewest else "it lies among the refused"
            found.append(f"{name} is not told: {why}.")
    return found


def bench_figure(document: Document) -> Description:
    """Rates, percentiles, queue and CPU in four panels over one axis of seconds, as plotly's traces and layout."""
    line = document["timeline"]
    panels = (_cpu(line), _queue(line), _latency(line), _rates(line))
    data = []
    layout: Description = {
        **LOOK,
        "height": _HEIGHT,
        "margin": {"l": 76, "r": 20, "t": 34, "b": 52},
        "showlegend": False,
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "hoverlabel": {"bgcolor": "white", "bordercolor": FAINT, "font": {"size": 12, "color": INK}},
        "xaxis": {**GRID, **_axis("seconds"), "anchor": "y", "range": [0, line["edges_s"][-1]]},
        "annotations": [],
    }
    for number, ((title, axis, traces), domain) in enumerate(zip(panels, _DOMAINS, strict=True), 1):
        suffix = "" if number == 1 else str(number)
        layout[f"yaxis{suffix}"] = {"rangemode": "tozero", **GRID, "nticks": 5, "domain": list(domain), **axis}
        data += [{**trace, "xaxis": "x", "yaxis": f"y{suffix}"} for trace in traces]
        layout["annotations"].append(_title(title, domain[1]))
    return {"data": data, "layout": layout}


Panel = tuple[str, Description, list[Description]]


def _rates(line: Document) -> Panel:
    traces = [
        _steps(line, line["offered_rps"], "offered", MUTED, "requests/s", width=1.2),
        _steps(line, line["served_rps"], "served", _DARK, "requests/s"),
    ]
    names = [("offered", MUTED), ("served", _DARK)]
    if any(line["refused"]):
        width = line["edges_s"][1]
        traces.append(_steps(line, [n / width for n in line["refused"]], "refused", ACCENT, "requests/s"))
        names.append(("refused", ACCENT))
    return _named("Rate", names), _axis("requests/s"), traces


def _latency(line: Document) -> Panel:
    told = [value for name in ("p50_ms", "p95_ms") for value in line[name] if value is not None]
    axis: Description = _axis("ms")
    if told and max(told) > _WIDE * min(told) > 0:
        axis |= {"type": "log", "dtick": "D2", "tickformat": ".3~g"}
    traces = [
        _steps(line, line["p95_ms"], "p95", _DARK, "ms"),
        _steps(line, line["p50_ms"], "p50", _MIDDLE, "ms"),
    ]
    return _named("Latency from the scheduled arrival", [("p50", _MIDDLE), ("p95", _DARK)]), axis, traces


def _queue(line: Document) -> Panel:
    highest = _steps(line, line["queue_max"], "highest", MUTED, "requests", width=1)
    traces = [
        {**highest, "fill": "tozeroy", "fillcolor": "rgba(93, 107, 122, 0.12)"},
        _steps(line, line["queue_mean"], "mean", _DARK, "requests"),
    ]
    title = _named("Requests scheduled and not answered", [("mean", _DARK), ("highest", MUTED)])
    return title, _axis("requests"), traces


def _cpu(line: Document) -> Panel:
    trace = _steps(line, line["cpu_cores"], "cores", _DARK, "cores")
    return _named("CPU time of the process, generator included", []), _axis("cores busy"), [trace]


def _axis(unit: str) -> Description:
    return {"title": {"text": unit, "font": {"size": 13}}}


def _steps(
    line: Document, values: Sequence[float | None], name: str, colour: str, unit: str, width: float = 2
) -> Description:
    """A value holds over its bin, and where there is none the line is broken."""
    edges = line["edges_s"]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [edge for ends in itertools.pairwise(edges) for edge in ends],
        "y": [value for value in values for _ in range(2)],
        "line": {"color": colour, "width": width},
        "hovertemplate": f"{name} %{{y:,.3~g}} {unit}<extra></extra>",
    }


def _named(title: str, names: Sequence[tuple[str, str]]) -> str:
    """The panel's title with its lines' names in their colours: no legend to look up."""
    shown = ", ".join(f'<span style="color:{colour}"><b>{name}</b></span>' for name, colour in names)
    return f"{title}: {shown}" if names else title


def _title(text: str, top: float) -> Description:
    spot = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": top, "yanchor": "bottom"}
    return {"text": text, **spot, "yshift": 5, "showarrow": False, "font": {"size": 14, "color": INK}}


def bench_page(document: Document, plotly_js: str, config: Mapping[str, Any]) -> str:
    """One HTML file with everything inside it."""
    return render(
        "bench.html.j2",
        document=document,
        headline=headline(document),
        facts=facts(document),
        doubts=doubts(document),
        drawing=[*bench_figure(document).values(), config],
        plotly_js=plotly_js,
    )


def facts(document: Document) -> list[str]:
    rows = document["rows"]
    return [
        f"{document['requests']:,} requests in {significant(document['seconds'], 3)} s",
        f"{significant(rows['median'], 3)} rows at the median, {rows['max']:,} at most",
        f"queue {significant(document['queue']['mean'])} in the mean, {document['queue']['max']:,} at most",
        f"{significant(document['cpu_cores'])} cores busy",
    ]


def _value(told: Mapping[str, Any]) -> str:
    return milliseconds(told["value"])
