"""A placement on the virtual clock against a model of it in SimPy, closed forms, and the running pool."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Mapping
from typing import Any

import numpy as np
import pytest
import simpy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.serving.pool import Pool
from objectives.serving.pool.virtual_clock import simulate
from objectives.serving.pool.virtual_pool import ServiceTime, Simulated, VirtualPool
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement, Route
from tests.serving_tests.test_pool import placements, rows

Process = Generator[simpy.Event, Any, None]


def by_rows(group: int, count: int, idle_ns: int | None, busy: int) -> float:
    """Return a run's nanoseconds by rows, group, neighbours, and the time that the replica was idle.

    The numbers are odd, so that no two times tie.
    """
    return alone(group, count, idle_ns, busy) + 3_301 * busy


def alone(group: int, count: int, idle_ns: int | None, busy: int) -> float:
    """The parts of a split request begin at the same moment, in no given order: neighbours do not count."""
    return 100_003 * count + 7_919 * (1 + group) + (0 if idle_ns is None else 50_021 + idle_ns % 1009)


class Model:
    """The pool's rules again, as processes of SimPy; written from README's and the placement's words."""

    def __init__(self, placement: Placement, sizes: list[int], due: list[int], service: ServiceTime) -> None:
        self.service = service
        self.env = simpy.Environment()
        self.placement, self.sizes, self.due = placement, sizes, due
        self.finished: dict[int, int] = {}
        self.refused: set[int] = set()
        self.begun: set[int] = set()
        self.left: dict[int, int] = {}
        self.running = 0
        self.groups = [
            [Server(self, number, group) for _ in range(group.replicas)]
            for number, group in enumerate(placement.instance_groups)
        ]
        self.rate = [[0.0, 0.0] for _ in self.groups]
        self.doubts = [0 for _ in self.groups]
        self.env.process(self.caller())
        self.env.run()

    def caller(self) -> Process:
        for request, (size, due) in enumerate(zip(self.sizes, self.due, strict=True)):
            yield self.env.timeout(max(0, due - self.env.now))
            route = self.placement.route
            group = 1 if route is not None and size > route.above_rows else 0
            servers = self.groups[group]
            parts = self.parts(size, len(servers))
            if not self.admitted(group, parts):
                self.refuse(request)
                continue
            self.left[request] = len(parts)
            if self.placement.inline and group == 0:
                server = servers[0]
                yield self.env.process(server.run([(request, size, self.env.now)], self.env.now > server.freed))
                continue
            for part in parts:
                server = min(servers, key=lambda each: (each.rows, each.count))
                server.rows, server.count = server.rows + part, server.count + 1
                server.requests.append(request)
                server.queue.append((request, part, self.env.now))
                server.arrived()

    def parts(self, size: int, replicas: int) -> list[int]:
        above = self.placement.split_rows
        if above is None or size <= above or replicas == 1:
            return [size]
        count = min(replicas, size // math.ceil(above / 2))
        ends = [size * (i + 1) // count for i in range(count)]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]

    def admitted(self, group: int, parts: list[int]) -> bool:
        rule, servers = self.placement.admission, self.groups[group]
        waiting = {request for server in servers for request in server.requests[server.together :]}
        if rule.queue is not None and len(waiting) >= rule.queue and sum(s.count == 0 for s in servers) < len(parts):
            return False
        loads, most = [server.rows for server in servers], 0
        for part in parts:
            least = min(range(len(loads)), key=loads.__getitem__)
            loads[least] += part
            most = max(most, loads[least])
        ns, counted = self.rate[group]
        if rule.deadline_ms is not None and counted and most * (ns / counted) > rule.deadline_ms * 1e6:
            self.doubts[group] += any(server.count == 0 for server in servers)
            if self.doubts[group] >= 100:
                self.rate[group], self.doubts[group] = [0.0, 0.0], 0
            return False
        return True

    def learn(self, group: int, size: int, ns: int) -> None:
        share = 0.1 if self.rate[group][1] else 1.0
        for place, value in enumerate((ns, size)):
            self.rate[group][place] += share * (value - self.rate[group][place])
        self.doubts[group] = 0

    def in_time(self, request: int, since: int) -> bool:
        if request in self.refused:
            return False
        deadline = self.placement.admission.deadline_ms
        if request not in self.begun and deadline is not None and self.env.now > since + deadline * 1e6:
            self.refuse(request)
            return False
        self.begun.add(request)
        return True

    def refuse(self, request: int) -> None:
        self.refused.add(request)
        self.finished[request] = self.env.now


class Server:
    def __init__(self, model: Model, number: int, group: InstanceGroup) -> None:
        self.model, self.number = model, number
        self.queue: list[tuple[int, int, int]] = []
        self.requests: list[int] = []  # outstanding, in their order
        self.rows, self.count, self.together, self.freed = 0, 0, 1, 0
        self.bell = model.env.event()
        if not (model.placement.inline and number == 0):
            model.env.process(self.serve())

    def arrived(self) -> None:
        if not self.bell.triggered:
            self.bell.succeed()

    def serve(self) -> Process:
        env, batching = self.model.env, self.model.placement.batching
        idle = True
        while True:
            while not self.queue:
                self.bell, idle = env.event(), True
                yield self.bell
            batch = [self.queue.pop(0)]
            until = batch[0][2] + (0 if batching is None else 1000 * batching.wait_us)
            while batching is not None and (room := batching.rows - sum(job[1] for job in batch)) > 0:
                if self.queue and self.queue[0][1] > room:
                    break
                if self.queue:
                    batch.append(self.queue.pop(0))
                elif env.now < until:
                    self.bell, idle = env.event(), True
                    yield self.bell | env.timeout(until - env.now)
                else:
                    break
            ready = []
            for job in batch:
                if self.model.in_time(job[0], job[2]):
                    ready.append(job)
                else:
                    self.rows, self.count, self.together = self.rows - job[1], self.count - 1, 1
                    self.requests.remove(job[0])
            if ready:
                yield env.process(self.run(ready, idle))
                idle = False

    def run(self, jobs: list[tuple[int, int, int]], idle: bool) -> Process:
        model, size = self.model, sum(job[1] for job in jobs)
        counted = self.count > 0
        self.together = len(jobs)
        idle_ns = int(model.env.now) - self.freed if idle else None
        takes = round(model.service(self.number, size, idle_ns, model.running))
        model.running += 1
        yield model.env.timeout(takes)
        model.running -= 1
        self.freed = int(model.env.now)
        model.learn(self.number, size, takes)
        if counted:
            self.rows, self.count = self.rows - size, self.count - len(jobs)
            for request, _, _ in jobs:
                self.requests.remove(request)
        self.together = 1
        for request, _, _ in jobs:
            model.left[request] -= 1
            if model.left[request] == 0:
                model.finished[request] = model.env.now


@settings(max_examples=300, deadline=None)
@given(
    placement=placements(),
    admission=st.builds(
        Admission, st.none() | st.integers(1, 5), st.none() | st.floats(0.3, 6.0, allow_subnormal=False)
    ),
    schedule=st.lists(st.tuples(st.integers(1, 25), st.integers(1, 3_000_000)), min_size=1, max_size=60),
)
def test_it_serves_as_a_second_model_of_the_same_rules(
    placement: Placement, admission: Admission, schedule: list[tuple[int, int]]
) -> None:
    placement = Placement(
        placement.instance_group,
        inline=placement.inline,
        batching=placement.batching,
        split_rows=placement.split_rows,
        route=placement.route,
        admission=admission,
    )
    sizes, due = [size for size, _ in schedule], np.cumsum([gap for _, gap in schedule]).tolist()
    if placement.batching is not None:
        # A request that comes at the very end of a wait may join the batch or not: no rule says which.
        assume(1000 * placement.batching.wait_us not in np.subtract.outer(due, due))
    service = by_rows if placement.split_rows is None else alone
    found, model = simulate(placement, sizes, due, service), Model(placement, sizes, due, service)
    assert np.flatnonzero(found.refused).tolist() == sorted(model.refused)
    assert found.finished_ns.tolist() == [model.finished[request] for request in range(len(sizes))]


@settings(max_examples=100, deadline=None)
@given(
    inline=st.booleans(),
    outstanding=st.none() | st.integers(1, 6),
    schedule=st.lists(st.tuples(st.integers(1, 25), st.integers(0, 3_000_000)), min_size=1, max_size=60),
)
def test_one_replica_in_turn_answers_as_the_pool_does(
    inline: bool, outstanding: int | None, schedule: list[tuple[int, int]]
) -> None:
    """The pool's scheduler simulates the same placement if it has a limit of the queue, which nothing reaches."""
    sizes, due = [size for size, _ in schedule], np.cumsum([gap for _, gap in schedule]).tolist()
    times: list[list[float]] = [[], []]

    def noted(into: list[float]) -> ServiceTime:
        random = np.random.default_rng(0)

        def service(group: int, count: int, idle_ns: int | None, busy: int) -> float:
            into.append(by_rows(group, count, idle_ns, busy) * float(random.uniform(0.5, 2.0)))
            return into[-1]

        return service

    alone, queued = Placement(inline=inline), Placement(inline=inline, admission=Admission(queue=10**6))
    assert alone.in_turn == 1 and queued.in_turn is None
    found, expected = (
        simulate(placement, sizes, due, noted(into), outstanding)
        for placement, into in zip((alone, queued), times, strict=True)
    )
    for name in ("submitted_ns", "finished_ns", "refused"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist()
    assert times[0] == times[1]


@pytest.mark.parametrize("admission", [Admission(), Admission(queue=3), Admission(deadline_ms=0.3)])
@given(schedule=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 300_000)), min_size=1, max_size=40))
def test_a_virtual_pool_counts_requests_and_not_their_parts(
    admission: Admission, schedule: list[tuple[int, int]]
) -> None:
    """A request counts as outstanding until its answer, and no more requests wait than are outstanding.

    One is refused for the queue where so many requests wait, however many their parts are.
    """
    pool = VirtualPool(Placement(InstanceGroup(replicas=3), split_rows=2, admission=admission), by_rows)
    now, seen = 0, list[tuple[int, int, int]]()
    for count, gap in schedule:
        now += gap
        pool.advance(now)
        waited = pool.queued
        pool.submit(count, now)
        if admission.queue is not None and sum(pool.busy) == 3:
            assert (pool.answer_ns(len(seen)) == math.inf) == (waited >= admission.queue)
        seen.append((now, pool.requests, pool.queued))
    finished = pool.finish().finished_ns
    for number, (moment, requests, queued) in enumerate(seen):
        outstanding = int((finished[: number + 1] > moment).sum())
        assert requests == outstanding
        # Parts of what was refused when its turn came stay in their queues until theirs comes.
        assert queued <= outstanding or admission.deadline_ms is not None
    assert pool.requests == pool.queued == 0


