"""Values of the report, and its one file that stands alone."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from plotly.offline import get_plotlyjs
from rich.console import Console

from objectives.records import SliceQuality
from search.cli.console import front_table
from search.front import hypervolume, unit_objectives
from search.report.ablation import ablation_figure, ablation_table, dots
from search.report.axes import constant_knobs, knob_axis, knobs_of, log_steps
from search.report.data import gains_sentence, hover, hypervolume_curves, slices_of, stairs
from search.report.front import loss_window
from search.report.measures import pair_names
from search.report.page_data import Links, page_data
from search.report.render import render
from search.report.report import front_figure, hypervolume_figure, write_png, write_report
from search.results import Point, Source
from search.run_pages import RunPages
from search.verdict import doubts
from spaces.serialization import to_plain
from tests.ablation_tests.ablated import CHOSEN, ablated, ablated_document, ablation
from tests.conftest import build_document
from tests.search_tests.documents import read_front
from tests.search_tests.test_verdict import with_overhead

Document = dict[str, Any]
# Plotly's source, three blocks of data, and the page's own.
SCRIPTS = 5
MALICE = "</script><script>alert('x')</script><img src=http://evil.example/x onerror=alert(1)>"


class Tags(HTMLParser):
    """Tags with their attributes, and the text that a reader sees."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._inside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in self._inside:
            while self._inside.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._inside) and data.strip():
            self.text.append(" ".join(data.split()))


def read(document: Document, folder: Path) -> tuple[str, Tags]:
    """The report without plotly's own source, which is checked to be there once."""
    path = folder / "deep" / "report.html"
    write_report(read_front(document), path)
    text = path.read_text(encoding="utf-8")
    assert text.count(get_plotlyjs()) == 1
    text = text.replace(get_plotlyjs(), "")
    tags = Tags()
    tags.feed(text)
    return text, tags


def figures_of(text: str) -> Document:
    """The figures that Python describes, by name."""
    (found,) = re.findall(r'<script type="application/json" id="figures">(.*?)</script>', text)
    return dict(json.loads(found))


def complete(document: Document) -> list[dict[str, Any]]:
    return [row for row in document["rows"] if row["state"] == "complete"]


def test_the_stairs_go_down_to_the_right_along_the_front(front_document: Document) -> None:
    front = read_front(front_document)
    edge = stairs(front)
    assert len(edge) > 2
    assert all(point.on_front for point in edge)
    pairs = [(point.p95_ratio, point.quality.loss) for point in edge]
    assert all(left < right and high > low for (left, high), (right, low) in itertools.pairwise(pairs))
    assert min(pairs)[0] == min(point.p95_ratio for point in front.members)


def test_a_hover_tells_everything_in_lines_of_a_readable_length(front_document: Document) -> None:
    row = complete(front_document)[-1]
    said = hover(read_front(front_document).points[-1])
    for family in {name.partition(".")[0] for name in row["knobs"]}:
        assert f"<br>{family}: " in said
    for word in (f"trial {row['trial']}", " ms", "loss: ", "requests/s", "model: "):
        assert word in said
    assert max(map(len, said.split("<br>"))) <= 80


def test_the_figure_holds_the_points_once_and_their_bars(front_document: Document, choose_trial: Any) -> None:
    trial = next(row["trial"] for row in front_document["rows"] if row["on_front"])
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, 0.005))
    figure = front_figure(read_front(front_document))
    marks = [trace for trace in figure.data if trace.mode == "markers" and trace.hovertext and len(trace.hovertext) > 1]
    assert sum(len(trace.x) for trace in marks) == len(complete(front_document))
    front = next(trace for trace in marks if trace.error_x.array)
    assert len(front.x) == front_document["front_size"]
    row = next(row for row in front_document["rows"] if row["on_front"])
    assert front.y[0] + front.error_y.array[0] == pytest.approx(100 * row["quality"]["loss_interval"][1])
    assert front.x[0] - front.error_x.arrayminus[0] == pytest.approx(row["latency_ms"]["p95_ratio_interval"][0])
    assert {"baseline", f"chosen: trial {trial}"} <= {trace.name for trace in figure.data}
    assert figure.layout.shapes[0].y0 == pytest.approx(1.0)


