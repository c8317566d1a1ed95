"""Splitting of a large request over several replicas."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from objectives.arrays import Arrays
from objectives.serving.pool.pending_result import Job, PendingResult, Scores, cut_rows, is_divisible
from objectives.serving.pool.replicas import Replicas


class Splitter:
    """Splitter of large requests over the replicas of an instance group.

    A request is accepted or refused as a whole, and its turn comes with that of its first part.

    Args:
        parts: the ends of the parts of a request of so many rows
    """

    def __init__(self, replicas: Replicas, parts: Callable[[int], Sequence[int]]) -> None:
        self._replicas, self._parts = replicas, parts

    def take(self, request: Arrays, rows: int, here: bool, waited_ns: int) -> PendingResult:
        ends = self._parts(rows)
        if len(ends) == 1 or not is_divisible(request, rows):
            return self._replicas.take(request, rows, here, waited_ns)
        now = time.perf_counter_ns()
        result = self._replicas.result(now - waited_ns)
        joint = _Joint(result, len(ends))
        self._replicas.place(
            result,
            [
                Job(_Part(joint, i), cut_rows(request, start, end), end - start, now, joint)
                for i, (start, end) in enumerate(itertools.pairwise([0, *ends]))
            ],
            here,
            waited_ns,
        )
        return result


class _Joint:
    """Collector of the parts' scores in their order; the first error fails the whole request."""

    def __init__(self, answer: PendingResult, parts: int) -> None:
        self._answer = answer
        self._scores: list[Scores] = [np.empty(0, np.float32)] * parts
        self._left = parts
        self._begun = self._runs = self._over = False
        self._lock = threading.Lock()

    def begin(self) -> bool:
        with self._lock:
            if not self._begun:
                self._begun = True
                self._runs = self._answer.begin()  # raises where it is refused, and then no part runs
                self._over = not self._runs
            return self._runs and not self._over

    def finish(self, part: int, scores: Scores) -> None:
        with self._lock:
            self._scores[part] = scores
            self._left -= 1
            last = self._left == 0 and not self._over
        if last:
            self._join()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            first, self._over = not self._over, True
        if first:
            self._answer.fail(error)

    def _join(self) -> None:
        try:
            scores = np.concatenate(self._scores)
        except ValueError as error:
            self._answer.fail(error)
        else:
            self._answer.finish(scores, time.perf_counter_ns())


class _Part:
    """Receiver of the result of one part."""

    def __init__(self, joint: _Joint, number: int) -> None:
        self._joint, self._number = joint, number

    def begin(self) -> bool:
        return self._joint.begin()

    def finish(self, scores: Scores, finished_ns: int, together: int = 1) -> None:
        self._joint.finish(self._number, scores)

    def fail(self, error: BaseException) -> None:
        self._joint.fail(error)
