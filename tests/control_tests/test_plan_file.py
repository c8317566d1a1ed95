"""Plans of a machine, read from plan.json and bundles, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.errors import InputError
from objectives.serving.control.options import ControlPlan, Option, PlannedPhase, with_queue
from objectives.serving.control.plan_file import (
    machine_plan,
    options_of,
    planned_phases,
    read_plan,
    repeats_after,
    starts_at,
)
from objectives.serving.pool.virtual_clock import simulate
from spaces.techniques.placement import Admission, InstanceGroup, Placement, Route
from tests.control_tests.plans import FAST, document, offer, write_bundles, write_plan
from tests.serve_tests.bundles import write_toy


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_bundles(tmp_path_factory.mktemp("bundles"))


def test_options_are_the_layouts_of_the_points_that_have_a_bundle(bundles: tuple[Path, Path]) -> None:
    plan = document([(0, 15.0), (1, 300.0)], start_s=1.7e9)
    plan["phases"][1]["machines"] = 3
    plan["offers"][1]["layouts"].append({"replicas": 3, "cores": 3, "capacity_rps": 0.0, "load_seconds": 0.3})
    found = machine_plan(plan, None, bundles)
    assert [(each.name, each.loss, each.capacity_rps, each.cores) for each in found.control.options] == [
        ("trial 10 1x1", 0.0, 20.0, 1),
        ("trial 10 2x1", 0.0, 40.0, 2),
        ("trial 11 1x1", 0.01, 100.0, 1),
        ("trial 11 2x1", 0.01, 200.0, 2),
    ]
    assert [each.load_seconds for each in found.control.options] == [0.1, 0.2, 0.1, 0.2]
    assert found.folders == (bundles[0], bundles[0], bundles[1], bundles[1])
    assert found.control.phases == (PlannedPhase(15.0, 0.0), PlannedPhase(100.0, 0.01)), "the rate of one of 3 machines"
    assert (found.start_s, found.control.phase_s) == (1.7e9, 60.0)


def test_a_phase_of_several_machines_tells_what_each_serves_beyond_its_capacity_alone(
    bundles: tuple[Path, Path],
) -> None:
    plan = document([(0, 15.0), (0, 90.0), (0, 90.0)])
    plan["phases"][1] |= {"machines": 4, "capacity_rps": 120.0, "alone_rps": 20.0}
    plan["phases"][2] |= {"machines": 4, "capacity_rps": 120.0, "alone_rps": 0.0}
    found = machine_plan(plan, None, bundles).control
    assert found.phases == (PlannedPhase(15.0, 0.0), PlannedPhase(15.0, 0.0, 1.5), PlannedPhase(22.5, 0.0, 1.0))
    assert [found.capacity_factor(second) for second in (-1.0, 0.0, 60.0, 119.0, 120.0, 180.0)] == [
        1,
        1,
        1.5,
        1.5,
        1,
        1,
    ]
    ended = replace(found, phases=found.phases[1:2])
    assert [ended.capacity_factor(second) for second in (-9.0, 30.0, 1e6)] == [1.5] * 3, "the fleet is still there"


def test_other_layouts_of_the_same_files_are_options_too(bundles: tuple[Path, Path]) -> None:
    """Another trial has the fast variant's weights with two threads: the same bundle can serve it."""
    plan = document([(0, 15.0)])
    plan["offers"].append(offer(2, FAST, 0.01, 70.0))
    plan["offers"][2]["deployed"]["instance_group"]["threads"] = 2
    found = machine_plan(plan, None, bundles)
    assert [each.name for each in found.control.options[4:]] == ["trial 12 1x2", "trial 12 2x2"]
    assert found.folders[4:] == (bundles[1], bundles[1])


def test_only_phases_of_this_kind_of_machine_count(bundles: tuple[Path, Path]) -> None:
    plan = document([(0, 15.0), (2, 90.0)])
    plan["offers"].append(offer(2, FAST, 0.02, 400.0, machine="large"))
    found = machine_plan(plan, "small", bundles)
    assert found.control.phases == (PlannedPhase(15.0, 0.0), PlannedPhase(0.0, 0.0))
    assert [each.variant for each in found.control.options] == ["trial 10", "trial 10", "trial 11", "trial 11"]


def _large(plan: dict[str, Any]) -> None:
    plan["offers"].append(offer(2, FAST, 0.02, 400.0, machine="large"))


def _old(plan: dict[str, Any]) -> None:
    del plan["offers"][0]["layouts"]


def _old_layout(plan: dict[str, Any]) -> None:
    del plan["offers"][0]["layouts"][0]["load_seconds"]


def _phase(plan: dict[str, Any]) -> None:
    plan["phases"] = 3


def _hopeless(plan: dict[str, Any]) -> None:
    for each in plan["offers"]:
        each["layouts"] = [{"replicas": 1, "cores": 1, "capacity_rps": 0.0, "load_seconds": 0.1}]


