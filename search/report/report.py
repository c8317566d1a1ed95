"""The study in one HTML file that needs no network, and its front as a picture. The only file that imports plotly."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Mapping
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from search.bench.bench import BenchResult
from search.explore.study_profile import StudyProfile
from search.home import write_json, written_whole
from search.report import bench
from search.report.ablation import COMPARISON_COLUMNS, WORDS, ablation_figure, comparisons, dots
from search.report.axes import Parallel, parallel
from search.report.columns import ENDING_COLUMNS, FRONT_COLUMNS, LEFT_ALONE_COLUMNS, SLICE_COLUMNS
from search.report.data import Curve, endings, hypervolume_curves, metric_of, slices_of, table_rows
from search.report.effort import (
    effort_figure,
    seconds_by_stage,
    simulation_figure,
    simulation_sentence,
    simulations,
)
from search.report.front import FONT, GRID, INK, LOOK, PALETTE, Description, describe_front, loss_window
from search.report.profile import OPERATOR_COLUMNS, headline, profile_figure, slowest_first
from search.report.render import render
from search.results import Front
from search.verdict import verdict

Figure = go.Figure

# No link to a site, and no button that sends the data away: plotly 7 shows one unless it is told not to.
CONFIG = {
    "responsive": True,
    "displaylogo": False,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "modeBarButtonsToRemove": ["select2d", "lasso2d"],
}
AXIS_PIXELS = 66
PNG_PIXELS = (1200, 720)
PNG_CHARACTERS = 125


def front_figure(front: Front) -> go.Figure:
    """The front with its intervals; `describe_front` is what to compare in a test."""
    return go.Figure(describe_front(front))


def parallel_figure(data: Parallel) -> go.Figure:
    """The front in the colours of its throughput, the rest in greys."""
    grey = [[0.0, "#e8ebef"], [1 / 3, "#c4ccd5"], [0.6666, "#c4ccd5"]]
    colours = [[2 / 3 + place / 3 / (len(PALETTE) - 1), colour] for place, colour in enumerate(PALETTE)]
    dimensions = [
        {"label": a.label, "values": a.values, "range": a.ends, "tickvals": a.places, "ticktext": a.texts}
        for a in data.axes
    ]
    line = {"color": data.shades, "cmin": 0, "cmax": 3, "colorscale": grey + colours, "showscale": False}
    trace = go.Parcoords(
        dimensions=dimensions,
        line=line,
        labelfont={"size": 10, "color": INK},
        tickfont={"size": 10.5, "color": INK},
        rangefont={"size": 1, "color": "rgba(0,0,0,0)"},
    )
    return go.Figure(trace, {**LOOK, "height": 460, "margin": {"l": 56, "r": 24, "t": 72, "b": 24}})


def hypervolume_figure(curve: Curve, axis: str) -> go.Figure:
    line = {"shape": "hv", "color": PALETTE[3], "width": 2.5}
    fill = {"fill": "tozeroy", "fillcolor": "rgba(111, 47, 128, 0.08)"}
    trace = go.Scatter(x=curve.x, y=curve.hypervolume, mode="lines", line=line, **fill)
    top = 1.1 * max(curve.hypervolume, default=0.0) or 1.0
    layout = {
        **LOOK,
        "height": 300,
        "margin": {"l": 56, "r": 12, "t": 12, "b": 48},
        "xaxis": {**GRID, "title": {"text": axis}, "rangemode": "tozero"},
        "yaxis": {**GRID, "title": {"text": "hypervolume"}, "range": [0, min(1.0, top)]},
        "hovermode": "x",
    }
    return go.Figure(trace, layout)


def write_report(front: Front, path: Path) -> None:
    """The study's page: values, the figures drawn from them, and the template that holds both."""
    knobs, (slices_title, slices) = parallel(front), slices_of(front)
    losses = (point.quality.loss for point in front.points)
    _write_page(
        path,
        "study.html.j2",
        _study_figures(front, knobs),
        front=front,
        verdict=verdict(front),
        metric=metric_of(front),
        beyond=[loss for loss in losses if 100 * loss > loss_window(front)[1]],
        front_columns=FRONT_COLUMNS,
        rows=table_rows(front),
        comparison_kinds=tuple(WORDS.values()),
        comparison_columns=COMPARISON_COLUMNS,
        comparisons=comparisons,
        slices_title=slices_title,
        slices=slices,
        slice_columns=SLICE_COLUMNS,
        constant=knobs.constant,
        knobs_pixels=AXIS_PIXELS * len(knobs.axes),
        endings=endings(front),
        ending_columns=ENDING_COLUMNS,
        simulations=[simulation_sentence(simulation) for simulation in simulations(front)],
        left_alone_columns=LEFT_ALONE_COLUMNS,
    )


