"""Replica: one engine and the thread that opens and runs it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from objectives.arrays import Arrays
from objectives.serving.pool.admission import RefusedError
from objectives.serving.pool.batching import run_together
from objectives.serving.pool.cores import Cores
from objectives.serving.pool.keep_warm import KeepWarm
from objectives.serving.pool.pending_result import Job, Run, Scores, rows_of
from objectives.serving.pool.scheduler import Scheduler, Wait
from objectives.serving.pool.wakeup import Wakeup
from objectives.serving.split_engine import Engine


class _Pace:
    """Times of a replica's runs.

    idle: whether the replica was idle since its last run; otherwise the time of the next one counts from `ended_ns`
    warm: whether there was a run, since an engine's first one is longer than all others
    ended_ns: end of the last run
    """

    def __init__(self) -> None:
        self.idle, self.warm, self.ended_ns = True, False, 0


class Replica:
    """Replica that runs what its instance group's scheduler gives it, one job or one batch at a time.

    The scheduler is guarded by `lock`, which the replicas of an instance group share. Where a batch fails, each of its
    jobs is run by itself, so that a bad one fails only itself.
    """

    def __init__(
        self, number: int, scheduler: Scheduler[Job], lock: threading.Lock, keep_warm_ms: float | None = None
    ) -> None:
        """Make a replica; `keep_warm_ms` is as in `Placement`."""
        self._number, self._scheduler, self._lock = number, scheduler, lock
        self._keep_warm_ms = keep_warm_ms
        self._warm: KeepWarm | None = None
        self._woken = Wakeup()
        self._thread: threading.Thread | None = None
        self._pace = _Pace()

    def start(self, open_engine: Callable[[], Engine], cores: Cores, name: str) -> None:
        """Open an engine in this replica's own thread, and wait for it.

        The engine's threads inherit the cores. An error in the replica's thread is raised here.
        """
        opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, args=(open_engine, cores, opened), name=name, daemon=True)
        self._thread.start()
        opened.result()

    def prepare(self, engine: Engine) -> Run:
        """Return the function that runs this replica's engine; called once, in its own thread."""
        if self._scheduler.batches and engine.once:
            raise ValueError(f"A graph that takes inputs once a request is not batched, but got {sorted(engine.once)}.")
        run = self._timed(engine.run) if self._scheduler.admission.has_deadline else engine.run
        if self._keep_warm_ms is None:
            return run
        self._warm = self._kept_warm(engine.run, self._keep_warm_ms)
        return self._warm.noting(run)

    def wake(self) -> None:
        self._woken.give()

    def rest(self) -> None:
        """Keep the engine warm no longer, until the next request."""
        warm = self._warm
        if warm is not None:
            warm.rest()

    def stop(self) -> None:
        """Wait for the queued jobs; the scheduler was closed before."""
        self.wake()
        if self._thread is not None:
            self._thread.join()

    def answer(self, job: Job, run: Run) -> None:
        """Run one job; it no longer counts as outstanding when its caller wakes."""
        try:
            scores = run(job.request)
        except BaseException as error:
            self._finish(job.rows)
            job.answer.fail(error)
        else:
            finished_ns = time.perf_counter_ns()
            self._finish(job.rows)
            job.answer.finish(scores, finished_ns)

    def _live(self, open_engine: Callable[[], Engine], cores: Cores, opened: Future[None]) -> None:
        try:
            if cores is not None:
                os.sched_setaffinity(0, cores)
            run = self.prepare(open_engine())
        except BaseException as error:
            opened.set_exception(error)
        else:
            opened.set_result(None)
            self._serve(run)

    def _serve(self, run: Run) -> None:
        while taken := self._take():
            jobs = [job for job in taken if self._begins(job)]
            if len(jobs) == 1:
                self.answer(jobs[0], run)
            elif jobs:
                self._answer_together(jobs, run)
            # An idle replica keeps no reference to a request.
            del taken, jobs
        self._warm = None  # nor a closed one to its engine

    def _take(self) -> Sequence[Job]:
        """Take the next jobs, waiting for them; none once the pool is closed."""
        while True:
            with self._lock:
                now = time.perf_counter_ns()
                taken = self._scheduler.take(self._number, now)
            if not isinstance(taken, Wait):
                return taken
            if taken.until_ns is not None:
                self._woken.wait((taken.until_ns - now) / 1e9)
            elif self._warm is not None:
                self._warm.wait()
            else:
                self._woken.wait()
            # Only now: a caller's thread may have run requests of an inline replica meanwhile.
            self._pace.idle = True

    def _begins(self, job: Job) -> bool:
        """Return whether a job is still to be run now that its turn has come."""
        try:
            if job.answer.begin():
                return True
        except RefusedError as error:
            self._finish(job.rows)
            job.answer.fail(error.with_traceback(None))
        else:
            self._finish(job.rows)
        return False

    def _answer_together(self, jobs: Sequence[Job], run: Run) -> None:
        self._run_together(len(jobs))
        try:
            scores = run_together(jobs, run)
        except Exception:
            for job in jobs:
                self._run_together(1)
                self.answer(job, run)
        else:
            finished_ns = time.perf_counter_ns()
            self._finish(sum(job.rows for job in jobs), len(jobs))
            for job, part in zip(jobs, scores, strict=True):
                job.answer.finish(part, finished_ns, len(jobs))

    def _run_together(self, jobs: int) -> None:
        with self._lock:
            self._scheduler.run_together(self._number, jobs, time.perf_counter_ns())

    def _finish(self, rows: int, jobs: int = 1) -> None:
        with self._lock:
            self._scheduler.finish(self._number, rows, jobs)

    def _kept_warm(self, run: Run, every_ms: float) -> KeepWarm:
        # Without a reference to this replica, as in `_timed`.
        lock, scheduler, number = self._lock, self._scheduler, self._number

        def begin() -> bool:
            with lock:
                return scheduler.begin_warm_run(number, time.perf_counter_ns())

        def end() -> None:
            with lock:
                scheduler.end_warm_run(number)

        return KeepWarm(run, every_ms, self._woken, begin, end)

    def _timed(self, run: Run) -> Run:
        """Wrap a run so that admission learns from its duration."""
        # Without a reference to this replica, which would keep the engine alive with it in a cycle.
        lock, admission, pace = self._lock, self._scheduler.admission, self._pace

        def run_and_learn(request: Arrays) -> Scores:
            # What lies between two runs, such as a wait for the interpreter, is part of what the next one waits for.
            start = time.perf_counter_ns() if pace.idle else pace.ended_ns
            try:
                scores = run(request)
            finally:
                pace.idle, pace.ended_ns = False, time.perf_counter_ns()
            if pace.warm:
                with lock:
                    admission.learn(rows_of(request), pace.ended_ns - start)
            pace.warm = True
            return scores

        return run_and_learn