def test_milliseconds_are_those_of_the_document(front_document: Document) -> None:
    figure = front_figure(read_front(front_document))
    restyle, _, traces = figure.layout.updatemenus[0].buttons[1].args
    drawn = {round(x, 9) for xs in restyle["x"] for x in xs}
    assert drawn == {round(row["latency_ms"]["p95"], 9) for row in complete(front_document)}
    assert len(restyle["x"]) == len(restyle["error_x.array"]) == len(traces)
    assert sum(bars is not None for bars in restyle["error_x.array"]) == 1


def test_the_frame_holds_the_front_and_the_limit(front_document: Document) -> None:
    front = read_front(front_document)
    low, high = loss_window(front)
    assert low < 0 and high > 100 * front.max_loss
    assert all(low < 100 * end < high for point in front.members for end in point.quality.loss_interval)


def test_the_frame_shows_half_of_those_that_lose_too_much(front_document: Document, refresh_front: Any) -> None:
    nothing_feasible(front_document)
    assert loss_window(read_front(refresh_front(front_document)))[1] > 100 * 0.2


def test_uprights_are_the_knobs_that_differ_and_the_objectives(front_document: Document) -> None:
    front = read_front(front_document)
    knobs, rows = knobs_of(front), front_document["rows"]
    names = list(dict.fromkeys(name for row in rows for name in row["knobs"]))
    assert sorted(knob.name for knob in knobs) == sorted(names)
    assert (
        knobs[0].name == "weights.origin" and knobs[0].axis is not None and knobs[0].axis.label == "weights<br>origin"
    )
    for knob in knobs:
        for code, row in zip(knob.codes, rows, strict=True):
            value = row["knobs"].get(knob.name)
            told = knob.values[code]
            assert told == (pytest.approx(value, rel=5e-3) if isinstance(value, float) else value)
        if knob.axis is not None:
            low, high = knob.axis.ends
            assert len(knob.axis.values) == len(knob.values)
            assert all(low <= height <= high for height in (*knob.axis.values, *knob.axis.places))
    constant = constant_knobs(front)
    assert constant == {"distillation.epochs": "3", "precision.compute": "fp32", "placement.device": "cpu"}
    assert {knob.name for knob in knobs if knob.axis is None} == constant.keys()
    uprights = page_data(front, Links())["uprights"]
    assert [*uprights] == ["p95_ratio", "throughput_ratio", "loss"]
    low, high = (10**end for end in uprights["p95_ratio"]["range"])
    assert all(0.999 * low <= row["latency_ms"]["p95_ratio"] <= 1.001 * high for row in complete(front_document))


def test_every_further_objective_is_in_the_views(front_document: Document) -> None:
    front_document["objectives"] = ["quality", "model_bytes", "latency_p95", "latency_p99"]
    for row in complete(front_document):
        row["latency_ms"]["p99_ratio"] = row["latency_ms"]["p99"] / 10
    front = read_front(front_document)
    data = page_data(front, Links())
    assert [ratio for ratio, _ in data["objectives"]] == [
        "p95_ratio", "throughput_ratio", "loss", "model_bytes", "p99_ratio",
    ]  # fmt: skip
    assert len(pair_names(front)) == 10 and pair_names(front)[0] == "p95 ratio and loss"
    measured = data["trials"]["measured"]
    paired = [row["latency_ms"]["p99_ratio"] for row in complete(front_document)]
    assert measured["p99_ratio"] == pytest.approx(paired, rel=1e-3), "what the front compares"
    assert measured["p99_ms"] == pytest.approx([row["latency_ms"]["p99"] for row in complete(front_document)], rel=1e-3)


def test_a_knob_that_a_trial_lacks_has_a_place_of_its_own() -> None:
    named = knob_axis("placement.threads", [2, "auto", None, 1])
    assert named.texts == ("–", "1", "2", "auto")
    assert named.values == (2.0, 3.0, 0.0, 1.0)
    ratios = [None, *(0.1 * step for step in range(1, 10))]
    measured = knob_axis("pruning.mlp", ratios)
    assert measured.texts[0] == "–"
    assert measured.values[0] < min(measured.values[1:])
    assert measured.values[1:] == pytest.approx(ratios[1:])


@pytest.mark.parametrize(("low", "high"), [(0.1, 1.0), (0.3, 0.35), (1.0, 1.0), (0.013, 80.0)])
def test_log_steps_lie_within_their_ends(low: float, high: float) -> None:
    steps = log_steps(low, high)
    assert list(steps) == sorted(set(steps))
    assert all(low <= step <= high for step in steps)
    assert len(steps) >= 1


