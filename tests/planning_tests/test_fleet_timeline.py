"""The machines of a fleet over time: against renewal theory, and against a count of every event at every moment."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning.virtual_fleet.incidents import (
    Deployments,
    Failures,
    FleetSpec,
    Incidents,
    SlowMachines,
    Zones,
    apportioned,
    speeds,
)
from planning.virtual_fleet.timeline import Cause, fleet_timeline, machine_events
from tests.planning_tests.virtual_fleets import HOUR, fleet

WEEK = 168 * HOUR
ALL = Incidents(
    Failures(20 * HOUR, 2 * HOUR),
    SlowMachines(0.1, 0.5, HOUR),
    Deployments(24 * HOUR, 2, 600.0, 3 * HOUR),
    Zones(3, 50 * HOUR, HOUR),
)


def mean(timeline_values: np.ndarray, starts: np.ndarray, end_s: float) -> float:
    return float(np.diff(starts, append=end_s) @ timeline_values / end_s)


def test_availability_is_that_of_an_alternating_renewal_process() -> None:
    """MTBF / (MTBF + MTTR), of 400 machines and a week, about 2800 failures: 2% of the unavailability."""
    spec = fleet(400, incidents=Incidents(Failures(20 * HOUR, 4 * HOUR)))
    found = fleet_timeline(spec, WEEK, 0)
    away = 400 - found.healthy.sum(axis=1)
    assert mean(away, found.starts_s, WEEK) / 400 == pytest.approx(4 / 24, rel=0.06)
    assert found.healthy[0].sum() == pytest.approx(400 * 20 / 24, abs=5 * np.sqrt(400 * 20 / 24 * 4 / 24))
    assert len(found.failed_s) == pytest.approx(400 * 168 / 24, rel=0.08), "one failure in each cycle of 24 hours"


def test_slow_machines_have_their_share_and_zones_fail_as_one() -> None:
    spec = fleet(300, incidents=Incidents(slow=SlowMachines(0.05, 0.5, HOUR)))
    found = fleet_timeline(spec, WEEK, 1)
    assert mean(found.slow.sum(axis=1), found.starts_s, WEEK) / 300 == pytest.approx(0.05, rel=0.06)
    assert np.all(found.slow + found.healthy == 300)
    zones = fleet(9, incidents=Incidents(zones=Zones(3, 20 * HOUR, 2 * HOUR)))
    machines = set(fleet_timeline(zones, WEEK, 1).healthy[:, 0].tolist())
    assert machines <= {0, 3, 6, 9} and len(machines) > 1


def test_a_deployment_rolls_through_all_machines() -> None:
    spec = fleet(10, incidents=Incidents(deployments=Deployments(24 * HOUR, 4, 600.0, HOUR)))
    found = fleet_timeline(spec, 48 * HOUR, 0)
    shown = list(zip(found.starts_s.tolist(), found.healthy[:, 0].tolist(), found.deploying.tolist(), strict=True))
    day = [(3600.0, 6, 4), (4200.0, 6, 4), (4800.0, 8, 2), (5400.0, 10, 0)]
    assert shown == [(0.0, 10, 0), *day, *((start + 24 * HOUR, up, away) for start, up, away in day)]
    assert len(found.failed_s) == 0, "a machine that is drained does not fail"


@given(st.integers(0, 5), st.integers(1, 6), st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_counts_are_those_of_the_events(first: int, second: int, seed: int) -> None:
    spec = fleet(first, second, incidents=ALL)
    end_s = 40 * HOUR
    events, found = machine_events(spec, end_s, seed), fleet_timeline(spec, end_s, seed)
    kind = [0] * first + [1] * second
    for at in np.linspace(0, end_s, 41)[:-1]:
        on = [{cause for cause in Cause if _on(events, machine, cause, at)} for machine in range(first + second)]
        segment = np.searchsorted(found.starts_s, at, side="right") - 1
        for number in range(2):
            up = [causes for causes, of in zip(on, kind, strict=True) if of == number and causes <= {Cause.SLOW}]
            assert found.slow[segment, number] == sum(Cause.SLOW in causes for causes in up)
            assert found.healthy[segment, number] == sum(Cause.SLOW not in causes for causes in up)
        assert found.deploying[segment] == sum(Cause.DEPLOYMENT in causes for causes in on)


def _on(events: list, machine: int, cause: Cause, at: float) -> bool:
    changes = [e.begins for e in events if e.machine == machine and e.cause is cause and e.at_s <= at]
    return 2 * sum(changes) > len(changes)


def test_what_is_left_out_or_added_changes_nothing_else() -> None:
    few, more = fleet(4, incidents=ALL), fleet(6, incidents=ALL)
    stochastic = {Cause.FAILURE, Cause.SLOW, Cause.OUTAGE}
    events = [event for event in machine_events(few, WEEK, 3) if event.cause in stochastic]
    assert events == [e for e in machine_events(more, WEEK, 3) if e.machine < 4 and e.cause in stochastic]
    calm = dataclasses.replace(few, incidents=dataclasses.replace(ALL, failures=None))
    assert machine_events(calm, WEEK, 3) == [e for e in machine_events(few, WEEK, 3) if e.cause is not Cause.FAILURE]


@pytest.mark.parametrize("seed", [0, 7])
def test_no_two_causes_have_the_same_random_numbers(seed: int) -> None:
    """An outage is shared by its zone, nothing else is shared, and no stream is that of the seed alone.

    Failures, slow episodes and outages have equal mean times.
    """
    same = Incidents(Failures(HOUR, HOUR), SlowMachines(0.5, 0.5, HOUR), None, Zones(4, HOUR, HOUR))
    streams: dict[float, set[tuple[Cause, int]]] = {}
    for event in machine_events(fleet(4, 4, incidents=same), WEEK, seed):
        number = event.machine % 4 if event.cause is Cause.OUTAGE else event.machine
        streams.setdefault(event.at_s, set()).add((event.cause, number))
    streams.pop(0.0)
    assert all(len(of) == 1 for of in streams.values()) and len(set().union(*streams.values())) == 20
    random = np.random.default_rng(seed)
    random.random()
    assert random.exponential(HOUR) not in streams


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_machines_that_are_added_leave_the_others_in_rotation(machines: int, more: int, seed: int) -> None:
    incidents = dataclasses.replace(ALL, deployments=None)
    few, many = (fleet_timeline(fleet(n, incidents=incidents), WEEK, seed) for n in (machines, machines + more))
    at = np.searchsorted(few.starts_s, many.starts_s, side="right") - 1
    for up_few, up_many in ((few.healthy[at], many.healthy), (few.slow[at], many.slow)):
        assert np.all(up_few <= up_many) and np.all(up_many <= up_few + more)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=5).filter(any), st.integers(0, 500))
def test_seats_are_apportioned(weights: list[int], seats: int) -> None:
    found = apportioned(np.array(weights), seats)
    quota = np.array(weights) * seats / sum(weights)
    assert found.sum() == seats and np.all(np.abs(found - quota) < 1 + 1e-9)


def test_speeds_have_their_mean_and_spread() -> None:
    found = speeds(1000, 0.2)
    assert found.mean() == pytest.approx(1) and np.log(found).std() == pytest.approx(0.2, rel=0.02)
    assert speeds(5, 0.0).tolist() == [1.0] * 5 and len(speeds(0, 0.2)) == 0


def test_a_fleet_is_resized_with_its_deployments() -> None:
    spec = fleet(60, 40, incidents=Incidents(deployments=Deployments(HOUR, 10, 360.0)))
    for machines in (1, 7, 250):
        other = spec.resized(machines)
        assert other.machines == machines and other.counts[0] == pytest.approx(0.6 * machines, abs=1)
        rolling = other.incidents.deployments
        assert rolling is not None and rolling.seconds(machines) <= HOUR


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Failures(0.0, 1.0),
        lambda: Failures(1.0, float("nan")),
        lambda: SlowMachines(1.0, 0.5, 1.0),
        lambda: SlowMachines(0.1, 1.0, 1.0),
        lambda: Deployments(1.0, 0, 1.0),
        lambda: Deployments(1.0, 1, 1.0, -1.0),
        lambda: Zones(0, 1.0, 1.0),
        lambda: Incidents(detection_s=-1.0),
        lambda: fleet(0),
        lambda: fleet(1, spread=-0.1),
        lambda: FleetSpec(fleet(1).offers, (1, 2), "two-choices"),
        lambda: fleet(100, incidents=Incidents(deployments=Deployments(HOUR, 1, 60.0))),
    ],
)
def test_what_no_fleet_is_like_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError):
        wrong()  # type: ignore[operator]
