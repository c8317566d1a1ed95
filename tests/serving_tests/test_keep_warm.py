"""Engines that are kept warm: which rows they run, when they rest, and what requests notice of it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from objectives.serving.pool import Pool, keep_warm, scheduler
from objectives.serving.pool.admission import ServiceRate
from objectives.serving.pool.balancing import round_robin
from spaces.techniques.placement import Admission, Batching, InstanceGroup, Placement
from tests.serving_tests.test_pool import SOON, Held, pool_of, request, rows, scores_of

OWN, INLINE = Placement(keep_warm_ms=0.5), Placement(inline=True, keep_warm_ms=0.5)
either = pytest.mark.parametrize("placement", [OWN, INLINE], ids=["own thread", "inline"])
# Many intervals of half a millisecond.
A_WHILE = 0.1


def eventually(holds: Callable[[], object]) -> None:
    end = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.001)


def runs_in_a_while(engine: Held) -> int:
    before = len(engine.runs)
    time.sleep(A_WHILE)
    return len(engine.runs) - before


def hold_on_the_row(engine: Held) -> None:
    """Let the next run of the row last until the engine is opened again."""
    engine.controller.clear()
    eventually(lambda: engine.inside == 1)


@pytest.fixture
def long_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine is kept warm for longer than any test lasts."""
    monkeypatch.setattr(keep_warm, "WARM_NS", 10**12)


@either
@pytest.mark.usefixtures("long_warm")
def test_an_idle_engine_runs_the_first_row_again_and_again(placement: Placement) -> None:
    engine = Held(opened=True)
    with pool_of([engine], placement) as pool:
        assert not runs_in_a_while(engine), "nobody has asked for anything yet"
        assert scores_of(pool.submit(rows(4, first=7))) == [14, 16, 18, 20]
        eventually(lambda: len(engine.runs) > 5)
        assert scores_of(pool.submit(rows(2))) == [0, 2]
        eventually(lambda: len(engine.runs) > 12)
    asked = [run for run in engine.runs if len(run) > 1]
    warm = [run for run in engine.runs if len(run) == 1]
    assert asked == [[7, 8, 9, 10], [0, 1]] and set(map(tuple, warm)) == {(7,)}
    assert engine.most_inside == 1


