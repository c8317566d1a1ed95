"""Load generator: plays a schedule of requests against a running model, which it knows only as a callable."""

from __future__ import annotations

import ctypes
import heapq
import itertools
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays
from objectives.measurement.statistics import percentile
from objectives.records import rows_of

Request = Arrays
T = TypeVar("T")
# Time before an arrival from which busy waiting is more precise than sleeping: a core that idles between sparse
# requests may take 100 us to wake.
_SPIN_NS = 60_000
# Service time below which a late generator would show in the latency, and the cores idle long enough.
_SHORT_MS = 0.3
_LONG_SPIN_NS = 150_000
# Time before an arrival that is waited without yielding, which takes 15 us each time: so short, it hardly keeps the
# interpreter from others.
_HOLD_NS = 20_000
_HEAD_START_NS = 200_000
# Separates the random numbers of requests from those of arrivals.
_REQUESTS = 1
_CPU_CHECK_SECONDS = 0.005
_IDLE_SHARE = 0.2
# Strata of request sizes in a saturated loop: one of few requests has the mean work of all, too.
STRATA = 10
# Longest that a saturated loop goes on to count whole strata.
_MOST_SATURATED_NS = 2_000_000_000
_MOST_LAG = 0.1
_LEAST_OFFERED = 0.98


class PendingAnswer(Protocol):
    """Handle that a running model returns at once for a request.

    `result()` waits for the answer, and raises if there is none: an exception whose attribute `refused` is True means
    that the model refused the request, any other that it failed.
    """

    finished_ns: int

    def result(self) -> object: ...


Submit = Callable[[Request], PendingAnswer]


@dataclass(frozen=True)
class Arrivals:
    """Latency of each of n requests, and the accuracy of the generator's schedule.

    Latency runs from the scheduled arrival and is infinite for a refused request. Lag is the delay of a submission
    compared with a generator that loses no time of its own, which also waits for a `submit` that blocks the caller,
    such as one that runs the model on the caller's own thread. A delay is no lag while every replica would still be
    busy with earlier requests, where that is known: the request would have waited in any case. The offered share is the
    duration of the schedule, extended by blocking submits in the same way, over that of the submission: 1 is on time.
    The schedule starts at `start_ns` of the performance counter.
    """

    latency_ms: NDArray[np.float64]  # (n,)
    lag_ms: NDArray[np.float64]  # (n,)
    offered_share: float
    start_ns: int = 0


def spin_ns(service_ms: float) -> int:
    """Return the nanoseconds before an arrival at which the generator stops sleeping, by the model's service time.

    Busy waiting takes a core from the model's own threads. Two threads of ONNX Runtime next to the generator on two
    cores were ready and did not run for 0.07 of the time in undisturbed blocks with 150 us, for 0.03 with 60 us.
    """
    return _LONG_SPIN_NS if service_ms < _SHORT_MS else _SPIN_NS


def open_loop(
    submit: Submit,
    requests: Sequence[Request],
    gaps_ns: NDArray[np.int64],
    spin_ns: int = _SPIN_NS,
    in_turn: int | None = None,
) -> Arrivals:
    """Submit each request at its scheduled time, independent of earlier answers, and wait for all answers.

    Requests that are due are submitted at once and in order, so a late generator shows as latency and as lag, never as
    a lower rate. An answer's exception is raised, unless it marks the request as refused.

    Args:
        gaps_ns: (requests,), nanoseconds before each arrival
        in_turn: replicas that take requests one by one in their order; None where they do not

    Raises:
        ValueError: no request, or not one gap of 1 ns or more for each.
    """
    if not requests or len(requests) != len(gaps_ns) or gaps_ns.min() < 1:
        raise ValueError(
            f"Each of 1 or more requests has a gap of 1 ns or more before it, but got {len(requests)} with {gaps_ns}."
        )
    clock = time.perf_counter_ns
    planned_ns = np.cumsum(gaps_ns)
    plan = planned_ns.tolist()
    submitted, returned, answers = [], [], []
    start = clock() + _HEAD_START_NS
    now = _wait_until(start, spin_ns)
    # Lists and one reading of the clock: this loop runs while the model's threads need the interpreter.
    for request, planned in zip(requests, plan, strict=True):
        if now < start + planned:
            now = _wait_until(start + planned, spin_ns)
        submitted.append(now)
        answers.append(submit(request))
        now = clock()
        returned.append(now)
    refused = np.array([was_refused(answer) for answer in answers])
    finished = np.array([answer.finished_ns for answer in answers], dtype=np.int64)
    due_ns, submitted_ns = planned_ns + start, np.array(submitted)
    held_ns = np.array(returned) - submitted_ns
    ready_ns = last_moments(due_ns, held_ns, submitted_ns, finished, in_turn)
    return Arrivals(
        latency_ms=np.where(refused, np.inf, (finished - due_ns) / 1e6),
        lag_ms=np.maximum(submitted_ns - ready_ns, 0) / 1e6,
        offered_share=int(on_time(planned_ns, held_ns)[-1]) / int(submitted_ns[-1] - start),
        start_ns=start,
    )


