"""Admission control of requests: accept all, or those for which there is room and time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from objectives.arrays import Arrays
from objectives.serving.pool.pending_result import Job, PendingResult, Refusal, RefusedError, Run, Scores, rows_of
from spaces.techniques.placement import Admission

# Weight of the newest run in the running means.
_NEWEST = 0.1
# Number of refusals by idle replicas, with nothing served in between, after which the estimate counts as out of date.
_STALE_AFTER = 100


class ReplicaLoad(Protocol):
    """State of a replica that admission reads under the lock of its instance group."""

    rows: int
    requests: int
    running: int


class AcceptAll:
    """Admission that accepts every request, one object for each instance group; its methods are the contract of
    admission.
    """

    refused = 0

    def answer(self, submitted_ns: int) -> PendingResult:
        return PendingResult()

    def refusal(self, replicas: Sequence[ReplicaLoad], jobs: Sequence[Job]) -> RefusedError | None:
        """Return the reason why the jobs of one request are refused, None to accept them; called under the instance
        group's lock, before they are queued.
        """
        return None

    def timed(self, run: Run) -> Run:
        """Wrap a run to record its duration where admission depends on it."""
        return run


class AdmissionController(AcceptAll):
    """Admission that refuses a request for a full queue, and one that is expected to finish, or has its turn, after the
    deadline.
    """

    def __init__(self, admission: Admission) -> None:
        self._queue = math.inf if admission.queue is None else admission.queue
        self._deadline_ns = math.inf if admission.deadline_ms is None else admission.deadline_ms * 1e6
        self._lock = threading.Lock()
        self._rate = ServiceRate()

    def answer(self, submitted_ns: int) -> PendingResult:
        return DeadlineResult(submitted_ns + self._deadline_ns, self)

    def refusal(self, replicas: Sequence[ReplicaLoad], jobs: Sequence[Job]) -> RefusedError | None:
        waiting = sum(max(0, replica.requests - replica.running) for replica in replicas)
        idle = sum(replica.requests == 0 for replica in replicas)
        if waiting >= self._queue and idle < len(jobs):
            return self.refuse(Refusal.QUEUE_FULL, f"{waiting} requests wait, of {self._queue} at most.")
        foreseen_ns = _most_rows(replicas, jobs) * self._rate.ns_per_row
        if foreseen_ns > self._deadline_ns:
            self._rate.doubt(idle > 0)
            asked = f"{foreseen_ns / 1e6:.3g} ms are foreseen, of {self._deadline_ns / 1e6:g} ms at most."
            return self.refuse(Refusal.DEADLINE, asked)
        return None

    def refuse(self, reason: Refusal, detail: str) -> RefusedError:
        with self._lock:
            self.refused += 1
        return RefusedError(reason, detail)

    def timed(self, run: Run) -> Run:
        def run_and_learn(request: Arrays) -> Scores:
            start = time.perf_counter_ns()
            scores = run(request)
            self._rate.learn(rows_of(request), time.perf_counter_ns() - start)
            return scores

        return run_and_learn


class DeadlineResult(PendingResult):
    """A result that is refused where its turn comes after the deadline."""

    def __init__(self, due_ns: float, controller: AdmissionController) -> None:
        super().__init__()
        self._due_ns, self._gate = due_ns, controller

    def begin(self) -> bool:
        if not super().begin():
            return False
        late_ns = time.perf_counter_ns() - self._due_ns
        if late_ns > 0:
            raise self._gate.refuse(Refusal.DEADLINE, f"its turn came {late_ns / 1e6:.3g} ms after the deadline.")
        return True


class ServiceRate:
    """Estimate of the nanoseconds per row, 0 before the first run: a mean in which older runs weigh exponentially less.

    Time and rows have a mean each, so that a small request, whose time per row is longer, is weighted by its rows.
    """

    def __init__(self) -> None:
        self.ns_per_row = 0.0
        self._ns = self._rows = 0.0
        self._doubts = 0
        self._lock = threading.Lock()

    def learn(self, rows: int, ns: int) -> None:
        with self._lock:
            share = _NEWEST if self.ns_per_row else 1.0
            self._ns += share * (ns - self._ns)
            self._rows += share * (max(rows, 1) - self._rows)
            self.ns_per_row = self._ns / self._rows
            self._doubts = 0

    def doubt(self, idle: bool) -> None:
        """Count a refusal that this estimate caused. If idle replicas only ever refused, nothing would be measured
        again, and one slow run would close the pool for good: then the estimate is reset, and the next request is
        tried.
        """
        with self._lock:
            self._doubts += idle
            if self._doubts >= _STALE_AFTER:
                self.ns_per_row, self._doubts = 0.0, 0


def _most_rows(replicas: Sequence[ReplicaLoad], jobs: Sequence[Job]) -> int:
    """Return the outstanding rows of the fullest replica that takes one of the jobs, after it has."""
    loads = [replica.rows for replica in replicas]
    most = 0
    for job in jobs:
        least = loads.index(min(loads))
        loads[least] += job.rows
        most = max(most, loads[least])
    return most
