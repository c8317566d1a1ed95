"""The open loop measures from the scheduled arrival; the SLO's rate has a closed form where latency has."""

from __future__ import annotations

import itertools
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.measurement import load_generator as traffic
from objectives.measurement.load_generator import (
    closed_loop,
    in_strata,
    last_moments,
    not_offered,
    open_loop,
    saturated,
)


class Instant:
    """A deployment that answers at once."""

    def __init__(self) -> None:
        self.finished_ns = time.perf_counter_ns()

    def result(self) -> None:
        return None


class DeclinedError(Exception):
    refused = True


class Refused(Instant):
    def result(self) -> None:
        raise DeclinedError


@dataclass
class Clock:
    """Time that passes while the generator sleeps, a little at each look, and where a test lets it.

    Each sleep is too long by `oversleep_ns`.
    """

    now: int = 10**12
    oversleep_ns: int = 0

    def perf_counter_ns(self) -> int:
        self.now += 50
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(round(seconds * 1e9), 1000) + self.oversleep_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(traffic, "time", clock)
    return clock


def _answer_at(moment: int) -> Instant:
    answer = Instant()
    answer.finished_ns = moment
    return answer


def _ms(*milliseconds: float) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([round(ms * 1e6) for ms in milliseconds])


class Busy:
    """A single server in virtual time: each request takes `service_ns` after the one before."""

    def __init__(self, service_ns: int) -> None:
        self.service_ns, self.free_at, self.now = service_ns, 0, time.perf_counter_ns

    def __call__(self, request: Mapping[str, Any]) -> Any:
        self.free_at = max(self.free_at, self.now()) + self.service_ns
        answer = Instant()
        answer.finished_ns = self.free_at
        return answer


def test_arrivals_do_not_wait_for_answers() -> None:
    """Requests are due at once, 50 of them: the k-th waited for the k before it, though the generator never did."""
    arrivals = open_loop(Busy(10**9), [{}] * 50, np.ones(50, dtype=np.int64))
    assert np.diff(arrivals.latency_ms) == pytest.approx(1000.0, abs=1e-5)
    assert arrivals.latency_ms[-1] >= 50_000


def test_on_time_latency_is_service_and_nothing_lags(clock: Clock) -> None:
    arrivals = open_loop(lambda request: _answer_at(clock.now + 3_000_000), [{}] * 3, _ms(1, 5, 2))
    assert arrivals.latency_ms == pytest.approx([3, 3, 3], abs=1e-3)  # a nap of the clock is 1 us
    assert arrivals.lag_ms == pytest.approx([0, 0, 0], abs=1e-3)
    assert arrivals.offered_share == pytest.approx(1, abs=1e-3)
    assert np.isfinite(arrivals.latency_ms).all()


def test_time_in_submit_is_the_models(clock: Clock) -> None:
    """Requests due at 1, 2, 3 and 10 ms take 4 ms on the caller's thread: they end at 5, 9, 13 and 17 ms."""

    def inline(request: Mapping[str, Any]) -> Any:
        clock.now += 4_000_000
        return _answer_at(clock.now)

    arrivals = open_loop(inline, [{}] * 4, _ms(1, 1, 1, 7))
    assert arrivals.latency_ms == pytest.approx([4, 7, 10, 7], abs=1e-2)
    assert arrivals.lag_ms == pytest.approx([0, 0, 0, 0], abs=1e-2)
    assert arrivals.offered_share == pytest.approx(1, abs=1e-3)


def test_a_generator_that_oversleeps_lags_and_shows_as_latency(clock: Clock) -> None:
    """The generator sleeps nearly until 10, 20 and 30 ms, and wakes 2.5 ms after it asked to."""
    clock.oversleep_ns = 2_500_000
    arrivals = open_loop(lambda request: _answer_at(clock.now + 400_000), [{}] * 3, _ms(10, 10, 10))
    assert np.all((arrivals.lag_ms > 2) & (arrivals.lag_ms <= 2.5))
    assert arrivals.latency_ms == pytest.approx(arrivals.lag_ms + 0.4)
    assert arrivals.offered_share == pytest.approx(30 / (30 + arrivals.lag_ms[-1]))
    assert "load" in str(not_offered(arrivals.latency_ms, arrivals.lag_ms, arrivals.offered_share))


@pytest.mark.parametrize(("in_turn", "lags"), [(None, [2.5, 2.5, 2.5]), (1, [2.5, 0, 0]), (2, [2.5, 2.5, 0])])
def test_what_is_late_while_every_replica_is_busy_does_not_lag(
    clock: Clock, in_turn: int | None, lags: list[float]
) -> None:
    """Requests due at 10, 20 and 30 ms are submitted 2.5 ms later, and each answered when 25 ms more are over."""
    clock.oversleep_ns = 2_500_000
    arrivals = open_loop(lambda request: _answer_at(clock.now + 25_000_000), [{}] * 3, _ms(10, 10, 10), in_turn=in_turn)
    assert arrivals.lag_ms == pytest.approx(lags, abs=0.2)
    assert arrivals.latency_ms == pytest.approx([27.5] * 3, abs=0.2), "from the scheduled arrival all the same"


