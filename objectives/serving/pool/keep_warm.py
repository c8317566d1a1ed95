"""Runs of a single row while a replica is idle, so that a request after a pause finds a warm engine.

An engine that has not run for some milliseconds takes longer for the next request.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from objectives.arrays import Arrays
from objectives.serving.pool.pending_result import Run, Scores, cut_rows
from objectives.serving.pool.wakeup import Wakeup
from spaces.techniques.placement import WARM_MS

WARM_NS = round(WARM_MS * 1e6)


class KeepWarm:
    """Engine of one replica that is kept warm for a while after each request.

    A run of the first row that was asked for follows whenever the engine has not run for an interval. A request that
    comes during such a run waits for its end.
    """

    def __init__(
        self, run: Run, every_ms: float, woken: Wakeup, begin: Callable[[], bool], end: Callable[[], None]
    ) -> None:
        """Keep an engine warm while its replica's thread waits in `wait`.

        Args:
            run: runs the engine
            every_ms: milliseconds without a run after which a row is run
            woken: signal that ends a wait
            begin: called before a row is run; False where a request has come, and the row is not run
            end: called after it
        """
        self._run, self._every_ns, self._woken = run, round(every_ms * 1e6), woken
        self._begin, self._end = begin, end
        self._running = threading.Lock()
        self._row: Arrays | None = None
        self._asked_ns = self._ran_ns = -WARM_NS
        self._rests = True

    def noting(self, run: Run) -> Run:
        """Wrap the run of a request, so that it is known when the engine was last asked for."""

        def run_and_note(request: Arrays) -> Scores:
            scores = run(request)
            if self._row is None:  # a copy, so that an idle replica keeps no reference to a request
                self._row = {name: values.copy() for name, values in cut_rows(request, 0, 1).items()}
            self._asked_ns = self._ran_ns = time.perf_counter_ns()
            if self._rests:  # the request may have been run by another thread than the one in `wait`
                self._woken.give()
            return scores

        return run_and_note

    def wait(self) -> None:
        """Wait for a signal, and keep the engine warm meanwhile."""
        while not self._woken.wait(self._pause_s()):
            with self._running:
                # Another thread may have run a request or asked for rest since the pause was read.
                if self._row is not None and self._pause_s() == 0:
                    self._run_row(self._row)

    def rest(self) -> None:
        """Let the engine be idle until the next request; no run of a row is under way when this returns."""
        with self._running:
            self._asked_ns = -WARM_NS

    def _pause_s(self) -> float | None:
        """Return the seconds until the next run of a row; None where the engine rests until the next request."""
        # Before the times are read, so that a request that ends meanwhile gives the signal.
        self._rests = True
        now = time.perf_counter_ns()
        if self._row is None or now - self._asked_ns >= WARM_NS:
            return None
        self._rests = False
        return max(self._ran_ns + self._every_ns - now, 0) / 1e9

    def _run_row(self, row: Arrays) -> None:
        if self._begin():
            try:
                self._run(row)
            except BaseException:  # whoever asks next gets the engine's error, if it still has one
                self._row, self._asked_ns = None, -WARM_NS  # this row may be the reason
            finally:
                self._end()
        self._ran_ns = time.perf_counter_ns()
