"""Fleets over time: the approximation against every request simulated, and what must hold of any fleet."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning.capacity import Objective
from planning.demand import Demand
from planning.virtual_fleet.approximation import approximate
from planning.virtual_fleet.comparison import AS_GIVEN, NO_INCIDENTS, fewest_machines, left_out, scenarios
from planning.virtual_fleet.dispatch import POLICIES, Instance, VirtualFleet, simulate_fleet
from planning.virtual_fleet.exact import exact
from planning.virtual_fleet.incidents import Deployments, Failures, FleetSpec, Incidents, SlowMachines, Zones
from planning.virtual_fleet.latency_table import Composition, LatencyTable
from planning.virtual_fleet.outcome import FleetOutcome
from planning.virtual_fleet.timeline import Cause, MachineEvent
from tests.planning_tests.fleets import deployment
from tests.planning_tests.virtual_fleets import HOUR, OBJECTIVE, ROWS, flat, fleet

ALL = Incidents(
    Failures(20 * HOUR, HOUR),
    SlowMachines(0.1, 0.5, HOUR),
    Deployments(24 * HOUR, 30, 600.0),
    Zones(3, 99 * HOUR, HOUR),
)


class ClosedForm(LatencyTable):
    """A table of M/M/1 queues of 10 ms: what a share of the requests waits, without a simulation."""

    def __init__(self, spec: FleetSpec) -> None:
        self._spec, self.saturated_rps, self._known = spec, 100.0, {}
        self._objective, self._rows, self._seed, self.queue = OBJECTIVE, ROWS, 0, 256

    def _simulate(self, composition: Composition, utilisation: float) -> np.ndarray:
        share = (np.arange(2000) + 0.5) / 2000
        return np.asarray(-np.log(1 - share) * 10 / (1 - utilisation))


def serve(spec: FleetSpec, demand: Demand, seed: int = 0) -> FleetOutcome:
    return approximate(spec, demand, ClosedForm(fleet(*spec.counts, incidents=ALL)), OBJECTIVE, seed)


def test_a_calm_fleet_has_the_latency_of_its_utilisation() -> None:
    found = serve(fleet(100), flat(5000.0, hours=3))
    assert found.requests == 3 * 5000 * HOUR and found.in_rotation == 1 and found.failures == 0
    assert found.p95_ms == pytest.approx(20 * math.log(20), rel=0.01) and found.mean_ms == pytest.approx(20, rel=0.01)
    assert found.late == pytest.approx(math.exp(-50 / 20), abs=0.001)
    assert (found.machine_hours, found.money, found.hours_missed) == (300, 300, 1.0)
    assert [hour.utilisation for hour in found.hours] == pytest.approx([0.5] * 3)


def test_machines_that_are_away_raise_the_utilisation() -> None:
    """Half of the machines are away for half an hour: the hour's requests are those of two queues."""
    rolling = Incidents(deployments=Deployments(24 * HOUR, 50, HOUR / 4, 900.0))
    found = serve(fleet(100, incidents=rolling), flat(2500.0)).hours[0]
    late = (math.exp(-5 * 0.75) + math.exp(-5 * 0.5)) / 2
    assert found.late == pytest.approx(late, rel=0.01) and found.deploying == 25 and found.in_rotation == 75
    assert found.utilisation == pytest.approx((0.25 + 0.5) / 2)


def test_slow_machines_take_their_part_of_the_capacity() -> None:
    """With 10% of the machines at half speed the fleet does 0.95 of its work."""
    slow = fleet(1000, incidents=Incidents(slow=SlowMachines(0.1, 0.5, HOUR)))
    found = serve(slow, flat(50_000.0, hours=24))
    assert np.mean([hour.slow for hour in found.hours]) == pytest.approx(100, rel=0.1)
    assert np.mean([hour.utilisation for hour in found.hours]) == pytest.approx(0.5 / 0.95, rel=0.01)


