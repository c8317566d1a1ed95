"""The page's policy and words against those of `leanrec choose` and of the console, in a JavaScript engine."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from search import format as words
from search.choose.policy import LIMITED, PREFERENCES, Policy, bounds, estimates, finalists
from search.cli.parser import _parser
from search.front import indistinguishable
from search.report.columns import FRONT_COLUMNS
from search.report.data import table_rows
from search.report.page_data import Links
from search.results import Front, Point
from search.verdict import alike_trials
from tests.choose_tests.test_choose import front as front_of
from tests.choose_tests.test_choose import point, with_overhead
from tests.conftest import build_document
from tests.report_tests.scripts import Scripts
from tests.search_tests.documents import read_front

NUMBERS = r"[-+]?\d[\d.,]*%?"
EXAMPLE = Path(__file__).resolve().parents[2] / "reports" / "example" / "front.json"


def on_a_grid(seed: int) -> Front:
    """Many points with few different numbers, so that there are ties in every order; some memory is not known."""
    rng = np.random.default_rng(seed)
    points = [point(0, 1.0, 1.0, 0.0)]
    for trial in range(1, 40):
        p95, throughput = float(rng.choice([0.1, 0.2, 0.5, 1.5])), float(rng.choice([0.0, 0.5, 2.0, 8.0]))
        loss, half = float(rng.choice([-0.001, 0.0, 0.004, 0.009])), float(rng.choice([0.0, 0.002]))
        made = point(trial, p95, throughput, loss, int(rng.choice([500, 1000])), half)
        memory = None if rng.random() < 0.2 else int(rng.choice([50e6, 90e6]))
        rate = (80 * throughput, 120 * throughput) if rng.random() < 0.8 else None
        points.append(replace(made, peak_memory_bytes=memory, throughput_interval=rate))
    return front_of(*points)


def slowed(front: Front, overhead_ms: float) -> Front:
    """The front of a study whose requests spend so long elsewhere."""
    rows = tuple(with_overhead(row, overhead_ms) if isinstance(row, Point) else row for row in front.rows)
    return replace(front, rows=rows, overhead_ms=overhead_ms)


@cache
def fronts() -> tuple[tuple[Front, Scripts], ...]:
    found = [read_front(json.loads(EXAMPLE.read_text())), *(read_front(build_document(60, seed)) for seed in (3, 4))]
    found += [read_front(build_document(400, 5)), on_a_grid(1), on_a_grid(2), slowed(on_a_grid(3), 10.0)]
    return tuple((front, Scripts(front)) for front in found)


def limits_near(points: list[Point], name: str) -> st.SearchStrategy[float | None]:
    """A limit that no, some or all points keep; often exactly a point's own value or the end of its interval."""
    known = [value for p in points for value in (estimates(p)[name], bounds(p)[name]) if value]
    middle = st.sampled_from(known or [1.0])
    around = st.builds(lambda value, by: value * by, middle, st.floats(0.5, 2.0))
    return st.none() | middle | around


@st.composite
def policies(draw: st.DrawFn) -> tuple[Front, Scripts, Policy]:
    front, scripts = draw(st.sampled_from(fronts()))
    points = [p for p in front.members if p.trial != 0] or list(front.points)
    limits = {name: draw(limits_near(points, name) if draw(st.booleans()) else st.none()) for name in LIMITED}
    losses = [loss for p in points for loss in (p.quality.loss, *p.quality.loss_interval) if 0 < loss < 1]
    max_loss = draw(st.just(front.max_loss) | st.sampled_from(losses or [0.01]) | st.floats(1e-4, 0.2))
    return front, scripts, Policy(max_loss, prefer=draw(st.sampled_from([*PREFERENCES])), **limits)


@settings(max_examples=400)
@given(policies())
def test_the_page_orders_the_finalists_as_choose_does(case: tuple[Front, Scripts, Policy]) -> None:
    front, scripts, policy = case
    found = scripts.run("finalists(study, policy).map((one) => [one.point.trial, one.sure])", policy=asdict(policy))
    surely = [
        (p.trial, policy.broken(bounds(p)) is None and p.quality.loss_interval[1] <= policy.max_loss)
        for p in finalists(front, policy)
    ]
    assert found == [list(one) for one in surely]


def policy_of(command: str, front: Front) -> Policy:
    """The policy that the command line makes of a command."""
    options = _parser().parse_args(shlex.split(command)[1:])
    limits = {name: getattr(options, name) for name in LIMITED}
    return Policy(front.max_loss if options.max_loss is None else options.max_loss, prefer=options.prefer, **limits)


@given(policies())
def test_the_command_asks_for_the_policy_of_the_page(case: tuple[Front, Scripts, Policy]) -> None:
    front, scripts, policy = case
    command = scripts.run("chooseCommand(study, policy)", policy=asdict(policy))
    assert policy_of(command, front) == policy
    assert command.startswith(f"leanrec choose {front.study}")