def test_both_curves_end_at_the_hypervolume_of_the_document(front_document: Document) -> None:
    for curve in hypervolume_curves(read_front(front_document)):
        assert list(curve.x) == sorted(curve.x)
        assert list(curve.hypervolume) == sorted(curve.hypervolume)
        assert curve.hypervolume[-1] == pytest.approx(front_document["hypervolume"])
    by_trial, by_minutes = hypervolume_curves(read_front(front_document))
    assert by_trial.x == tuple(row["trial"] for row in front_document["rows"])
    assert by_minutes.x[0] == 0.0 and by_minutes.x[-1] == front_document["minutes"]
    steps = hypervolume_figure(by_trial, "trials").data[-1]
    drawn = [steps.y[max(at for at, x in enumerate(steps.x) if x <= trial)] for trial in by_trial.x]
    assert drawn == list(by_trial.hypervolume) and len(steps.x) < len(by_trial.x)


@pytest.mark.parametrize("which", [0, 1])
def test_what_each_source_gained_is_what_its_trials_added(front_document: Document, which: int) -> None:
    """The oracle is the hypervolume of all trials until then less that of those before, each as a whole front."""
    sources = get_args(Source)
    for row in front_document["rows"]:
        row["source"] = sources[row["trial"] % len(sources)]
    front = read_front(front_document)
    curve = hypervolume_curves(front)[which]
    ends = [(row.trial if which == 0 else row.minutes or 0.0, row.trial, row) for row in front.rows]
    able, gained, before = [], dict.fromkeys(sources, 0.0), 0.0
    for _, _, row in sorted(ends, key=lambda end: end[:2]):
        if isinstance(row, Point) and row.feasible:
            able.append((row.p95_ratio, row.throughput_ratio, row.quality.loss))
            now = hypervolume(unit_objectives(*zip(*able, strict=True), front.max_loss))
            gained[row.source] += now - before
            before = now
    assert {source: of[-1] for source, of in curve.by_source.items()} == pytest.approx(gained)
    for at, reached in enumerate(curve.hypervolume):
        assert sum(of[at] for of in curve.by_source.values()) == pytest.approx(reached)
    drawn = hypervolume_figure(curve, "x").data
    assert [trace.name for trace in drawn] == [*sources, "all"]
    shares = [float(share) for share in re.findall(r"(\d+)%", gains_sentence(front))]
    assert sum(shares) == pytest.approx(100, abs=2)


def test_without_sources_the_curve_stands_alone(front_document: Document) -> None:
    front = read_front(front_document)
    assert gains_sentence(front) == ""
    assert len(hypervolume_figure(hypervolume_curves(front)[0], "trials").data) == 1


def test_the_file_stands_alone(front_document: Document, tmp_path: Path) -> None:
    text, tags = read(front_document, tmp_path)
    for tag, attributes in tags.tags:
        assert not {"src", "srcset", "action", "data", "poster"} & set(attributes), (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#")
        assert tag not in {"link", "iframe", "object", "embed", "base", "img"}
    assert "://" not in text.replace("http://www.w3.org", "")
    assert "@import" not in text and "url(" not in text
    assert [*figures_of(text)] == ["minutes", "trials", "effort"]
    # plotly 7 offers to upload the chart unless it is told not to.
    assert text.count('"showSendToCloud":false') == 1
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]


@pytest.mark.parametrize("local", [True, False])
def test_links_to_a_local_ui_say_when_they_answer(local: bool, front_document: Document, tmp_path: Path) -> None:
    pages = RunPages("http://127.0.0.1:5000/#/experiments/1", while_shown=local)
    write_report(read_front(front_document), tmp_path / "report.html", Links((), pages))
    text = (tmp_path / "report.html").read_text()
    assert pages.study in text and ("while <code>leanrec ui</code> runs" in text) is local


