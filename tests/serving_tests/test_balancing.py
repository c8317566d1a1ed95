"""Balancing policies: what each takes, queues in closed form, brute force, and the running pool."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.serving.pool import Pool
from objectives.serving.pool.balancing import (
    Balance,
    Cost,
    least_outstanding,
    least_rows,
    round_robin,
    shortest_delay,
    two_choices,
)
from objectives.serving.pool.virtual_clock import simulate
from spaces.techniques.placement import InstanceGroup, Placement
from tests.serving_tests.test_pool import Held, request


class Load(NamedTuple):
    requests: int
    rows: int


loads = st.lists(st.builds(Load, st.integers(0, 9), st.integers(0, 500)), min_size=1, max_size=8)
POLICIES = {
    "round robin": round_robin,
    "least outstanding": least_outstanding,
    "two choices": two_choices(1),
    "least rows": least_rows,
    "shortest delay": shortest_delay([Cost(1e6, 0.0)] * 8),
}


@given(loads=loads, turn=st.integers(0, 10**9), rows=st.integers(1, 1000))
def test_each_policy_takes_what_its_rule_says(loads: list[Load], turn: int, rows: int) -> None:
    found = {name: policy(turn, loads, rows) for name, policy in POLICIES.items()}
    assert all(0 <= at < len(loads) for at in found.values())
    assert found["round robin"] == turn % len(loads)
    fewest = min(load.requests for load in loads)
    assert loads[found["least outstanding"]].requests == loads[found["shortest delay"]].requests == fewest
    assert loads[found["least rows"]].rows == min(load.rows for load in loads)
    worse = sum(load.requests > loads[found["two choices"]].requests for load in loads)
    assert worse >= 1 or len(loads) == 1 or sum(load.requests == max(loads)[0] for load in loads) >= 2


def test_two_choices_draw_every_pair_alike() -> None:
    """A pair holds the one empty replica of five with probability 2/5; the rest is shared evenly."""
    policy, count = two_choices(7), 20_000
    found = np.bincount([policy(turn, [Load(1, 1)] * 4 + [Load(0, 0)], 1) for turn in range(count)], minlength=5)
    error = 4 * math.sqrt(0.4 * 0.6 / count)
    assert found[4] / count == pytest.approx(0.4, abs=error)
    np.testing.assert_allclose(found[:4] / count, 0.15, atol=error)


@given(loads=st.lists(st.builds(Load, st.integers(0, 9), st.integers(0, 500)), min_size=3, max_size=3))
def test_the_shortest_delay_counts_requests_rows_and_speeds(loads: list[Load]) -> None:
    costs = [Cost(1000.0, 10.0), Cost(2000.0, 20.0), Cost(0.0, 35.0)]
    found = shortest_delay(costs)(0, loads, 40)
    by_hand = [
        1000 * (loads[0].requests + 1) + 10 * (loads[0].rows + 40),
        2000 * (loads[1].requests + 1) + 20 * (loads[1].rows + 40),
        35 * (loads[2].rows + 40),
    ]
    assert by_hand[found] == min(by_hand)


@pytest.mark.parametrize("given_cost", [(0.0, 0.0), (-1.0, 5.0), (5.0, -1.0)])
def test_a_cost_that_is_none_is_refused(given_cost: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="A request takes time"):
        Cost(*given_cost)


def waits(
    balance: Balance, replicas: int, gaps: np.ndarray, service: np.ndarray, speeds: Sequence[float] = ()
) -> np.ndarray:
    """Simulate requests, and return the seconds from arrival to answer of each.

    Gaps and service times are in seconds. A request has as many rows as its service time has microseconds.
    """
    due = np.rint(np.cumsum(gaps) * 1e9).astype(np.int64)
    sizes = np.maximum(np.rint(service * 1e6), 1).astype(np.int64)  # a row is a microsecond
    placement = Placement(InstanceGroup(replicas=replicas, threads=1))
    found = simulate(
        placement, sizes.tolist(), due.tolist(), lambda group, rows, idle, busy: 1e3 * rows, None, balance, speeds
    )
    return (found.finished_ns - due) / 1e9


def erlang_c(servers: int, load: float) -> float:
    """Return the probability to wait in M/M/c, of an offered load in Erlangs."""
    terms = [load**k / math.factorial(k) for k in range(servers)]
    last = load**servers / math.factorial(servers) * servers / (servers - load)
    return last / (sum(terms) + last)


def test_one_replica_is_m_m_1_under_every_policy() -> None:
    random, rho = np.random.default_rng(0), 0.7
    gaps, service = random.exponential(1 / rho, 25_000), random.exponential(1.0, 25_000)
    for policy in POLICIES.values():
        assert waits(policy, 1, gaps * 1e-3, service * 1e-3).mean() == pytest.approx(1e-3 / (1 - rho), rel=0.1)


def test_dealing_in_turn_is_e_c_m_1_and_least_outstanding_lies_between_it_and_m_m_c() -> None:
    """Each of two replicas that are dealt in turn is E2/M/1; a common queue, M/M/c, bounds all policies from below.

    The mean time of E2/M/1 is 1 / (1 - s) with s the root of s = A(1 - s), A being the transform of an Erlang-2 gap
    (Kleinrock 1975).
    """
    random, rho, count = np.random.default_rng(1), 0.8, 40_000
    gaps, service = random.exponential(1 / (2 * rho), count), random.exponential(1.0, count)
    root = 0.5
    for _ in range(200):
        root = (2 * rho / (2 * rho + 1 - root)) ** 2
    expected = 1 / (1 - root)
    turn = waits(round_robin, 2, gaps * 1e-3, service * 1e-3).mean() * 1e3
    assert turn == pytest.approx(expected, rel=0.07)
    common = 1 + erlang_c(2, 2 * rho) / (2 - 2 * rho)
    for policy in (least_outstanding, least_rows):
        assert common * 0.93 < waits(policy, 2, gaps * 1e-3, service * 1e-3).mean() * 1e3 < turn


def test_the_queue_of_least_work_is_the_common_queue_of_m_m_c() -> None:
    """A policy that knows the work that is left serves as a common queue does (Kiefer and Wolfowitz 1955)."""
    random, rho, count = np.random.default_rng(2), 0.7, 40_000
    gaps, service = random.exponential(1 / (3 * rho), count) * 1e-3, random.exponential(1.0, count) * 1e-3
    due, free = np.cumsum(gaps) * 1e6, [0.0] * 3

    def least_work_left(turn: int, loads: Sequence[object], rows: int) -> int:
        at = int(np.argmin(free))
        free[at] = max(free[at], due[turn]) + rows
        return at

    found = waits(least_work_left, 3, gaps, service).mean() * 1e3
    assert found == pytest.approx(1 + erlang_c(3, 3 * rho) / (3 - 3 * rho), rel=0.05)
    known = waits(least_rows, 3, gaps, service).mean() * 1e3
    assert found < known < 1.15 * found, "rows that were run already are not known to the policy"


@settings(max_examples=30, deadline=None)
@given(data=st.data(), replicas=st.integers(1, 4), name=st.sampled_from(sorted(POLICIES)))
def test_the_virtual_clock_against_brute_force(data: st.DataObject, replicas: int, name: str) -> None:
    """Queues that are stepped through from arrival to arrival, each replica being a list of its answers' times."""
    count = data.draw(st.integers(1, 40))
    due = np.cumsum(data.draw(st.lists(st.integers(1, 3000), min_size=count, max_size=count)))
    sizes = data.draw(st.lists(st.integers(1, 2500), min_size=count, max_size=count))
    speeds = data.draw(st.lists(st.sampled_from([0.5, 1.0, 2.0]), min_size=replicas, max_size=replicas))
    policy = POLICIES[name]
    queues: list[list[tuple[float, int]]] = [[] for _ in range(replicas)]
    free, expected = [0.0] * replicas, []
    for turn, (now, rows) in enumerate(zip(due.tolist(), sizes, strict=True)):
        for queue in queues:
            while queue and queue[0][0] <= now:
                heapq.heappop(queue)
        at = policy(turn, [Load(len(queue), sum(size for _, size in queue)) for queue in queues], rows)
        free[at] = max(free[at], now) + max(1, round(rows / speeds[at]))
        heapq.heappush(queues[at], (free[at], rows))
        expected.append(free[at])
    placement = Placement(InstanceGroup(replicas=replicas, threads=1))
    found = simulate(placement, sizes, due.tolist(), lambda g, rows, i, b: float(rows), None, policy, speeds)
    assert found.finished_ns.tolist() == expected


