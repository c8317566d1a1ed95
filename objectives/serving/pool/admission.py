"""Admission control of requests: accept all, or those for which there is room and time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

from spaces.techniques.placement import Admission

# Weight of the newest run in the running means.
_NEWEST = 0.1
# Number of refusals by idle replicas, with nothing served in between, after which the estimate counts as out of date.
_STALE_AFTER = 100


class Refusal(StrEnum):
    QUEUE_FULL = "queue full"
    DEADLINE = "deadline"


class RefusedError(RuntimeError):
    """A request was not run, since the placement's admission limits could not be met."""

    # A load generator, which does not import this module, recognises a refusal by this attribute.
    refused = True

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"Refused ({reason}): {detail}")
        self.reason = reason


class Rows(Protocol):
    """A job, by its size."""

    @property
    def rows(self) -> int: ...


class ReplicaLoad(Protocol):
    """State of a replica that admission reads."""

    @property
    def rows(self) -> int: ...

    @property
    def requests(self) -> int: ...


class AdmissionControl:
    """Admission of requests by the queue and the deadline.

    It refuses a request when the queue is full, when the request is expected to finish after the deadline, and when its
    turn comes after the deadline. With no limit, it accepts every request.
    """

    def __init__(self, admission: Admission) -> None:
        self.refused = 0
        self.limited = admission != Admission()
        self._queue = admission.queue
        self._deadline_ns = math.inf if admission.deadline_ms is None else admission.deadline_ms * 1e6
        self.has_deadline = math.isfinite(self._deadline_ns)
        self._rate = ServiceRate()

    def check(
        self, replicas: Sequence[ReplicaLoad], jobs: Sequence[Rows], waiting: Callable[[], int], waited_ns: int
    ) -> None:
        """Check that the jobs of one request may be queued.

        Args:
            jobs: the request, or its parts
            waiting: counts the requests that wait for a replica, which is asked only where it may matter
            waited_ns: what is spent of the deadline elsewhere

        Raises:
            RefusedError: they may not.
        """
        idle = sum(replica.requests == 0 for replica in replicas)
        if idle < len(jobs) and self._queue is not None and (count := waiting()) >= self._queue:
            raise self._refuse(Refusal.QUEUE_FULL, f"{count} requests wait, of {self._queue} at most.")
        runs_ns = _most_rows(replicas, jobs) * self._rate.ns_per_row
        foreseen_ns = waited_ns + runs_ns
        if foreseen_ns > self._deadline_ns:
            self._rate.doubt(idle > 0 and runs_ns > self._deadline_ns)
            asked = f"{foreseen_ns / 1e6:.3g} ms are foreseen, of {self._deadline_ns / 1e6:g} ms at most."
            raise self._refuse(Refusal.DEADLINE, asked)

    def check_turn(self, submitted_ns: int, now_ns: int) -> None:
        """Check that a request whose turn has come is still within its deadline.

        Raises:
            RefusedError: it is not.
        """
        late_ns = now_ns - submitted_ns - self._deadline_ns
        if late_ns > 0:
            raise self._refuse(Refusal.DEADLINE, f"its turn came {late_ns / 1e6:.3g} ms after the deadline.")

    def learn(self, rows: int, ns: int) -> None:
        """Learn from the duration of a run."""
        self._rate.learn(rows, ns)

    def _refuse(self, reason: Refusal, detail: str) -> RefusedError:
        self.refused += 1
        return RefusedError(reason, detail)


class ServiceRate:
    """Estimate of the nanoseconds per row, 0 before the first run: a mean in which older runs weigh exponentially less.

    Time and rows have a mean each, so that a small request, whose time per row is longer, is weighted by its rows.
    """

    def __init__(self) -> None:
        self.ns_per_row = 0.0
        self._ns = self._rows = 0.0
        self._doubts = 0

    def learn(self, rows: int, ns: int) -> None:
        share = _NEWEST if self.ns_per_row else 1.0
        self._ns += share * (ns - self._ns)
        self._rows += share * (max(rows, 1) - self._rows)
        self.ns_per_row = self._ns / self._rows
        self._doubts = 0

    def doubt(self, idle: bool) -> None:
        """Count a refusal that this estimate caused, if a replica was idle.

        If idle replicas only ever refused, nothing would be measured again, and one slow run would close the pool for
        good. After many such refusals the estimate is therefore reset, and the next request is tried.
        """
        self._doubts += idle
        if self._doubts >= _STALE_AFTER:
            self.ns_per_row, self._doubts = 0.0, 0


def _most_rows(replicas: Sequence[ReplicaLoad], jobs: Sequence[Rows]) -> int:
    """Return the outstanding rows of the fullest replica that takes one of the jobs, after it has."""
    loads = [replica.rows for replica in replicas]
    most = 0
    for job in jobs:
        least = loads.index(min(loads))
        loads[least] += job.rows
        most = max(most, loads[least])
    return most
