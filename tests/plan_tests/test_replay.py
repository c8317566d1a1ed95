"""Replays of a trace: on the virtual clock, and on real servers of small bundles."""

from __future__ import annotations

import dataclasses
import gc
import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives.errors import InputError
from objectives.measurement.request_log import RequestLog
from objectives.serving.control.controller import Observation, begin, decide
from objectives.serving.control.options import ControlPlan, Option, PlannedPhase
from objectives.serving.control.plan_file import machine_plan, offers_on, read_plan
from objectives.serving.control.windows import Windows
from planning.capacity import Objective
from planning.elastic import (
    ELASTIC,
    REACTIVE,
    STATIC_MEAN,
    STATIC_PEAK,
    Segment,
    Served,
    machine_outcome,
    policies,
)
from planning.fleet import Deployment
from search.cli import planning
from search.cli.console import Console
from search.cli.parser import run_command
from search.errors import ConfigError, JobError
from search.home import Home
from search.plan.deployments import Menu
from search.plan.inputs import read_log
from search.plan.replay import policy_replays, run, server
from search.plan.replay.page import timeline_figure
from search.plan.replay.request import ReplayRequest
from search.plan.replay.traffic import traffic_of
from search.plan.replay.transport import DrawnTransport, TransportSample, travelled_s
from tests.control_tests.plans import FAST, PLACEMENT, document, offer, write_bundles, write_plan
from tests.planning_tests.fleets import deployment