@pytest.mark.parametrize(
    ("edit", "machine", "expected"),
    [
        (_large, None, "--machine: must be given, one of large, small"),
        (_large, "huge", "--machine: must be one of large, small, but got 'huge'"),
        (_old, None, "it lacks 'layouts'; plan again with this version"),
        (_old_layout, None, "it lacks 'load_seconds'; plan again with this version"),
        (_phase, None, "--plan: must be a plan.json of leanrec plan"),
        (lambda plan: plan.update(start_s="today"), None, "--plan: must be a plan.json of leanrec plan"),
        (lambda plan: plan["phases"][0].update(machines=0), None, "division by zero"),
        (_hopeless, None, "--plan: must offer a point that keeps its SLO"),
        (lambda plan: plan.update(phase_seconds=0), None, "A phase is longer than 0 s"),
        (lambda plan: plan.update(repeat_seconds=0), None, "Phases repeat after more than 0 s"),
        (lambda plan: plan.update(repeat_seconds="weekly"), None, "--plan: must be a plan.json of leanrec plan"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_one_line(
    edit: Callable[[dict[str, Any]], None],
    machine: str | None,
    expected: str,
    bundles: tuple[Path, Path],
) -> None:
    plan = document([(0, 15.0)])
    edit(plan)
    with pytest.raises(InputError) as error:
        machine_plan(plan, machine, bundles)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_no_plan_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for content in ("{", "[]", json.dumps({"offers": [1]}), json.dumps(document([]))):
        path.write_text(content)
        with pytest.raises(InputError, match=r"--plan: must be a plan.json"):
            read_plan(path)
    with pytest.raises(InputError, match=r"--plan: must be a plan.json"):
        read_plan(tmp_path / "none.json")
    plan = document([(0, 15.0)])
    assert read_plan(write_plan(path, plan)) == plan


def test_bundles_and_plan_have_to_fit(bundles: tuple[Path, Path], tmp_path: Path) -> None:
    plan = document([(0, 15.0), (1, 90.0)])
    with pytest.raises(InputError, match=r"--variant: must give a bundle of each point .* trial 11 has none"):
        machine_plan(plan, None, bundles[:1])
    for name, placement in {"once": Placement(user_once=True), "whole": Placement(score_catalogue=True)}.items():
        strange = write_toy(tmp_path / name, placement)
        with pytest.raises(InputError, match=rf"BUNDLE: must be of a point that the plan offers, but .*{name}"):
            machine_plan(plan, None, (*bundles, strange))


def test_what_does_not_apply_to_so_many_replicas_is_left_out() -> None:
    inline = Placement(InstanceGroup(threads=1), inline=True)
    assert inline.with_replicas(1) == inline
    assert inline.with_replicas(2) == Placement(InstanceGroup(replicas=2, threads=1))
    split = Placement(InstanceGroup(replicas=2), split_rows=100)
    assert split.with_replicas(1) == Placement()
    assert split.with_replicas(3) == Placement(InstanceGroup(replicas=3), split_rows=100)
    routed = Placement(route=Route(10, InstanceGroup("openvino", replicas=2)))
    assert routed.with_replicas(2).route == routed.route


def test_a_weekly_plan_repeats_from_monday_on() -> None:
    """Each hour of a week has a rate of its own; a moment is that of the calendar's weekday and hour."""
    plan = document([(0, 1.0 + hour) for hour in range(168)], phase_s=3600.0) | {"forecast": None}
    offers = {offer["offer"]: offer for offer in plan["offers"]}
    control = ControlPlan(
        options_of(offers[0], plan["slo_ms"]), planned_phases(plan, offers), 3600.0, repeats_after(plan)
    )
    start = starts_at(plan)
    assert start is not None and datetime.fromtimestamp(start, UTC).isoweekday() == 1
    for moment in (datetime(2026, 11, 25, 15, 30, tzinfo=UTC), datetime(2027, 2, 28, 23, 59, tzinfo=UTC)):
        second, hour = moment.timestamp() - start, 24 * (moment.isoweekday() - 1) + moment.hour
        found = control.foreseen(second, second)
        assert found is not None and found.rate_rps == 1.0 + hour
        following = control.foreseen(second, second + 2 * 3600)
        rates = [1.0 + (hour + more) % 168 for more in range(3)]
        assert following is not None and following.rate_rps == max(rates)
    assert control.foreseen(-3600.0, -1.0) is not None


def test_a_dated_plan_begins_once_and_ends() -> None:
    plan = document([(0, 1.0), (0, 2.0)], start_s=50.0)
    assert starts_at(plan) == 50.0 and repeats_after(plan) is None and starts_at(document([(0, 1.0)])) is None


@pytest.mark.parametrize(
    ("slo_ms", "own", "expected"),
    [(3000.0, None, 38), (15.9, None, 13), (math.inf, None, None), (3000.0, 7, 7)],
)
def test_no_more_wait_than_are_answered_within_the_slo_or_a_second(
    slo_ms: float, own: int | None, expected: int | None
) -> None:
    """12.5 requests/s are 37.5 in three seconds; a limit of the placement's own stays."""
    placement = Placement(InstanceGroup(threads=1), admission=Admission(queue=own))
    found = with_queue(Option("one", 0.0, placement, 12.5, 1.0, 1), slo_ms)
    assert found.placement == replace(placement, admission=Admission(queue=expected))


@pytest.mark.parametrize("routed", [False, True])
def test_a_split_request_counts_once_among_those_that_wait(routed: bool) -> None:
    """At 12.5 requests/s 50 wait for 4 s, whole, beside the one that runs; four replicas serve a part of each."""
    route = Route(10**6, InstanceGroup("openvino", threads=1)) if routed else None
    placement = Placement(InstanceGroup(replicas=4, threads=1), split_rows=100, route=route)
    limited = with_queue(Option("one", 0.0, placement, 12.5, 1.0, 4), 4000.0).placement
    found = simulate(limited, [1000] * 80, list(range(80)), lambda group, rows, idle_ns, busy: 80e6)
    assert np.count_nonzero(~found.refused) == 51