def test_the_file_of_10_000_trials_has_at_most_6_mb(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(read_front(build_document(10_000, 11, 0.25)), path)
    assert path.stat().st_size < 6_000_000


def test_the_file_says_what_the_document_says(front_document: Document, choose_trial: Any, tmp_path: Path) -> None:
    trial = next(row["trial"] for row in front_document["rows"] if row["on_front"])
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, 0.005))
    _, tags = read(front_document, tmp_path)
    said = " ".join(tags.text)
    assert all(word in said for word in (front_document["machine"], "proved", "312 requests", "1.34 ms", "0.3%"))
    assert front_document["warnings"][0] in said
    assert said.count(front_document["chosen"]["reason"]) == 1 and ".." not in said
    assert front_document["chosen"]["bundle"] in said
    reasons = {row["reason"] for row in front_document["rows"] if row["reason"]}
    assert reasons and all(reason in said for reason in reasons)
    for heading in ("How to read this", "How it was measured", "The trials"):
        assert heading in said


def test_the_page_tells_the_path_of_requests_and_what_the_slo_covers(front_document: Document, tmp_path: Path) -> None:
    _, before = read(front_document, tmp_path)
    assert "to the pool in its own process" in " ".join(before.text)
    with_overhead(front_document, 4.0)
    text, tags = read(front_document, tmp_path)
    said = " ".join(tags.text)
    assert "through the HTTP server of leanrec serve" in said
    assert "p95 within 1.34 ms of what is measured, 5.34 ms with overhead" in said
    data = json.loads(text.partition('<script type="application/json" id="study">')[2].partition("</script>")[0])
    assert data["decisive"] == {"p95_ms": "p95_ms_with_overhead", "p95_ratio": "p95_ratio_with_overhead"}
    point = next(row for row in front_document["rows"] if row["on_front"] and row["trial"])
    record = next(one for one in data["records"] if one["trial"] == point["trial"])
    assert record["p95_ratio_with_overhead"] == [0.9, 0.875, 0.925] and record["p99_ratio_with_overhead"][0] is None
    assert record["p95_ms_with_overhead"][0] == point["latency_ms"]["p95"] + 4.0


def test_a_name_like_markup_is_text_on_the_console(front_document: Document) -> None:
    front_document["rows"][0]["knobs"] |= {"placement.engine": "other"}
    row = next(row for row in front_document["rows"] if row["on_front"] and row["trial"])
    row["knobs"] |= {"placement.engine": "[red]fast[/blue]"}
    terminal = Console(width=400)
    with terminal.capture() as captured:
        terminal.print(front_table(read_front(front_document)))
    assert "[red]fast[/blue]" in captured.get()


def test_what_the_verdict_says_is_not_warned_of_again(front_document: Document, tmp_path: Path) -> None:
    front_document["resolution"] = 0.02
    (doubt,) = doubts(read_front(front_document))
    front_document["warnings"].append(doubt)
    _, tags = read(front_document, tmp_path)
    assert " ".join(tags.text).count(doubt) == 1


def test_every_text_is_escaped(front_document: Document, tmp_path: Path) -> None:
    rows = front_document["rows"]
    front = [row for row in rows if row["on_front"]]
    front[0]["knobs"] |= {"placement.engine": MALICE, f"precision.{MALICE}": MALICE}
    front[0]["widths"][MALICE] = MALICE
    next(row for row in rows if row["state"] == "failed")["reason"] = MALICE
    front_document |= {"study": MALICE, "machine": MALICE, "warnings": [MALICE], "objectives": [MALICE]}
    front_document["references"][MALICE] = 0.9
    for row in rows:
        row["quality"]["metric"] = MALICE
    text, tags = read(front_document, tmp_path)
    assert "<img" not in text and "alert('x')</script>" not in text
    assert sum(tag == "script" for tag, _ in tags.tags) == SCRIPTS
    assert MALICE in " ".join(tags.text)


def only_baseline(document: Document) -> None:
    document["rows"] = document["rows"][:1]


def only_failures(document: Document) -> None:
    document["rows"] = [document["rows"][0], *(row for row in document["rows"] if row["state"] != "complete")]


def nothing_feasible(document: Document) -> None:
    for row in complete(document)[1:]:
        row["quality"] |= {"loss": 0.2, "loss_interval": [0.19, 0.21]}


def nothing_at_all(document: Document) -> None:
    """A document in which not even the baseline was measured: its row is there, and failed."""
    failed = next(row for row in document["rows"] if row["state"] == "failed") | {"trial": 0}
    document |= {"rows": [failed], "baseline": None, "minutes": 0.0, "resolution": None}
    document |= {"rate_rps": None, "slo_ms": None, "references": {}}


