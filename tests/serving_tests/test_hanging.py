"""Replicas that hang: the others take what waits for one, it gets nothing more, and nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.pool import Pool, Refusal, RefusedError, scheduler
from objectives.serving.pool.balancing import POLICIES, Cost, round_robin
from objectives.serving.pool.scheduler import HANGS_NS, Scheduler, Wait
from objectives.serving.pool.virtual_clock import simulate
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement
from tests.serving_tests.test_pool import SOON, Held, refusal_of, request, scores_of

MS = 1_000_000
SECOND = 1000 * MS
# Between two looks for replicas that hang.
LOOK = SECOND // 10
HANGING_ROWS = 7


class Entry(NamedTuple):
    number: int
    rows: int
    submitted_ns: int
    whole: None = None


def service(group: int, rows: int, idle_ns: int | None, busy: int) -> float:
    """A request of 7 rows takes a minute, any other a millisecond."""
    return 60 * SECOND if rows == HANGING_ROWS else MS


@pytest.mark.parametrize("batching", [None, Batching(rows=6, wait_us=0)])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_other_replica_answers_what_waits_for_one_that_hangs(policy: str, batching: Batching | None) -> None:
    """The first request hangs; 350 of a row follow, one each 20 ms, and 100 when it has ended.

    What comes within 3 s, when the run begins to count as hanging, is answered soon after; from then on each is
    answered at once. The policies that look at what is outstanding send a few to the replica that hangs, `round-robin`
    every second one.
    """
    due = np.array([0, *(20 * MS * np.arange(1, 351)), *(61 * SECOND + 20 * MS * np.arange(100))], np.int64)
    rows = [HANGING_ROWS, *[1] * 450]
    placement = Placement(InstanceGroup(replicas=2), batching=batching)
    balance = POLICIES[policy]([Cost(MS, 0.0)] * 2)
    found = simulate(placement, rows, due.tolist(), service, None, balance)

    took = found.finished_ns - due
    relieved = HANGS_NS + LOOK + 20 * MS + 151 * MS  # 151 of a millisecond at most are moved
    assert took[0] == 60 * SECOND and not found.refused.any()
    assert (found.finished_ns[1:351][due[1:351] < HANGS_NS] <= relieved).all()
    assert (took[1:351][due[1:351] > relieved] == MS).all()
    assert (took[351:] == MS).all()
    if policy == "round-robin":
        # Those of 40 to 3,080 ms, each 40 ms, are moved at 3,100; run one by one, four that come then wait for them.
        assert (took[1:351] > 20 * MS).sum() == 77 + (0 if batching else 4)


def test_a_replica_whose_run_has_ended_is_chosen_again() -> None:
    """After the hang, pairs of requests come at the same moment, and both replicas answer one each."""
    due = [0, 4 * SECOND, *(at for pair in range(10) for at in [61 * SECOND + pair * LOOK] * 2)]
    rows = [HANGING_ROWS, *[1] * 21]
    found = simulate(Placement(InstanceGroup(replicas=2)), rows, due, service)
    assert (found.finished_ns - due)[1:].tolist() == [MS] * 21


def test_where_all_hang_what_waits_is_taken_by_the_first_that_ends() -> None:
    def one_ends_first(group: int, rows: int, idle_ns: int | None, busy: int) -> float:
        return {7: 60 * SECOND, 8: 10 * SECOND}.get(rows, MS)

    due = [0, 0, *(4 * SECOND + number * LOOK for number in range(10)), 11 * SECOND]
    found = simulate(Placement(InstanceGroup(replicas=2)), [7, 8, *[1] * 11], due, one_ends_first, None, round_robin)
    assert found.finished_ns[:2].tolist() == [60 * SECOND, 10 * SECOND]
    # Five wait for each: those of the one that ends after 10 s follow it, the others the next request's look.
    assert sorted(found.finished_ns[2:12].tolist()) == [
        *(10 * SECOND + number * MS for number in range(1, 6)),
        *(11 * SECOND + number * MS for number in range(1, 6)),
    ]


def test_a_failed_batch_whose_jobs_run_one_by_one_does_not_hang() -> None:
    """Three jobs of 2 s each: no run lasts 3 s."""
    jobs: Scheduler[Entry] = Scheduler(1, Batching(rows=100, wait_us=0), Admission())
    for number in range(3):
        jobs.submit([Entry(number, 5, 0)])
    batch = jobs.take(0, 0)
    assert isinstance(batch, list) and len(batch) == 3
    for now, job in zip(range(0, 6 * SECOND, 2 * SECOND), batch, strict=True):
        jobs.run_together(0, 1, now)
        assert jobs.hanging(now + 2 * SECOND) == 0
        jobs.finish(0, job.rows)
    assert (jobs.waiting, jobs.rows, jobs.hanging(60 * SECOND)) == (0, 0, 0)


def test_what_waits_for_a_replica_that_hangs_while_the_pool_closes_is_left_to_it() -> None:
    """The threads of the others may have ended."""
    jobs: Scheduler[Entry] = Scheduler(2, None, Admission(), round_robin)
    for number in range(3):
        jobs.submit([Entry(number, 1, 0)])
    assert [jobs.take(replica, 0) for replica in range(2)] == [[Entry(0, 1, 0)], [Entry(1, 1, 0)]]
    jobs.finish(1, 1)
    jobs.close()
    assert jobs.take(1, 0) == [] and jobs.relieve(HANGS_NS + 1) == []
    jobs.finish(0, 1)
    assert jobs.take(0, 2 * HANGS_NS) == [Entry(2, 1, 0)]


def test_admission_does_not_count_on_a_replica_that_hangs() -> None:
    """Each row takes a millisecond, and 10 ms are left: the idle replica has time for ten rows, then for none."""
    jobs: Scheduler[Entry] = Scheduler(2, None, Admission(deadline_ms=10.0))
    jobs.admission.learn(1000, 1000 * MS)
    jobs.submit([Entry(0, 1, 0)])
    assert jobs.take(0, 0) == [Entry(0, 1, 0)]
    later = HANGS_NS + LOOK
    assert jobs.relieve(later) == []
    jobs.submit([Entry(1, 10, later)])
    assert jobs.load.least_rows == 10
    with pytest.raises(RefusedError):
        jobs.submit([Entry(2, 1, later)])
    jobs.finish(0, 1)
    jobs.relieve(later + LOOK)
    jobs.submit([Entry(2, 1, later + LOOK)])
    assert jobs.hanging(later + LOOK) == 0


def test_a_replica_that_hangs_in_a_warm_run_is_relieved() -> None:
    """It gets what comes before the run counts as hanging; from then on the other one has all, until the run ends."""
    jobs: Scheduler[Entry] = Scheduler(2, None, Admission(), round_robin)
    for replica in range(2):
        assert jobs.take(replica, 0) == Wait(None)
    assert jobs.begin_warm_run(0, 0)
    assert jobs.submit([Entry(0, 1, MS)]) == [0]
    assert jobs.hanging(HANGS_NS) == 0 and jobs.hanging(HANGS_NS + 1) == 1
    later = HANGS_NS + LOOK
    assert jobs.relieve(later) == [1] and jobs.take(1, later) == [Entry(0, 1, MS)]
    jobs.finish(1, 1)
    for number in range(1, 4):
        jobs.submit([Entry(number, 1, later)])
    assert [jobs.take(1, later) for _ in range(3)] == [[Entry(number, 1, later)] for number in range(1, 4)]
    jobs.finish(1, 3, 3)
    jobs.end_warm_run(0)
    assert jobs.hanging(2 * later) == 0 and jobs.relieve(2 * later) == []
    for number in range(4, 6):
        jobs.submit([Entry(number, 1, 2 * later)])
    assert [len(jobs.take(replica, 2 * later)) for replica in range(2)] == [1, 1]


def test_a_replica_with_a_job_has_no_warm_run() -> None:
    jobs: Scheduler[Entry] = Scheduler(1, None, Admission())
    jobs.submit([Entry(0, 1, 0)])
    assert not jobs.begin_warm_run(0, 0)
    jobs.take(0, 0)
    assert not jobs.begin_warm_run(0, 0) and jobs.hanging(HANGS_NS + 1) == 1
    jobs.finish(0, 1)
    assert jobs.begin_warm_run(0, 0)


def test_no_caller_runs_a_job_during_a_warm_run() -> None:
    jobs: Scheduler[Entry] = Scheduler(1, None, Admission())
    assert jobs.take(0, 0) == Wait(None) and jobs.begin_warm_run(0, 0)
    assert jobs.enter(Entry(0, 1, 0)) == (False, [0])
    jobs.end_warm_run(0)
    assert jobs.take(0, 0) == [Entry(0, 1, 0)]
    jobs.finish(0, 1)
    assert jobs.enter(Entry(1, 1, 0)) == (True, [])


steps = st.lists(st.tuples(st.sampled_from(["submit", "finish", "wait", "warm"]), st.integers(0, 100)), max_size=80)


@given(
    replicas=st.integers(1, 4),
    policy=st.sampled_from(sorted(POLICIES)),
    batching=st.none() | st.builds(Batching, rows=st.integers(2, 9), wait_us=st.just(0)),
    steps=steps,
)
def test_each_job_is_run_once_whatever_hangs(
    replicas: int, policy: str, batching: Batching | None, steps: list[tuple[str, int]]
) -> None:
    """Jobs come, runs end or hang in any order: none is lost, none runs twice, and all loads end at zero.

    A replica takes jobs when it is woken and when a run of it has ended, as its thread does, and at no other time; one
    that is woken in a warm run takes them when that has ended.
    """
    jobs: Scheduler[Entry] = Scheduler(replicas, batching, Admission(), POLICIES[policy]([Cost(1.0, 1.0)] * replicas))
    running: dict[int, list[Entry]] = {}
    warming: dict[int, bool] = {}
    taken: Counter[int] = Counter()
    now = submitted = 0

    def take(replica: int) -> None:
        if replica in warming:
            assert not warming[replica], "it is woken once"
            warming[replica] = True
            return
        assert replica not in running, "it is woken only where it waits"
        got = jobs.take(replica, now)
        if not isinstance(got, Wait) and got:
            running[replica] = list(got)
            taken.update(job.number for job in got)

    def finish(replica: int) -> None:
        if replica in warming:
            jobs.end_warm_run(replica)
            if warming.pop(replica):
                take(replica)
        elif replica in running:
            for job in running.pop(replica):
                jobs.finish(replica, job.rows)
            take(replica)

    for replica in range(replicas):
        take(replica)
    for step, number in steps:
        now += MS
        replica = number % replicas
        if step == "submit":
            woken = [*jobs.relieve(now), *jobs.submit([Entry(submitted, 1 + number % 9, now)])]
            submitted += 1
            for replica in woken:
                take(replica)
        elif step == "finish":
            finish(replica)
        elif step == "warm":
            if replica not in warming and jobs.begin_warm_run(replica, now):
                assert replica not in running
                warming[replica] = False
        else:
            now += number * SECOND // 10
    while warming or running:
        finish(min([*warming, *running]))
    assert taken == Counter(range(submitted))
    assert (jobs.rows, jobs.queued, jobs.load.least_rows) == (0, 0, 0)


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function from whose call on every run hangs; none does before, and each submission looks for them."""
    monkeypatch.setattr(scheduler, "HANGS_NS", 3600 * SECOND)
    monkeypatch.setattr(scheduler, "_LOOK_NS", 0)
    return lambda: monkeypatch.setattr(scheduler, "HANGS_NS", 0)