def exponential(seed: int, mean_ns: float) -> Any:
    random = np.random.default_rng(seed)
    return lambda group, count, idle, busy: random.exponential(mean_ns)


def poisson(seed: int, count: int, mean_ns: float) -> list[int]:
    due: list[int] = np.cumsum(np.random.default_rng(seed).exponential(mean_ns, count)).astype(int).tolist()
    return due


def latency(found: Simulated, due: list[int]) -> NDArray[np.float64]:
    return np.asarray(found.finished_ns - np.array(due), dtype=np.float64)


@pytest.mark.parametrize("load", [0.4, 0.6, 0.8])
@pytest.mark.parametrize("inline", [False, True])
def test_one_replica_is_an_mm1_queue(load: float, inline: bool) -> None:
    """The time in an M/M/1 system is exponential with mean 1 / (mu - lambda)."""
    count, mean = 60_000, 1e6
    due = poisson(1, count, mean / load)
    found = latency(simulate(Placement(inline=inline), [1] * count, due, exponential(2, mean)), due)
    for percent in (50, 95):
        exact = -math.log(1 - percent / 100) * mean / (1 - load)
        assert np.percentile(found[1000:], percent) == pytest.approx(exact, rel=0.03 / (1 - load))
    takes = np.rint(np.random.default_rng(2).exponential(mean, count))
    steps = np.concatenate([[0.0], takes[:-1] - np.diff(due)])
    total = np.cumsum(steps)
    assert np.array_equal(found, total - np.minimum.accumulate(total) + takes), "Lindley's recursion on the same draws"