def no_baseline_yet(document: Document) -> None:
    failed = [row for row in document["rows"] if row["state"] == "failed"]
    document |= {"rows": failed, "baseline": None, "minutes": 0.0, "rate_rps": None, "slo_ms": None, "references": {}}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (only_baseline, "Nothing can"),
        (only_failures, "Nothing can"),
        (nothing_feasible, "Nothing helped"),
        (nothing_at_all, "Nothing can"),
        (no_baseline_yet, "Nothing can"),
    ],
)
def test_a_poor_study_still_has_a_report(
    front_document: Document, refresh_front: Any, tmp_path: Path, change: Any, said: str
) -> None:
    change(front_document)
    refresh_front(front_document)
    _, tags = read(front_document, tmp_path)
    assert said in " ".join(tags.text)
    assert all(
        math.isfinite(value) for curve in hypervolume_curves(read_front(front_document)) for value in curve.hypervolume
    )


def test_a_report_replaces_the_old_one_or_leaves_it(
    front_document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_full(*given: Any, **options: Any) -> int:
        raise OSError("disk full")

    path = tmp_path / "report.html"
    path.write_text("old", encoding="utf-8")
    with monkeypatch.context() as broken, pytest.raises(OSError, match="disk full"):
        broken.setattr(Path, "write_text", disk_full)
        write_report(read_front(front_document), path)
    assert path.read_text(encoding="utf-8") == "old"
    write_report(read_front(front_document), path)
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert list(tmp_path.iterdir()) == [path]


def test_without_kaleido_a_picture_says_what_to_install(
    front_document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(RuntimeError, match="kaleido: pip install") as caught:
        write_png(read_front(front_document), tmp_path / "front.png")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_browser_a_picture_says_so(
    front_document: Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("kaleido")
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    with pytest.raises(RuntimeError, match="Chrom") as caught:
        write_png(read_front(front_document), tmp_path / "front.png")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not (shutil.which("chromium") or shutil.which("google-chrome")), reason="no browser here")
def test_the_picture_is_a_png(front_document: Document, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    write_png(read_front(front_document), tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_dots_are_the_measured_effects() -> None:
    found, known = dots(ablated()), ablation()
    measured = [effect for effect in known.effects if effect.difference is not None]
    assert len(found) == len(measured) == 7
    for dot, difference in found:
        effect = next(e for e in measured if dot.label.startswith(e.technique) and e.kind == dot.kind)
        assert difference == effect.difference


def test_the_effects_are_drawn_at_the_trial_and_alone_side_by_side() -> None:
    figure = ablation_figure(ablated())
    without, losses, alone, _ = figure["data"]
    assert [without["name"], alone["name"]] == ["at the trial", "alone"]
    assert without["x"] == [0.5, 1.0, 1.0, 1.3] and alone["x"] == [0.5, 1.0, 1.0]
    assert without["x"][0] + without["error_x"]["array"][0] == pytest.approx(0.54)
    assert without["x"][0] - without["error_x"]["arrayminus"][0] == pytest.approx(0.47)
    assert losses["x"][0] == pytest.approx(0.4), "in percent"
    assert all(0 < below - above < 1 for above, below in zip(without["y"], alone["y"], strict=False))
    assert figure["layout"]["xaxis"]["type"] == "log"
    assert all(0.47 <= tick <= 1.42 for tick in figure["layout"]["xaxis"]["tickvals"])


def test_a_report_says_what_helped_and_who_pays(front_document: Document, choose_trial: Any, tmp_path: Path) -> None:
    trial = next(row["trial"] for row in front_document["rows"] if row["on_front"] and row["trial"])
    ablated = ablated_document(trial)
    slices = ablated["techniques"][0]["without"]["difference"]["quality"]["slices"]
    front_document |= {"chosen": choose_trial(front_document, trial, (0.001, 0.005)), "ablation": ablated}
    front_document["chosen"]["confirmed"]["slices"] = slices
    text, tags = read(front_document, tmp_path)
    said = " ".join(tags.text)
    assert "ablation" in figures_of(text)
    assert all(part["verdict"] in said and part["label"] in said for part in ablated["techniques"])
    assert ablated["control"]["sentence"] in said and "not measured: it broke" in said
    assert "Who pays" in said and "0.10% to 2.30%" in said
    assert all(part["reason"] in said for part in slices if part["reason"])


def test_without_an_ablation_and_slices_nothing_is_said_of_them(front_document: Document, tmp_path: Path) -> None:
    _, tags = read(front_document, tmp_path)
    assert not {"What helped", "Who pays"} & set(tags.text)


def test_an_ablation_without_a_number_has_no_figure(front_document: Document, tmp_path: Path) -> None:
    ablated = ablated_document()
    for part in ablated["techniques"]:
        part |= {"without": None, "alone": None}
    text, tags = read(front_document | {"ablation": ablated | {"control": None}}, tmp_path)
    assert "ablation" not in figures_of(text)
    assert tags.text.count("not measured yet") == 8


def test_what_an_ablation_names_is_escaped(front_document: Document, tmp_path: Path) -> None:
    ablated = ablated_document() | {"machine": MALICE}
    ablated["control"]["sentence"] = MALICE
    for part in ablated["techniques"]:
        part |= {"label": MALICE, "verdict": MALICE}
    ablated["techniques"][-1]["alone"]["reason"] = MALICE
    for row in front_document["rows"]:
        row["quality"]["slices"] = [{"name": MALICE, "rows": 1, "groups": 1, "reason": MALICE}
                                    | dict.fromkeys(("value", "baseline", "loss", "loss_interval"))]  # fmt: skip
    text, tags = read(front_document | {"ablation": ablated}, tmp_path)
    assert "<img" not in text and "alert('x')</script>" not in text
    assert sum(tag == "script" for tag, _ in tags.tags) == SCRIPTS


def test_slices_are_those_of_test_once_chosen(front_document: Document, choose_trial: Any) -> None:
    rows = [row for row in front_document["rows"] if row["on_front"] and row["trial"]]
    for row in rows:
        reason = "too few rows"
        row["quality"]["slices"] = [to_plain(SliceQuality(f"of {row['trial']}", 5, 1, reason=reason))]
    what, slices = slices_of(read_front(front_document))
    assert "validation" in what and [slices[0].name] == [f"of {what.split()[3]}"], "the best compromise"
    front_document["chosen"] = choose_trial(front_document, rows[0]["trial"], (0.001, 0.005))
    front_document["chosen"]["confirmed"]["slices"] = []
    what, slices = slices_of(read_front(front_document))
    assert f"trial {rows[0]['trial']} " in what and "test" in what and not slices


def card(slices: tuple[SliceQuality, ...]) -> list[str]:
    """Lines of the model card of a measured model; the card reads nothing else of these records."""
    measured = ablation().effects[0].difference
    assert measured is not None
    quality = replace(measured.quality, slices=slices)
    return render(
        "model_card.md.j2",
        config=SimpleNamespace(name="shop & <b>co</b>"),
        candidate=CHOSEN,
        artifact=SimpleNamespace(model_bytes=12345, widths={"tables": "int8", "mlp": "fp32"}, int8_weight_bits=7),
        confirmed=SimpleNamespace(
            measurement=SimpleNamespace(latency=measured.latency, throughput=measured.throughput, quality=quality),
            control=None,
            tuned=None,
        ),
        reason="It's the fastest.",
        machine="2 cores",
    ).splitlines()


def test_the_card_has_a_line_for_each_slice_and_knob() -> None:
    measured = ablation().effects[0].difference
    assert measured is not None
    lines = card(measured.quality.slices)
    assert lines[:3] == ["# shop & <b>co</b>", "", "It's the fastest."], "Markdown, not HTML"
    assert "| users with little history | 50 | 0.7000 | 0.7100 | +1.20% [+0.10%, +2.30%] |" in lines
    assert any(re.match(r"\| rare items \| 50 \| – \| – \| .*alike", line) for line in lines)
    assert any(line.endswith("| 0.500 [0.470, 0.540] |") and line.startswith("| p95 at ") for line in lines)
    assert any(line.endswith("| loss +0.40% [+0.10%, +0.70%] |") for line in lines)
    assert any(re.search("2 cores.* 12,345 bytes; .*tables int8, mlp fp32; .*7 bits", line) for line in lines)
    assert all(f"| {name} | {value} |" in lines for name, value in CHOSEN.knobs().items())
    assert not any("by slice" in line for line in card(()))


def test_the_table_of_effects_has_a_line_for_each_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    Console(width=200).print(ablation_table(ablated()))
    shown = capsys.readouterr().out
    assert shown.count("at the trial") == 4 and "alone, not measured: it broke" in shown
    for word in ("0.500x", "0.470x to 0.540x", "0.40%", "0.10% to 0.70%"):
        assert word in shown
