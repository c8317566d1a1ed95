"""Figures of a plan and of an observation, as plain descriptions in plotly's terms."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from planning.hours_of_week import WEEKDAYS
from planning.observation.traffic import HourOfWeek
from planning.observation.weekly_service import Interval, SampledService, ServiceHour
from search.plan.document import PlanDocument, PolicyRow
from search.report.front import ACCENT, FAINT, GRID, INK, LOOK, MUTED, PALETTE, Description

_HEIGHT = 210
# Seconds without samples that a figure leaves empty.
_GAP_SECONDS = 1.0
COLOURS = (MUTED, "#9aa7b4", PALETTE[0], PALETTE[1], PALETTE[3], PALETTE[4])


@dataclass(frozen=True)
class Line:
    """Values at the places of a figure's axis; a value holds until the next place if `steps`.

    points: they are marked too, so that one between gaps is seen
    """

    name: str
    values: Sequence[float | None]
    colour: str
    steps: bool = False
    points: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines in one unit."""

    title: str
    unit: str
    lines: tuple[Line, ...]
    axis: Description = field(default_factory=dict)


def panels_figure(places: Sequence[object], panels: Sequence[Panel], title: str | None = None) -> Description:
    """Draw panels above one another, the first on top, over one axis of numbers or times, with its title."""
    gap = 0.09
    height = (1 - gap * (len(panels) - 1)) / len(panels)
    data: list[Description] = []
    # The legend is below the title.
    below, legend_y = (48, -0.12 / len(panels)) if title is None else (120, -0.06)
    layout: Description = {
        **LOOK,
        "height": _HEIGHT * len(panels) + 32 + below,
        "margin": {"l": 76, "r": 20, "t": 40, "b": below},
        "hovermode": "x unified",
        "legend": {"orientation": "h", "y": legend_y, "yanchor": "top"},
        "xaxis": {**GRID, "anchor": f"y{len(panels)}" if len(panels) > 1 else "y", "title": {"text": title or ""}},
    }
    titles, named = [], set()
    for number, panel in enumerate(panels):
        name = "y" if number == 0 else f"y{number + 1}"
        top = 1 - number * (height + gap)
        axis = {**GRID, "rangemode": "tozero", "domain": [max(0.0, top - height), top], "title": {"text": panel.unit}}
        layout[name.replace("y", "yaxis")] = axis | panel.axis
        titles.append(_title(panel.title, top))
        for line in panel.lines:
            data.append(_trace(line, places, name) | {"showlegend": line.name not in named})
            named.add(line.name)
    return {"data": data, "layout": {**layout, "annotations": titles}}


def _trace(line: Line, places: Sequence[object], axis: str) -> Description:
    return {
        "type": "scatter",
        "mode": "lines+markers" if line.points else "lines",
        "marker": {"size": 4},
        "name": line.name,
        "legendgroup": line.name,
        "x": list(places),
        "y": list(line.values),
        "yaxis": axis,
        "line": {"color": line.colour, "width": 1.8, "shape": "hv" if line.steps else "linear"},
        "hovertemplate": "%{y:,.3~g}",
    }


def _title(text: str, top: float) -> Description:
    place = {"xref": "paper", "x": 0, "xanchor": "left", "yref": "paper", "y": top, "yanchor": "bottom"}
    return {"text": text, **place, "yshift": 4, "showarrow": False, "font": {"size": 14, "color": INK}}


def plan_figure(found: PlanDocument) -> Description:
    """Draw the upcoming phases: expected and demanded rate, capacity, machines, and the loss that is served."""
    places = [place(found.start_s, phase.start_s) for phase in found.phases]
    losses = {offer.offer: 100 * offer.loss for offer in found.offers}
    rates = (
        Line("capacity", [phase.capacity_rps for phase in found.phases], PALETTE[0], steps=True),
        Line("planned for", [phase.demand_rps for phase in found.phases], PALETTE[3], steps=True),
        Line("expected", [phase.expected_rps for phase in found.phases], MUTED, steps=True),
    )
    machines = Line("machines", [phase.machines for phase in found.phases], PALETTE[4], steps=True)
    loss = Line("loss served", [losses[phase.offer] for phase in found.phases], ACCENT, steps=True)
    return panels_figure(
        places,
        (
            Panel("Rate", "requests/s", rates),
            Panel("Machines", "machines", (machines,)),
            Panel("Quality loss of what serves", "%", (loss,)),
        ),
    )