QUIET = Console(quiet=True, as_json=False)
START_S = 1.7e9


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A study whose trial 10 takes 20 ms and whose trial 11 takes 4 ms."""

    def one(trial: int, ms: float) -> Deployment:
        return dataclasses.replace(deployment(ms, trial=trial), placement=PLACEMENT)

    menu = Menu((one(10, 20.0), one(11, 4.0)), {}, np.array([3, 5]), 50.0, 95)
    monkeypatch.setattr(run, "menu_of", lambda session, console: menu)
    return SimpleNamespace(config=SimpleNamespace(name="toy"))


def trace_file(folder: Path, start_s: float = START_S, rates: tuple[float, ...] = (10.0, 100.0, 10.0)) -> Path:
    """Poisson arrivals at a rate in each minute."""
    random = np.random.default_rng(0)
    parts = [60 * n + np.sort(random.uniform(0, 60, random.poisson(60 * rate))) for n, rate in enumerate(rates)]
    file = folder / f"trace-{start_s:.0f}.csv"
    file.write_text("\n".join(["timestamp", *(f"{start_s + second:.6f}" for second in np.concatenate(parts))]))
    return file


def asked(folder: Path, **given: Any) -> ReplayRequest:
    """A plan that foresees the second minute."""
    plan = write_plan(folder / "plan.json", document([(0, 12.0), (1, 110.0), (0, 12.0)], START_S))
    plain = ReplayRequest(trace_file(folder), plan, None, None, (), (), 1.0, Windows(20.0, 4.0, 1.0))
    return dataclasses.replace(plain, **given)


def test_policies_are_compared_on_the_virtual_clock(session: Any, tmp_path: Path) -> None:
    found = run.replay(session, asked(tmp_path), tmp_path / "out", QUIET)
    rows = {row.policy: row for row in found.rows}
    assert list(rows) == [STATIC_MEAN, STATIC_PEAK, REACTIVE, ELASTIC]
    assert {row.clock for row in found.rows} == {"virtual"}
    assert found.seconds == pytest.approx(180, abs=1) and found.requests == pytest.approx(7200, rel=0.1)
    # Static: the fast variant on one core for the mean of 45, above the 40 of the exact one, and on two for the peak.
    assert rows[STATIC_MEAN].loss == pytest.approx(0.01) and rows[STATIC_PEAK].loss == pytest.approx(0.01)
    assert rows[STATIC_MEAN].replica_seconds == pytest.approx(found.seconds)
    assert rows[STATIC_PEAK].replica_seconds == pytest.approx(2 * found.seconds)
    assert 0 < rows[ELASTIC].loss < 0.01 and rows[ELASTIC].late <= rows[REACTIVE].late
    assert rows[ELASTIC].money == pytest.approx(rows[ELASTIC].core_seconds / 3600 * 0.5)
    reasons = [decision.reason for decision in rows[ELASTIC].decisions]
    assert reasons[0] == "plan" and "calm" in reasons
    stored = json.loads((tmp_path / "out" / "replay.json").read_text())
    assert stored["rows"][3]["late"] == rows[ELASTIC].late and stored["windows"] == [20.0, 4.0, 1.0]
    drawn = {trace["name"] for trace in timeline_figure(found)["data"]}  # type: ignore[attr-defined]
    assert "planned + reactive, virtual" in drawn
    intervals = rows[ELASTIC].intervals
    assert sum(each.rate_rps for each in intervals) / len(intervals) == pytest.approx(found.requests / found.seconds)
    assert {each.loss for each in intervals} == {0.0, 0.01}
    page = (tmp_path / "out" / "replay.html").read_text()
    assert (
        "the HTTP server are no" in page and "Decisions: planned + reactive" in page and '<script src="http' not in page
    )


def test_a_faster_replay_keeps_rates_and_shortens_time(session: Any, tmp_path: Path) -> None:
    found = run.replay(session, asked(tmp_path, speed=4.0, policies=(ELASTIC,)), tmp_path / "out", QUIET)
    assert found.seconds == pytest.approx(45, abs=1) and found.requests == pytest.approx(1800, rel=0.1)
    assert found.windows == (5.0, 1.0, 0.25)
    middle = [each.rate_rps for each in found.rows[0].intervals if 16 < each.start_s < 29]
    assert np.mean(middle) == pytest.approx(100, rel=0.1)
    ups = [each for each in found.rows[0].decisions if each.reason == "plan"]
    assert ups and 14 <= ups[0].second <= 15, "the second phase begins at second 15"


def test_a_trace_of_the_plans_time_is_cut_to_its_phases(session: Any, tmp_path: Path) -> None:
    """The trace begins a minute before the plan: its first minute is left out."""
    trace = trace_file(tmp_path, START_S - 60)
    found = run.replay(session, asked(tmp_path, trace=trace, policies=(REACTIVE,)), tmp_path / "out", QUIET)
    assert found.seconds == pytest.approx(120, abs=1)
    assert found.rows[0].intervals[0].rate_rps > 50
    # One of other days begins with the plan.
    trace = trace_file(tmp_path, START_S + 1e6)
    other = run.replay(session, asked(tmp_path, trace=trace, policies=(REACTIVE,)), tmp_path / "out", QUIET)
    assert other.rows[0].intervals[0].rate_rps < 50


def test_a_trace_from_before_the_plan_begins_with_its_first_request_there(session: Any, tmp_path: Path) -> None:
    """Requests come one second apart; those from 30 s before the plan until 70 s after its start are away."""
    trace, at = tmp_path / "gap.csv", [*range(-100, -30), *range(70, 160)]
    trace.write_text("\n".join(["timestamp", *(f"{START_S + second:.1f}" for second in at)]))
    found = run.replay(session, asked(tmp_path, trace=trace, policies=(ELASTIC,)), tmp_path / "out", QUIET)
    assert found.requests == 90 and found.seconds == pytest.approx(89)
    row = found.rows[0]
    assert row.intervals[0].rate_rps > 0 and row.intervals[0].option == "trial 11 2x1", "the second phase"
    trace.write_text("\n".join(["timestamp", *(f"{START_S + second:.1f}" for second in (-5, 999))]))
    with pytest.raises(ConfigError, match="--trace: must have requests in the phases of the plan"):
        run.replay(session, asked(tmp_path, trace=trace), tmp_path / "none", QUIET)
    trace.write_text("\n".join(["timestamp", *(f"{START_S + second:.1f}" for second in (-5, 5))]))
    with pytest.raises(ConfigError, match="--trace: must have requests at two moments of the plan"):
        run.replay(session, asked(tmp_path, trace=trace), tmp_path / "none", QUIET)
    assert not (tmp_path / "none").exists()


def weekly_request(folder: Path, phases: list[tuple[int, float]], begins: datetime, **given: Any) -> ReplayRequest:
    """A request for a weekly plan with phases of 6 hours, the trace's from its begin on and else the fast variant's.

    A phase takes 30 s. The traffic of 1 request in 2 s is far below what is planned.
    """
    first = 4 * (begins.isoweekday() - 1) + begins.hour // 6
    week = [(1, 150.0)] * 28
    for number, phase in enumerate(phases):
        week[(first + number) % 28] = phase
    plan = write_plan(folder / "weekly.json", document(week, phase_s=21_600.0) | {"forecast": None})
    random = np.random.default_rng(0)
    seconds = np.sort(random.uniform(0, 21_600 * len(phases), 10_800 * len(phases)))
    seconds -= seconds[0]
    file = folder / "weekly.csv"
    file.write_text("\n".join(["timestamp", *(f"{begins.timestamp() + second:.6f}" for second in seconds)]))
    windows = Windows(20.0 * 720, 4.0 * 720, 720.0)
    return dataclasses.replace(ReplayRequest(file, plan, None, None, (), (), 720.0, windows), **given)


FRIDAY, SUNDAY = datetime(2026, 11, 27, tzinfo=UTC), datetime(2026, 11, 29, 18, tzinfo=UTC)
FRIDAYS_PHASES = [(0, 12.0), (0, 30.0), (0, 12.0), (0, 12.0)]


def test_a_weekly_plan_is_replayed_from_the_traces_weekday_on(session: Any, tmp_path: Path) -> None:
    """Friday asks for one, two, and one exact replica; nothing is paid for the days since Monday.

    What Saturday asks for is loaded before Friday ends.
    """
    found = run.replay(session, weekly_request(tmp_path, FRIDAYS_PHASES, FRIDAY), tmp_path / "out", QUIET)
    assert found.seconds == pytest.approx(120, abs=0.1) and found.requests == pytest.approx(60, abs=25)
    rows = {row.policy: row for row in found.rows}
    # Sized for the whole plan: the fast variant on two cores.
    assert rows[STATIC_PEAK].replica_seconds == pytest.approx(2 * found.seconds)
    elastic = rows[ELASTIC]
    assert elastic.intervals[0].option == "trial 10 1x1" and elastic.loss == 0
    assert [(each.option, each.reason) for each in elastic.decisions] == [
        ("trial 10 2x1", "plan"),
        ("trial 10 1x1", "calm"),
        ("trial 11 2x1", "plan"),
    ]
    # The second phase is seconds 30 to 60; what was wanted is held for a stable window of 20 s.
    assert [each.second for each in elastic.decisions] == pytest.approx([28, 80, 118], abs=2.5)
    assert elastic.replica_seconds == pytest.approx(found.seconds + 50, abs=2)


def test_a_weekly_plan_goes_on_with_monday_after_sunday(session: Any, tmp_path: Path) -> None:
    request = weekly_request(tmp_path, [(0, 12.0), (1, 150.0), (0, 12.0)], SUNDAY, policies=(ELASTIC,))
    found = run.replay(session, request, tmp_path / "out", QUIET)
    assert found.seconds == pytest.approx(90, abs=0.1) and found.requests == pytest.approx(45, abs=20)
    assert found.rows[0].intervals[0].option == "trial 10 1x1"
    assert [each.option for each in found.rows[0].decisions] == ["trial 11 2x1", "trial 10 1x1", "trial 11 2x1"]
    assert [each.second for each in found.rows[0].decisions] == pytest.approx([28, 80, 88], abs=2.5)


@pytest.mark.parametrize("speed", [1.0, 7.0, 49.0, 720.0])
def test_a_trace_that_begins_with_a_phase_begins_in_that_phase(speed: float, tmp_path: Path) -> None:
    request = weekly_request(tmp_path, FRIDAYS_PHASES, SUNDAY, speed=speed)
    plan = json.loads(request.plan.read_text())
    control = run._control(plan, offers_on(plan, None), "small", request)
    log = RequestLog(np.arange(10_000.0), np.full(10_000, 3), SUNDAY.timestamp())
    begins_s = traffic_of(plan, offers_on(plan, None), log, SimpleNamespace(), request).begins_s  # type: ignore[arg-type]
    assert control.foreseen(begins_s, begins_s) == PlannedPhase(12.0, 0.0)


def test_a_trace_that_begins_within_a_dated_plan_begins_at_once(session: Any, tmp_path: Path) -> None:
    """The trace begins 90 s after the plan, in the middle of the phase that is planned for 110 requests/s."""
    trace = trace_file(tmp_path, START_S + 90, (100.0, 10.0))
    found = run.replay(session, asked(tmp_path, trace=trace), tmp_path / "out", QUIET)
    rows = {row.policy: row for row in found.rows}
    assert found.seconds == pytest.approx(90, abs=0.1) and found.requests == pytest.approx(6300, rel=0.1)
    assert rows[STATIC_PEAK].replica_seconds == pytest.approx(2 * found.seconds)
    assert rows[ELASTIC].intervals[0].option == "trial 11 2x1", "the middle phase, from the begin on"
    calm = next(each for each in rows[ELASTIC].decisions if each.reason == "calm")
    assert 60 < calm.second <= 82, "the rate falls at second 60, and is held for a stable window of 20 s"


def test_a_machine_gets_no_requests_of_phases_that_another_kind_serves(session: Any, tmp_path: Path) -> None:
    """Minutes have 10, 100 and 10 requests/s; the second one is for four large machines."""
    plan = document([(0, 12.0), (2, 110.0), (0, 12.0)], START_S)
    plan["offers"].append(offer(2, FAST, 0.01, 100.0, machine="large") | {"trial": 11})
    plan["phases"][1]["machines"] = 4
    path = write_plan(tmp_path / "kinds.json", plan)
    arrived = np.loadtxt(trace_file(tmp_path), skiprows=1) - START_S
    of_small = np.count_nonzero((arrived < 60) | (arrived >= 120))
    request = asked(tmp_path, plan=path, machine="small", policies=(STATIC_MEAN,))
    found = run.replay(session, request, tmp_path / "small", QUIET)
    assert found.requests == of_small and found.seconds == pytest.approx(180, abs=1)
    silent = [each for each in found.rows[0].intervals if 60 <= each.start_s < 119]
    assert {each.rate_rps for each in silent} == {0.0} and {each.late for each in silent} == {None}
    request = asked(tmp_path, plan=path, machine="large", policies=(STATIC_MEAN,))
    found = run.replay(session, request, tmp_path / "large", QUIET)
    assert found.requests == pytest.approx((len(arrived) - of_small) / 4, abs=4 * math.sqrt(6000 * 3 / 16))
    plan["phases"][1]["offer"] = 0
    request = dataclasses.replace(request, plan=write_plan(path, plan))
    with pytest.raises(ConfigError, match="--trace: must have requests in the phases of the plan that the machine"):
        run.replay(session, request, tmp_path / "none", QUIET)


def test_a_machine_is_controlled_until_the_end_of_the_replay(session: Any, tmp_path: Path) -> None:
    """The small machine gets no request of the last minute, which is for a large one, and scales down as planned."""
    plan = document([(0, 30.0), (0, 30.0), (2, 30.0)], START_S)
    plan["offers"].append(offer(2, FAST, 0.01, 100.0, machine="large") | {"trial": 11})
    path = write_plan(tmp_path / "kinds.json", plan)
    request = asked(tmp_path, plan=path, machine="small", policies=(ELASTIC,))
    request = dataclasses.replace(request, trace=trace_file(tmp_path, rates=(10.0, 10.0, 10.0)))
    found = run.replay(session, request, tmp_path / "out", QUIET).rows[0]
    assert [(each.option, each.reason) for each in found.decisions] == [("trial 10 1x1", "calm")]
    # What was wanted is held for a stable window of 20 s after second 120.
    assert found.decisions[0].second == pytest.approx(140, abs=1.5)
    assert found.replica_seconds == pytest.approx(2 * 140 + 40, abs=3) and found.switches == 1


@pytest.mark.parametrize("speed", [720.0, 7.0])
def test_a_server_gets_a_weekly_plan_in_the_phase_of_the_trace(
    speed: float, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own reader finds Friday's phases from the begin of the requests on, and all again a week later.

    Before the begin it finds Friday's first phase.
    """
    bundles, start_s, given = write_bundles(tmp_path), 1.8e9, {}

    def serve(settings: server.ServerSettings, name: str, policy: ControlPlan, requests: Any, seconds: Any) -> Any:
        path = write_plan(tmp_path / "served.json", server.document_of(settings, policy, start_s))
        given[name] = machine_plan(read_plan(path), settings.machine, settings.bundles)
        count = len(seconds)
        return Served(np.ones(count), np.zeros(count, np.int64), (Segment(0.0, 0.0, 0),)), ()

    monkeypatch.setattr(policy_replays, "serve_policy", serve)
    monkeypatch.setattr(
        policy_replays, "sample_ms", lambda settings, static, requests, gaps_s: np.full(len(requests), 30.0)
    )
    request = weekly_request(tmp_path, FRIDAYS_PHASES, FRIDAY, bundles=bundles, speed=speed)
    run.replay(session, replace(request, policies=(REACTIVE, ELASTIC)), tmp_path / "out", QUIET)
    phase_s = 21_600 / speed

    def foreseen(name: str, second: float) -> PlannedPhase | None:
        plan = given[name]
        assert plan.start_s is not None
        now = start_s + second - plan.start_s
        return plan.control.foreseen(now, now)

    for number, (served, rate) in enumerate([*FRIDAYS_PHASES, (1, 150.0)]):
        for weeks in (-1, 0, 1, 2):
            for second in (0.01, phase_s - 0.01):
                moment = second + phase_s * (number + 28 * weeks)
                expected = PlannedPhase(rate, 0.01 * served) if weeks >= 0 else PlannedPhase(12.0, 0.0)
                assert foreseen("planned-and-reactive", moment) == expected
                assert foreseen("reactive", moment) is None
    assert given["planned-and-reactive"].control.repeat_s == pytest.approx(28 * phase_s)
    page = (tmp_path / "out" / "replay.html").read_text()
    assert "of a sample on a real one" in page and "the HTTP server are no" not in page