def test_the_command_names_the_study_as_it_was_named(front_document: dict[str, Any]) -> None:
    front = read_front(front_document)
    arguments = ("my studies/shop.yaml", "--set", "seed=3", "--home", "it's here")
    scripts = Scripts(front, Links(arguments))
    command = scripts.run("chooseCommand(study, policy)", policy=asdict(Policy(front.max_loss)))
    assert shlex.split(command) == ["leanrec", "choose", *arguments]


def test_points_that_cannot_be_told_apart_stand_together() -> None:
    """Points stand together by the definition for a pair.

    The ratios' intervals overlap, and losses overlap or are within the resolution.
    """
    for front, scripts in fronts():
        members = [p for p in front.members if p.trial != 0]
        records = {one["trial"]: one for one in scripts.run("study.records")}
        for one, other in itertools.permutations(members, 2):
            close = abs(one.quality.loss - other.quality.loss) <= (front.resolution or 0.0)
            table = [(p.p95_ratio_interval, p.throughput_ratio_interval, p.quality.loss_interval) for p in (one, other)]
            low, high = np.array(table)[:, :, 0], np.array(table)[:, :, 1]
            apart = 2 if close else 3
            if indistinguishable(low[:, :apart], high[:, :apart], 0)[1]:
                assert other.trial in records[one.trial]["alike"]
        order = [p.trial for p in members]
        led = dict(scripts.run(
            "[...leaders(order.map((trial) => study.records.find((one) => one.trial === trial)))]", order=order
        ))  # fmt: skip
        assert set(led) == set(order)
        for trial, leader in led.items():
            assert led[leader] == leader and order.index(leader) <= order.index(trial)
            assert trial == leader or trial in alike_trials(front, next(p for p in members if p.trial == leader))


def test_the_table_has_the_cells_of_the_console(front_document: dict[str, Any], choose_trial: Any) -> None:
    trial = next(row["trial"] for row in front_document["rows"] if row["on_front"] and row["trial"])
    front_document["chosen"] = choose_trial(front_document, trial, (0.001, 0.005))
    example = read_front(json.loads(EXAMPLE.read_text()))
    for front in (read_front(front_document), example):
        scripts = Scripts(front)
        for of in table_rows(front):
            here = f"rows.find((row) => row.trial === {of.row.trial})"
            cells = [column.cell(of) for column in FRONT_COLUMNS]
            assert scripts.run(f"recipeOf(study, knobs, {here})") == cells[1].text
            shown = scripts.run(f"cellsOf({here})")
            assert [(one["text"], one["interval"]) for one in shown] == [(c.text, c.interval) for c in cells[2:]]
            assert scripts.run(f"{here}.record.tags") == list(cells[0].tags)


def test_every_trial_has_its_own_numbers(front_document: dict[str, Any]) -> None:
    for front in (read_front(front_document), read_front(build_document(400, 5))):
        rows = Scripts(front).run("rows")
        assert [row["trial"] for row in rows] == [row.trial for row in front.rows]
        for shown, row in zip(rows, front.rows, strict=True):
            if not isinstance(row, Point):
                assert shown["standing"] == row.state and re.sub(NUMBERS, "…", row.reason or "") == shown["reason"]
                continue
            assert shown["origin"] == row.origin
            assert shown["standing"] == ("front" if row.on_front else "dominated" if row.feasible else "infeasible")
            given = (row.p95_ratio, row.throughput_ratio, row.quality.loss, row.latency_ms.p95, row.model_bytes)
            names = ("p95_ratio", "throughput_ratio", "loss", "p95_ms", "model_bytes")
            assert [shown[name] for name in names] == pytest.approx(given, rel=1e-3)


FORMS = {
    "significant": words.significant, "percent": words.percent, "times": words.times, "size": words.size,
    "milliseconds": words.milliseconds, "columnRatio": words.column_ratio, "columnPercent": words.column_percent,
    "columnMilliseconds": words.column_milliseconds,
}  # fmt: skip
magnitudes = st.builds(lambda digits, power: digits * 10.0**power, st.floats(1, 10), st.integers(-6, 9))


@given(st.sampled_from([*FORMS]), magnitudes)
@example("significant", 1.25)
@example("columnRatio", 1.125)
@example("columnRatio", 0.0625)
@example("milliseconds", 2.125)
@example("columnMilliseconds", 12.25)
def test_numbers_are_written_in_the_words_of_the_console(form: str, value: float) -> None:
    _, scripts = fronts()[0]
    assert scripts.run(f"{form}(value)", value=value) == FORMS[form](value)


@given(st.floats(-0.5, 0.5))
def test_a_tiny_gain_is_written_without_a_sign(share: float) -> None:
    _, scripts = fronts()[0]
    assert scripts.run("columnPercent(share)", share=share) == words.column_percent(share)