@pytest.mark.parametrize("load", [0.4, 0.6, 0.8])
def test_constant_service_waits_as_pollaczek_and_khinchine_say(load: float) -> None:
    count, mean = 60_000, 1e6
    due = poisson(3, count, mean / load)
    found = simulate(Placement(), [1] * count, due, lambda group, size, idle, busy: mean)
    assert latency(found, due)[1000:].mean() == pytest.approx(mean * (1 + load / (2 * (1 - load))), rel=0.03)


def test_a_full_queue_loses_as_an_mm1k_queue() -> None:
    """An M/M/1/K queue (here one in service, K - 1 waiting) loses (1 - rho) rho^K / (1 - rho^(K + 1))."""
    count, mean, load, places = 60_000, 1e6, 0.9, 4
    due = poisson(5, count, mean / load)
    placement = Placement(admission=Admission(queue=places - 1))
    found = simulate(placement, [1] * count, due, exponential(6, mean))
    exact = (1 - load) * load**places / (1 - load ** (places + 1))
    assert found.refused.mean() == pytest.approx(exact, rel=0.05)


def test_a_saturated_loop_serves_at_the_rate_of_its_replicas() -> None:
    placement = Placement(InstanceGroup(replicas=3))
    found = simulate(placement, [5] * 3000, [0] * 3000, lambda *run: 2e6, outstanding=6)
    assert found.finished_ns.max() == 1000 * 2e6
    batched = Placement(batching=Batching(40))
    found = simulate(batched, [10] * 4000, [0] * 4000, lambda group, size, idle, busy: 1e6 + 1e4 * size, outstanding=8)
    assert 4000 / found.finished_ns.max() == pytest.approx(4 / 1.4e6, rel=0.01)


