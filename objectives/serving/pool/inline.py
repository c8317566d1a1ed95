"""Inline replica, which runs on the caller's own thread while it is idle, without a hand-off between threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from objectives.arrays import Arrays
from objectives.serving.engines import Engine
from objectives.serving.pool.admission import AcceptAll
from objectives.serving.pool.pending_result import Job, PendingResult, Run, Scores
from objectives.serving.pool.replica import Replica
from objectives.serving.pool.replicas import Replicas


class InlineReplica(Replica):
    """Replica that runs on its own thread and on callers', one at a time.

    The turn is free whenever nothing is outstanding, since it is released before a job is.
    """

    def __init__(self, lock: threading.Lock, controller: AcceptAll) -> None:
        super().__init__(lock, controller)
        self._turn = threading.Lock()

    def prepare(self, engine: Engine) -> Run:
        self._run = super().prepare(engine)

        def run_in_turn(request: Arrays) -> Scores:
            with self._turn:
                return self._run(request)

        return run_in_turn

    def enter(self, job: Job) -> bool:
        """Take the turn for the caller's thread if nothing is outstanding, else queue the job; called under
        the lock.
        """
        if self.requests:
            self.put(job)
            return False
        self.count(job)
        self._turn.acquire()
        return True

    def answer_here(self, job: Job) -> None:
        self.answer(job, self._run_and_leave)

    def stop(self) -> None:
        super().stop()
        # A caller may still be running.
        with self._turn:
            pass

    def _run_and_leave(self, request: Arrays) -> Scores:
        try:
            return self._run(request)
        finally:
            self._turn.release()


class InlineReplicas(Replicas):
    """Instance group of one inline replica."""

    def __init__(self, lock: threading.Lock, controller: AcceptAll) -> None:
        self._only = InlineReplica(lock, controller)
        super().__init__([self._only], lock, controller)

    def place(self, answer: PendingResult, jobs: Sequence[Job]) -> None:
        (job,) = jobs
        with self._lock:
            refusal = self._refusal(jobs)
            here = refusal is None and self._only.enter(job)
        if refusal is not None:
            answer.fail(refusal)
        elif here:
            self._only.answer_here(job)
