"""Latency of groups of machines against closed forms: M/M/1, and the mean-field limit of two choices."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.pool.balancing import Balance, Cost, Load
from planning.virtual_fleet import dispatch
from planning.virtual_fleet.incidents import Incidents, SlowMachines
from planning.virtual_fleet.latency_shares import ENTRIES, quantiles, refused_shares, shares, summary
from planning.virtual_fleet.latency_table import GROUP, LEVELS, Composition, levels_of, mixtures
from tests.planning_tests.fleets import deployment
from tests.planning_tests.virtual_fleets import distribution_at, fleet, table_of

SERVICE_MS = 10.0


def at_random(costs: object) -> Balance:
    def choose(turn: int, loads: object, rows: int) -> int:
        return int(random.integers(len(loads)))  # type: ignore[arg-type]

    random = np.random.default_rng(5)
    return choose


def test_random_splitting_is_a_queue_of_its_own_on_each_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """M/M/1: the sojourn time is exponential of rate mu - lambda (Kleinrock 1975, 3.2)."""
    monkeypatch.setitem(dispatch.POLICIES, "at-random", at_random)  # type: ignore[arg-type]
    table = table_of(fleet(200, policy="at-random"))
    for utilisation in (0.3, 0.6):
        found = summary(distribution_at(table, Composition((GROUP,), (0,)), utilisation))
        mean = SERVICE_MS / (1 - utilisation)
        assert found.mean_ms == pytest.approx(mean, rel=0.05)
        for percent, value in ((50, found.p50_ms), (95, found.p95_ms), (99, found.p99_ms)):
            assert value == pytest.approx(-mean * math.log(1 - percent / 100), rel=0.08)
        assert found.late == pytest.approx(math.exp(-50 / mean), abs=0.01) and found.refused == 0


def mean_field_ms(utilisation: float) -> float:
    """Return the mean sojourn time of two choices as machines go to infinity.

    A share of utilisation^(2^i - 1) of the queues has i requests or more (Mitzenmacher 2001, theorem 1 and its
    corollary).
    """
    return SERVICE_MS * sum(utilisation ** (2**i - 2) for i in range(1, 12))


@pytest.mark.parametrize("utilisation", [0.5, 0.8, pytest.param(0.9, marks=pytest.mark.slow)])
def test_two_choices_are_near_their_mean_field_limit(utilisation: float) -> None:
    """A group of 64 errs by a few per cent at 0.9, and by less below."""
    table = table_of(fleet(1000))
    found = summary(distribution_at(table, Composition((GROUP,), (0,)), utilisation))
    assert found.mean_ms == pytest.approx(mean_field_ms(utilisation), rel=0.04)


def test_slow_machines_saturate_alone_under_a_blind_policy() -> None:
    """In turn, a machine at a fourth of the speed gets as much as the others: its queue is full at 0.4 of them all."""
    incidents = Incidents(slow=SlowMachines(0.25, 0.25, 60.0))
    one = Composition((3,), (1,))
    blind = table_of(fleet(4, policy="round-robin", incidents=incidents))
    aware = table_of(fleet(4, policy="shortest-delay", incidents=incidents))
    # A machine that does 0.25 of 1 gets 0.4 (3.25 / 4) = 0.325 of it, and refuses what it cannot do.
    expected = (0.325 - 0.25) / 0.325 / 4
    assert summary(distribution_at(blind, one, 0.4)).refused == pytest.approx(expected, abs=0.01)
    assert summary(distribution_at(aware, one, 0.4)).refused == 0


@given(st.lists(st.floats(1e-3, 1e6), min_size=20, max_size=300), st.integers(0, 5), st.floats(1e-2, 1e6))
def test_shares_are_those_of_the_latencies(latencies: list[float], refused: int, slo_ms: float) -> None:
    every = np.array([*latencies, *[np.inf] * refused])
    found = summary(len(every) * shares(every, slo_ms))
    assert found.requests == pytest.approx(len(every))
    assert found.late == pytest.approx((every > slo_ms).mean()) and found.refused == pytest.approx(refused / len(every))
    assert found.mean_ms == pytest.approx(np.mean(latencies))
    for percent, value in ((50, found.p50_ms), (95, found.p95_ms), (99, found.p99_ms)):
        exact = np.percentile(every, percent, method="inverted_cdf")
        assert (value is None) == bool(np.isinf(exact))
        assert value is None or value == pytest.approx(exact, rel=0.02)


def test_nothing_and_only_refused_requests_are_summarised() -> None:
    nothing, refused = summary(np.zeros(ENTRIES)), summary(7 * refused_shares())
    assert (nothing.requests, nothing.mean_ms, nothing.p50_ms, nothing.late) == (0, None, None, 0)
    assert (refused.requests, refused.mean_ms, refused.p50_ms, refused.late, refused.refused) == (7, None, None, 1, 1)


@given(st.floats(1e-6, 10))
def test_levels_mix_to_the_utilisation(utilisation: float) -> None:
    levels, weights = levels_of(np.array([utilisation]))
    assert float(LEVELS[levels[:, 0]] @ weights[:, 0]) == pytest.approx(min(max(utilisation, LEVELS[0]), LEVELS[-1]))
    assert weights.sum() == pytest.approx(1.0) and weights.min() >= 0


@given(st.lists(st.floats(1e-3, 1e6), min_size=50, max_size=200))
def test_quantiles_stand_for_the_latencies(latencies: list[float]) -> None:
    found = quantiles(shares(np.array(latencies), 1.0), 200)
    for percent in (10, 50, 90):
        low, high = (np.percentile(latencies, at, method="inverted_cdf") for at in (percent - 4, percent + 4))
        assert low * 0.98 <= np.percentile(found, percent) <= high * 1.02


@given(st.integers(0, 30), st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_groups_have_the_mean_share_of_slow_machines(first: int, second: int, slow: int, down: int) -> None:
    spec = fleet(first, second + 1, copies=3)
    counts = np.array(spec.counts)
    slow_counts = np.minimum(np.array([slow // 2, slow]), counts)
    healthy = np.maximum(counts - slow_counts - down // 10, 0)
    total = int((healthy + slow_counts).sum())
    if total == 0:
        return
    found = mixtures(spec, healthy, slow_counts)
    assert sum(each.weight for each in found) == pytest.approx(1)
    sizes = {sum(each.composition.healthy) + sum(each.composition.slow) for each in found}
    assert len(sizes) == 1 and sizes <= set(range(1, GROUP + 1))
    share = sum(each.weight * sum(each.composition.slow) for each in found) / max(sizes)
    assert share == pytest.approx(slow_counts.sum() / total)


def test_between_levels_distributions_are_mixed_closely() -> None:
    """Half way between two levels, simulated and mixed agree within the noise of 20,000 requests."""
    table = table_of(fleet(1000))
    group = Composition((GROUP,), (0,))
    mixed, direct = summary(distribution_at(table, group, 0.825)), summary(shares(table._simulate(group, 0.825), 50.0))
    for name in ("mean_ms", "p50_ms", "p95_ms", "p99_ms"):
        assert getattr(mixed, name) == pytest.approx(getattr(direct, name), rel=0.04)


def test_the_cost_of_a_request_is_the_line_of_its_curve() -> None:
    cost = dispatch.cost_of(fleet(1).offers[0].deployment, 2.0)
    assert cost == Cost(SERVICE_MS * 1e6 / 2, 0.0)


def test_a_balancer_sees_what_is_outstanding_now() -> None:
    """Two machines of 10 ms: the first is free again at 12 ms, the second is not."""
    seen: list[list[int]] = []

    def policy(costs: object) -> Balance:
        def choose(turn: int, loads: list[Load], rows: int) -> int:
            seen.append([load.requests for load in loads])
            return turn % 2

        return choose  # type: ignore[return-value]

    machines = dispatch.VirtualFleet(
        deployment(10.0), [dispatch.Instance(0, 1.0, 1.0), dispatch.Instance(1, 0.5, 0.5)], policy, 0
    )
    for request, ms in enumerate((0, 1, 12, 25)):
        machines.send(request, 100, ms * 10**6)
    assert seen == [[0, 0], [1, 0], [0, 1], [0, 0]]
    assert machines.latency_ms(4).tolist() == [10, 20, 10, 20]