def test_requests_of_a_failed_machine_are_lost() -> None:
    """A failed machine gets, in turn, a hundredth of 1000 requests/s for 2 s, and has what Little's law says."""
    incidents = Incidents(Failures(50 * HOUR, 60.0), detection_s=2.0)
    found = serve(fleet(100, policy="round-robin", incidents=incidents), flat(1000.0, hours=24))
    calm = serve(fleet(100, policy="round-robin"), flat(1000.0, hours=24))
    each = 10 * (2.0 + calm.mean_ms / 1000)
    assert found.failures > 20 and found.refused * found.requests == pytest.approx(found.failures * each, rel=0.02)
    aware = serve(fleet(100, incidents=incidents), flat(1000.0, hours=24))
    assert 0 < aware.refused < found.refused / 5, "who looks at the queues sends few to one that does not answer"


def test_a_fleet_that_is_all_away_refuses_everything() -> None:
    rolling = Incidents(deployments=Deployments(HOUR, 5, HOUR / 2, 0.0))
    found = serve(fleet(5, incidents=rolling), flat(10.0))
    assert found.refused == pytest.approx(0.5, abs=1e-6) and found.hours[0].utilisation == pytest.approx(0.02)
    rates = Demand(np.array([0, 100]), HOUR)
    empty = serve(fleet(5), rates).hours[0]
    assert empty.requests == 0 and empty.p95_ms is None and empty.late == 0


@given(
    st.lists(st.integers(0, 10**7), min_size=1, max_size=6).filter(any),
    st.integers(1, 40),
    st.integers(0, 30),
    st.integers(0, 50),
)
@settings(max_examples=20, deadline=None)
def test_no_request_is_won_or_lost(counts: list[int], first: int, second: int, seed: int) -> None:
    demand = Demand(np.array(counts), 1000.0)
    found = serve(fleet(first, second, incidents=ALL), demand, seed)
    assert found.requests == pytest.approx(sum(counts))
    assert sum(hour.requests for hour in found.hours) == pytest.approx(sum(counts))
    assert -1e-9 <= found.refused <= found.late + 1e-9 <= 1 + 2e-9
    assert len(found.hours) == math.ceil(len(counts) / 3.6)
    assert found.machine_hours == pytest.approx((first + second) * len(counts) / 3.6)


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 50))
@settings(max_examples=40, deadline=None)
def test_more_machines_are_never_worse(machines: int, more: int, seed: int) -> None:
    """A fleet with more machines answers no more requests late.

    Machines keep their slow episodes as others are added, and at their slowest they do the whole rate: no queue grows.
    Of fleets that fail this holds in the mean only: an added machine loses requests as it fails, and a fleet with a
    machine left keeps the backlog that an empty fleet forgets.
    """
    incidents = Incidents(slow=SlowMachines(0.3, 0.5, HOUR))
    few, many = (
        serve(fleet(count, incidents=incidents), flat(49.0 * machines, hours=20), seed)
        for count in (machines, machines + more)
    )
    assert many.late <= few.late * (1 + 1e-9) and many.refused == few.refused == 0
    assert all(b.late <= a.late * (1 + 1e-9) for a, b in zip(few.hours, many.hours, strict=True))


def test_failures_lose_the_same_share_of_requests_in_fleets_of_any_size() -> None:
    """A request is lost with the machine that has it.

    The share of lost requests is the mean time that a request is there over the 20 hours between repair and failure,
    whatever the number of machines. It holds within 4 standard errors of the number of failures.
    """
    incidents = Incidents(Failures(20 * HOUR, HOUR))
    for machines in (40, 160):
        found = serve(fleet(machines, policy="round-robin", incidents=incidents), flat(50.0 * machines, hours=168))
        expected, error = machines * 168 / 21, 4 / math.sqrt(machines * 168 / 21)
        assert found.failures == pytest.approx(expected, rel=error)
        assert found.refused == pytest.approx(found.mean_ms / 1000 / (20 * HOUR), rel=error)


