"""The pool gives every request its own scores, once, whichever way a placement sends it; or refuses it, and says so."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.serving.engines import EngineError, open_engine
from objectives.serving.pool import PendingResult, Pool, Refusal, RefusedError
from objectives.serving.pool.admission import ServiceRate
from objectives.serving.pool.cores import share_cores
from objectives.serving.pool.scheduler import parts_of
from objectives.serving.pool.splitting import _Joint
from spaces.techniques.placement import LEAST_WARM_MS, Admission, Batching, InstanceGroup, Placement, Route
from tests.serving_tests.dot import TABLE, WEIGHT, write_dot

BAD = -1
SOON = 20
can_pin = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="two cores are needed"
)


class Held:
    """An engine with scores = 2 * item.

    Every run waits at the gate, and is noted in the order in which runs began.
    """

    once: frozenset[str] = frozenset()

    def __init__(self, opened: bool = False) -> None:
        self.controller, self.entered = threading.Event(), threading.Semaphore(0)
        self.runs: list[list[int]] = []
        self.threads: list[int] = []
        self.inside = self.most_inside = 0
        if opened:
            self.controller.set()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        self.runs.append(inputs["item"].tolist())
        self.threads.append(threading.get_ident())
        self.entered.release()
        held = self.controller.wait(SOON)
        self.inside -= 1
        assert held, "a run was never let go"
        if BAD in inputs["item"]:
            raise ValueError("a bad item")
        return np.asarray(2 * inputs["item"], dtype=np.float32)

    def wait_inside(self) -> None:
        assert self.entered.acquire(timeout=SOON)


class Stepped(Held):
    """One run is let go at each step."""

    def __init__(self) -> None:
        super().__init__(opened=True)
        self.steps = threading.Semaphore(0)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        scores = super().run(inputs)
        assert self.steps.acquire(timeout=SOON), "a run was never let go"
        return scores


def request(*items: int) -> dict[str, NDArray[np.int64]]:
    return {"item": np.array(items, dtype=np.int64)}


def rows(count: int, first: int = 0) -> dict[str, NDArray[np.int64]]:
    return request(*range(first, first + count))


def pool_of(engines: Sequence[Held], placement: Placement | None = None) -> Pool:
    """A pool of the engines in the order of the replicas."""
    coming = iter(engines)
    return Pool(placement or Placement(InstanceGroup(replicas=len(engines))), lambda instance_group: next(coming))


def scores_of(answer: PendingResult) -> list[float]:
    scores: list[float] = answer.result(SOON).tolist()
    return scores


def refusal_of(answer: PendingResult) -> Refusal:
    error = answer.exception(SOON)
    assert isinstance(error, RefusedError)
    assert error.refused, "a load generator looks at this"
    return error.reason


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dot(tmp_path_factory.mktemp("model") / "model.onnx")


class TestAnyPlacement:
    def test_each_gets_its_own_answer_from_several_threads(self, model: Path) -> None:
        wrong: list[int] = []

        def ask(pool: Pool, seed: int) -> None:
            for items in np.random.default_rng(seed).integers(0, 30, size=(50, 6)):
                if not np.allclose(pool.submit({"item": items}).result(SOON), TABLE[items] @ WEIGHT, atol=1e-5):
                    wrong.append(seed)

        with Pool.open(model, Placement(InstanceGroup(replicas=2, threads=1))) as pool:
            _together([lambda seed=seed: ask(pool, seed) for seed in range(4)])
        assert not wrong

    @settings(max_examples=40)
    @given(data=st.data())
    def test_every_row_is_run_once_and_scored_in_its_place(self, data: st.DataObject) -> None:
        placement = data.draw(placements())
        sizes = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=24))
        starts = np.cumsum([0, *sizes])
        engines = [Held(opened=True) for _ in range(placement.replicas)]
        answers: dict[int, PendingResult] = {}

        def ask(pool: Pool, mine: Sequence[int]) -> None:
            for i in mine:
                answers[i] = pool.submit(rows(sizes[i], int(starts[i])))

        with pool_of(engines, placement) as pool:
            _together([lambda k=k: ask(pool, range(k, len(sizes), 3)) for k in range(3)])
            for i, answer in answers.items():
                assert scores_of(answer) == [2.0 * row for row in range(starts[i], starts[i + 1])]
            assert pool.waiting == 0
        ran = Counter(item for engine in engines for run in engine.runs for item in run)
        for first in [engine.runs[0][0] for engine in engines if engine.runs and placement.keep_warm_ms]:
            # Run again by itself, to keep the engine warm.
            assert ran[first] - 1 <= sum(engine.runs.count([first]) for engine in engines)
            ran[first] = 1
        assert ran == Counter(range(starts[-1]))
        assert all(engine.most_inside <= 1 for engine in engines), "one replica runs one thing at a time"

    def test_an_error_reaches_its_caller_and_the_replica_lives_on(self, model: Path) -> None:
        with Pool.open(model, Placement()) as pool:
            with pytest.raises(Exception, match="item"):
                pool.submit({"nothing": np.array([1])}).result(SOON)
            before = time.perf_counter_ns()
            answer = pool.submit(request(1))
            assert answer.result(SOON).shape == (1,)
            assert before < answer.finished_ns < time.perf_counter_ns()

    @pytest.mark.parametrize("bad", [{}, {"item": np.array(3)}])
    def test_a_request_without_rows_is_refused(self, bad: dict[str, Any]) -> None:
        with pool_of([Held()]) as pool, pytest.raises(ValueError, match=r"arrays of \(rows, ...\), but got"):
            pool.submit(bad)

    def test_closing_answers_what_was_submitted_and_takes_no_more(self) -> None:
        engine = Held()
        pool = pool_of([engine])
        answers = [pool.submit(request(i)) for i in range(3)]
        assert pool.waiting == 3
        engine.controller.set()
        pool.close()
        assert all(answer.done() for answer in answers)
        assert pool.waiting == 0
        with pytest.raises(RuntimeError, match="closed"):
            pool.submit(request(1))
        pool.close()

    def test_a_cancelled_request_is_not_run_and_one_that_is_run_cannot_be_cancelled(self) -> None:
        engine = Held()
        with pool_of([engine]) as pool:
            first, second, third = (pool.submit(request(i)) for i in range(3))
            engine.wait_inside()
            assert second.cancel()
            assert not first.cancel()
            engine.controller.set()
            assert scores_of(third) == [4.0]
            assert pool.waiting == 0
        assert engine.runs == [[0], [2]]
        with pytest.raises(CancelledError):
            second.result()

    def test_answers_can_be_awaited(self) -> None:
        async def ask(pool: Pool) -> list[float]:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(pool.submit(request(1))), 0.001)
            engine.controller.set()
            scores = await asyncio.wait_for(asyncio.wrap_future(pool.submit(request(5))), SOON)
            return [float(score) for score in scores]

        engine = Held()
        with pool_of([engine]) as pool:
            assert asyncio.run(ask(pool)) == [10.0]

    def test_a_callback_may_submit(self) -> None:
        for placement in (Placement(), Placement(inline=True)):
            second: list[PendingResult] = []
            with pool_of([Held(opened=True)], placement) as pool:
                done = threading.Event()

                def ask_again(_: object, pool: Pool = pool, done: threading.Event = done) -> None:
                    second.append(pool.submit(request(2)))  # noqa: B023
                    done.set()

                pool.submit(request(1)).add_done_callback(ask_again)
                assert done.wait(SOON)
                assert scores_of(second[0]) == [4.0]


class TestOpening:
    def test_an_error_while_opening_reaches_the_caller_and_closes_what_was_opened(self) -> None:
        opened: list[threading.Thread] = []

        def open_or_fail(instance_group: InstanceGroup) -> Held:
            opened.append(threading.current_thread())
            if len(opened) == 3:
                raise EngineError("third")
            return Held()

        with pytest.raises(EngineError, match="third"):
            Pool(Placement(InstanceGroup(replicas=4)), open_or_fail)
        assert len(opened) == 3
        for thread in opened:
            thread.join(SOON)
        assert not any(thread.is_alive() for thread in opened)

    def test_every_seat_opens_its_own_engine(self) -> None:
        asked: list[str] = []

        def open_noted(instance_group: InstanceGroup) -> Held:
            asked.append(instance_group.engine)
            return Held()

        placement = Placement(InstanceGroup("a", replicas=2), route=Route(10, InstanceGroup("b")))
        Pool(placement, open_noted).close()
        assert asked == ["a", "a", "b"]


class TestPinning:
    def test_cores_are_shared_out_in_order(self) -> None:
        pinned, free = InstanceGroup(replicas=2, threads=2, pinned=True), InstanceGroup(replicas=2)
        one = InstanceGroup(threads=1, pinned=True)
        assert share_cores([pinned, one], [1, 3, 5, 6, 7]) == (({1, 3}, {5, 6}), ({7},))
        assert share_cores([free, one], [4]) == ((None, None), ({4},))
        with pytest.raises(EngineError, match=r"5 cores .*4"):
            share_cores([pinned, one], [0, 1, 2, 3])

    def test_a_pool_is_not_opened_on_too_few_cores(self) -> None:
        with pytest.raises(EngineError, match="need 4096 cores"):
            pool_of([], Placement(InstanceGroup(threads=4096, pinned=True)))

    @can_pin
    def test_a_replica_opens_and_runs_on_its_own_cores(self) -> None:
        seen: list[list[set[int]]] = []
        mine = os.sched_getaffinity(0)

        class Looking(Held):
            def __init__(self) -> None:
                super().__init__(opened=True)
                self.cores = [os.sched_getaffinity(0)]
                seen.append(self.cores)

            def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
                self.cores.append(os.sched_getaffinity(0))
                return super().run(inputs)

        one = InstanceGroup(threads=1, pinned=True)
        with Pool(Placement(one, route=Route(1, one)), lambda instance_group: Looking()) as pool:
            scores_of(pool.submit(rows(1)))
            scores_of(pool.submit(rows(2)))
        first, second, *_ = sorted(mine)
        assert seen == [[{first}] * 2, [{second}] * 2]
        assert os.sched_getaffinity(0) == mine

    @can_pin
    @pytest.mark.parametrize("threads", [1, 2])
    def test_onnxruntimes_own_threads_stay_there(self, model: Path, threads: int) -> None:
        """The engine is given more threads than cores, so that those it makes show where they were born."""
        before = set(_tasks())
        instance_group = InstanceGroup(replicas=2, threads=1, pinned=True)
        with Pool(
            Placement(instance_group), lambda instance_group: open_engine("onnxruntime", model, "cpu", threads)
        ) as pool:
            for answer in [pool.submit(rows(8)) for _ in range(4)]:
                answer.result(SOON)
            masks = [_affinity(task) for task in _tasks() if task not in before]
        first, second, *_ = sorted(os.sched_getaffinity(0))
        assert sorted(masks, key=sorted) == [{first}] * threads + [{second}] * threads


class TestDispatch:
    @settings(max_examples=30)
    @example(sizes=[1, 2, 1, 1], replicas=2)
    @given(sizes=st.lists(st.integers(1, 9), max_size=14), replicas=st.integers(1, 4))
    def test_requests_go_where_the_fewest_rows_are_outstanding(self, sizes: list[int], replicas: int) -> None:
        engines = [Held() for _ in range(replicas)]
        expected: list[list[int]] = [[] for _ in range(replicas)]
        with pool_of(engines) as pool:
            for size in sizes:
                pool.submit(rows(size))
                loads = [(sum(sent), len(sent), number) for number, sent in enumerate(expected)]
                expected[min(loads)[2]].append(size)
            for engine in engines:
                engine.controller.set()
        assert [[len(run) for run in engine.runs] for engine in engines] == expected

    def test_what_is_answered_no_longer_counts(self) -> None:
        engines = [Held(), Held(opened=True)]
        with pool_of(engines) as pool:
            pool.submit(rows(1))
            for _ in range(3):
                scores_of(pool.submit(rows(50)))
            engines[0].controller.set()
        assert [len(engine.runs) for engine in engines] == [1, 3]


class TestBatching:
    @settings(max_examples=30)
    @given(sizes=st.lists(st.integers(1, 9), max_size=14), most=st.integers(2, 12))
    def test_waiting_requests_are_joined_in_order_while_they_fit(self, sizes: list[int], most: int) -> None:
        engine = Held()
        with pool_of([engine], Placement(batching=Batching(most))) as pool:
            first = pool.submit(request(99))
            engine.wait_inside()
            starts = [sum(sizes[:i]) for i in range(len(sizes))]
            answers = [pool.submit(rows(*pair)) for pair in zip(sizes, starts, strict=True)]
            engine.controller.set()
            assert scores_of(first) == [198.0]
            for answer, size, start in zip(answers, sizes, starts, strict=True):
                assert scores_of(answer) == [2.0 * item for item in range(start, start + size)]
        batches: list[int] = []
        room = 0
        for size in sizes:
            if size > room:
                batches.append(0)
                room = most
            batches[-1] += size
            room -= size
        assert [len(run) for run in engine.runs[1:]] == batches
        assert list(itertools.chain(*engine.runs[1:])) == list(range(sum(sizes)))

    def test_a_free_replica_waits_for_more(self) -> None:
        engine = Held(opened=True)
        with pool_of([engine], Placement(batching=Batching(4, wait_us=SOON * 1_000_000))) as pool:
            answers = [pool.submit(request(i)) for i in range(4)]
            assert [scores_of(answer) for answer in answers] == [[0.0], [2.0], [4.0], [6.0]]
            assert len({answer.finished_ns for answer in answers}) == 1
        assert engine.runs == [[0, 1, 2, 3]]

    def test_a_free_replica_does_not_wait_for_ever(self) -> None:
        with pool_of([Held(opened=True)], Placement(batching=Batching(4, wait_us=100))) as pool:
            assert scores_of(pool.submit(request(3))) == [6.0]

    @pytest.mark.parametrize(
        "bad",
        [
            request(BAD),
            {"other": np.array([1])},
            request(1) | {"other": np.array([1, 2])},
            {"item": np.array(["one"])},
            {"item": np.array([[1]])},
        ],
    )
    def test_a_bad_request_fails_only_itself(self, bad: dict[str, Any]) -> None:
        engine = Held()
        with pool_of([engine], Placement(batching=Batching(10))) as pool:
            pool.submit(request(99))
            engine.wait_inside()
            answers = [pool.submit(each) for each in (request(1), bad, request(2, 3))]
            engine.controller.set()
            assert [scores_of(answers[0]), scores_of(answers[2])] == [[2.0], [4.0, 6.0]]
            alone = pool.submit(bad)
            assert type(answers[1].exception(SOON)) is type(alone.exception(SOON))
            assert pool.waiting == 0

    @pytest.mark.parametrize(
        "other",
        [
            {"item": np.array([2], dtype=np.int32), "user": np.array([0])},
            {"item": np.array([2]), "user": np.array([0]), "more": np.array([0])},
            {"item": np.array([2]), "user": np.array([0, 0])},
            {"item": np.array([2]), "user": np.array([[0]])},
        ],
    )
    def test_only_requests_that_are_alike_are_joined(self, other: dict[str, Any]) -> None:
        engine = Held()
        with pool_of([engine], Placement(batching=Batching(10))) as pool:
            pool.submit(request(99))
            engine.wait_inside()
            for each in (request(1) | {"user": np.array([0])}, other, request(3) | {"user": np.array([0])}):
                pool.submit(each)
            engine.controller.set()
        assert engine.runs == [[99], [1], [2], [3]]

    def test_closing_does_not_wait_for_more(self) -> None:
        engine = Held(opened=True)
        pool = pool_of([engine], Placement(batching=Batching(4, wait_us=60_000_000)))
        answer = pool.submit(request(3))
        closing = threading.Thread(target=pool.close, daemon=True)
        closing.start()
        closing.join(SOON)
        assert not closing.is_alive()
        assert answer.done()

    def test_scores_that_are_not_one_a_row_are_not_cut(self) -> None:
        class Short(Held):
            def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
                return super().run(inputs)[:2]

        engine = Short()
        with pool_of([engine], Placement(batching=Batching(10))) as pool:
            pool.submit(request(99))
            engine.wait_inside()
            answers = [pool.submit(request(i, i + 1)) for i in (1, 3)]
            engine.controller.set()
            assert [scores_of(answer) for answer in answers] == [[2.0, 4.0], [6.0, 8.0]]

    def test_a_cancelled_request_leaves_its_batch(self) -> None:
        engine = Held()
        with pool_of([engine], Placement(batching=Batching(10))) as pool:
            pool.submit(request(99))
            engine.wait_inside()
            answers = [pool.submit(request(i)) for i in range(3)]
            answers[1].cancel()
            engine.controller.set()
            assert [scores_of(answers[0]), scores_of(answers[2])] == [[0.0], [4.0]]
        assert engine.runs == [[99], [0, 2]]

    def test_a_graph_that_takes_inputs_once_is_refused(self) -> None:
        engine = Held()
        engine.once = frozenset({"user"})
        with pytest.raises(ValueError, match=r"\['user'\]"):
            pool_of([engine], Placement(batching=Batching(10)))


class TestSplitting:
    @given(count=st.integers(2, 5000), replicas=st.integers(2, 64), above=st.integers(1, 4999))
    def test_parts_are_nearly_equal_and_not_too_small(self, count: int, replicas: int, above: int) -> None:
        if count <= above:
            count += above
        placement = Placement(InstanceGroup(replicas=replicas), split_rows=above)
        sizes = np.diff([0, *parts_of(placement, 0, count)])
        assert sizes.sum() == count
        assert sizes.max() - sizes.min() <= 1
        assert sizes.min() >= above / 2
        assert 2 <= len(sizes) <= replicas
        fewer_would_do = len(sizes) < replicas
        assert not fewer_would_do or count // (len(sizes) + 1) < above / 2, "as many parts as may be"

    def test_a_large_request_is_shared_out_and_joined_in_order(self) -> None:
        engines = [Held(), Held(), Held()]
        with pool_of(engines, Placement(InstanceGroup(replicas=3), split_rows=4)) as pool:
            large, small = pool.submit(rows(8)), pool.submit(rows(4, 100))
            for engine in engines:
                engine.wait_inside()
            for engine in (engines[2], engines[1]):
                engine.controller.set()
            assert not large.done()
            before = time.perf_counter_ns()
            engines[0].controller.set()
            assert scores_of(large) == [2.0 * i for i in range(8)]
            assert large.finished_ns > before
            scores_of(small)
        assert [engine.runs[0] for engine in engines] == [[0, 1], [2, 3, 4], [5, 6, 7]]
        assert engines[0].runs[1:] == [[100, 101, 102, 103]]

    def test_an_error_of_any_part_fails_the_request(self) -> None:
        for bad in range(6):
            items = [i if i != bad else BAD for i in range(6)]
            with pool_of(
                [Held(opened=True) for _ in range(3)], Placement(InstanceGroup(replicas=3), split_rows=3)
            ) as pool:
                with pytest.raises(ValueError, match="a bad item"):
                    pool.submit(request(*items)).result(SOON)
                assert scores_of(pool.submit(rows(6))) == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]

    def test_a_cancelled_request_runs_no_part(self) -> None:
        engines = [Held(), Held()]
        with pool_of(engines, Placement(InstanceGroup(replicas=2), split_rows=2)) as pool:
            for engine in engines:
                pool.submit(request(99))
                engine.wait_inside()
            assert pool.submit(rows(4)).cancel()
            for engine in engines:
                engine.controller.set()
        assert [engine.runs for engine in engines] == [[[99]], [[99]]]

    def test_a_request_waits_once_however_many_parts_it_has(self) -> None:
        engines = [Held(), Held()]
        with pool_of(engines, Placement(InstanceGroup(replicas=2), split_rows=2)) as pool:
            answers = [pool.submit(rows(4))]
            for engine in engines:
                engine.wait_inside()
            answers += [pool.submit(rows(size)) for size in (4, 6, 1)]
            assert pool.queued == 3
            engines[0].controller.set()
            engines[1].controller.set()
            for answer in answers:
                scores_of(answer)
            assert pool.queued == 0

    def test_a_request_of_uneven_arrays_is_left_to_the_engine(self) -> None:
        engines = [Held(opened=True), Held(opened=True)]
        with pool_of(engines, Placement(InstanceGroup(replicas=2), split_rows=2)) as pool:
            pool.submit(rows(4) | {"other": np.arange(8)}).result(SOON)
        assert [engine.runs for engine in engines] == [[[0, 1, 2, 3]], []]


def test_large_requests_are_routed_to_the_second_seat_and_split_there() -> None:
    engines = [Held(opened=True) for _ in range(4)]
    placement = Placement(
        InstanceGroup(replicas=2), split_rows=8, route=Route(5, InstanceGroup("openvino", replicas=2))
    )
    with pool_of(engines, placement) as pool:
        for size in (5, 6, 1, 8, 9):
            assert len(scores_of(pool.submit(rows(size)))) == size
    assert sorted(len(run) for engine in engines[:2] for run in engine.runs) == [1, 5]
    assert sorted(len(run) for engine in engines[2:] for run in engine.runs) == [4, 5, 6, 8]


class Clock:
    """Virtual time, in place of the module `time`."""

    def __init__(self) -> None:
        self.ms = 0.0

    def perf_counter_ns(self) -> int:
        return int(self.ms * 1e6)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    for module in ("replica", "replicas", "splitting"):
        monkeypatch.setattr(f"objectives.serving.pool.{module}.time", clock)
    yield clock


class Paced(Held):
    """Each run takes so many virtual milliseconds a row."""

    def __init__(self, clock: Clock, ms_per_row: float, opened: bool = True) -> None:
        super().__init__(opened)
        self.clock, self.ms_per_row = clock, ms_per_row

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        scores = super().run(inputs)
        self.clock.ms += self.ms_per_row * len(scores)
        return scores


class TestAdmission:
    @pytest.mark.parametrize("batching", [None, Batching(4)])
    def test_a_full_queue_refuses_at_once(self, batching: Batching | None) -> None:
        engines = [Held(), Held()]
        placement = Placement(InstanceGroup(replicas=2), batching=batching, admission=Admission(queue=3))
        with pool_of(engines, placement) as pool:
            let_in = [pool.submit(request(i)) for i in range(2)]
            for engine in engines:
                engine.wait_inside()
            let_in += [pool.submit(request(i)) for i in range(2, 5)]
            over = [pool.submit(request(i)) for i in range(2)]
            assert [refusal_of(answer) for answer in over] == [Refusal.QUEUE_FULL] * 2
            assert (pool.refused, pool.waiting) == (2, 5)
            with pytest.raises(RefusedError, match=r"queue full.* 3 .*3 "):
                over[0].result()
            for engine in engines:
                engine.controller.set()
            assert [scores_of(answer) for answer in let_in] == [[2.0 * i] for i in range(5)]
            assert scores_of(pool.submit(request(9))) == [18.0]
        assert pool.refused == 2

    def test_requests_that_are_run_together_do_not_wait(self) -> None:
        engine = Stepped()
        with pool_of([engine], Placement(batching=Batching(3), admission=Admission(queue=2))) as pool:
            answers = [pool.submit(request(0))]
            engine.wait_inside()
            answers += [pool.submit(request(i)) for i in (1, 2)]
            assert refusal_of(pool.submit(request(3))) == Refusal.QUEUE_FULL
            engine.steps.release()
            engine.wait_inside()
            answers += [pool.submit(request(i)) for i in (4, 5)]
            assert refusal_of(pool.submit(request(6))) == Refusal.QUEUE_FULL
            engine.steps.release(2)
            assert [scores_of(answer) for answer in answers] == [[2.0 * i] for i in (0, 1, 2, 4, 5)]
            answers = [pool.submit(request(7))]
            engine.wait_inside()
            engine.wait_inside()
            answers += [pool.submit(request(i)) for i in (8, 9)]
            assert refusal_of(pool.submit(request(10))) == Refusal.QUEUE_FULL, "it runs one alone again"
            engine.steps.release(2)
        assert engine.runs == [[0], [1, 2], [4, 5], [7], [8, 9]]

    def test_a_request_that_need_not_wait_is_let_in_beside_a_full_queue(self) -> None:
        engines = [Held(), Held()]
        with pool_of(engines, Placement(InstanceGroup(replicas=2), admission=Admission(queue=1))) as pool:
            _, second, _ = (pool.submit(request(i)) for i in range(3))
            engines[1].controller.set()
            scores_of(second)
            assert scores_of(pool.submit(request(3))) == [6.0]
            engines[0].controller.set()
        assert [engine.runs for engine in engines] == [[[0], [2]], [[1], [3]]]

    def test_a_request_that_cannot_make_its_deadline_is_refused_at_once(self, clock: Clock) -> None:
        engine = Paced(clock, ms_per_row=2.0)
        with pool_of([engine], Placement(admission=Admission(deadline_ms=10))) as pool:
            for _ in range(2):
                assert len(scores_of(pool.submit(rows(50)))) == 50, "nothing is learnt yet"
            assert refusal_of(pool.submit(rows(6))) == Refusal.DEADLINE
            engine.controller.clear()
            inside = pool.submit(rows(3))
            behind = [pool.submit(rows(count)) for count in (3, 2, 1)]
            assert [answer.done() for answer in behind] == [True, False, True]
            assert [refusal_of(behind[0]), refusal_of(behind[2])] == [Refusal.DEADLINE] * 2
            assert pool.refused == 3
            engine.controller.set()
            assert len(scores_of(inside)) == 3
            assert len(scores_of(behind[1])) == 2

    @pytest.mark.parametrize("batching", [None, Batching(100)])
    def test_a_request_whose_deadline_has_passed_is_not_run(self, clock: Clock, batching: Batching | None) -> None:
        engine = Held()
        with pool_of([engine], Placement(batching=batching, admission=Admission(deadline_ms=10))) as pool:
            first = pool.submit(request(1))
            engine.wait_inside()
            late = [pool.submit(request(i)) for i in (2, 3)]
            clock.ms = 5
            in_time = pool.submit(request(4))
            clock.ms = 11
            engine.controller.set()
            assert [refusal_of(answer) for answer in late] == [Refusal.DEADLINE] * 2
            assert [scores_of(first), scores_of(in_time)] == [[2.0], [8.0]]
            assert (pool.refused, pool.waiting) == (2, 0)
        assert engine.runs == [[1], [4]]

    def test_a_split_request_is_refused_once_and_as_a_whole(self, clock: Clock) -> None:
        engines = [Held(), Held()]
        placement = Placement(InstanceGroup(replicas=2), split_rows=2, admission=Admission(queue=1, deadline_ms=10))
        with pool_of(engines, placement) as pool:
            for engine in engines:
                pool.submit(request(99))
                engine.wait_inside()
            late = pool.submit(rows(4))
            assert refusal_of(pool.submit(rows(4))) == Refusal.QUEUE_FULL
            clock.ms = 11
            for engine in engines:
                engine.controller.set()
            assert refusal_of(late) == Refusal.DEADLINE
        assert pool.refused == 2
        assert [engine.runs for engine in engines] == [[[99]], [[99]]]

    def test_no_part_runs_once_the_turn_of_the_first_came_too_late(self) -> None:
        """The replica of the second part takes its turn before that of the first has told its caller."""

        class Late:
            def begin(self) -> bool:
                raise RefusedError(Refusal.DEADLINE, "late")

            def fail(self, error: BaseException) -> None:
                told.append(error)

        told: list[BaseException] = []
        joint = _Joint(Late(), 2)  # type: ignore[arg-type]
        with pytest.raises(RefusedError) as caught:
            joint.begin()
        assert not joint.begin()
        joint.fail(caught.value)
        assert told == [caught.value]

    def test_the_parts_of_a_request_wait_as_one(self) -> None:
        engines = [Held(), Held()]
        placement = Placement(InstanceGroup(replicas=2), split_rows=2, admission=Admission(queue=2))
        with pool_of(engines, placement) as pool:
            for engine in engines:
                pool.submit(request(99))
                engine.wait_inside()
            let_in = [pool.submit(rows(4)) for _ in range(2)]
            assert refusal_of(pool.submit(rows(4))) == Refusal.QUEUE_FULL
            assert pool.queued == 2
            for engine in engines:
                engine.controller.set()
            assert [len(scores_of(answer)) for answer in let_in] == [4, 4]
        assert pool.refused == 1

    def test_the_parts_of_a_request_are_foreseen_side_by_side(self, clock: Clock) -> None:
        engines = [Paced(clock, 1.0), Paced(clock, 1.0)]
        placement = Placement(InstanceGroup(replicas=2), split_rows=2, admission=Admission(deadline_ms=10))
        with pool_of(engines, placement) as pool:
            for _ in range(2):  # not split: side by side, each part would move the clock of the other's run
                scores_of(pool.submit(rows(2)))
            assert len(scores_of(pool.submit(rows(20)))) == 20
            assert refusal_of(pool.submit(rows(22))) == Refusal.DEADLINE

    def test_parts_that_one_replica_takes_are_foreseen_one_after_another(self, clock: Clock) -> None:
        engines = [Paced(clock, 1.0), Paced(clock, 1.0)]
        placement = Placement(InstanceGroup(replicas=2), split_rows=8, admission=Admission(deadline_ms=10))
        with pool_of(engines, placement) as pool:
            for _ in range(2):
                scores_of(pool.submit(rows(8)))
            engines[0].controller.clear()
            pool.submit(rows(8))
            assert refusal_of(pool.submit(rows(12))) == Refusal.DEADLINE, "both parts go to the second replica"
            assert len(scores_of(pool.submit(rows(10)))) == 10
            engines[0].controller.set()

    @pytest.mark.parametrize("inline", [False, True])
    def test_an_engines_first_run_tells_nothing_of_the_next(self, inline: bool, clock: Clock) -> None:
        engine = Paced(clock, ms_per_row=100.0)
        with pool_of([engine], Placement(inline=inline, admission=Admission(deadline_ms=10))) as pool:
            scores_of(pool.submit(request(0)))
            engine.ms_per_row = 2.0
            assert scores_of(pool.submit(request(1))) == [2.0]
            assert len(scores_of(pool.submit(rows(5)))) == 5
            assert refusal_of(pool.submit(rows(6))) == Refusal.DEADLINE

    def test_one_slow_run_does_not_close_an_idle_pool_for_good(self, clock: Clock) -> None:
        engine = Paced(clock, ms_per_row=0.1)
        with pool_of([engine], Placement(admission=Admission(deadline_ms=10))) as pool:
            scores_of(pool.submit(request(0)))
            engine.ms_per_row = 100.0
            scores_of(pool.submit(request(0)))
            engine.ms_per_row = 0.1
            refused = 0
            while pool.submit(request(1)).exception(SOON) is not None:
                refused += 1
                assert refused < 1000
            assert refused == pool.refused > 10
            assert scores_of(pool.submit(request(2))) == [4.0]

    @given(runs=st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 10**9)), min_size=1, max_size=30))
    def test_the_pace_is_an_exponentially_weighted_mean_over_rows(self, runs: list[tuple[int, int]]) -> None:
        pace = ServiceRate()
        for run in runs:
            pace.learn(*run)
        age = np.arange(len(runs))[::-1]
        weights = 0.1 * 0.9**age
        weights[0] = 0.9 ** age[0]
        counts, ns = np.array(runs, dtype=float).T
        assert pace.ns_per_row == pytest.approx((weights @ ns) / (weights @ counts))


class TestInline:
    def test_an_idle_replica_answers_on_the_callers_thread(self) -> None:
        engine = Held(opened=True)
        with pool_of([engine], Placement(inline=True)) as pool:
            for i in range(3):
                answer = pool.submit(request(i))
                assert answer.done()
                assert scores_of(answer) == [2.0 * i]
                assert answer.finished_ns > 0
            assert pool.submit(request(BAD)).exception() is not None
            assert pool.submit(request(5)).done()
        assert set(engine.threads) == {threading.get_ident()}

    def test_a_caller_that_must_not_wait_leaves_the_run_to_the_replicas_thread(self) -> None:
        engine = Held()
        with pool_of([engine], Placement(inline=True)) as pool:
            first = pool.submit(request(0), here=False)
            assert not first.done()
            others = [pool.submit(request(1)), pool.submit(request(2), here=False)]
            engine.controller.set()
            assert [scores_of(answer) for answer in (first, *others)] == [[0.0], [2.0], [4.0]]
        assert engine.runs == [[0], [1], [2]]
        assert len(set(engine.threads)) == 1 and threading.get_ident() not in engine.threads

    def test_while_it_is_busy_requests_queue_in_order(self) -> None:
        engine = Held()
        with pool_of([engine], Placement(inline=True)) as pool:
            inside = threading.Thread(target=lambda: pool.submit(request(0)))
            inside.start()
            engine.wait_inside()
            answers = [pool.submit(request(i)) for i in range(1, 6)]
            assert not any(answer.done() for answer in answers)
            assert pool.waiting == 6
            engine.controller.set()
            assert [scores_of(answer) for answer in answers] == [[2.0 * i] for i in range(1, 6)]
            inside.join(SOON)
            assert pool.submit(request(7)).done(), "it is idle again"
        assert engine.runs == [[i] for i in (0, 1, 2, 3, 4, 5, 7)]
        assert engine.most_inside == 1
        here, there = threading.get_ident(), engine.threads[1]
        assert engine.threads[-1] == here != there
        assert engine.threads[1:6] == [there] * 5

    def test_a_callback_does_not_overtake_what_is_queued(self) -> None:
        engine = Held()
        last: list[PendingResult] = []
        with pool_of([engine], Placement(inline=True)) as pool:
            inside = threading.Thread(target=lambda: pool.submit(request(0)))
            inside.start()
            engine.wait_inside()
            pool.submit(request(1)).add_done_callback(lambda _: last.append(pool.submit(request(3))))
            pool.submit(request(2))
            engine.controller.set()
            inside.join(SOON)
            while not last:
                time.sleep(0)
            scores_of(last[0])
        assert engine.runs == [[0], [1], [2], [3]]

    def test_closing_waits_for_a_caller_inside(self) -> None:
        engine = Held()
        pool = pool_of([engine], Placement(inline=True))
        inside = threading.Thread(target=lambda: pool.submit(request(0)))
        inside.start()
        engine.wait_inside()
        closing = threading.Thread(target=pool.close)
        closing.start()
        closing.join(0.05)
        assert closing.is_alive()
        engine.controller.set()
        closing.join(SOON)
        assert not closing.is_alive()
        inside.join(SOON)

    def test_the_time_between_two_runs_counts_unless_the_replica_was_idle(self, clock: Clock) -> None:
        """The replica's own thread runs again after callers have, and a rest."""
        engine = Paced(clock, 1.0)
        with pool_of([engine], Placement(inline=True, admission=Admission(deadline_ms=10))) as pool:
            (replica,) = pool._groups[0]._scheduler._states
            for here in (True, False, True, False, True):
                while not replica.parked:  # its own thread may still be about to rest
                    time.sleep(0)
                assert len(scores_of(pool.submit(rows(5), here))) == 5
                clock.ms += 5000
            assert refusal_of(pool.submit(rows(5), waited_ns=6_000_000)) == Refusal.DEADLINE
            assert len(scores_of(pool.submit(rows(5), waited_ns=4_000_000))) == 5

    def test_a_foreseen_deadline_is_refused_inline_too(self, clock: Clock) -> None:
        engine = Paced(clock, 2.0)
        with pool_of([engine], Placement(inline=True, admission=Admission(deadline_ms=10))) as pool:
            for _ in range(2):
                scores_of(pool.submit(rows(3)))
            assert refusal_of(pool.submit(rows(6))) == Refusal.DEADLINE
            assert len(scores_of(pool.submit(rows(5)))) == 5

    def test_only_the_first_seat_answers_inline(self) -> None:
        engines = [Held(opened=True), Held(opened=True)]
        with pool_of(engines, Placement(inline=True, route=Route(2, InstanceGroup()))) as pool:
            assert scores_of(pool.submit(rows(2))) == [0.0, 2.0]
            assert scores_of(pool.submit(rows(3))) == [0.0, 2.0, 4.0]
        assert engines[0].threads == [threading.get_ident()] != engines[1].threads


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    replicas = draw(st.integers(1, 3))
    batching = draw(st.none() | st.builds(Batching, st.integers(2, 30), st.integers(0, 200)))
    return Placement(
        InstanceGroup(replicas=replicas),
        inline=replicas == 1 and batching is None and draw(st.booleans()),
        batching=batching,
        split_rows=draw(st.none() | st.integers(1, 20)) if replicas > 1 else None,
        route=draw(
            st.none() | st.builds(Route, st.integers(1, 20), st.builds(InstanceGroup, replicas=st.integers(1, 2)))
        ),
        keep_warm_ms=draw(st.sampled_from([None, LEAST_WARM_MS])),
        admission=draw(st.sampled_from([Admission(), Admission(queue=1000, deadline_ms=1e6)])),
    )


def _together(tasks: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert not any(thread.is_alive() for thread in threads)


def _tasks() -> list[int]:
    return [int(task.name) for task in Path("/proc/self/task").iterdir()]


def _affinity(task: int) -> set[int]:
    return os.sched_getaffinity(task)


def test_a_refused_request_is_freed_at_once() -> None:
    """A refused request does not wait for the cyclic collector, which is off during a measurement."""

    class Large(dict[str, Any]):
        """A request that can be referred to weakly."""

    for placement in (
        Placement(admission=Admission(queue=1)),
        Placement(InstanceGroup(replicas=2), split_rows=2, admission=Admission(queue=1)),
    ):
        engines = [Held() for _ in range(placement.replicas)]
        gc.disable()
        try:
            with pool_of(engines, placement) as pool:
                for engine in engines:
                    pool.submit(request(1))
                    engine.wait_inside()
                pool.submit(request(2))
                given = Large(rows(4))
                seen = weakref.ref(given)
                answer = pool.submit(given)
                assert refusal_of(answer) == Refusal.QUEUE_FULL
                del given, answer
                assert seen() is None
                for engine in engines:
                    engine.controller.set()
        finally:
            gc.enable()