@either
def test_an_engine_rests_some_time_after_the_last_request(
    placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks next wakes it again; of an inline replica that is another thread than the one that keeps it warm."""
    monkeypatch.setattr(keep_warm, "WARM_NS", 10**9)
    engine = Held(opened=True)
    with pool_of([engine], placement) as pool:
        for _ in range(2):
            before = len(engine.runs)
            pool.submit(rows(2)).result(SOON)
            eventually(lambda before=before: len(engine.runs) > before + 2)  # type: ignore[misc]
            eventually(lambda: not runs_in_a_while(engine))


@either
@pytest.mark.usefixtures("long_warm")
def test_a_pool_that_is_told_to_rest_does_so_until_the_next_request(placement: Placement) -> None:
    engine = Held(opened=True)
    with pool_of([engine], placement) as pool:
        for _ in range(2):
            pool.submit(rows(2)).result(SOON)
            assert runs_in_a_while(engine)
            pool.rest()
            assert not runs_in_a_while(engine)


@either
@pytest.mark.usefixtures("long_warm")
def test_a_request_waits_for_a_row_that_runs(placement: Placement) -> None:
    """Neither the engine nor an answer is shared, and `rest` waits for the row too."""
    engine, scores, rested = Held(opened=True), list[list[float]](), threading.Event()
    with pool_of([engine], placement) as pool:
        pool.submit(rows(2)).result(SOON)
        hold_on_the_row(engine)

        def rest() -> None:
            pool.rest()
            rested.set()

        threads = [
            threading.Thread(target=lambda: scores.append(scores_of(pool.submit(rows(3))))),
            threading.Thread(target=rest),
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: pool.waiting == 1)
        assert not scores and not rested.is_set()
        engine.controller.set()
        for thread in threads:
            thread.join(SOON)
        assert scores == [[0, 2, 4]] and rested.is_set()
    assert engine.most_inside == 1


@either
@pytest.mark.usefixtures("long_warm")
def test_an_engine_that_hangs_on_the_row_holds_up_no_caller(
    placement: Placement, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool says that it hangs, and answers when it does no more."""
    engine = Held(opened=True)
    with pool_of([engine], placement) as pool:
        pool.submit(rows(2)).result(SOON)
        hold_on_the_row(engine)
        assert pool.hanging == 0
        monkeypatch.setattr(scheduler, "HANGS_NS", 0)
        assert pool.hanging == 1 and pool.hangs()
        waiting = [pool.submit(rows(count)) for count in (3, 2)]
        assert pool.waiting == 2 and not any(answer.done() for answer in waiting)
        engine.controller.set()
        assert [scores_of(answer) for answer in waiting] == [[0, 2, 4], [0, 2]]
    assert engine.most_inside == 1


@pytest.mark.usefixtures("long_warm")
def test_the_other_replica_answers_what_waits_for_one_that_hangs_on_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = [Held(opened=True), Held(opened=True)]
    opened, placement = iter(engines), Placement(InstanceGroup(replicas=2), keep_warm_ms=0.5)
    with Pool(placement, lambda group: next(opened), None, [round_robin]) as pool:
        for count in (2, 3):
            pool.submit(rows(count)).result(SOON)
        hold_on_the_row(engines[0])
        stranded, answered = pool.submit(rows(2)), pool.submit(rows(3))
        assert scores_of(answered) == [0, 2, 4] and not stranded.done()
        monkeypatch.setattr(scheduler, "HANGS_NS", 0)
        monkeypatch.setattr(scheduler, "_LOOK_NS", 0)
        # The other one may be in a warm run of its own just then, and hang too by this limit.
        eventually(lambda: pool.relieve() or stranded.done())  # type: ignore[func-returns-value]
        assert scores_of(stranded) == [0, 2] and engines[0].inside == 1
        engines[0].controller.set()


@either
def test_an_engine_that_fails_on_the_row_is_left_alone(placement: Placement) -> None:
    """Its error is nobody's answer, and the pool goes on; the next request has it kept warm again."""

    class Failing(Held):
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            scores = super().run(inputs)
            if len(inputs["item"]) == 1:
                raise RuntimeError("a device is gone")
            return scores

    engine = Failing(opened=True)
    with pool_of([engine], placement) as pool:
        for times in (1, 2):
            assert scores_of(pool.submit(rows(2))) == [0, 2]
            eventually(lambda times=times: sum(len(run) == 1 for run in engine.runs) == times)  # type: ignore[misc]
            assert not runs_in_a_while(engine)


@either
@pytest.mark.usefixtures("long_warm")
def test_a_pool_closes_once_a_row_has_run(placement: Placement) -> None:
    engine = Held(opened=True)
    pool = pool_of([engine], placement)
    pool.submit(rows(2)).result(SOON)
    hold_on_the_row(engine)
    closing = threading.Thread(target=pool.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive(), "the engine is still in use"
    engine.controller.set()
    closing.join(SOON)
    assert not closing.is_alive()
    pool.rest()


@pytest.mark.usefixtures("long_warm")
def test_a_closed_pool_keeps_no_engine() -> None:
    engine = Held(opened=True)
    known = weakref.ref(engine)
    pool = pool_of([engine], OWN)
    pool.submit(rows(2)).result(SOON)
    pool.close()
    del engine
    gc.collect()
    assert known() is None and pool.waiting == 0


@pytest.mark.usefixtures("long_warm")
def test_a_request_goes_to_the_idle_replica_that_runs_no_row() -> None:
    engines = [Held(opened=True), Held(opened=True)]
    with pool_of(engines, Placement(InstanceGroup(replicas=2), keep_warm_ms=0.5)) as pool:
        pool.submit(rows(2)).result(SOON)
        assert len(engines[0].runs[0]) == 2, "of two that are idle, the first"
        hold_on_the_row(engines[0])
        assert scores_of(pool.submit(rows(3))) == [0, 2, 4]
        assert engines[1].runs[0] == [0, 1, 2] and engines[0].inside == 1
        engines[0].controller.set()


@pytest.mark.usefixtures("long_warm")
def test_a_row_at_which_the_engine_failed_is_not_run_again() -> None:
    """The first row of the next request takes its place."""

    class Failing(Held):
        def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            scores = super().run(inputs)
            if inputs["item"].tolist() == [7]:
                raise RuntimeError("a row that cannot be run alone")
            return scores

    engine = Failing(opened=True)
    with pool_of([engine], OWN) as pool:
        pool.submit(rows(2, first=7)).result(SOON)
        eventually(lambda: [7] in engine.runs)
        pool.submit(rows(2)).result(SOON)
        eventually(lambda: engine.runs.count([0]) > 3)
        assert engine.runs.count([7]) == 1


@pytest.mark.usefixtures("long_warm")
def test_each_replica_is_kept_warm_and_batches_are_answered() -> None:
    engines = [Held(opened=True), Held(opened=True)]
    placement = Placement(InstanceGroup(replicas=2), batching=Batching(8), keep_warm_ms=0.5)
    with pool_of(engines, placement) as pool:
        for engine in engines:
            engine.controller.clear()
        answers = [pool.submit(rows(2)) for _ in range(8)]
        for engine in engines:
            engine.controller.set()
        assert [scores_of(answer) for answer in answers] == [[0, 2]] * 8
        for engine in engines:
            eventually(lambda engine=engine: sum(len(run) == 1 for run in engine.runs) > 3)  # type: ignore[misc]


@either
@pytest.mark.usefixtures("long_warm")
def test_admission_learns_nothing_from_the_row(placement: Placement, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    monkeypatch.setattr(ServiceRate, "learn", lambda self, rows, ns: learned.append(rows))
    engine = Held(opened=True)
    with pool_of([engine], replace(placement, admission=Admission(deadline_ms=1e6))) as pool:
        for _ in range(3):
            pool.submit(rows(5)).result(SOON)
        eventually(lambda: len(engine.runs) > 10)
    assert learned == [5, 5], "the first run of all tells nothing"


def test_an_engine_is_not_kept_warm_by_default() -> None:
    engine = Held(opened=True)
    with pool_of([engine], Placement()) as pool:
        pool.submit(rows(2)).result(SOON)
        assert not runs_in_a_while(engine)
        pool.rest()


@pytest.mark.usefixtures("long_warm")
def test_a_request_is_copied_and_an_input_given_once_stays_whole() -> None:
    engine = Held(opened=True)
    engine.once = frozenset({"user"})
    taken: list[dict[str, NDArray[Any]]] = []
    run = engine.run
    engine.run = lambda inputs: (taken.append(dict(inputs)), run(inputs))[1]  # type: ignore[method-assign]
    asked = {**request(3, 4), "user": np.array([9])}
    with Pool(OWN, lambda group: engine) as pool:
        pool.submit(asked).result(SOON)
        eventually(lambda: len(taken) > 2)
    assert taken[1]["item"].tolist() == [3] and taken[1]["user"].tolist() == [9]
    assert not any(np.shares_memory(taken[1][name], asked[name]) for name in asked)