def _served(submitted: list[int], service: list[int], replicas: int) -> list[int]:
    """Answer times of replicas that take requests in order."""
    free, finished = [0] * replicas, list[int]()
    for at, takes in zip(submitted, service, strict=True):
        first = min(range(replicas), key=free.__getitem__)
        free[first] = max(at, free[first]) + takes
        finished.append(free[first])
    return finished


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 60), st.integers(0, 90)), min_size=1, max_size=40),
    st.integers(1, 3),
)
def test_the_last_moment_is_when_a_replica_would_be_idle_on_time(
    drawn: list[tuple[int, int, int]], replicas: int
) -> None:
    """A request submitted by that moment is answered as on time, however late it was, and a tick later no more."""
    due = np.cumsum([gap for gap, _, _ in drawn])
    service, delays = [takes for _, takes, _ in drawn], [delay for _, _, delay in drawn]
    submitted = np.maximum.accumulate(due + delays)
    finished = np.array(_served(submitted.tolist(), service, replicas))
    moments = last_moments(due, np.zeros_like(due), submitted, finished, replicas).tolist()
    answered = _served(due.tolist(), service, replicas)
    assert _served(moments, service, replicas) == answered
    for i, moment in enumerate(moments):
        later = [*due[:i].tolist(), moment + 1]
        assert _served(later, service[: i + 1], replicas)[-1] > answered[i]


def test_all_behind_one_that_was_late_lag_too(clock: Clock) -> None:
    """Requests due at 10, 10.5 .. 14.5 ms take 0.1 ms each; the generator sleeps until 15. On time, none would wait."""
    clock.oversleep_ns, server = 5_000_000, Busy(100_000)
    server.now = lambda: clock.now
    arrivals = open_loop(server, [{}] * 10, _ms(10, *[0.5] * 9), in_turn=1)
    assert arrivals.lag_ms == pytest.approx(np.arange(5, 0, -0.5), abs=0.2)


def test_all_that_is_due_is_submitted_at_once_and_in_order(clock: Clock) -> None:
    seen: list[tuple[int, int]] = []

    def submit(request: Mapping[str, Any]) -> Any:
        seen.append((request["id"], clock.now))
        clock.now += 50_000_000 if request["id"] == 0 else 0
        return _answer_at(clock.now)

    open_loop(submit, [{"id": i} for i in range(6)], _ms(1, 1, 1, 1, 1, 100))
    assert [number for number, _ in seen] == [0, 1, 2, 3, 4, 5]
    moments = [moment for _, moment in seen]
    assert moments[1:5] == pytest.approx([moments[0] + 50_000_000] * 4, abs=1000)  # a look takes a little
    assert moments[5] - moments[0] == pytest.approx(104_000_000, abs=10_000)


def test_answers_that_come_late_from_a_thread_are_waited_for() -> None:
    class Promise(Future[None]):
        finished_ns = 0

        def finish(self) -> None:
            self.finished_ns = time.perf_counter_ns()
            self.set_result(None)

    def submit(request: Mapping[str, Any]) -> Any:
        promise = Promise()
        threading.Timer(0.02, promise.finish).start()
        return promise

    arrivals = open_loop(submit, [{}] * 5, _ms(1, 1, 1, 1, 1))
    assert np.all(arrivals.latency_ms >= 20)


def test_a_refused_request_takes_for_ever_and_a_failed_one_raises(clock: Clock) -> None:
    class Broken(Instant):
        def result(self) -> None:
            raise ZeroDivisionError("the model's own")

    kinds = [Instant, Refused, Instant, Refused]
    requests = [{"kind": kind} for kind in kinds]
    arrivals = open_loop(lambda request: request["kind"](), requests, _ms(1, 1, 1, 1))
    assert np.isinf(arrivals.latency_ms).tolist() == [False, True, False, True]
    assert np.isfinite(arrivals.lag_ms).all()
    assert np.isinf(closed_loop(lambda request: request["kind"](), requests)).tolist() == [False, True, False, True]
    for play in (lambda: open_loop(lambda r: Broken(), [{}], _ms(1)), lambda: closed_loop(lambda r: Broken(), [{}])):
        with pytest.raises(ZeroDivisionError):
            play()


def test_a_refused_request_is_not_served(clock: Clock) -> None:
    """Every 1 ms an answer comes, each third refused: 667 are served a second."""
    count = 0

    class Slow(Instant):
        def __init__(self) -> None:
            nonlocal count
            self.number, self.finished_ns = count, 0
            count += 1

        def result(self) -> None:
            clock.now += 1_000_000
            if self.number % 3 == 0:
                raise DeclinedError

    assert saturated(lambda request: Slow(), [{}], 4, 0.3) == pytest.approx(1000 * 2 / 3, rel=0.01)
    count = 2
    assert saturated(lambda request: Slow(), [{}], 1, 1e-4) == 0, "the one that was tried was refused"