def test_a_server_that_only_reacts_does_not_know_the_fleet(tmp_path: Path) -> None:
    """Three machines together serve 1.5 times as much as three alone, which the plan knows."""
    plan, bundles = document([(0, 12.0), (1, 110.0)], START_S), write_bundles(tmp_path)
    for phase in plan["phases"]:
        phase |= {"machines": 3, "capacity_rps": 450.0, "alone_rps": 100.0}
    request = asked(tmp_path, plan=write_plan(tmp_path / "fleet.json", plan))
    control = run._control(plan, offers_on(plan, None), "small", request)
    folder = server.ServerSettings(plan, "small", bundles, request.windows, 1.0, tmp_path, 0.0, 60.0)
    for name, factor in ((ELASTIC, 1.5), (REACTIVE, 1.0)):
        path = write_plan(tmp_path / "served.json", server.document_of(folder, policies(control)[name], START_S))
        served = machine_plan(read_plan(path), "small", bundles).control
        assert served.capacity_factor(1.0) == policies(control)[name].capacity_factor(1.0) == factor


@pytest.mark.parametrize("up_s", [0.1, 3.9, 29.5])
@pytest.mark.parametrize("weekly", [True, False])
def test_a_server_that_is_up_early_begins_as_the_virtual_one(weekly: bool, up_s: float, tmp_path: Path) -> None:
    """The trace begins with a phase for one exact replica, after phases of 8 s for two fast ones."""
    bundles, start_s = write_bundles(tmp_path), 1.8e9
    if weekly:
        request = weekly_request(tmp_path, FRIDAYS_PHASES, FRIDAY, speed=2700.0)
    else:
        plan = document([(1, 150.0), (0, 12.0), (0, 12.0)], START_S)
        path = write_plan(tmp_path / "dated.json", plan)
        request = asked(tmp_path, trace=trace_file(tmp_path, START_S + 60, (1.0, 1.0)), plan=path, speed=7.5)
    plan = json.loads(request.plan.read_text())
    control, windows = run._control(plan, offers_on(plan, None), "small", request), request.compressed_windows
    menu = SimpleNamespace(rows=np.array([3]))
    log = read_log(request.trace, "--trace", None, 0)
    begins_s = traffic_of(plan, offers_on(plan, None), log, menu, request).begins_s  # type: ignore[arg-type]
    virtual = begin(control, windows, begins_s)

    folder = server.ServerSettings(plan, "small", bundles, windows, request.speed, tmp_path, begins_s, 0.0)
    path = write_plan(tmp_path / "served.json", server.document_of(folder, control, start_s))
    served = machine_plan(read_plan(path), "small", bundles)
    assert served.start_s is not None
    second = start_s - up_s - served.start_s
    state = begin(served.control, windows, second)
    while (second := second + windows.tick_s) < start_s - served.start_s:
        assert state.option == virtual.option
        state, _ = decide(served.control, windows, state, Observation(second, 0, 0, state.option))
    assert state.option == virtual.option and control.options[virtual.option].name == "trial 10 1x1"
    assert {each.value for each in state.wanted} == {virtual.wanted[0].value}