def test_each_kind_of_incident_is_left_out() -> None:
    spec = fleet(60, incidents=ALL)
    names = [name for name, _ in left_out(spec)]
    assert names[0] == AS_GIVEN and names[-1] == NO_INCIDENTS and len(names) == 6
    for (name, one), field in zip(list(left_out(spec))[1:5], ("failures", "slow", "deployments", "zones"), strict=True):
        assert one.incidents == dataclasses.replace(ALL, **{field: None}), name
    assert [name for name, _ in left_out(fleet(3))] == [AS_GIVEN]

    def evaluate(one: FleetSpec) -> FleetOutcome:
        return serve(one, flat(3500.0, hours=24))

    found = {each.name: each for each in scenarios(spec, evaluate, 0.1)}
    assert all(each.outcome.late <= found[AS_GIVEN].outcome.late for each in found.values())
    assert found[NO_INCIDENTS].outcome.late == pytest.approx(math.exp(-5 * (1 - 3500 / 6000)), rel=0.02)
    # exp(-5 (1 - u)) = 0.1 at u = 0.5395: 64.9 machines.
    assert found[NO_INCIDENTS].needed == pytest.approx(65, abs=1)
    assert found[AS_GIVEN].needed is not None and found[AS_GIVEN].needed > 65
    assert found[AS_GIVEN].needed_money == found[AS_GIVEN].needed * 24


@given(st.integers(1, 400), st.integers(1, 50))
@settings(deadline=None)
def test_the_fewest_machines_are_found(needed: int, given_: int) -> None:
    calm = serve(fleet(1), flat(1.0))

    def evaluate(one: FleetSpec) -> FleetOutcome:
        return dataclasses.replace(calm, late=0.0 if one.machines >= needed else 1.0)

    found = fewest_machines(fleet(given_), evaluate, 0.01)
    assert found == (needed if needed <= 32 * given_ else None)


# -- every request

TWO = (Instance(0, 1.0, 1.0), Instance(1, 1.0, 1.0))


def test_a_failed_machine_loses_what_it_had_and_what_it_got() -> None:
    """Two machines of 10 ms in turn; the second fails at 15 ms, which is noticed at 35 ms, and is back at 55 ms."""
    machines = VirtualFleet(deployment(10.0), TWO, POLICIES["round-robin"], 0)
    seconds = np.array([0, 10, 20, 30, 40, 50, 60, 70]) / 1000
    events = [MachineEvent(0.015, 1, Cause.FAILURE, True), MachineEvent(0.055, 1, Cause.FAILURE, False)]
    found = simulate_fleet(machines, seconds, np.full(8, 100), events, 1.0, 0.020)
    assert found.tolist() == [10, np.inf, 10, np.inf, 10, 10, 10, 10]


def test_a_drained_machine_answers_what_it_has_and_a_slow_one_is_slow() -> None:
    machines = VirtualFleet(deployment(10.0), TWO, POLICIES["round-robin"], 0)
    seconds = np.array([0, 1, 2, 30, 50, 61]) / 1000
    events = [
        MachineEvent(0.0015, 1, Cause.DEPLOYMENT, True),
        MachineEvent(0.025, 0, Cause.SLOW, True),
        MachineEvent(0.045, 0, Cause.SLOW, False),
        MachineEvent(0.060, 0, Cause.OUTAGE, True),
    ]
    found = simulate_fleet(machines, seconds, np.full(6, 100), events, 0.5, 0.0)
    assert found.tolist() == [10, 10, 18, 20, 10, np.inf], "the last one finds no machine"


@pytest.mark.parametrize("policy", ["two-choices", "round-robin"])
def test_the_approximation_is_near_every_request_simulated(policy: str) -> None:
    """Five machines at 0.4 of what they can do, an hour with a deployment and failures: 36,000 requests."""
    incidents = Incidents(Failures(HOUR, 300.0), None, Deployments(HOUR, 1, 120.0, 600.0), None, 1.0)
    spec = fleet(5, policy=policy, incidents=incidents, ms=200.0)
    objective, demand = Objective(800.0), flat(10.0)
    table = LatencyTable(spec, ROWS, objective, 3)
    approximated = approximate(spec, demand, table, objective, 3)
    simulated = exact(spec, demand, ROWS, table, objective, 3)
    assert simulated.requests == pytest.approx(approximated.requests, rel=0.02)
    assert simulated.failures == approximated.failures >= 2
    for name in ("mean_ms", "p50_ms", "p95_ms"):
        assert getattr(approximated, name) == pytest.approx(getattr(simulated, name), rel=0.1), name
    assert approximated.late == pytest.approx(simulated.late, rel=0.1)
