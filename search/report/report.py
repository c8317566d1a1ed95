"""The study in one HTML file that needs no network, and its front as a picture. The only file that imports plotly."""

from __future__ import annotations

import html
import json
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from objectives.store import written_whole
from search.bench.bench import BenchResult
from search.home import write_json
from search.profile.study_profile import StudyProfile
from search.report import bench
from search.report.ablation import COMPARISON_COLUMNS, WORDS, ablation_figure, comparisons, dots
from search.report.axes import constant_knobs
from search.report.columns import ENDING_COLUMNS, LEFT_ALONE_COLUMNS, SLICE_COLUMNS
from search.report.data import Curve, endings, gains_sentence, hypervolume_curves, metric_of, slices_of
from search.report.effort import (
    SIMULATION_COLUMNS,
    drawn_simulations,
    early_sentence,
    effort_figure,
    seconds_by_stage,
    simulation_figure,
    simulations,
)
from search.report.front import FONT, GRID, LEGEND, LOOK, PALETTE, Description, describe_front, loss_window
from search.report.importance import importance_columns, importance_rows
from search.report.measures import pair_names
from search.report.page_data import Links, page_data
from search.report.predictions import longer_sentence, loss_figure, loss_predictions
from search.report.profile import OPERATOR_COLUMNS, headline, profile_figure, slowest_first
from search.report.render import render
from search.report.theme import DARK, DARK_FOR, LIGHT
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


def hypervolume_figure(curve: Curve, axis: str) -> go.Figure:
    """The curve, above the areas of what trials of each source gained, as far as that is known."""
    steps = curve.steps
    areas = [
        go.Scatter(
            x=steps.x, y=gained, name=source, mode="lines", line={"shape": "hv", "width": 0, "color": colour},
            stackgroup="sources", hoverinfo="skip",
        )
        for (source, gained), colour in zip(steps.by_source.items(), PALETTE, strict=False)
    ]  # fmt: skip
    line = {"shape": "hv", "color": PALETTE[3], "width": 2.5}
    fill = {} if areas else {"fill": "tozeroy", "fillcolor": LIGHT.fill}
    trace = go.Scatter(x=steps.x, y=steps.hypervolume, name="all", mode="lines", line=line, showlegend=False, **fill)
    top = 1.1 * max(curve.hypervolume, default=0.0) or 1.0
    layout = {
        **LOOK,
        "height": 300,
        "margin": {"l": 56, "r": 12, "t": 40 if areas else 12, "b": 48},
        "xaxis": {**GRID, "title": {"text": axis}, "rangemode": "tozero"},
        "yaxis": {**GRID, "title": {"text": "hypervolume"}, "range": [0, min(1.0, top)]},
        "hovermode": "x",
        "legend": LEGEND,
    }
    return go.Figure([*areas, trace], layout)


def write_report(
    front: Front, path: Path, links: Links | None = None, baseline_profile: StudyProfile | None = None
) -> None:
    """The study's page: values, the figures drawn from them, and the template that holds both.

    Args:
        links: what the page refers to; None for the study's name on the command line, and no runs
        baseline_profile: None where the baseline was not profiled
    """
    links, (slices_title, slices) = links or Links(), slices_of(front)
    data, (_, highest) = page_data(front, links), loss_window(front)
    uprights = [knob for knob in data["knobs"] if knob["axis"] is not None]
    _write_page(
        path,
        "study.html.j2",
        _study_figures(front, baseline_profile),
        front=front,
        profile=baseline_profile,
        profile_headline=None if baseline_profile is None else headline(baseline_profile),
        data=data,
        runs=links.runs,
        verdict=verdict(front),
        metric=metric_of(front),
        beyond=[point.quality.loss for point in front.points if 100 * point.quality.loss > highest],
        pair_names=pair_names(front),
        comparison_kinds=tuple(WORDS.values()),
        comparison_columns=COMPARISON_COLUMNS,
        comparisons=comparisons,
        slices_title=slices_title,
        slices=slices,
        slice_columns=SLICE_COLUMNS,
        constant=constant_knobs(front),
        # Lines need two trials and an upright or two to run between.
        knob_count=len(uprights) if len(front.points) > 1 else 0,
        knobs_pixels=AXIS_PIXELS * (len(uprights) + len(data["uprights"]) + 1),
        gains=gains_sentence(front),
        endings=endings(front),
        early=early_sentence(front),
        ending_columns=ENDING_COLUMNS,
        knobs_that_matter=importance_rows(front),
        importance_columns=importance_columns(front),
        simulations=simulations(front),
        simulation_columns=SIMULATION_COLUMNS,
        losses=loss_predictions(front),
        longer=longer_sentence(front),
        left_alone_columns=LEFT_ALONE_COLUMNS,
    )


def _study_figures(front: Front, baseline_profile: StudyProfile | None) -> dict[str, go.Figure]:
    """Return the figures that the page's scripts do not make themselves, by name.

    All but the curves are left out where there is nothing to show.
    """
    by_trial, by_minutes = hypervolume_curves(front)
    figures = {
        "minutes": hypervolume_figure(by_minutes, "minutes of search"),
        "trials": hypervolume_figure(by_trial, "trials"),
    }
    if seconds_by_stage(front):
        figures["effort"] = go.Figure(effort_figure(front))
    if found := drawn_simulations(simulations(front)):
        figures["simulation"] = go.Figure(simulation_figure(found))
    if (losses := loss_predictions(front)) is not None:
        figures["losses"] = go.Figure(loss_figure(losses, front.max_loss))
    if baseline_profile is not None:
        figures["profile"] = go.Figure(profile_figure(baseline_profile))
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
    """Fill a template into one file with everything inside it; figures are drawn in places of their names."""
    described = {name: json.loads(str(figure.to_json())) for name, figure in figures.items()}
    theme = {"light": asdict(LIGHT), "dark": asdict(DARK), "dark_for": DARK_FOR, "font": FONT, "config": CONFIG}
    with written_whole(path) as partial:
        text = render(
            template, figures=described, theme=theme, light=LIGHT, dark=DARK, plotly_js=get_plotlyjs(), **values
        )
        partial.write_text(text, encoding="utf-8")