def test_a_load_that_began_before_the_requests_takes_its_whole_time(tmp_path: Path) -> None:
    """The load takes 3 s, of which the last one lies in the replay: two replicas load, beside the one that serves.

    What serves after the end of the replay counts no more.
    """
    timeline = tmp_path / "timeline.jsonl"
    one, two = (Option("one", 0.0, PLACEMENT.with_replicas(n), 10.0, 2.5, n) for n in (1, 2))
    lines = [
        {"at": 95.0, "event": "start", "option": one.name},
        {"at": 101.0, "event": "serving", "option": two.name, "load_seconds": 3.0},
        {"at": 111.5, "event": "serving", "option": one.name, "load_seconds": 3.0},
    ]
    timeline.write_text("\n".join(map(json.dumps, lines)))
    served, _ = server._told(timeline, (one, two), 100.0, 11.0, np.ones(2), np.array([0.5, 1.5]))
    found = machine_outcome(served, (one, two), 11.0, Objective(10.0), 1.0)
    assert (found.switch_seconds, found.planned_switch_seconds) == (3.0, 2.5)
    assert found.replica_seconds == 1 + 2 * 11 and found.switches == 1


def test_what_a_server_that_was_stopped_decided_is_left_out(tmp_path: Path) -> None:
    """The first server was up too late for its begin, and wrote into the same file as the second one."""
    timeline = tmp_path / "timeline.jsonl"
    one, two = (Option("one", 0.0, PLACEMENT.with_replicas(n), 10.0, 2.5, n) for n in (1, 2))
    lines = [
        {"at": 80.0, "event": "start", "option": one.name},
        {"at": 81.0, "event": "decision", "option": two.name, "reason": "plan"},
        {"at": 84.0, "event": "serving", "option": two.name, "load_seconds": 3.0},
        {"at": 95.0, "event": "start", "option": one.name},
        {"at": 103.0, "event": "decision", "option": two.name, "reason": "reactive"},
    ]
    timeline.write_text("\n".join(map(json.dumps, lines)))
    served, decisions = server._told(timeline, (one, two), 100.0, 11.0, np.ones(2), np.array([0.5, 1.5]))
    assert [(each.second, each.reason) for each in decisions] == [(3.0, "reactive")]
    assert served.segments == (Segment(0.0, 0.0, 0),)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"trace": Path("none.csv")}, "--trace: none.csv"),
        ({"plan": Path("none.json")}, "--plan: must be a plan.json"),
        ({"machine": "huge"}, "--machine: must be one of small"),
        ({"rows_column": "size"}, "--trace: "),
    ],
)
def test_wrong_requests_are_explained_and_write_nothing(
    given: dict[str, Any], expected: str, session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is measured before the options are read.
    monkeypatch.setattr(run, "menu_of", lambda session, console: pytest.fail("curves were measured"))
    with pytest.raises(InputError) as error:
        run.replay(session, asked(tmp_path, **given), tmp_path / "out", QUIET)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def put(*path: str | int, value: Any = None) -> Callable[[dict[str, Any]], None]:
    """Put a value into a plan, or leave it out."""

    def edit(plan: dict[str, Any]) -> None:
        *where, last = path
        inner: Any = plan
        for key in where:
            inner = inner[key]
        if value is None:
            del inner[last]
        else:
            inner[last] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (put("slo_ms"), "slo_ms: missing"),
        (put("forecast"), "forecast: missing"),
        (put("start_s", value="today"), "start_s: must be "),
        (put("percent", value=0), "percent: must be above 0 and at most 99, but got 0"),
        (put("phase_seconds", value=0.0), "phase_seconds: must be above 0"),
        (put("phases", value=3), "phases: must be "),
        (put("phases", value=[]), "number of phases: must be above 0"),
        (put("phases", 1, "machines"), "phases.1.machines: missing"),
        (put("phases", 1, "machines", value=0), "phases.1.machines: must be above 0"),
        (put("phases", 1, "demand_rps", value=math.nan), "phases.1.demand_rps: must be at least 0"),
        (put("phases", 1, "offer", value=7), "phases.1.offer: must be one of "),
        (put("offers", value=[]), "phases.0.offer: must be one of "),
        (put("offers", 0, "machine"), "offers.0.machine: missing"),
        (put("offers", 0, "machine_cores", value=0), "offers.0.machine_cores: must be above 0"),
        (put("offers", 0, "machine_speed", value=-1.0), "offers.0.machine_speed: must be above 0"),
        (put("offers", 0, "price_per_hour", value="free"), "offers.0.price_per_hour: must be "),
        (put("offers", 1, "layouts", 0, "replicas", value=0), "offers.1.layouts.0.replicas: must be above 0"),
        (put("offers", 1, "layouts", 0, "capacity_rps"), "offers.1.layouts.0.capacity_rps: missing"),
        (put("offers", 1, "deployed", "instance_group", "threads", value=-2), "offers.1.deployed: must be a placement"),
        (put("offers", 1, "deployed", "instance_group", "threads", value="two"), "offers.1.deployed: must be a pl"),
        (put("offers", 1, "deployed", value={"engine": 3}), "offers.1.deployed: must be a placement"),
        (put("offers", 1, "deployed", value={"instance_group": "two"}), "offers.1.deployed: must be a placement"),
    ],
)
@pytest.mark.parametrize("bundles", [(), (Path("none"),)])
def test_a_plan_with_a_wrong_field_is_explained_in_one_line(
    edit: Callable[[dict[str, Any]], None], expected: str, bundles: tuple[Path, ...], session: Any, tmp_path: Path
) -> None:
    plan = document([(0, 12.0), (1, 110.0)], START_S)
    edit(plan)
    request = asked(tmp_path, plan=write_plan(tmp_path / "wrong.json", plan), bundles=bundles)
    with pytest.raises(InputError) as error:
        run.replay(session, request, tmp_path / "out", QUIET)
    assert str(error.value).startswith(f"--plan: {expected}") and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_sizes_and_points_that_the_study_does_not_have_are_refused(session: Any, tmp_path: Path) -> None:
    trace = tmp_path / "large.csv"
    trace.write_text("timestamp,rows\n1,5000\n2,5000\n")
    with pytest.raises(ConfigError, match="--trace: must have requests of sizes"):
        run.replay(session, asked(tmp_path, trace=trace), tmp_path / "out", QUIET)
    plan = document([(0, 12.0)], START_S)
    plan["offers"][0]["trial"] = 99
    with pytest.raises(ConfigError, match="trial 99 is none of them"):
        run.replay(session, asked(tmp_path, plan=write_plan(tmp_path / "p.json", plan)), tmp_path / "out", QUIET)


