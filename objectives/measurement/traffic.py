"""When requests arrive, settled and seeded before the run; the generator knows no model."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Request = Mapping[str, NDArray[Any]]
# Closer than this to the next arrival, spinning is surer than sleeping.
_SPIN_NS = 60_000
_GLANCE_SECONDS = 0.005
_IDLE_SHARE = 0.2


class Answer(Protocol):
    """What a running model gives back at once for a request."""

    finished_ns: int

    def result(self) -> Any: ...


Submit = Callable[[Request], Answer]


@dataclass(frozen=True)
class Arrivals:
    """Latency of each request from its scheduled arrival, and how late the generator was."""

    latency_ms: NDArray[np.float64]
    lag_ms: NDArray[np.float64]


def poisson_gaps(rate_rps: float, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """(count,) nanoseconds between arrivals."""
    return np.maximum(generator.exponential(1e9 / rate_rps, size=count), 1).astype(np.int64)


def open_loop(submit: Submit, requests: Sequence[Request], gaps_ns: NDArray[np.int64]) -> Arrivals:
    """Submit each request at its scheduled time, whether or not earlier ones are answered; wait for all answers.

    What is due is submitted at once, so a late generator shows as latency and as lag, never as a lower rate.
    """
    due = time.perf_counter_ns() + 200_000 + np.cumsum(gaps_ns)
    submitted = np.empty(len(requests), dtype=np.int64)
    answers = []
    for i, (request, at) in enumerate(zip(requests, due.tolist(), strict=True)):
        _wait_until(at)
        submitted[i] = time.perf_counter_ns()
        answers.append(submit(request))
    for answer in answers:
        answer.result()
    finished = np.array([answer.finished_ns for answer in answers], dtype=np.int64)
    return Arrivals((finished - due) / 1e6, (submitted - due) / 1e6)


def closed_loop(submit: Submit, requests: Sequence[Request]) -> NDArray[np.float64]:
    """Milliseconds from submitting to answer, one request at a time."""
    latency = np.empty(len(requests))
    for i, request in enumerate(requests):
        start = time.perf_counter_ns()
        answer = submit(request)
        answer.result()
        latency[i] = (answer.finished_ns - start) / 1e6
    return latency


def saturated(submit: Submit, requests: Sequence[Request], outstanding: int, seconds: float) -> float:
    """Requests answered per second while `outstanding` of them are always in flight."""
    start = time.perf_counter_ns()
    end = start + int(seconds * 1e9)
    flying: list[Answer] = []
    served = 0
    while time.perf_counter_ns() < end or served == 0:
        while len(flying) < outstanding:
            flying.append(submit(requests[(served + len(flying)) % len(requests)]))
        flying.pop(0).result()
        served += 1
    elapsed = time.perf_counter_ns() - start
    for answer in flying:
        answer.result()
    return served / (elapsed / 1e9)


def settle(most_seconds: float = 0.25) -> None:
    """Wait until this process is idle: an engine's threads spin on after an answer (ONNX Runtime's for 50 ms), and
    would take a core from whichever arm comes next."""
    end = time.monotonic() + most_seconds
    before = time.process_time()
    while time.monotonic() < end:
        time.sleep(_GLANCE_SECONDS)
        now = time.process_time()
        if now - before < _IDLE_SHARE * _GLANCE_SECONDS:
            return
        before = now


def precise_sleep() -> None:
    """Ask the kernel to wake this thread within a microsecond of the asked time, not within fifty (Linux)."""
    if sys.platform == "linux":
        pr_set_timerslack = 29
        ctypes.CDLL(None).prctl(pr_set_timerslack, 1000, 0, 0, 0)


def _wait_until(at_ns: int) -> None:
    while (left := at_ns - time.perf_counter_ns()) > 0:
        if left > _SPIN_NS:
            time.sleep((left - _SPIN_NS) / 1e9)
        else:
            time.sleep(0)