def place(start_s: float | None, seconds: float) -> str | float:
    """Return a moment as plotly's axis of dates takes it, or in hours since the start where the date is not known."""
    if start_s is None:
        return seconds / 3600
    return datetime.datetime.fromtimestamp(start_s + seconds, datetime.UTC).replace(tzinfo=None).isoformat()


def policies_figure(found: PlanDocument) -> Description:
    """Draw every policy on the held-out phases: machines, late requests and p95."""
    first = found.policies[0].phases
    places = [phase.start_s / 3600 for phase in first]
    rate = Line("requests", [phase.rate_rps for phase in first], INK, steps=True)

    def lines(value: str, scale: float = 1.0) -> tuple[Line, ...]:
        return tuple(
            Line(policy.policy, _values(policy, value, scale), colour, steps=True)
            for policy, colour in zip(found.policies, COLOURS, strict=False)
        )

    limit = Line("SLO", [found.slo_ms] * len(places), ACCENT)
    figure = panels_figure(
        places,
        (
            Panel("Rate of the held-out trace", "requests/s", (rate,)),
            Panel("Machines", "machines", lines("machines")),
            Panel("Requests later than the SLO, or refused", "%", lines("late", 100.0)),
            Panel("p95 of the latency", "ms", (*lines("p95_ms"), limit), {"type": "log", "rangemode": "normal"}),
        ),
    )
    layout = figure["layout"]
    assert isinstance(layout, dict)
    layout["xaxis"] = layout["xaxis"] | {"title": {"text": "hours of the held-out part"}}
    return figure


def _values(policy: PolicyRow, name: str, scale: float) -> list[float | None]:
    found = [getattr(phase, name) for phase in policy.phases]
    return [None if value is None else scale * value for value in found]


def week_figures(hours: Sequence[HourOfWeek], service: Sequence[ServiceHour]) -> dict[str, Description]:
    """Draw heat maps of the hours of the week by name: mean rate, and of the service what is known of an hour."""
    rates = {24 * hour.weekday + hour.hour: hour.mean_rps for hour in hours} or _of_service("rate_rps", service)
    drawn = {
        "week": ("Mean rate", "requests/s", rates),
        "week-mean": ("Mean latency", "ms", _of_service("mean_ms", service)),
        "week-p95": ("p95 of the latency", "ms", _of_service("p95_ms", service)),
        "week-cpu": ("CPU time", "cores busy", _of_service("cpu_cores", service)),
        "week-queue": ("Mean queue", "requests", _of_service("queue_mean", service)),
    }
    return {name: _week_figure(*given) for name, given in drawn.items() if given[2]}


def _of_service(name: str, service: Sequence[ServiceHour]) -> dict[int, float]:
    """Return a number of the service by hour of the week, where it is known."""
    found = {hour.number: getattr(hour, name) for hour in service}
    return {hour: value for hour, value in found.items() if value is not None}


def _week_figure(title: str, unit: str, values: Mapping[int, float]) -> Description:
    """Draw values by hour of the week as a heat map, in which hours that are not known are empty."""
    scale = [[place / (len(PALETTE) - 1), colour] for place, colour in enumerate(PALETTE)]
    trace = {
        "type": "heatmap",
        "x": [f"{hour}:00" for hour in range(24)],
        "y": list(WEEKDAYS),
        "z": [[values.get(24 * day + hour) for hour in range(24)] for day in range(7)],
        "colorscale": scale,
        "colorbar": {"title": {"text": unit}},
        "hovertemplate": f"%{{y}} %{{x}}: %{{z:,.3~g}} {unit}<extra></extra>",
    }
    layout = {**LOOK, "height": 320, "margin": {"l": 90, "r": 12, "t": 36, "b": 40}, "plot_bgcolor": FAINT}
    layout |= {"yaxis": {"autorange": "reversed"}, "annotations": [_title(title, 1.0)]}
    return {"data": [trace], "layout": layout}


