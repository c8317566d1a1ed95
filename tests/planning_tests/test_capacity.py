"""Capacities against closed forms of queues, and numbers of machines against a search over all of them."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from planning.capacity import CapacityTable, Objective, capacity_rps, latency_ms, needed_machines, service_of
from planning.demand import Workload
from tests.planning_tests.fleets import deployment, exponential_quantiles, linear_table, offer, poisson

SERVICE_S = 0.01


def queue_capacity(instances: int, slo_s: float, share: float) -> float:
    """Return the rate at which a share of the requests is answered in time.

    Poisson arrivals are dealt in turn, so each queue is E_n/M/1, whose sojourn time is exponential at mu (1 - sigma)
    (Kleinrock 1975, 6.4).
    """
    mu = 1 / SERVICE_S

    def late(rate: float) -> float:
        def root(sigma: float) -> float:
            return (rate / (rate + mu * (1 - sigma))) ** instances - sigma

        sigma = brentq(root, 0, 1 - 1e-9) if root(1 - 1e-9) < 0 else 1.0
        return math.exp(-mu * (1 - sigma) * slo_s) - (1 - share)

    return float(brentq(late, 1e-3, instances * mu * 0.999))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planning.capacity._REQUESTS", 1500)


@pytest.mark.parametrize(("instances", "slo_ms"), [(3, 120.0), pytest.param(1, 60.0, marks=pytest.mark.slow)])
def test_capacity_is_that_of_the_queue(instances: int, slo_ms: float) -> None:
    one = deployment(1000 * SERVICE_S, deviations=exponential_quantiles())
    found = [capacity_rps(one, 1.0, instances, poisson(), Objective(slo_ms), seed) for seed in (10, 11, 12)]
    assert np.mean(found) == pytest.approx(queue_capacity(instances, slo_ms / 1000, 0.95), rel=0.08)


def test_a_machine_of_twice_the_speed_serves_twice_as_much_in_half_the_time(short: None) -> None:
    one = deployment(1000 * SERVICE_S, deviations=exponential_quantiles())
    slow, fast = (capacity_rps(one, speed, 1, poisson(), Objective(60.0 / speed), 0) for speed in (1.0, 2.0))
    assert fast == pytest.approx(2 * slow, rel=0.02)


def test_requests_to_an_inline_replica_wait_and_are_refused() -> None:
    """300 requests arrive within a run: one is run and 256 wait, the last one for all before it."""
    one = deployment(10.0)
    inline = replace(one, placement=replace(one.placement, inline=True))
    found = latency_ms(inline, service_of(inline, 1.0, 0), np.arange(300) * 1e-6, np.full(300, 100))
    assert np.isinf(found).sum() == 300 - 257
    assert found[np.isfinite(found)].max() == pytest.approx(257 * 10, rel=1e-3)


def test_bursts_cost_capacity_and_an_slo_below_the_service_time_leaves_none(short: None) -> None:
    one, random = deployment(10.0), np.random.default_rng(0)
    bursts = Workload(np.where(random.random(50_000) < 0.9, 0.01, 9.91), np.array([100]))
    smooth, bursty = (capacity_rps(one, 1.0, 1, each, Objective(60.0), 0) for each in (poisson(), bursts))
    assert bursty < 0.6 * smooth
    assert capacity_rps(one, 1.0, 1, poisson(), Objective(5.0), 0) == 0


@given(each=st.floats(1, 50), rate=st.floats(0, 400), most=st.integers(1, 20), copies=st.integers(1, 4))
def test_the_fewest_machines_are_found(each: float, rate: float, most: int, copies: int) -> None:
    table = linear_table(offer(most=most, copies=copies), each)
    enough = [machines for machines in range(1, most + 1) if table.rate(machines) >= rate]
    assert table.machines(rate) == (enough[0] if enough else None)


def test_machines_that_keep_the_slo_at_no_rate_do_not_serve_a_silent_phase() -> None:
    assert linear_table(offer(most=3), 0.0).machines(0.0) is None
    two = CapacityTable(offer(most=3), lambda instances: 0.0 if instances < 2 else 10.0)
    assert two.machines(0.0) == 2 and linear_table(offer(most=3), 10.0).machines(0.0) == 1


def test_capacities_between_simulated_counts_are_interpolated_and_each_is_simulated_once() -> None:
    asked: list[int] = []

    def simulated(instances: int) -> float:
        asked.append(instances)
        return 10.0 * instances - 5.0  # 5, 15, 25, 35, then 55 for 6

    table = CapacityTable(offer(), simulated)
    assert [table.rate(machines) for machines in (1, 2, 4, 6)] == [5, 15, 35, 55]
    assert table.rate(5) == pytest.approx(5 * (35 / 4 + 55 / 6) / 2)
    assert table.machines(30.0) == 4 and sorted(asked) == [1, 2, 3, 4, 6]


def test_rates_are_rounded_up_and_impossible_ones_need_no_number() -> None:
    table = linear_table(offer(most=3), 10.0)
    assert needed_machines(table, np.array([0.0, 9.999, 10.0, 10.001, 29.0, 31.0])).tolist() == [1, 1, 1, 2, 3, 0]