def test_a_schedule_has_a_time_for_each_request() -> None:
    with pytest.raises(ValueError, match="2 and 1"):
        simulate(Placement(), [1, 2], [0], by_rows)


class Sleeping:
    """Each run takes so many milliseconds a row, by the real clock."""

    once: frozenset[str] = frozenset()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        time.sleep(0.004 * len(inputs["item"]))
        return np.asarray(inputs["item"], dtype=np.float32)


@pytest.mark.parametrize(
    "placement",
    [
        Placement(InstanceGroup(replicas=2)),
        Placement(batching=Batching(6)),
        Placement(InstanceGroup(replicas=2), split_rows=4),
        Placement(route=Route(3, InstanceGroup())),
    ],
)
def test_the_running_pool_answers_in_the_same_order(placement: Placement) -> None:
    """Requests that are 8 ms or more apart on the virtual clock are answered in its order.

    All are submitted at once. No time is compared: on a busy machine a run takes longer.
    """
    sizes = np.random.default_rng(7).integers(1, 8, 12).tolist()
    virtual = simulate(placement, sizes, [0] * 12, lambda group, size, idle, busy: 4e6 * size).finished_ns
    apart = virtual[:, None] + 8e6 <= virtual
    same = []
    with Pool(placement, lambda group: Sleeping()) as pool:
        for _ in range(5):  # another process may hold up a replica for longer
            answers = [pool.submit(rows(size)) for size in sizes]
            for answer in answers:
                answer.result(20)
            real = np.array([answer.finished_ns for answer in answers])
            same.append((real[:, None] <= real)[apart].mean())
            if same[-1] > 0.9:
                return
    pytest.fail(f"in the same order: {same}")
