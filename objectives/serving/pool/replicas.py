"""Replicas of one instance group: each job goes to the least loaded one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from operator import attrgetter

from objectives.arrays import Arrays
from objectives.serving.engines import Engine
from objectives.serving.pool.admission import AcceptAll
from objectives.serving.pool.cores import Cores
from objectives.serving.pool.pending_result import Job, PendingResult, RefusedError
from objectives.serving.pool.replica import Replica

_load = attrgetter("rows", "requests")


class Replicas:
    """Replicas of one instance group. The least loaded one has the fewest outstanding rows, then requests, then the
    lowest number.

    One lock guards loads, queues and closing, so that every job accepted before `close` is run.
    """

    def __init__(self, replicas: Sequence[Replica], lock: threading.Lock, controller: AcceptAll) -> None:
        self._replicas, self._lock, self._gate = replicas, lock, controller
        self._closed = False

    def __len__(self) -> int:
        return len(self._replicas)

    @property
    def waiting(self) -> int:
        return sum(replica.requests for replica in self._replicas)

    @property
    def refused(self) -> int:
        return self._gate.refused

    def start(self, open_engine: Callable[[], Engine], cores: Sequence[Cores], name: str) -> None:
        """Open one engine after another. An error is raised, and `close` then stops the replicas that run."""
        for number, (replica, own) in enumerate(zip(self._replicas, cores, strict=True)):
            replica.start(open_engine, own, f"{name}-{number}")

    def answer(self, submitted_ns: int) -> PendingResult:
        return self._gate.answer(submitted_ns)

    def take(self, request: Arrays, rows: int) -> PendingResult:
        now = time.perf_counter_ns()
        answer = self._gate.answer(now)
        self.place(answer, (Job(answer, request, rows, now),))
        return answer

    def place(self, answer: PendingResult, jobs: Sequence[Job]) -> None:
        """Accept all jobs of one result, or refuse it.

        Raises:
            RuntimeError: the pool is closed.
        """
        with self._lock:
            refusal = self._refusal(jobs)
            if refusal is None:
                for job in jobs:
                    min(self._replicas, key=_load).put(job)
                return
        answer.fail(refusal)

    def close(self) -> None:
        """Finish the accepted jobs, then stop. May be called again."""
        with self._lock:
            self._closed = True
            for replica in self._replicas:
                replica.queue.put(None)
        for replica in self._replicas:
            replica.stop()

    def _refusal(self, jobs: Sequence[Job]) -> RefusedError | None:
        if self._closed:
            raise RuntimeError("The pool is closed.")
        return self._gate.refusal(self._replicas, jobs)