def hours_figure(hours: Sequence[HourOfWeek], service: Sequence[ServiceHour]) -> Description:
    """Draw traffic and service over the hours of the week, from the first that is known to the last."""
    known = {24 * hour.weekday + hour.hour: hour for hour in hours}
    served = {hour.number: hour for hour in service}
    numbers = range(min(known.keys() | served.keys()), max(known.keys() | served.keys()) + 1)

    def line(label: str, name: str, of: Mapping[int, object], colour: str) -> Line:
        return Line(label, [getattr(of.get(hour), name, None) for hour in numbers], colour, points=True)

    panels = [
        Panel(
            "Rate of a minute",
            "requests/s",
            (line("p95", "p95_rps", known, PALETTE[3]), line("mean", "mean_rps", known, PALETTE[1])),
        )
        if hours
        else Panel("Rate", "requests/s", (line("mean", "rate_rps", served, PALETTE[1]),)),
        Panel("Dispersion of a second (Poisson: 1)", "ratio", (line("dispersion", "dispersion", known, PALETTE[4]),)),
        Panel("Rows of a request", "rows", (line("rows", "mean_rows", known, PALETTE[2]),)),
        Panel(
            "Latency",
            "ms",
            (line("p95", "p95_ms", served, PALETTE[3]), line("mean", "mean_ms", served, PALETTE[1])),
        ),
        Panel("CPU time", "cores busy", (line("CPU", "cpu_cores", served, INK),)),
        Panel("Queue", "requests", (line("mean", "queue_mean", served, PALETTE[1]),)),
    ]
    places = [f"{WEEKDAYS[hour // 24][:3]} {hour % 24}:00" for hour in numbers]
    filled = [panel for panel in panels if any(value is not None for each in panel.lines for value in each.values)]
    figure = panels_figure(places, filled)
    every = 24 if len(places) > 72 else 6 if len(places) > 12 else 1
    ticks = [name for hour, name in zip(numbers, places, strict=True) if hour % every == 0]
    layout = figure["layout"]
    assert isinstance(layout, dict)
    layout["xaxis"] = layout["xaxis"] | {"tickmode": "array", "tickvals": ticks, "tickangle": 0}
    return figure


def server_figure(found: SampledService) -> Description:
    """Draw what a server did over time: rate, latency, CPU and waiting requests; times without samples are gaps."""
    places: list[object] = []
    drawn: list[Interval | None] = []
    for each, later in zip(found.intervals, (*found.intervals[1:], None), strict=True):
        places.append(place(found.start_s, each.start_s))
        drawn.append(each)
        end_s = each.start_s + each.seconds
        if later is None or later.start_s > end_s + _GAP_SECONDS:
            # The last value holds until its end, and none behind it.
            places += [place(found.start_s, end_s)] * 2
            drawn += [each, None]

    def line(name: str, label: str, colour: str) -> Line:
        return Line(label, [None if each is None else getattr(each, name) for each in drawn], colour, steps=True)

    rates = (line("rate_rps", "requests", PALETTE[3]), line("refused_rps", "refused", ACCENT))
    latency = (line("p95_ms", "p95", PALETTE[3]), line("mean_ms", "mean", PALETTE[1]))
    waiting = (line("in_flight", "in flight", PALETTE[1]), line("queue", "queue", PALETTE[4]))
    return panels_figure(
        places,
        (
            Panel("Rate", "requests/s", rates),
            Panel("Latency in the server", "ms", latency),
            Panel("CPU time of the process", "cores busy", (line("cpu_cores", "CPU", INK),)),
            Panel("Requests in the server", "requests", waiting),
        ),
    )