def on_time(due_ns: NDArray[np.int64], held_ns: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the times, (n,), at which a generator that loses no time of its own submits each request.

    `held_ns` is the time that each submit blocks the generator.

    Request i at e[i] = max(due[i], e[i - 1] + held[i - 1]), which unrolls to a running maximum.
    """
    before = np.cumsum(held_ns) - held_ns
    moments: NDArray[np.int64] = before + np.maximum.accumulate(due_ns - before)
    return moments


def last_moments(
    due_ns: NDArray[np.int64],
    held_ns: NDArray[np.int64],
    submitted_ns: NDArray[np.int64],
    finished_ns: NDArray[np.int64],
    replicas: int | None,
) -> NDArray[np.int64]:
    """Return the latest time, (n,), at which each request can be submitted without a later answer.

    The answer comes no later than for a submission on time, had all requests before it been on time too.

    The duration of a request is measured from the moment when it was submitted and a replica was idle. The first idle
    replica takes the next request, which is exact for one replica and, except for ties and sizes, for several.

    Args:
        replicas: replicas that take requests in their order; None where they do not, and every delay counts
    """
    moments = on_time(due_ns, held_ns)
    if replicas is None:
        return moments
    late, punctual = [0] * replicas, [0] * replicas
    for i, (submitted, finished) in enumerate(zip(submitted_ns.tolist(), finished_ns.tolist(), strict=True)):
        takes = max(finished - max(submitted, late[0]), 0)
        heapq.heapreplace(late, finished)
        moments[i] = max(int(moments[i]), punctual[0])
        heapq.heapreplace(punctual, int(moments[i]) + takes)
    return moments


def closed_loop(submit: Submit, requests: Sequence[Request]) -> NDArray[np.float64]:
    """Measure the milliseconds of each request, (requests,), one at a time; infinite where it is refused."""
    latency = np.empty(len(requests))
    for i, request in enumerate(requests):
        start = time.perf_counter_ns()
        answer = submit(request)
        latency[i] = np.inf if was_refused(answer) else (answer.finished_ns - start) / 1e6
    return latency


def saturated(
    submit: Submit, requests: Sequence[Request], outstanding: int, seconds: float, together: int = 1, first: int = 1
) -> float:
    """Measure the requests served, not refused, per second while `outstanding` of them are always in flight.

    The time begins and ends with an answer, of which the first does not count: answers of several replicas or of a
    batch come together, and so begin and end lie at the same place among them. Half of the requests in flight are
    answered at least.

    A batch that begins while requests are still being sent is not full. Where its answers are left out, by `first`, the
    time begins as it ends: with the first answer after a moment that lies anywhere among the answers.

    Args:
        requests: sent in their order, over and over
        together: the number of answers that count is a multiple of this, as of requests in strata, unless so many take
            seconds; 1 where answers come together, among which there is no other place to end
        first: number of answers before the time may begin
    """
    turns, begun = itertools.cycle(requests), time.perf_counter_ns()
    flying = deque(submit(next(turns)) for _ in range(outstanding))

    def next_refused() -> bool:
        """Wait for the oldest answer, and send a request in its place."""
        flying.append(submit(next(turns)))
        return was_refused(flying.popleft())

    was_refused(flying.popleft())
    now = time.perf_counter_ns()
    if first > 1:
        for _ in range(first - 1):
            next_refused()
        now = time.perf_counter_ns()
        moment = now + (now - begun) // 4
        while now < moment:
            next_refused()
            now = time.perf_counter_ns()
    start, answered, served = now, 0, 0
    while (
        now < start + int(seconds * 1e9)
        or answered < max(1, outstanding // 2)
        or (answered % together and now < start + _MOST_SATURATED_NS)
    ):
        served += not next_refused()
        answered += 1
        now = time.perf_counter_ns()
    for answer in flying:
        was_refused(answer)
    return served / ((now - start) / 1e9)


def drawn_requests(requests: Sequence[T], count: int, *seed: int) -> list[T]:
    """Draw `count` requests, or their sizes, independently.

    A list played in its order would vary less in the long run than real traffic, and its queues would be shorter. The
    draws are independent of those of a schedule from the same seed.
    """
    random = np.random.default_rng([*seed, _REQUESTS])
    return [requests[i] for i in random.integers(len(requests), size=count).tolist()]


def typical_requests(requests: Sequence[Request], count: int) -> list[Request]:
    """Select `count` requests with the mean rows of all: of each stratum of sizes, the one nearest to its mean."""
    by_rows = sorted(requests, key=rows_of)
    strata = [part for part in np.array_split(np.arange(len(by_rows)), count) if len(part)]
    sizes = np.array([rows_of(request) for request in by_rows], dtype=np.float64)
    return [by_rows[int(part[np.abs(sizes[part] - sizes[part].mean()).argmin()])] for part in strata]


def in_strata(requests: Sequence[T], sizes: Sequence[float], strata: int, *seed: int) -> list[T]:
    """Order requests so that any `strata` in a row, or that many times n, have nearly the mean size of all.

    They hold as many of each stratum of sizes, which are drawn by the seed, each once. Up to `strata` - 1 requests are
    left out, so that all strata have as many.
    """
    random, strata = np.random.default_rng([*seed, _REQUESTS]), min(strata, len(requests))
    each = len(requests) // strata
    drawn = np.sort(random.permutation(len(requests))[: each * strata])
    by_size = drawn[np.argsort(np.asarray(sizes)[drawn], kind="stable")].reshape(strata, each)
    order = random.permutation(random.permuted(by_size, axis=1)).T
    return [requests[i] for i in order.ravel().tolist()]


def not_offered(latency_ms: NDArray[np.float64], lag_ms: NDArray[np.float64], offered_share: float) -> str | None:
    """Return why a run of any shape did not offer the planned load and measured no model, None where it did."""
    latency, lag = percentile(latency_ms, 95), percentile(lag_ms, 95)
    if lag <= _MOST_LAG * latency and offered_share >= _LEAST_OFFERED:
        return None
    return (
        f"A run's p95 lag is at most {_MOST_LAG:.0%} of its p95 latency and its offered rate at least "
        f"{_LEAST_OFFERED:.0%} of the planned, but got a lag of {lag:.3g} ms beside {latency:.3g} ms and a rate "
        f"of {offered_share:.1%}: lower the load, or leave the generator a core (fewer threads or replicas)."
    )


def settle(most_seconds: float = 0.25, cpu_seconds: Callable[[], float] = time.process_time) -> None:
    """Wait until this process is idle.

    An engine's threads spin on after an answer (ONNX Runtime's for 50 ms), and would take a core from the next
    deployment.

    Args:
        cpu_seconds: CPU time so far of all that is to be idle
    """
    end = time.monotonic() + most_seconds
    before = cpu_seconds()
    while time.monotonic() < end:
        time.sleep(_CPU_CHECK_SECONDS)
        now = cpu_seconds()
        if now - before < _IDLE_SHARE * _CPU_CHECK_SECONDS:
            return
        before = now


def precise_sleep() -> None:
    """Ask the kernel to wake this thread within a microsecond of the requested time, not within fifty (Linux)."""
    if sys.platform == "linux":
        pr_set_timerslack = 29
        ctypes.CDLL(None).prctl(pr_set_timerslack, 1000, 0, 0, 0)


def _wait_until(at_ns: int, spin_ns: int) -> int:
    """Wait until this time and return the time at which the wait ended."""
    clock = time.perf_counter_ns
    while (left := at_ns - (now := clock())) > 0:
        if left > spin_ns:
            time.sleep((left - spin_ns) / 1e9)
        elif left > _HOLD_NS:
            # Releases the interpreter, which a replica may be waiting for; `os.sched_yield` holds it.
            time.sleep(0)
    return now


def was_refused(answer: PendingAnswer) -> bool:
    """Wait for the answer and return whether the request was refused."""
    try:
        answer.result()
    except Exception as error:
        # Recognised by an attribute, since this module and the measured pool do not import each other.
        if getattr(error, "refused", False) is True:
            return True
        raise
    return False