def test_a_slow_replica_gets_its_share_by_speed() -> None:
    """A replica of half the speed: dealing in turn overloads it at 0.8 of the machine's capacity, the others do not."""
    random, count, speeds = np.random.default_rng(3), 20_000, (1.0, 1.0, 0.5)
    gaps, service = random.exponential(1 / (2.5 * 0.8), count) * 1e-3, random.exponential(1.0, count) * 1e-3
    aware = shortest_delay([Cost(0.0, 1 / speed) for speed in speeds])
    p99 = {
        name: np.percentile(waits(policy, 3, gaps, service, speeds), 99)
        for name, policy in {"turn": round_robin, "outstanding": least_outstanding, "aware": aware}.items()
    }
    assert p99["aware"] < p99["outstanding"] < p99["turn"] / 3


@pytest.mark.parametrize("speeds", [(1.0,), (1.0, 0.0)])
def test_speeds_have_to_fit(speeds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="Each of 2 replicas has a speed above 0"):
        simulate(Placement(InstanceGroup(replicas=2)), [1], [0], lambda g, r, i, b: 1.0, None, least_rows, speeds)


@pytest.mark.parametrize(("policy", "expected"), [(round_robin, [4, 4]), (least_rows, [1, 7])])
def test_the_running_pool_follows_the_policy(policy: Balance, expected: list[int]) -> None:
    """One large request and then small ones, while no run ends: in turn, or all small ones on the other replica."""
    engines = [Held(), Held()]
    opened = iter(engines)
    placement = Placement(InstanceGroup(replicas=2, threads=1))
    with Pool(placement, lambda group: next(opened), None, [policy]) as pool:
        results = [pool.submit(request(*range(1000 if number == 0 else 1))) for number in range(8)]
        for engine in engines:
            engine.controller.set()
        for result in results:
            result.result(10)
    assert sorted(len(engine.runs) for engine in engines) == expected