def test_the_command_names_policies_and_prints_one_document(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    session.home = Home(tmp_path / "home")
    monkeypatch.setattr(planning, "_existing", lambda options: session)
    monkeypatch.setattr(planning, "_config", lambda options: SimpleNamespace(seed=3))
    request = asked(tmp_path)
    command = ["replay", "toy", "--trace", str(request.trace), "--plan", str(request.plan), "--speed", "4", "--json"]
    assert run_command([*command, "--policy", "elastic", "--policy", "peak", "--windows", "20,4,1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in found["rows"]] == [STATIC_PEAK, ELASTIC] and found["seed"] == 3
    assert found["windows"] == [5.0, 1.0, 0.25]
    assert (session.home.reports("toy") / "replay.html").exists()
    plan = tmp_path / "cut.json"
    plan.write_text("{}")
    for wrong in (["--plan", str(plan)], ["--speed", "0.5"], ["--policy", "best"], ["--windows", "1,2"]):
        assert run_command([*command, *wrong]) == 2
        told = capsys.readouterr()
        assert told.out == "" and wrong[0] in told.err and len(told.err.splitlines()) == 1


@pytest.mark.parametrize("fails", [None, JobError, ConfigError])
def test_transport_is_measured_before_and_after_the_policies(
    session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: type[Exception] | None
) -> None:
    """A machine on which requests take 1 ms more before, and 3 ms more later: each in half of the time.

    Where the second measurement fails, what was served is told all the same.
    """
    called: list[str] = []

    def serve(settings: Any, name: str, policy: Any, requests: Any, seconds: Any) -> Any:
        called.append(name)
        count = len(seconds)
        return Served(np.ones(count), np.zeros(count, np.int64), (Segment(0.0, 0.0, 0),)), ()

    def sample(self: Any, requests: Any, rate_rps: float) -> Any:
        early = set(called) <= {"sample"}
        called.append("sample")
        if not early and fails is not None:
            raise fails("a request failed: gone")
        return TransportSample(np.full(len(requests), 1.0 if early else 3.0), np.ones(2000), 1.0)

    def travelled(seconds: Any, sample: DrawnTransport) -> Any:
        drawn.extend(sample.usual_ms.tolist())
        return travelled_s(seconds, sample)

    drawn = list[float]()
    monkeypatch.setattr(policy_replays, "serve_policy", serve)
    monkeypatch.setattr(policy_replays.PolicyReplays, "_sample", sample)
    monkeypatch.setattr(policy_replays, "travelled_s", travelled)
    request = replace(asked(tmp_path), bundles=write_bundles(tmp_path), policies=(STATIC_PEAK, ELASTIC))
    found = run.replay(session, request, tmp_path / "out", QUIET)
    after = ["sample"] * (1 if fails else 2)
    assert called == ["sample", "sample", "static-peak", "planned-and-reactive", *after]
    assert set(drawn) == ({1.0} if fails else {1.0, 3.0})
    assert np.mean(drawn) == pytest.approx(1 if fails else 2, abs=0.3)
    assert [row.clock for row in found.rows] == ["virtual", "server"] * 2


@pytest.mark.slow
def test_real_servers_follow_the_policies(session: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers replay 3 minutes in 12 s, and answer all requests in time.

    The bundles' runs take less than a millisecond. No garbage is collected meanwhile: with the requests of a long trace
    a collection takes 0.2 s, in which no request is sent.
    """
    collected: list[bool] = []
    play = server.open_loop
    monkeypatch.setattr(server, "open_loop", lambda *args: collected.append(gc.isenabled()) or play(*args))
    request = asked(tmp_path, bundles=write_bundles(tmp_path), speed=15.0, policies=(STATIC_PEAK, ELASTIC))
    found = run.replay(session, request, tmp_path / "out", QUIET)
    # Samples at two rates before and after, and two policies.
    assert len(collected) == 6 and not any(collected) and gc.isenabled()
    rows = {(row.policy, row.clock): row for row in found.rows}
    assert list(rows) == [(policy, clock) for policy in (STATIC_PEAK, ELASTIC) for clock in ("virtual", "server")]
    for row in found.rows:
        assert row.requests == found.requests and row.refused == 0
    static, served = rows[STATIC_PEAK, "server"], rows[ELASTIC, "server"]
    assert static.switches == 0 and static.loss == pytest.approx(0.01)
    assert static.replica_seconds == pytest.approx(2 * found.seconds)
    assert served.switches >= 2 and 0 < served.loss < 0.01 and served.replica_seconds < static.replica_seconds
    assert any(each.reason == "plan" for each in served.decisions), "the phase is seconds 4 to 8"
    assert static.switch_seconds is None and served.switch_seconds is not None
    # A layout of one replica is planned to load in 0.1 s, one of two in 0.2 s.
    assert served.planned_switch_seconds is not None
    assert served.switch_seconds > 0 and 0.1 <= served.planned_switch_seconds <= 0.2
    virtual = rows[ELASTIC, "virtual"]
    assert virtual.switch_seconds == pytest.approx(virtual.planned_switch_seconds)
    assert (tmp_path / "out" / "servers" / "planned-and-reactive.timeline.jsonl").exists()
    # What requests took beyond their simulated times is added to the simulated ones, which may wait for each other too.
    simulated = run.replay(session, replace(request, bundles=()), tmp_path / "simulated", QUIET)
    for row in simulated.rows:
        beside = rows[row.policy, "virtual"]
        assert row.transport_ms == 0 <= beside.transport_ms
        # Half of the requests may take no longer at all, while the slow ones delay others.
        assert beside.p50_ms > row.p50_ms if beside.transport_ms > 0 else beside.p50_ms >= 0.99 * row.p50_ms


@pytest.mark.slow
def test_real_servers_follow_a_weekly_plan_over_sunday_night(session: Any, tmp_path: Path) -> None:
    """A phase takes 6 s; Monday's first phase asks for the fast variant, and the rule that only reacts does not."""
    phases, windows = [(0, 12.0), (1, 150.0)], Windows(2.0 * 3600, 1.0 * 3600, 0.25 * 3600)
    request = weekly_request(tmp_path, phases, SUNDAY, bundles=write_bundles(tmp_path), speed=3600.0, windows=windows)
    found = run.replay(session, replace(request, policies=(REACTIVE, ELASTIC)), tmp_path / "out", QUIET)
    assert found.seconds == pytest.approx(12, abs=0.1)
    rows = {(row.policy, row.clock): row for row in found.rows}
    for clock in ("virtual", "server"):
        planned = rows[ELASTIC, clock]
        assert planned.intervals[0].option == planned.intervals[20].option == "trial 10 1x1"
        assert planned.intervals[-1].option == "trial 11 2x1"
        # The option of the second phase is decided for once, after that of the first.
        ups = [each.second for each in planned.decisions if each.option == "trial 11 2x1"]
        assert len(ups) == 1 and 5 < ups[0] < 10
        assert rows[REACTIVE, clock].loss == 0
