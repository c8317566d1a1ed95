"""An elastic machine on the virtual clock: counted by hand, in closed form, and beside the rules of the controller."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.serving.control.controller import Reason
from objectives.serving.control.options import ControlPlan, Option, PlannedPhase
from objectives.serving.control.windows import Windows
from objectives.serving.pool.virtual_clock import simulate
from objectives.serving.pool.virtual_pool import ServiceTime
from planning.capacity import Objective, capacity_rps
from planning.elastic import (
    ELASTIC,
    REACTIVE,
    STATIC_MEAN,
    STATIC_PEAK,
    Segment,
    Served,
    machine_outcome,
    policies,
    simulate_elastic,
)
from planning.machine_share import machine_share
from spaces.techniques.placement import InstanceGroup, Placement
from tests.planning_tests.fleets import deployment, poisson

WINDOWS, CORES = Windows(20.0, 2.0, 1.0), 2


def option(variant: str, replicas: int, capacity: float, loss: float = 0.0, load_s: float = 3.0) -> Option:
    return Option(variant, loss, Placement(InstanceGroup(replicas=replicas, threads=1)), capacity, load_s, replicas)


# Runs of the exact variant take 100 ms, of the fast one 20.
OPTIONS = (
    option("exact", 1, 8.0),
    option("exact", 2, 16.0),
    option("fast", 1, 40.0, 0.01),
    option("fast", 2, 80.0, 0.01),
)


def service(one: Option) -> ServiceTime:
    ms = 100.0 if one.variant == "exact" else 20.0
    return lambda group, rows, idle_ns, busy: ms * 1e6


def even(*parts: tuple[float, float]) -> np.ndarray:
    """Evenly spaced arrivals at rates for seconds each."""
    found, at = [], 0.0
    for rate, seconds in parts:
        found.append(at + (np.arange(round(rate * seconds)) + 0.5) / rate)
        at += seconds
    return np.concatenate(found)


def played(plan: ControlPlan, seconds: np.ndarray) -> Served:
    return simulate_elastic(plan, WINDOWS, seconds, np.full(len(seconds), 100), service, CORES)


def test_a_static_plan_is_the_pool_itself() -> None:
    seconds = np.cumsum(np.random.default_rng(0).exponential(1 / 6, 3000))
    found = played(ControlPlan(OPTIONS[:1]), seconds)
    due = np.rint(seconds * 1e9).astype(np.int64)
    alone = simulate(OPTIONS[0].placement, [100] * 3000, due.tolist(), service(OPTIONS[0]))
    np.testing.assert_array_equal(found.latency_ms, (alone.finished_ns - due) / 1e6)
    assert found.segments == (Segment(0.0, 0.0, 0),) and not found.decisions
    # M/D/1 (Pollaczek and Khinchin): half the wait of M/M/1.
    rho = 6 * 0.1
    assert found.latency_ms.mean() == pytest.approx(100 * (1 + rho / (2 * (1 - rho))), rel=0.1)


def test_a_switch_serves_after_the_load_and_loses_no_request() -> None:
    """The fast variant is loaded for 3 s while requests wait.

    The rate rises from 6 to 60 requests/s. Within a tick the panic window holds 30 or more requests/s.
    """
    seconds = even((6, 60), (60, 20), (6, 60))
    found = played(ControlPlan(OPTIONS), seconds)
    assert len(found.latency_ms) == len(seconds)
    panic = next(each for each in found.decisions if each.reason is Reason.PANIC)
    assert 60 < panic.now_s <= 62 and OPTIONS[panic.option].variant == "fast"
    switch = next(segment for segment in found.segments if OPTIONS[segment.option].variant == "fast")
    assert (switch.loaded_s, switch.start_s) == (panic.now_s, panic.now_s + 3)
    # Requests that came while it was loading wait for the exact one; what came after it is in time.
    late = seconds[found.latency_ms > 500]
    assert len(late) and late.min() > 60 and late.max() < switch.start_s
    assert OPTIONS[found.options[-1]].name == "exact 1x1"
    np.testing.assert_array_equal(
        found.options, [[s.option for s in found.segments if s.start_s <= at][-1] for at in seconds]
    )


def test_requests_that_are_refused_count_as_late() -> None:
    found = played(ControlPlan(OPTIONS[:1]), even((500, 2)))
    outcome = machine_outcome(found, OPTIONS, 100.0, Objective(200.0), 3600.0)
    # 256 wait, one runs; in 2 s 20 are answered, of which two within 200 ms.
    assert outcome.refused == pytest.approx(1 - (257 + 19) / 1000, abs=0.002)
    assert outcome.late == pytest.approx(1 - 2 / 1000, abs=0.002)
    assert outcome.p95_ms is None and outcome.p50_ms is None


def test_requests_to_an_inline_replica_wait_and_are_refused_behind_a_server() -> None:
    """Its 10 answers per second are too few for 40 requests, which the controller has to see before they are late."""
    inline = replace(OPTIONS[0], placement=replace(OPTIONS[0].placement, inline=True))
    assert played(ControlPlan((inline,)), even((500, 2))).latency_ms.tolist().count(math.inf) == 1000 - 257 - 19
    plan = ControlPlan((inline, *OPTIONS[1:]))
    found, expected = (played(each, even((6, 60), (40, 20))) for each in (plan, ControlPlan(OPTIONS)))
    np.testing.assert_array_equal(found.latency_ms, expected.latency_ms)
    assert found.decisions == expected.decisions and found.decisions


def test_the_outcome_is_counted_by_hand() -> None:
    served = Served(
        np.array([10.0, 30.0, np.inf, 20.0]),
        np.array([1, 1, 2, 2]),
        (Segment(0.0, 0.0, 1), Segment(10.0, 7.0, 2)),
    )
    found = machine_outcome(served, OPTIONS, 30.0, Objective(25.0), 36.0)
    assert (found.late, found.refused, found.loss, found.switches) == (0.5, 0.25, 0.005, 1)
    assert (found.p50_ms, found.p95_ms) == (20.0, None)
    assert (found.switch_seconds, found.planned_switch_seconds) == (3.0, OPTIONS[2].load_seconds)
    alone = machine_outcome(
        Served(served.latency_ms, served.options, served.segments[:1]), OPTIONS, 30.0, Objective(25.0), 36.0
    )
    assert alone.switch_seconds is None and alone.planned_switch_seconds is None
    # Two replicas for 10 s, one for 20 s and for the 3 s of its load.
    assert found.replica_seconds == found.core_seconds == 2 * 10 + 23
    assert found.money == pytest.approx(43 * 36 / 3600)


def test_policies_differ_by_what_they_foresee() -> None:
    plan = ControlPlan(OPTIONS, (PlannedPhase(2.0, 0.0), PlannedPhase(12.0, 0.0)), 50.0)
    found = policies(plan)
    assert [each.name for each in found[STATIC_MEAN].options] == ["exact 1x1"]
    assert [each.name for each in found[STATIC_PEAK].options] == ["exact 2x1"]
    assert (found[REACTIVE].phases, found[ELASTIC]) == ((), plan)


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_a_machine_that_is_slower_than_believed_is_given_more_replicas(speed: float) -> None:
    """5 requests/s of 100 ms keep within 600 ms on one replica; at half speed one is always busy, and two are not."""
    seconds = np.cumsum(np.random.default_rng(1).exponential(1 / 5, 5 * 400))
    rows = np.full(len(seconds), 100)

    def slower(one: Option) -> ServiceTime:
        return lambda *seen: service(one)(*seen) / speed

    plan = ControlPlan(OPTIONS[:2], (PlannedPhase(5.0, 0.0),), 1000.0, slo_ms=600.0)
    found = simulate_elastic(plan, WINDOWS, seconds, rows, slower, CORES)
    late = found.latency_ms > 600
    corrected = [each for each in found.decisions if each.reason is Reason.LATE]
    if speed == 1.0:
        assert not corrected and late.mean() < 0.05
    else:
        assert corrected and late[seconds > 60].mean() < 0.05
        alone = simulate_elastic(ControlPlan(OPTIONS[:1]), WINDOWS, seconds, rows, slower, CORES)
        assert (alone.latency_ms > 600).mean() > 0.5


# Planned: two exact replicas until second 10, two fast ones from then on, whose loading begins at second 7.
SWITCH = ControlPlan(OPTIONS, (PlannedPhase(12.0, 0.0), PlannedPhase(60.0, 0.01)), 10.0)


def switched(
    cores: int, *bursts: tuple[float, int], plan: ControlPlan = SWITCH, slower: float = 1.0
) -> tuple[Served, np.ndarray]:
    """Return what bursts of requests at seconds got from a machine of so many cores, and when each was answered."""
    seconds = np.repeat([at for at, _ in bursts], [count for _, count in bursts])

    def slowed(one: Option) -> ServiceTime:
        return lambda *seen: slower * service(one)(*seen)

    found = simulate_elastic(plan, WINDOWS, seconds, np.full(len(seconds), 100), slowed, cores)
    return found, seconds + found.latency_ms / 1e3


@pytest.mark.parametrize(("cores", "fast_ends", "exact_ends"), [(2, 3.0, 4.5), (3, 2.0, 3.5), (4, 1.5, 3.0)])
def test_the_old_and_the_new_model_share_the_machines_cores(cores: int, fast_ends: float, exact_ends: float) -> None:
    """Just before the switch 60 exact requests come, 6 core seconds of work, and just after it 150 fast ones, 3.

    Each model has two replicas. While both are busy, four replicas share the cores equally: on 2 of them the fast
    requests, half of all work until then, end after 2 x 3 / 2 s, and all work after 9 / 2 s. On 3 cores the fast ones
    end after 4 x 1.5 / 3 s, in which 3 of 6 core seconds of the exact ones are done; two replicas need 1.5 s for the
    rest. On 4 cores neither waits for the other.
    """
    found, ends = switched(cores, (9.99, 60), (10.01, 150))
    assert [OPTIONS[segment.option].name for segment in found.segments[:2]] == ["exact 2x1", "fast 2x1"]
    assert (found.segments[1].loaded_s, found.segments[1].start_s) == (7.0, 10.0)
    assert ends[60:].max() == pytest.approx(10 + fast_ends, abs=0.25)
    assert ends[:60].max() == pytest.approx(10 + exact_ends, abs=0.25)


@pytest.mark.parametrize(("cores", "expected"), [(2, 11.0), (3, 10.0)])
def test_a_model_that_loads_occupies_a_core(cores: int, expected: float) -> None:
    """60 exact requests need 3 s on two cores; while two replicas and a load share them, 2 s of it are done in 3 s."""
    _, ends = switched(cores, (7.01, 60))
    assert ends.max() == pytest.approx(expected, abs=0.15)
    # Without a switch nothing loads.
    _, ends = switched(cores, (7.01, 60), plan=ControlPlan(OPTIONS[1:2]))
    assert ends.max() == pytest.approx(10.01, abs=1e-6)


def test_requests_of_both_models_count_in_one_limit() -> None:
    """The exact model has 200 of 256 in flight; the fast model accepts 56 more."""
    found, _ = switched(4, (9.99, 200), (10.0, 100))
    assert np.isfinite(found.latency_ms[:256]).all() and np.isinf(found.latency_ms[256:]).all()
    alone, _ = switched(4, (10.0, 100))
    assert np.isfinite(alone.latency_ms).all()


@pytest.mark.parametrize("split_rows", [50, None])
def test_parts_of_a_split_request_count_as_one_in_the_limit(split_rows: int | None) -> None:
    """The exact model has 100 of 256 in flight, in two parts each; the fast one accepts 100 like them or 156 whole."""
    options = tuple(
        replace(one, placement=replace(one.placement, split_rows=rows))
        for one, rows in zip(OPTIONS[1::2], (50, split_rows), strict=True)
    )
    count = 100 if split_rows else 200
    found, _ = switched(8, (9.99, 100), (10.0, count), plan=replace(SWITCH, options=options))
    assert [found.segments[number].option for number in (0, 1)] == [0, 1]
    assert np.isfinite(found.latency_ms[:256]).all() and np.isinf(found.latency_ms[256:]).all()


@pytest.mark.parametrize(("slower", "loads"), [(1.0, 18.0), (5.0, 40.0)])
def test_the_next_switch_waits_for_the_old_models_last_answer(slower: float, loads: float) -> None:
    """The plan asks for one fast replica at second 10, and for two from second 17 on, 3 s before its third phase.

    One exact replica has 80 requests at the first switch, which it answers until second 18, or until second 50 where it
    takes 0.5 s for each. 30 s are waited for them.
    """
    phases = (PlannedPhase(6.0, 0.0), PlannedPhase(30.0, 0.01), *[PlannedPhase(60.0, 0.01)] * 4)
    found, ends = switched(8, (9.99, 80), (60.0, 1), plan=ControlPlan(OPTIONS, phases, 10.0), slower=slower)
    assert ends[:80].max() == pytest.approx(9.99 + 8 * slower, abs=1e-6)
    assert [OPTIONS[segment.option].name for segment in found.segments] == ["exact 1x1", "fast 1x1", "fast 2x1"]
    assert [each.now_s for each in found.decisions] == [7, 17]
    assert (found.segments[2].loaded_s, found.segments[2].start_s) == (loads, loads + 3)


def test_a_planned_surge_is_served_in_time_where_a_reaction_is_late() -> None:
    plan = ControlPlan(OPTIONS, (PlannedPhase(6.0, 0.0), PlannedPhase(60.0, 0.0), PlannedPhase(6.0, 0.0)), 50.0)
    seconds = even((6, 50), (60, 50), (6, 50))
    rows = np.full(len(seconds), 100)
    found = {
        name: simulate_elastic(each, WINDOWS, seconds, rows, service, CORES) for name, each in policies(plan).items()
    }
    outcome = {
        name: machine_outcome(each, policies(plan)[name].options, 150.0, Objective(200.0), 1.0)
        for name, each in found.items()
    }
    assert outcome[ELASTIC].late == outcome[STATIC_PEAK].late == 0
    assert 0 < outcome[REACTIVE].late < outcome[STATIC_MEAN].late
    assert outcome[ELASTIC].loss < outcome[STATIC_PEAK].loss


def test_a_machine_that_is_twice_as_slow_as_planned_is_helped_by_what_waits() -> None:
    """The requests that wait cause a panic after about 13 s.

    Two exact replicas answer 10 of 13 requests/s on this machine, though 16 were planned, so 3 a second more wait.
    After 13 s these are 19 requests/s more within the panic window of 2 s, in all twice 16: a panic.
    """
    seconds, exact = even((13, 200)), ControlPlan(OPTIONS[1:2])
    rows = np.full(len(seconds), 100)

    def slow(one: Option) -> ServiceTime:
        return lambda group, rows, idle_ns, busy: 2 * service(one)(group, rows, idle_ns, busy)

    static, elastic = (
        simulate_elastic(each, WINDOWS, seconds, rows, slow, CORES) for each in (exact, ControlPlan(OPTIONS))
    )
    panic = next(each for each in elastic.decisions if each.reason is Reason.PANIC)
    # It begins with two exact replicas, which the plan's capacity of 16 holds.
    assert 12 <= panic.now_s <= 15 and OPTIONS[panic.option].variant == "fast" and panic.backlog >= 36
    late = [float((found.latency_ms > 1000).mean()) for found in (static, elastic)]
    assert late[0] > 0.95 and late[1] < 0.6 * late[0] and np.isfinite(elastic.latency_ms).all()


@settings(max_examples=25, deadline=None)
@given(
    rates=st.lists(st.sampled_from([1.0, 5.0, 20.0, 70.0]), min_size=1, max_size=5),
    seed=st.integers(0, 100),
    load_s=st.sampled_from([0.0, 0.4, 5.0]),
)
def test_every_request_is_answered_by_what_serves(rates: list[float], seed: int, load_s: float) -> None:
    random = np.random.default_rng(seed)
    options = tuple(Option(o.variant, o.loss, o.placement, o.capacity_rps, load_s, o.cores) for o in OPTIONS)
    gaps = np.concatenate([random.exponential(1 / rate, round(10 * rate)) for rate in rates])
    seconds = np.cumsum(gaps)
    found = simulate_elastic(ControlPlan(options), WINDOWS, seconds, np.full(len(seconds), 9), service, CORES)
    least = np.array([100.0 if OPTIONS[at].variant == "exact" else 20.0 for at in found.options])
    assert len(found.options) == len(seconds) and np.all(found.latency_ms >= least - 1e-6)
    starts = [segment.start_s for segment in found.segments]
    assert starts == sorted(starts) and all(s.start_s >= s.loaded_s for s in found.segments)
    used = machine_outcome(found, options, float(seconds[-1]), Objective(1e9), 1.0)
    assert used.replica_seconds <= 2 * seconds[-1] + 2 * load_s * used.switches + 1e-6
    assert used.late == used.refused


def test_a_machine_of_two_serves_what_the_plan_counts_with() -> None:
    """Runs take 10 ms, 95% are to be answered within 25: one machine of two serves more than one alone.

    At nine tenths of what two machines serve, each with every second request of a Poisson stream, the exact variant
    keeps the SLO all the time. Counted with its capacity alone, the controller would serve the fast one.
    """
    one, objective = deployment(10.0), Objective(25.0)
    alone, both = (capacity_rps(one, 1.0, machines, poisson(), objective, 0) for machines in (1, 2))
    rate = 0.9 * both
    assert rate / 2 > 1.2 * alone
    options = (option("exact", 1, alone), option("fast", 1, 1000.0, 0.01))
    seconds = np.cumsum(np.random.default_rng(1).exponential(1 / rate, 50_000))
    rows = np.full(len(seconds), 100)
    own, sizes = machine_share(seconds, rows, np.full(len(seconds), 2), 1.0, 0)
    assert len(own) == pytest.approx(len(seconds) / 2, abs=1)

    def runs(one: Option) -> ServiceTime:
        return lambda group, rows, idle_ns, busy: 10e6 if one.variant == "exact" else 1e6

    for factor, serves in ((both / 2 / alone, 0), (1.0, 1)):
        phase = PlannedPhase(rate / 2 / factor, 0.0, factor)
        found = simulate_elastic(ControlPlan(options, (phase,), 1e6), WINDOWS, own, sizes, runs, CORES)
        assert set(found.options) == {serves} and (found.latency_ms > 25).mean() <= 0.05


def test_a_share_of_a_fleet_keeps_the_rate_of_a_machine() -> None:
    """100 requests/s on 2 machines and 300 on 6 are 50 requests/s on one of them, also ten times as fast."""
    random = np.random.default_rng(0)
    seconds = np.sort(np.concatenate([random.uniform(0, 1000, 100_000), random.uniform(1000, 2000, 300_000)]))
    machines = np.where(seconds < 1000, 2, 6)
    kept, rows = machine_share(seconds, np.arange(len(seconds)) + 1, machines, 10.0, 1)
    assert kept.max() <= 200 and np.all(np.diff(kept) >= 0)
    for part in (kept < 100, kept >= 100):
        assert part.sum() / 100 == pytest.approx(50, abs=4 * math.sqrt(50 / 100))
    np.testing.assert_allclose(seconds[rows - 1] / 10, kept)
    numbers = np.arange(len(seconds))
    dealt, at = machine_share(seconds, numbers, machines, 1.0, 1)
    assert set(np.diff(at[dealt < 1000])) == {2} and set(np.diff(at[dealt >= 1000])) == {6}, "each in its turn"
    none, _ = machine_share(seconds, numbers, np.zeros(len(seconds), np.int64), 1.0, 0)
    assert not len(none)
    everything, _ = machine_share(seconds, np.ones(len(seconds)), np.ones(len(seconds)), 1.0, 0)
    np.testing.assert_array_equal(everything, seconds)
