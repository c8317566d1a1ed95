"""Dynamic batching: waiting requests that a free replica runs together."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from queue import Empty, SimpleQueue

import numpy as np

from objectives.arrays import Array
from objectives.serving.engines import Engine
from objectives.serving.pool.admission import AcceptAll
from objectives.serving.pool.pending_result import Job, Run, Scores, is_even
from objectives.serving.pool.replica import Replica
from spaces.techniques.placement import Batching


class BatchingReplica(Replica):
    """Replica that runs waiting jobs together; where that fails, each is run by itself, so that a bad one fails only
    itself.
    """

    def __init__(self, lock: threading.Lock, controller: AcceptAll, batching: Batching) -> None:
        super().__init__(lock, controller)
        self._batching = batching

    def prepare(self, engine: Engine) -> Run:
        if engine.once:
            raise ValueError(f"A graph that takes inputs once a request is not batched, but got {sorted(engine.once)}.")
        return super().prepare(engine)

    def serve(self, run: Run) -> None:
        batches = Batches(self.queue, self._batching)
        while taken := batches.take():
            jobs = [job for job in taken if self.begins(job)]
            if len(jobs) == 1:
                self.answer(jobs[0], run)
            elif jobs:
                self._answer_together(jobs, run)
            del taken, jobs

    def _answer_together(self, jobs: Sequence[Job], run: Run) -> None:
        self.running = len(jobs)
        try:
            scores = run_together(jobs, run)
        except Exception:
            for job in jobs:
                self.answer(job, run)
        else:
            finished_ns = time.perf_counter_ns()
            self.release(sum(job.rows for job in jobs), len(jobs))
            for job, part in zip(jobs, scores, strict=True):
                job.answer.finish(part, finished_ns)


class Batches:
    """Queue reader that takes the jobs that fit into one batch; one that does not begins the next, so the order is
    kept.
    """

    def __init__(self, queue: SimpleQueue[Job | None], batching: Batching) -> None:
        self._queue, self._rows, self._wait_ns = queue, batching.rows, batching.wait_us * 1000
        self._held: Job | None = None

    def take(self) -> list[Job]:
        """Take one job of any size, and further ones while all have `rows` together at most; empty once the queue
        yields None.

        The wait for further jobs is counted from the submission of the first: no request waits longer for a batch.
        """
        first = self._held or self._queue.get()
        self._held = None
        if first is None:
            return []
        jobs, room = [first], self._rows - first.rows
        while room > 0 and (job := self._next(first.submitted_ns + self._wait_ns)) is not None:
            if job.rows > room:
                self._held = job
                break
            jobs.append(job)
            room -= job.rows
        return jobs

    def _next(self, until_ns: int) -> Job | None:
        left_ns = until_ns - time.perf_counter_ns()
        try:
            job = self._queue.get(left_ns > 0, max(left_ns, 0) / 1e9)
        except Empty:
            return None
        if job is None:
            # Nothing follows the end of the queue, so it can be put back for the next take.
            self._queue.put(None)
        return job


def run_together(jobs: Sequence[Job], run: Run) -> list[Scores]:
    """Compute the scores of each job from one run.

    Raises:
        ValueError, TypeError: the requests differ in more than their rows, or there is not one score per row.
    """
    rows = [job.rows for job in jobs]
    scores = run(join(jobs))
    if scores.shape[:1] != (sum(rows),):
        raise ValueError(f"A batch of {sum(rows)} rows has as many scores, but got {scores.shape}.")
    return [scores[end - count : end] for count, end in zip(rows, itertools.accumulate(rows), strict=True)]


def join(jobs: Sequence[Job]) -> dict[str, Array]:
    """Concatenate the requests' arrays along axis 0, without casts: a type that an engine would refuse
    stays refused.
    """
    first = jobs[0].request
    for job in jobs:
        if job.request.keys() != first.keys() or not is_even(job.request, job.rows):
            raise ValueError("Requests of one batch have the same inputs, and each has as many rows in all of them.")
    return {
        name: np.concatenate([job.request[name] for job in jobs], dtype=values.dtype, casting="no")
        for name, values in first.items()
    }
