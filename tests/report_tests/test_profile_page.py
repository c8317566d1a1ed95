"""Profiles as a document, a table, a figure and a page; and the space narrowed to what matters."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plotly.offline import get_plotlyjs
from rich.console import Console

from objectives.measurement.profile.profile import NodeCost, Profile, summarize
from objectives.measurement.profile.roofline import Roofline
from search.profile.study_profile import StudyProfile, UserOnce, study_profile
from search.report.profile import (
    headline,
    operator_table,
    profile_figure,
    profile_table,
)
from search.report.report import write_profile, write_report
from spaces.domains import Choice, Float
from spaces.focus import in_focus, reason
from spaces.model_structure import Group
from spaces.search_space import SearchSpace
from spaces.serialization import to_plain
from spaces.techniques.placement import PlacementSpace
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import TableSpace, WeightsSpace
from tests.search_tests.documents import read_front

MALICE = "</script><script>alert(1)</script>"
GROUPS = (
    Group("tables", "table", ("tables.user",), 1, (), "tied"),
    Group("cross", "linear", ("cross.0",), 1, (), "tied"),
    Group("mlp", "linear", ("mlp.0",), 1, (), "left whole"),
)


@pytest.fixture
def profile() -> Profile:
    """A profile with mlp at 8 of 10 ms, tables at 12% of the bytes and 0.4% of the time, cross at little of either."""
    nodes = [
        NodeCost("rows", "Gather", "tables", 0.04, 0, 10_000),
        NodeCost("cross", "Gemm", "cross", 0.3, 10_000_000, 30_000),
        NodeCost("one", "FusedGemm", "mlp", 5.0, 400_000_000, 60_000),
        NodeCost("two", "FusedGemm", "mlp", 3.0, 200_000_000, 60_000),
        NodeCost("head", "Gemm", "other", 0.66, 1000, 1000),
    ]
    return summarize(nodes, GROUPS, {"tables": 120, "cross": 20, "mlp": 850, "other": 10}, 200, 10.0, 1)


def of_study(name: str, profile: Profile, threads: int | None = 1) -> StudyProfile:
    return study_profile(name, profile, Roofline(100.0, 50.0, threads), UserOnce(None, None))


@pytest.fixture
def found(profile: Profile) -> StudyProfile:
    return of_study("ml-100k", profile)


def test_the_document_has_the_keys_that_were_promised(found: StudyProfile) -> None:
    plain = json.loads(json.dumps(to_plain(found), allow_nan=False))
    assert (plain["rows"], plain["p50_ms"]) == (200, 10.0)
    for group in plain["groups"]:
        assert {"name", "kind", "time_share", "flops", "bytes", "in_focus"} <= set(group)
    assert sum(group["time_share"] for group in plain["groups"]) == pytest.approx(1.0)
    assert sum(group["weight_share"] for group in plain["groups"]) == pytest.approx(1.0)


def test_time_or_bytes_bring_a_group_into_focus_and_what_is_no_group_never_is(found: StudyProfile) -> None:
    groups = {group.name: group for group in found.groups}
    assert [name for name, group in groups.items() if group.in_focus] == ["tables", "mlp"]
    assert re.findall(r"[\d.]+%", groups["tables"].reason or "") == ["0.4%", "12.0%"]
    assert re.findall(r"[\d.]+%", groups["cross"].reason or "") == ["3.0%", "2.0%", "5%"]
    assert groups["engine"].time_share == pytest.approx(0.1), "as much as a group in focus, but no layer"
    assert groups["mlp"].perfect_ms == pytest.approx(6.0)
    assert groups["mlp"].efficiency == pytest.approx(0.75)


def test_the_headline_says_where_the_time_goes(found: StudyProfile) -> None:
    assert re.search("200 rows .*10 ms, 80% .*mlp; .*mlp, tables", headline(found))


def test_the_figure_has_a_row_for_each_group_the_slowest_first(found: StudyProfile) -> None:
    figure = profile_figure(found)
    time, perfect, held, labels, weights = figure["data"]
    assert time["y"] == ["<b>mlp</b>", "engine", "other", "cross", "<b>tables</b>"]
    assert time["x"] == pytest.approx([8.0, 1.0, 0.66, 0.3, 0.04])
    assert dict(zip(perfect["y"], perfect["x"], strict=True))["<b>mlp</b>"] == pytest.approx(6.0)
    assert "engine" not in perfect["y"]
    assert held["x"] == pytest.approx([85, 0, 1, 2, 12])
    assert (labels["text"][0], weights["text"][4]) == (" 8 ms · 80.0%", " 120 B · 12.0%")
    go.Figure(figure)  # plotly refuses what it does not know


def test_short_times_are_drawn_in_microseconds(profile: Profile) -> None:
    nodes = [NodeCost("one", "Gemm", "mlp", 0.02, 10**6, 100)]
    short = of_study("s", summarize(nodes, GROUPS, {"mlp": 1}, 20, 0.03, 1))
    figure = profile_figure(short)
    assert figure["layout"]["xaxis"]["title"]["text"].endswith("µs")
    assert figure["data"][0]["x"][0] == pytest.approx(20.0)


def test_the_page_stands_alone_and_escapes(profile: Profile, tmp_path: Path) -> None:
    write_profile(of_study(MALICE, profile, None), tmp_path)
    page = (tmp_path / "profile.html").read_text().replace(get_plotlyjs(), "//plotly")
    assert MALICE not in page and page.count("<script") == 4
    assert "http" not in page.replace("http-equiv", "")
    assert "12.0%" in page


def test_the_page_of_a_study_shows_the_profile(
    found: StudyProfile, front_document: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "report.html"
    write_report(read_front(front_document), path)
    assert "Where the baseline's time goes" not in path.read_text()
    write_report(read_front(front_document), path, baseline_profile=found)
    page = path.read_text()
    assert headline(found) in unescape(page) and 'id="profile-plot"' in page
    (figures,) = re.findall(r'id="figures">(.*?)</script>', page)
    assert json.loads(figures)["profile"]["data"][0]["x"] == pytest.approx([8.0, 1.0, 0.66, 0.3, 0.04])


def test_the_tables_name_every_group_and_operator(found: StudyProfile) -> None:
    terminal = Console(width=200, record=True, quiet=False)
    with terminal.capture() as captured:
        terminal.print(profile_table(found))
        terminal.print(operator_table(found))
    text = captured.get()
    for word in ("tables", "cross", "mlp", "other", "engine", "FusedGemm", "Gather", "80.0%"):
        assert word in text


# -- focus

shares = st.floats(0, 1)


@given(shares, shares, shares)
def test_focus_is_on_what_takes_the_time_or_the_bytes(time: float, size: float, bound: float) -> None:
    expected = time >= bound or size >= bound
    assert in_focus(time, size, bound) == ("searched" in reason(time, size, bound)) == expected


def test_what_lies_just_below_the_bound_does_not_read_as_the_bound() -> None:
    assert "4.999%" in reason(0.04999, 0.0)


@pytest.mark.parametrize("given", [(0.0, 0.0, 5), (1.5, 0.0, 0.05), (0.0, -0.1, 0.05)])
def test_shares_outside_their_range_are_refused(given: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match=r"lies in \[0, 1\], but got (5|1\.5|-0\.1)"):
        in_focus(*given)


def test_the_narrowed_space_leaves_the_rest_alone() -> None:
    weights = WeightsSpace(
        architecture={"width": Choice((8, 16))},
        pruning={"mlp": Float(0.25, 0.75), "attention": Float(0.25, 0.5)},
        distillation={
            "temperature": Float(1.0, 8.0), "teacher_weight": Float(0.0, 1.0), "feature_weight": Choice((0.0,))
        },
        epochs=3,
        low_rank={"mlp": Choice((1.0, 0.5)), "attention": Choice((1.0, 0.5))},
        tables={"tables": TableSpace(Choice(("full", "quotient-remainder")), Choice((0.1,)), Choice((0.5,)))},
    )  # fmt: skip
    widths = {"mlp": Choice(("fp32", "int8-dynamic")), "tables": Choice(("fp32", "int8"))}
    placement = PlacementSpace(Choice(("onnxruntime",)), Choice(("1xauto",)))
    space = SearchSpace(weights, PrecisionSpace(widths), placement)
    small = space.within({"mlp"})
    assert small.weights.pruning == {"mlp": weights.pruning["mlp"]}
    assert small.weights.low_rank == {"mlp": weights.low_rank["mlp"]} and small.weights.tables == {}
    assert small.precision.widths == {"mlp": widths["mlp"], "tables": Choice(("fp32",))}
    assert (small.weights.architecture, small.placement, small.weights.epochs) == (weights.architecture, placement, 3)
    assert space.within({"mlp", "tables", "attention"}) == space
    assert space.within(()).weights.origins == ("baseline", "student")
