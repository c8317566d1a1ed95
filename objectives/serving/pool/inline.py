"""Inline replica, which runs on the caller's own thread while it is idle, without a hand-off between threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from objectives.arrays import Arrays
from objectives.serving.pool.admission import RefusedError
from objectives.serving.pool.pending_result import Job, PendingResult, Run, Scores
from objectives.serving.pool.replica import Replica
from objectives.serving.pool.replicas import Replicas
from objectives.serving.pool.scheduler import Scheduler
from objectives.serving.split_engine import Engine


class InlineReplica(Replica):
    """Replica that runs on its own thread and on callers', one at a time.

    The turn is free whenever nothing is outstanding, since it is released before a job is.
    """

    def __init__(
        self, number: int, scheduler: Scheduler[Job], lock: threading.Lock, keep_warm_ms: float | None = None
    ) -> None:
        super().__init__(number, scheduler, lock, keep_warm_ms)
        self.turn = threading.Lock()

    def prepare(self, engine: Engine) -> Run:
        self._run = super().prepare(engine)

        def run_in_turn(request: Arrays) -> Scores:
            with self.turn:
                return self._run(request)

        return run_in_turn

    def answer_here(self, job: Job) -> None:
        """Run a job on the caller's thread, which holds the turn, while nothing else is outstanding."""
        self._pace.idle = True
        self.answer(job, self._run_and_leave)

    def stop(self) -> None:
        super().stop()
        # A caller may still be running.
        with self.turn:
            pass

    def _run_and_leave(self, request: Arrays) -> Scores:
        try:
            return self._run(request)
        finally:
            self.turn.release()


class InlineReplicas(Replicas):
    """Instance group of one inline replica."""

    def __init__(self, scheduler: Scheduler[Job], lock: threading.Lock, keep_warm_ms: float | None = None) -> None:
        self._only = InlineReplica(0, scheduler, lock, keep_warm_ms)
        super().__init__([self._only], scheduler, lock)

    def place(self, result: PendingResult, jobs: Sequence[Job], here: bool, waited_ns: int) -> None:
        if not here:
            super().place(result, jobs, here, waited_ns)
            return
        (job,) = jobs
        try:
            with self._lock:
                entered, woken = self._scheduler.enter(job, waited_ns)
                if entered:
                    self._only.turn.acquire()
        except RefusedError as error:
            result.fail(error.with_traceback(None))
            return
        if entered:
            self._only.answer_here(job)
        elif woken:
            self._only.wake()
