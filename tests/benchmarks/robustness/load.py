"""Load in an open loop from a process of its own, with the outcome of every request and the generator's own delay."""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objectives.measure.deployment import quiet
from objectives.measure.remote_model import RemoteError, RemoteModel
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.load_generator import Request, drawn_requests, open_loop, saturated
from objectives.measurement.statistics import Floats, percentile
from objectives.serving.pool.pending_result import PendingResult

OK = "200"
# Requests that are in flight while the capacity is measured.
_OUTSTANDING = 4


@dataclass(frozen=True)
class Phase:
    """A stretch of Poisson arrivals."""

    rate_rps: float
    seconds: float


@dataclass(frozen=True)
class Played:
    """Requests of a schedule.

    due_s: (n,) scheduled arrivals, in seconds from the start
    phase: (n,) number of the phase of each
    latency_ms: (n,) from the scheduled arrival, infinite without an answer
    lag_ms: (n,) delay of the generator itself
    outcomes: (n,) status of the response, or the class of the error where there was none
    offered_share: of the planned rate
    cores: that the generator's process used in the mean
    """

    due_s: Floats
    phase: NDArray[np.int64]
    latency_ms: Floats
    lag_ms: Floats
    outcomes: tuple[str, ...]
    offered_share: float
    cores: float

    @property
    def counts(self) -> Counter[str]:
        return Counter(self.outcomes)

    def part(self, inside: NDArray[np.bool_]) -> Played:
        """Return some of the requests, (n,) of them or not."""
        outcomes = tuple(outcome for outcome, one in zip(self.outcomes, inside, strict=True) if one)
        latency, lag = self.latency_ms[inside], self.lag_ms[inside]
        arrivals = self.due_s[inside], self.phase[inside]
        return Played(*arrivals, latency, lag, outcomes, self.offered_share, self.cores)

    def accepted_ms(self, percent: float) -> float:
        """Return a percentile of the latency of answered requests; NaN where there is none."""
        answered = self.latency_ms[np.isfinite(self.latency_ms)]
        return percentile(answered, percent) if answered.size else float("nan")

    def lag(self, percent: float) -> float:
        return percentile(self.lag_ms, percent) if self.lag_ms.size else float("nan")


class _Noted:
    """A pending answer whose errors are all noted as refusals, so that the load goes on whatever the server does."""

    def __init__(self, pending: PendingResult) -> None:
        self._pending, self.outcome, self.finished_ns = pending, OK, 0

    def result(self) -> object:
        try:
            return self._pending.result()
        except Exception as error:
            self.outcome = str(error.status) if isinstance(error, RemoteError) else type(error).__name__
            raise _NoAnswerError from error
        finally:
            self.finished_ns = self._pending.finished_ns


class _NoAnswerError(Exception):
    # The load generator recognises a refusal by this attribute.
    refused = True


class Load:
    """A process that sends requests to one server."""

    def __init__(self, process: ProcessPoolExecutor, requests: Sequence[Request]) -> None:
        self._process, self._requests = process, requests

    def capacity(self, url: str, seconds: float) -> float:
        """Return the requests a second that a server answers with a few always in flight."""
        return self._process.submit(_capacity, url, self._requests, seconds).result()

    def play(self, url: str, phases: Sequence[Phase], seed: int) -> Future[Played]:
        """Start a schedule, and return at once."""
        return self._process.submit(_play, url, self._requests, phases, seed)


@contextmanager
def loading(requests: Sequence[Request]) -> Iterator[Load]:
    """Open a process for load."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield Load(process, requests)


def _capacity(url: str, requests: Sequence[Request], seconds: float) -> float:
    with quiet(), RemoteModel(url) as model:
        send = _sender(model, requests)
        saturated(send, requests, _OUTSTANDING, 1.0)
        return saturated(send, requests, _OUTSTANDING, seconds)


def _sender(model: RemoteModel, requests: Sequence[Request]) -> Callable[[Request], PendingResult]:
    """Return the function that sends one of these requests.

    Their messages are written once, since the load has to keep up with the server on the same machine.
    """
    messages = {id(request): model.message(request) for request in requests}
    return lambda request: model.send(messages[id(request)])


def _play(url: str, requests: Sequence[Request], phases: Sequence[Phase], seed: int) -> Played:
    # At the edge of two phases, the first gap is of the new rate.
    parts = [
        gaps(Traffic(), phase.rate_rps, max(1, round(phase.rate_rps * phase.seconds)), seed + number)
        for number, phase in enumerate(phases)
    ]
    gaps_ns, answers = np.concatenate(parts), list[_Noted]()
    drawn = drawn_requests(requests, len(gaps_ns), seed)
    with quiet(), RemoteModel(url) as model:
        send = _sender(model, requests)

        def submit(request: Request) -> _Noted:
            answers.append(_Noted(send(request)))
            return answers[-1]

        cpu, start = time.process_time(), time.monotonic()
        arrivals = open_loop(submit, drawn, gaps_ns, spin_ns=0)
        cores = (time.process_time() - cpu) / (time.monotonic() - start)
    outcomes = tuple(answer.outcome for answer in answers)
    phase = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    due_s, late, share = np.cumsum(gaps_ns) / 1e9, arrivals.lag_ms, arrivals.offered_share
    return Played(due_s, phase, arrivals.latency_ms, late, outcomes, share, cores)
