"""Replica: one engine and the thread that opens and runs it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue

from objectives.serving.engines import Engine
from objectives.serving.pool.admission import AcceptAll
from objectives.serving.pool.cores import Cores
from objectives.serving.pool.pending_result import Job, RefusedError, Run


class Replica:
    """Replica that runs jobs one at a time, in the order in which they were queued.

    rows, requests: outstanding ones, those being run included
    running: requests that are run together; 1 where the replica is idle, since it takes the next one at once

    The three are guarded by `lock`, which the replicas of an instance group share.
    """

    def __init__(self, lock: threading.Lock, controller: AcceptAll) -> None:
        self.rows, self.requests, self.running = 0, 0, 1
        self.queue: SimpleQueue[Job | None] = SimpleQueue()
        self._lock, self._gate = lock, controller
        self._thread: threading.Thread | None = None

    def start(self, open_engine: Callable[[], Engine], cores: Cores, name: str) -> None:
        """Open an engine in this replica's own thread and wait for it; the engine's threads inherit the cores. An error
        there is raised here.
        """
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(open_engine, cores, opened), name=name, daemon=True)
        self._thread.start()
        opened.result()

    def prepare(self, engine: Engine) -> Run:
        """Return the function that runs this replica's engine; called once, in its own thread."""
        return self._gate.timed(engine.run)

    def stop(self) -> None:
        """Wait for the queued jobs; the end of the queue was put there under the lock."""
        if self._thread is not None:
            self._thread.join()

    def put(self, job: Job) -> None:
        """Queue a job; called under the lock."""
        self.count(job)
        self.queue.put(job)

    def count(self, job: Job) -> None:
        self.rows += job.rows
        self.requests += 1

    def serve(self, run: Run) -> None:
        """Run jobs until the queue yields None."""
        while (job := self.queue.get()) is not None:
            if self.begins(job):
                self.answer(job, run)
            # An idle replica keeps no reference to a request.
            del job

    def begins(self, job: Job) -> bool:
        """Return whether a job is still to be run now that its turn has come."""
        try:
            if job.answer.begin():
                return True
        except RefusedError as error:
            self.release(job.rows)
            job.answer.fail(error)
        else:
            self.release(job.rows)
        return False

    def answer(self, job: Job, run: Run) -> None:
        """Run one job; it no longer counts as outstanding when its caller wakes."""
        try:
            scores = run(job.request)
        except BaseException as error:
            self.release(job.rows)
            job.answer.fail(error)
        else:
            finished_ns = time.perf_counter_ns()
            self.release(job.rows)
            job.answer.finish(scores, finished_ns)

    def release(self, rows: int, requests: int = 1) -> None:
        with self._lock:
            self.rows -= rows
            self.requests -= requests
            self.running = 1

    def _live(self, open_engine: Callable[[], Engine], cores: Cores, opened: Future[None]) -> None:
        try:
            if cores is not None:
                os.sched_setaffinity(0, cores)
            run = self.prepare(open_engine())
        except BaseException as error:
            opened.set_exception(error)
        else:
            opened.set_result(None)
            self.serve(run)