@pytest.mark.parametrize("looks", ["submit", "relieve"])
def test_the_running_pool_relieves_a_replica_that_hangs(looks: str, hang: Callable[[], None]) -> None:
    first, second = Held(), Held(opened=True)
    engines = iter([first, second])
    with Pool(Placement(InstanceGroup(replicas=2)), lambda group: next(engines), None, [round_robin]) as pool:
        hung = pool.submit(request(1))
        first.wait_inside()
        assert scores_of(pool.submit(request(2))) == [4.0]
        stranded = pool.submit(request(3))
        assert not stranded.done() and pool.queued == 1
        hang()
        assert pool.hanging == 1
        if looks == "relieve":
            pool.relieve()
        else:
            assert scores_of(pool.submit(request(4))) == [8.0]
        assert scores_of(stranded) == [6.0] and not hung.done()
        first.controller.set()
        assert scores_of(hung) == [2.0]
        assert pool.hanging == pool.waiting == 0


def test_a_pool_of_which_all_replicas_hang_says_so(hang: Callable[[], None]) -> None:
    engines = [Held(), Held()]
    opened = iter(engines)
    placement = Placement(InstanceGroup(replicas=2), admission=Admission(queue=1))
    with Pool(placement, lambda group: next(opened)) as pool:
        running = [pool.submit(request(1)), pool.submit(request(2))]
        waiting = pool.submit(request(3))
        for engine in engines:
            engine.wait_inside()
        hang()
        pool.relieve()
        assert not pool.hangs(10**12)
        assert pool.hanging == 2 and pool.hangs() and not waiting.done()
        assert refusal_of(pool.submit(request(4))) is Refusal.QUEUE_FULL
        engines[0].controller.set()
        assert scores_of(running[0]) == [2.0] and scores_of(waiting) == [6.0]
        assert not pool.hangs() and pool.hanging == 1
        engines[1].controller.set()
        assert running[1].result(SOON).tolist() == [4.0]