@pytest.mark.parametrize("taken_ms", [16, 2000])
@pytest.mark.parametrize("seconds", [0.1, 0.101, 0.115, 1.0])
@pytest.mark.parametrize("together", [1, 2, 8])
def test_the_capacity_of_answers_that_come_together_is_their_own(
    together: int, seconds: float, taken_ms: int, clock: Clock
) -> None:
    """A batch is answered at once, or as many replicas are. One that takes 2 s answers a whole batch at least."""
    begun, start = itertools.count(), clock.now

    class Batched(Instant):
        def __init__(self) -> None:
            self.finished_ns = start + (1 + next(begun) // together) * taken_ms * 1_000_000

        def result(self) -> None:
            clock.now = max(clock.now, self.finished_ns)

    found = saturated(lambda request: Batched(), [{}], 2 * together, seconds)
    assert found == pytest.approx(1000 * together / taken_ms, rel=1e-3)


@pytest.mark.parametrize("taken_ms", [5, 80, 2000])
@pytest.mark.parametrize("full_after", [1, 3, 7, 8])
def test_a_first_batch_that_is_not_full_does_not_lower_the_capacity(
    full_after: int, taken_ms: int, clock: Clock
) -> None:
    """A replica that is idle takes what has come until then, and whole batches of eight after that."""
    begun, start = itertools.count(), clock.now

    class Batched(Instant):
        def __init__(self) -> None:
            batches = 1 + (next(begun) - full_after) // 8 + 1
            self.finished_ns = start + max(batches, 1) * taken_ms * 1_000_000

        def result(self) -> None:
            clock.now = max(clock.now, self.finished_ns)

    assert saturated(lambda request: Batched(), [{}], 16, 0.1, first=16) == pytest.approx(8000 / taken_ms, rel=1e-3)


@pytest.mark.parametrize("together", [1, 3, 7])
def test_the_answers_that_count_are_whole_strata(together: int, clock: Clock) -> None:
    """Requests take 1, 2, ... 7 ms in turn, one at a time."""
    begun, start = itertools.count(), clock.now
    ends = itertools.accumulate(itertools.cycle([1_000_000 * ms for ms in range(1, 8)]), initial=start)
    next(ends)

    class Next(Instant):
        def __init__(self) -> None:
            next(begun)
            self.finished_ns = next(ends)

        def result(self) -> None:
            clock.now = max(clock.now, self.finished_ns)

    found = saturated(lambda request: Next(), [{}], 2, 0.001, together)
    # The first answer, of 1 ms, does not count; those of 2, 3, ... do.
    assert found == pytest.approx(1000 / np.mean(np.arange(2, 2 + together) if together < 7 else np.arange(1, 8)))


@given(count=st.integers(1, 60), strata=st.integers(1, 12), seed=st.integers(0, 1000))
def test_requests_in_strata_are_as_many_of_each_wherever_one_begins(count: int, strata: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).permutation(count).tolist()
    ordered = in_strata(sizes, sizes, strata, seed)
    of = min(strata, count)
    assert len(ordered) == count // of * of and len(set(ordered)) == len(ordered)
    stratum = {size: place * of // len(ordered) for place, size in enumerate(sorted(ordered))}
    for start in range(len(ordered) - of + 1):
        assert sorted(stratum[size] for size in ordered[start : start + of]) == list(range(of))
    assert in_strata(sizes, sizes, strata, seed) == ordered


def test_a_schedule_that_fits_no_requests_is_refused() -> None:
    for requests, gaps in (([], []), ([{}] * 2, [5]), ([{}] * 2, [5, 0])):
        with pytest.raises(ValueError, match="gap"):
            open_loop(Busy(1), requests, np.array(gaps, dtype=np.int64))


def test_a_run_that_was_offered_as_planned_is_valid() -> None:
    latency, lag = np.full(100, 2.0), np.zeros(100)
    assert not_offered(latency, lag, 1.0) is None
    lag[:4] = 50.0  # beyond the p95
    lag[4:20] = 0.2
    assert not_offered(latency.reshape(5, 20), lag.reshape(5, 20), 0.98) is None
    latency[:10] = np.inf  # refused
    assert not_offered(latency, np.ones(100), 1.0) is None


@pytest.mark.parametrize(("lag", "share"), [(0.21, 1.0), (0.0, 0.97)])
def test_a_generator_that_was_behind_makes_a_run_invalid(lag: float, share: float) -> None:
    reason = not_offered(np.full(100, 2.0), np.full(100, lag), share)
    assert reason is not None and re.search(f"{lag:.3g} ms .* 2 ms .*{share:.1%}", reason)


def test_closed_loop_is_one_at_a_time() -> None:
    flying = 0

    class Waiting(Instant):
        def result(self) -> None:
            nonlocal flying
            time.sleep(0.001)
            flying -= 1
            self.finished_ns = time.perf_counter_ns()

    def submit(request: Mapping[str, Any]) -> Any:
        nonlocal flying
        assert flying == 0
        flying += 1
        return Waiting()

    assert (closed_loop(submit, [{}] * 5) >= 1).all()