def _study_figures(front: Front, knobs: Parallel) -> dict[str, go.Figure]:
    """Figures by name; `knobs`, `effort`, `simulation` and `ablation` are left out where there is nothing to show."""
    by_trial, by_minutes = hypervolume_curves(front)
    figures = {
        "front": front_figure(front),
        "minutes": hypervolume_figure(by_minutes, "minutes of search"),
        "trials": hypervolume_figure(by_trial, "trials"),
    }
    # Lines need two trials and an upright or two to run between.
    if len(knobs.trials) > 1:
        figures["knobs"] = parallel_figure(knobs)
    if seconds_by_stage(front):
        figures["effort"] = go.Figure(effort_figure(front))
    if found := simulations(front):
        figures["simulation"] = go.Figure(simulation_figure(found))
    if front.ablation and dots(front.ablation):
        figures["ablation"] = go.Figure(ablation_figure(front.ablation))
    return figures


def write_profile(profile: StudyProfile, folder: Path) -> None:
    """The baseline's profile as profile.html, everything inside it, and as profile.json."""
    write_json(profile, folder / "profile.json")
    figures = {"profile": go.Figure(profile_figure(profile))}
    values = {"groups": slowest_first(profile.groups), "operator_columns": OPERATOR_COLUMNS}
    _write_page(
        folder / "profile.html", "profile.html.j2", figures, profile=profile, headline=headline(profile), **values
    )


def write_bench(found: BenchResult, folder: Path) -> None:
    """A bench as bench.html, everything inside it, and as bench.json."""
    write_json(found, folder / "bench.json")  # first: a page that fails loses no numbers
    figures = {"bench": go.Figure(bench.bench_figure(found))}
    said = {"headline": bench.headline(found), "facts": bench.facts(found), "doubts": bench.doubts(found)}
    _write_page(folder / "bench.html", "bench.html.j2", figures, found=found, **said)


def write_figures(path: Path, template: str, figures: Mapping[str, Description], **values: object) -> None:
    """Fill a template with figures, described in plotly's terms, and values, as one file with everything inside it."""
    _write_page(path, template, {name: go.Figure(figure) for name, figure in figures.items()}, **values)


def write_png(front: Front, path: Path) -> None:
    """The front as a picture, titled; needs kaleido and Chrome or Chromium."""
    try:
        import kaleido  # noqa: F401  # only to say clearly that it is missing
    except ImportError as error:
        raise RuntimeError("A PNG needs kaleido: pip install 'leanrec[png]'.") from error
    figure = front_figure(front)
    # Buttons are of no use on a picture; `update_layout` would merge an empty list, not take it.
    figure.layout.updatemenus = ()
    lines = map(html.escape, textwrap.wrap(verdict(front).headline, PNG_CHARACTERS))
    text = f"<b>{html.escape(front.study)}</b><br>{'<br>'.join(lines)}"
    title = {"text": text, "font": {**FONT, "size": 15}, "x": 0.02, "y": 0.97, "yanchor": "top"}
    figure.update_layout(margin={"l": 80, "r": 32, "t": 128, "b": 72}, title=title)
    width, height = PNG_PIXELS
    with written_whole(path) as partial:
        try:
            figure.write_image(partial, format="png", width=width, height=height, scale=2)
        except Exception as error:  # kaleido and its browser fail in many ways, none with a base of its own
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RuntimeError(f"A PNG needs Chrome or Chromium, which did not draw it: {first}") from error


def _write_page(path: Path, template: str, figures: Mapping[str, go.Figure], **values: object) -> None:
    """Fill a template into one file with everything inside it; a figure is a fragment of HTML there, by its name."""
    shape = {"full_html": False, "include_plotlyjs": False, "default_height": "auto", "config": CONFIG}
    plots = {name: str(figure.to_html(div_id=f"{name}-plot", **shape)) for name, figure in figures.items()}
    with written_whole(path) as partial:
        text = render(template, figures=plots, plotly_js=get_plotlyjs(), **values)
        partial.write_text(text, encoding="utf-8")
