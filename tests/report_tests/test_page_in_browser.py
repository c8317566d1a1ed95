"""The study's page in headless Chromium: it answers as `leanrec choose`, its views are linked, it stands alone."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.choose.policy import LIMITED, PREFERENCES, Policy, bounds, estimates, finalists
from search.report.page_data import Links
from search.report.report import write_report
from search.results import Front
from search.run_pages import RunPages
from tests.conftest import build_document
from tests.report_tests.browsers import Page, opened_browser, show_all
from tests.report_tests.test_page_policy import EXAMPLE, policy_of, slowed
from tests.report_tests.test_report import MALICE
from tests.search_tests.documents import read_front

ASKED = 25
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as found:
        yield found


@pytest.fixture(scope="module")
def front() -> Front:
    return read_front(build_document(120, 5))


@pytest.fixture(scope="module")
def report(front: Front, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    trial = front.members[-1].trial
    write_report(
        front,
        path,
        Links(("shop.yaml",), RunPages("http://127.0.0.1:5000/#/experiments/1", {trial: "http://127.0.0.1:5000/#/r"})),
    )
    return path


@pytest.fixture(scope="module")
def page(browser: Any, report: Path) -> Iterator[Page]:
    found = Page(browser, report)
    yield found
    found.close()
    assert found.errors == []
    assert found.requests == [report.as_uri()], "no request leaves the page"


def some_policies(front: Front, seed: int) -> Iterator[tuple[dict[str, str], Policy]]:
    """Yield texts of the form's fields, and the policy that they mean; limits lie near the points' numbers."""
    rng = random.Random(seed)
    members = [p for p in front.members if p.trial != 0]
    for _ in range(ASKED):
        typed, limits = {"prefer": rng.choice([*PREFERENCES])}, dict.fromkeys(LIMITED)
        for field, names in (("p95", ("ms", "ratio")), ("throughput", ("rps", "ratio")), ("memory", ("mb",))):
            if rng.random() < 0.5:
                unit = rng.choice(names)
                name = f"{field}_{unit}"
                end = rng.choice((estimates, bounds))(rng.choice(members))[name] or 1.0
                typed[field] = repr(end * rng.choice((1.0, rng.uniform(0.7, 1.4))))
                limits[name] = float(typed[field])
                if len(names) > 1:
                    typed[f"{field}_unit"] = unit
        max_loss = front.max_loss
        if rng.random() < 0.5:
            typed["loss"] = f"{rng.uniform(0.05, 1.5):.2f}"
            max_loss = float(f"{float(typed['loss']) / 100:.12g}")
        yield typed, Policy(max_loss, prefer=typed["prefer"], **limits)


def ask(page: Page, typed: dict[str, str]) -> None:
    """Fill in the form as a user does."""
    page.tab.click("button[type=reset]")
    for name, value in typed.items():
        field = page.tab.locator(f"#policy [name={name}]")
        field.select_option(value) if name == "prefer" or name.endswith("_unit") else field.fill(value)


def test_the_page_recommends_what_choose_picks(page: Page, front: Front) -> None:
    recommended = set()
    for typed, policy in some_policies(front, 7):
        ask(page, typed)
        expected = [point.trial for point in finalists(front, policy)]
        heading = page.tab.inner_text("#answer h3")
        if not expected:
            assert heading == "Nothing to recommend" and not page.tab.is_visible("#command"), typed
            recommended.add(None)
            continue
        assert heading.startswith(f"Trial {expected[0]}: {PREFERENCES[policy.prefer]}"), typed
        assert policy_of(page.tab.inner_text("#command"), front) == policy
        if len(expected) > 1:
            order = ", ".join(map(str, expected[:5]))
            assert f"in the order {order} and" in page.tab.inner_text("#answer")
        recommended.add(expected[0])
    assert len(recommended) > 3, "the policies are of different answers"
    ask(page, {})


def test_what_is_no_limit_is_refused_in_a_line(page: Page) -> None:
    ask(page, {})
    before = page.tab.inner_text("#answer")
    for field, typed in (("p95", "-1"), ("loss", "100"), ("memory", "0")):
        ask(page, {field: typed})
        assert f"but got {typed}" in page.tab.inner_text(f"#{field}-wrong")
        assert page.tab.get_attribute(f"#{field}", "aria-invalid") == "true"
        assert page.tab.inner_text("#answer") == before
    ask(page, {})
    assert page.tab.inner_text("#p95-wrong") == ""


def test_the_button_copies_the_command_or_selects_it(page: Page) -> None:
    ask(page, {"loss": "0.7"})
    command = page.tab.inner_text("#command")
    page.value("() => { navigator.clipboard.writeText = async () => { throw new Error('not allowed'); }; }")
    page.tab.click("#copy")
    page.tab.wait_for_function("document.getElementById('copy').textContent === 'Selected'")
    assert page.value("getSelection().toString()") == command
    page.value("() => { navigator.clipboard.writeText = async (text) => { window.copied = text; }; }")
    page.tab.click("#copy")
    page.tab.wait_for_function("window.copied !== undefined")
    assert page.value("copied") == command
    page.tab.wait_for_function("document.getElementById('copy').textContent === 'Copy'")
    page.value("() => { delete navigator.clipboard.writeText; }")
    ask(page, {})


RINGED = "[...document.querySelectorAll('[id^=pair-]')].concat(document.getElementById('solid-plot')).map(" \
    "(plot) => plot.data.find((trace) => trace.name === 'selected').customdata)"  # fmt: skip
PLACE_OF_MARK = """(plot, trial) => {
  plot.scrollIntoView();
  const trace = plot.data.find((one) => one.error_x), at = trace.customdata.indexOf(trial);
  const { xaxis, yaxis } = plot._fullLayout, box = plot.getBoundingClientRect();
  return [box.x + xaxis._offset + xaxis.d2p(trace.x[at]), box.y + yaxis._offset + yaxis.d2p(trace.y[at])];
}"""
UPRIGHTS = "document.getElementById('knobs-plot').data[0].dimensions.length"
PAPER = "getComputedStyle(document.querySelector('#pair-0-plot .main-svg')).backgroundColor"
ROW = "document.querySelector('#trials tr[data-trial=\"%d\"]').getAttribute('aria-selected')"


def selected_everywhere(page: Page, trials: list[int]) -> None:
    page.tab.wait_for_function("moving === null")
    assert [sorted(ringed) for ringed in page.value(RINGED)] == [sorted(trials)] * 4
    lines = page.value("state.rows.filter((row) => row.place !== null).filter((row, at) => "
                       "document.getElementById('knobs-plot').data[0].line.color[at] === 4 "
                       "&& row.trial !== state.recommended).map((row) => row.trial)")  # fmt: skip
    assert set(lines) == set(trials) - {page.value("state.recommended")}
    assert page.value("[...state.selected]") == trials
    assert all(page.value(ROW % trial) == "true" for trial in trials)


def test_selecting_in_one_view_selects_in_all(page: Page, front: Front) -> None:
    first, second = [point.trial for point in front.members if point.trial != 0][:2]
    page.tab.click(f"#trials tr[data-trial='{first}'] td:nth-child(3)")
    selected_everywhere(page, [first])
    assert f"trial {first}," in page.tab.inner_text("#selected-name")
    page.tab.click(f"#trials tr[data-trial='{second}'] td:nth-child(3)", modifiers=["Control"])
    selected_everywhere(page, [first, second])
    page.tab.click("#clear")
    assert page.value("state.selected.size") == 0 and page.tab.is_hidden("#selected")
    page.tab.wait_for_function("moving === null")
    # A mark of the front in 2-D, where it is drawn.
    box = page.tab.locator("#pair-0-plot").evaluate(PLACE_OF_MARK, first)
    page.tab.mouse.move(*box)
    page.tab.wait_for_timeout(200)
    page.tab.mouse.click(*box)
    clicked = page.value("[...state.selected]")
    assert len(clicked) == 1
    selected_everywhere(page, clicked)
    page.tab.click("#clear")
    page.tab.wait_for_function("moving === null")
    # A range of an upright.
    page.value(f"Plotly.restyle('knobs-plot', `dimensions[${{{UPRIGHTS} - 1}}].constraintrange`, [[1.5, 2.5]])")
    selected_everywhere(page, [point.trial for point in front.points if point.on_front])
    page.tab.click("#clear")


def test_the_page_is_used_by_keyboard(page: Page, front: Front) -> None:
    page.tab.focus("nav a")
    reached = []
    for _ in range(60):
        page.tab.keyboard.press("Tab")
        reached.append(page.value("document.activeElement.id || document.activeElement.tagName"))
        if reached[-1] == "TR":
            break
        assert page.value("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    fields = ["p95", "loss", "throughput", "memory", "prefer", "copy", "units", "filter", "TR"]
    assert [name for name in reached if name in fields] == fields
    focused = "Number(document.activeElement.dataset.trial)"
    shown = page.value("[...document.querySelectorAll('#trials tbody tr')].map((row) => Number(row.dataset.trial))")
    for key, place in (
        ("Home", 0),
        ("ArrowDown", 1),
        ("ArrowDown", 2),
        ("ArrowUp", 1),
        ("End", len(shown) - 1),
        ("Home", 0),
    ):
        page.tab.keyboard.press(key)
        assert page.value(focused) == shown[place]
    page.tab.keyboard.press("ArrowDown")
    page.tab.keyboard.press("Enter")
    assert page.value("[...state.selected]") == [shown[1]] and page.value(focused) == shown[1]
    page.tab.keyboard.press("Escape")
    assert page.value("state.selected.size") == 0


def test_the_table_is_paged_sorted_and_filtered(page: Page, front: Front) -> None:
    trials = "[...document.querySelectorAll('#trials tbody tr')].map((row) => Number(row.dataset.trial))"
    page.tab.select_option("#filter", "all")
    assert page.value(trials) == [row.trial for row in front.rows][:50]
    page.tab.click("#next")
    assert page.value(trials) == [row.trial for row in front.rows][50:100]
    page.tab.click("#trials thead button:text-is('p95 ratio')")
    fastest = sorted(front.points, key=lambda point: point.p95_ratio)
    assert page.value(trials) == [point.trial for point in fastest][:50]
    page.tab.select_option("#filter", "ended")
    assert set(page.value(trials)) == {row.trial for row in front.rows if row.state != "complete"}
    page.tab.select_option("#filter", "front")
    page.value("table.show({ sort: null })")
    assert set(page.value(trials)) == {0, *(point.trial for point in front.members)}


def test_runs_are_linked_where_mlflow_is_a_server(page: Page, front: Front) -> None:
    page.tab.click(f"#trials tr[data-trial='{front.members[-1].trial}'] td:nth-child(3)")
    page.tab.click("#selected summary span")
    assert page.tab.get_attribute("#selected-card a", "href") == "http://127.0.0.1:5000/#/r"
    page.tab.click("#clear")
    assert page.tab.get_attribute("header a", "href") == "http://127.0.0.1:5000/#/experiments/1"


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (390, "light"), (1280, "dark")])
def test_the_page_fits_its_window_in_its_colours(browser: Any, report: Path, width: int, scheme: str) -> None:
    found = Page(browser, report, width, scheme)
    assert found.value("document.documentElement.scrollWidth") == width
    paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}
    assert found.value("getComputedStyle(document.body).backgroundColor") == paper[scheme]
    assert found.value(PAPER) == paper[scheme]
    found.tab.emulate_media(color_scheme="light")
    found.tab.wait_for_function(f"{PAPER} === '{paper['light']}'")
    found.close()
    assert found.errors == []


UNDRAWN = "[...figures.values()].filter(({ drawn }) => !drawn).length"


def test_what_is_selected_before_a_figure_is_drawn_is_selected_in_it(browser: Any, report: Path, front: Front) -> None:
    found, trial = Page(browser, report, all_drawn=False), front.members[0].trial
    found.tab.wait_for_function("document.documentElement.dataset.drawn === 'near'")
    assert found.value(UNDRAWN) > 0
    found.value(f"select({trial}, false)")
    show_all(found.tab)
    selected_everywhere(found, [trial])
    found.close()
    assert found.errors == []


def test_a_page_that_is_printed_at_once_has_all_figures(browser: Any, report: Path) -> None:
    found = Page(browser, report, all_drawn=False)
    found.tab.wait_for_function("document.documentElement.dataset.drawn === 'near'")
    assert found.value(UNDRAWN) > 0
    found.value(f"addEventListener('beforeprint', () => {{ window.left = {UNDRAWN}; }})")
    found.tab.pdf(format="A4")
    assert found.value("window.left") == 0
    found.close()
    assert found.errors == []


def test_dark_pages_are_printed_on_white(browser: Any, report: Path) -> None:
    found = Page(browser, report, scheme="dark")
    paper = "document.querySelector('#pair-0-plot').layout.paper_bgcolor"
    found.value(f"addEventListener('beforeprint', () => {{ window.printed = {paper}; }})")
    pdf = found.tab.pdf(format="A4")
    assert pdf.startswith(b"%PDF") and len(pdf) > 50_000
    assert found.value("window.printed") == "#ffffff"
    assert found.value(paper) == "#14181d"
    found.close()
    assert found.errors == []


def test_malicious_names_are_text(browser: Any, tmp_path: Path) -> None:
    document = build_document()
    for row in document["rows"]:
        row["knobs"] = {name: MALICE if name == "placement.engine" else value for name, value in row["knobs"].items()}
        row["knobs"][f"precision.{MALICE}"] = row["trial"] % 2 * MALICE or "fp32"
        row["quality"]["metric"], row["origin"] = MALICE, MALICE
        row["reason"] = row["reason"] and MALICE
    write_report(read_front(document | {"study": MALICE}), tmp_path / "report.html", Links((MALICE,)))
    found = Page(browser, tmp_path / "report.html")
    found.tab.select_option("#filter", "all")
    found.tab.click("#trials tbody tr:nth-child(3) td:nth-child(3)")
    assert found.value("document.querySelectorAll('img').length") == 0
    assert MALICE in found.tab.inner_text("#trials")
    found.close()
    assert found.errors == [] and len(found.requests) == 1


def test_a_time_spent_elsewhere_is_shown_and_decides(browser: Any, tmp_path: Path) -> None:
    """The card has both ratios of each percentile; the answer is the one that `leanrec choose` gives by those with."""
    front = slowed(read_front(build_document(60, 3)), 10.0)
    write_report(front, tmp_path / "report.html", Links(("shop.yaml",)))
    page = Page(browser, tmp_path / "report.html")
    for typed, policy in some_policies(front, 3):
        ask(page, typed)
        expected = finalists(front, policy)
        heading = page.tab.inner_text("#answer h3")
        assert heading.startswith(f"Trial {expected[0].trial}:" if expected else "Nothing to recommend"), typed
    ask(page, {})
    (best, *_) = finalists(front, Policy(front.max_loss))
    shown = page.tab.inner_text("#answer")
    assert best.with_overhead is not None
    for row in ("p50 with overhead", "p95 with overhead", "p99 with overhead"):
        assert row in shown
    assert f"{best.with_overhead.p95_ratio:.3f}x" in shown and f"{best.p95_ratio:.3f}x" in shown
    page.close()
    assert page.errors == []


def test_a_study_without_a_candidate_says_so(browser: Any, tmp_path: Path) -> None:
    document = build_document()
    document["rows"] = document["rows"][:1]
    write_report(read_front(document), tmp_path / "report.html")
    found = Page(browser, tmp_path / "report.html")
    assert "No candidate is on the front yet." in found.tab.inner_text("#answer")
    found.close()
    assert found.errors == []


def test_the_example_answers(browser: Any, tmp_path: Path) -> None:
    front = read_front(json.loads(EXAMPLE.read_text()))
    write_report(front, tmp_path / "report.html")
    found = Page(browser, tmp_path / "report.html")
    (first, *_) = finalists(front, Policy(front.max_loss))
    assert found.tab.inner_text("#answer h3").startswith(f"Trial {first.trial}:")
    found.close()
    assert found.errors == []
