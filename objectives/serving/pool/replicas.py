"""Replicas of one instance group: threads around its scheduler."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from functools import partial

from objectives.arrays import Arrays
from objectives.serving.pool.admission import RefusedError
from objectives.serving.pool.cores import Cores
from objectives.serving.pool.pending_result import Job, PendingResult
from objectives.serving.pool.replica import Replica
from objectives.serving.pool.scheduler import GroupLoad, Scheduler
from objectives.serving.split_engine import Engine


class Replicas:
    """Replicas of one instance group.

    One lock guards scheduler, queues and closing, so that every job accepted before `close` is run.
    """

    def __init__(self, replicas: Sequence[Replica], scheduler: Scheduler[Job], lock: threading.Lock) -> None:
        self._replicas, self._scheduler, self._lock = replicas, scheduler, lock

    @property
    def waiting(self) -> int:
        return self._scheduler.waiting

    @property
    def load(self) -> GroupLoad:
        return self._scheduler.load

    @property
    def queued(self) -> int:
        with self._lock:
            return self._scheduler.queued

    @property
    def refused(self) -> int:
        return self._scheduler.admission.refused

    def start(self, open_engine: Callable[[], Engine], cores: Sequence[Cores], name: str) -> None:
        """Open one engine after another. An error is raised, and `close` then stops the replicas that run."""
        for number, (replica, own) in enumerate(zip(self._replicas, cores, strict=True)):
            replica.start(open_engine, own, f"{name}-{number}")

    def result(self, submitted_ns: int) -> PendingResult:
        """Make the result of a request, which is refused where its turn comes after the deadline."""
        if not self._scheduler.admission.has_deadline:
            return PendingResult()
        return _DeadlineResult(partial(self._check_turn, submitted_ns))

    def take(self, request: Arrays, rows: int, here: bool, waited_ns: int) -> PendingResult:
        now = time.perf_counter_ns()
        result = self.result(now - waited_ns)
        self.place(result, (Job(result, request, rows, now),), here, waited_ns)
        return result

    def place(self, result: PendingResult, jobs: Sequence[Job], here: bool, waited_ns: int) -> None:
        """Accept all jobs of one result, or refuse it.

        Args:
            here: whether the caller's thread may run them, where that is the placement's way
            waited_ns: time besides that counts for the deadline

        Raises:
            RuntimeError: the pool is closed.
        """
        woken: list[int] = []
        try:
            with self._lock:
                woken += self._scheduler.relieve(jobs[0].submitted_ns)
                woken += self._scheduler.submit(jobs, waited_ns)
        except RefusedError as error:
            # A traceback would hold the request, and the result it.
            result.fail(error.with_traceback(None))
        finally:
            self._wake(woken)

    @property
    def hanging(self) -> int:
        return self._scheduler.hanging(time.perf_counter_ns())

    def all_hang(self, lasting_ns: int | None) -> bool:
        """Return whether the runs of all replicas last longer than a limit, by default than that of one that hangs."""
        return self._scheduler.hanging(time.perf_counter_ns(), lasting_ns) == len(self._replicas)

    def relieve(self) -> None:
        """Move what waits for replicas that hang to the others."""
        with self._lock:
            woken = self._scheduler.relieve(time.perf_counter_ns())
        self._wake(woken)

    def rest(self) -> None:
        for replica in self._replicas:
            replica.rest()

    def close(self) -> None:
        """Finish the accepted jobs, then stop. May be called again."""
        with self._lock:
            self._scheduler.close()
        for replica in self._replicas:
            replica.stop()

    def _wake(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            self._replicas[number].wake()

    def _check_turn(self, submitted_ns: int) -> None:
        with self._lock:
            self._scheduler.admission.check_turn(submitted_ns, time.perf_counter_ns())


class _DeadlineResult(PendingResult):
    """A result whose turn may come too late."""

    def __init__(self, check_turn: Callable[[], None]) -> None:
        super().__init__()
        self._check_turn = check_turn

    def begin(self) -> bool:
        if not super().begin():
            return False
        self._check_turn()
        return True
