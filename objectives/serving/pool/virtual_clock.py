"""A placement on a virtual clock: the decisions of the real pool, with given service times in place of a model."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from objectives.serving.pool.admission import RefusedError
from objectives.serving.pool.balancing import Balance, least_rows
from objectives.serving.pool.scheduler import Scheduler, Wait, group_of, parts_of, schedulers
from spaces.techniques.placement import Placement


class ServiceTime(Protocol):
    """Duration of a run, as a replica of an instance group needs it from taking the jobs to their answers."""

    def __call__(self, group: int, rows: int, idle_ns: int | None, busy: int) -> float:
        """Return the nanoseconds of a run.

        Args:
            group: number of the instance group
            rows: rows of all jobs of the run
            idle_ns: how long the replica had nothing to do, so that its thread has to be woken and its caches have
                cooled; None where it comes from another run
            busy: other replicas of the pool that run at the start
        """
        ...


@dataclass(frozen=True, eq=False)
class Simulated:
    """Times of the requests of a schedule in nanoseconds, (n,) each.

    submitted_ns: when the caller could submit it: at its scheduled time, or once an inline run was over
    finished_ns: when it was answered, or refused
    """

    submitted_ns: NDArray[np.int64]
    finished_ns: NDArray[np.int64]
    refused: NDArray[np.bool_]


class _Job(NamedTuple):
    request: int
    rows: int
    submitted_ns: int


class _Event(NamedTuple):
    """The end of a run of jobs that took so long, or, with none, of a wait for a batch."""

    at_ns: int
    order: int
    group: int
    replica: int
    jobs: Sequence[_Job] = ()
    taken_ns: int = 0


def simulate(
    placement: Placement,
    rows: Sequence[int],
    due_ns: Sequence[int],
    service: ServiceTime,
    outstanding: int | None = None,
    balance: Balance = least_rows,
    speeds: Sequence[float] = (),
) -> Simulated:
    """Simulate requests in an open loop: submitted by one caller at their times, in order.

    Args:
        rows: (n,), rows of each request
        due_ns: (n,), ascending times of submission
        outstanding: with so many requests unanswered, the caller also waits for the oldest of them, as in a saturated
            loop
        balance: policy by which requests go to the replicas of their instance group
        speeds: how many times as fast as `service` each replica of the first group is; none where all are alike

    Raises:
        ValueError: there is not one time for each request, or not one speed above 0 for each replica.
    """
    if len(rows) != len(due_ns):
        raise ValueError(f"Each request has a time of submission, but got {len(rows)} and {len(due_ns)}.")
    pool, most = VirtualPool(placement, service, balance, speeds), outstanding or len(rows)
    for request, (size, due) in enumerate(zip(rows, due_ns, strict=True)):
        now = max(due, pool.free_ns)
        pool.advance(now)
        if request >= most:
            now = max(now, pool.advance_to_answer(request - most))
        pool.submit(size, now)
    return pool.finish()


class VirtualPool:
    """A pool on a virtual clock, which its caller moves; an event is handled at its time, and events of the same time
    in the order of their making.

    free_ns: when the caller may submit again, which an inline run occupies
    """

    def __init__(
        self,
        placement: Placement,
        service: ServiceTime,
        balance: Balance = least_rows,
        speeds: Sequence[float] = (),
    ) -> None:
        if speeds and (len(speeds) != placement.instance_group.replicas or min(speeds) <= 0):
            raise ValueError(
                f"Each of {placement.instance_group.replicas} replicas has a speed above 0, but got {speeds}."
            )
        self._speeds = speeds
        self._placement, self._service = placement, service
        self._schedulers: list[Scheduler[_Job]] = schedulers(placement, balance)
        self._busy: set[tuple[int, int]] = set()
        self._freed: dict[tuple[int, int], int] = {}  # when each replica last ended a run
        self._events: list[_Event] = []
        self._order = itertools.count()
        # By request, in the order of submission.
        self._submitted: list[int] = []
        self._finished: list[int] = []
        self._parts: list[int] = []  # that are not finished yet
        self._begun: dict[int, bool] = {}  # whether the turn of a request came in time
        self._refused: list[bool] = []
        self._answered: list[bool] = []
        self.free_ns = 0
        for group, instance_group in enumerate(placement.instance_groups):
            for replica in range(instance_group.replicas):
                self._next_run(group, replica, 0, idle=True)

    @property
    def queued(self) -> int:
        """Number of requests that wait for a replica; each part of a split one counts."""
        return sum(scheduler.queued for scheduler in self._schedulers)

    @property
    def requests(self) -> int:
        """Number of requests that wait or run; each part of a split one counts."""
        return sum(scheduler.waiting for scheduler in self._schedulers)

    @property
    def rows(self) -> int:
        """Rows that wait or run."""
        return sum(scheduler.rows for scheduler in self._schedulers)

    def submit(self, rows: int, now_ns: int) -> None:
        """Submit a request at a time to which the clock was moved."""
        request = len(self._submitted)
        self._submitted.append(now_ns)
        self._finished.append(0)
        self._parts.append(0)
        self._refused.append(False)
        self._answered.append(False)
        self.free_ns = self._submit(request, rows, now_ns)

    def answer_ns(self, request: int) -> float | None:
        """Return when a request was answered, infinite where it was refused, or None where it waits."""
        if not self._answered[request]:
            return None
        return math.inf if self._refused[request] else self._finished[request]

    def advance_to_answer(self, request: int) -> int:
        """Move the clock until a request is answered, and return when that is."""
        now = 0
        while not self._answered[request]:
            now = self._events[0].at_ns
            self.advance(now)
        return now

    def finish(self) -> Simulated:
        """Let all requests be answered, and return their times."""
        self.advance(math.inf)
        return Simulated(
            np.array(self._submitted, np.int64), np.array(self._finished, np.int64), np.array(self._refused, np.bool_)
        )

    def advance(self, now_ns: float) -> None:
        """Handle all events up to a time."""
        while self._events and self._events[0].at_ns <= now_ns:
            event = heapq.heappop(self._events)
            if event.jobs:
                self._end_run(event)
            self._next_run(event.group, event.replica, event.at_ns, idle=not event.jobs)

    def _submit(self, request: int, rows: int, now_ns: int) -> int:
        """Submit a request, and return when the caller is free again."""
        group = group_of(self._placement, rows)
        scheduler = self._schedulers[group]
        try:
            if self._placement.inline and group == 0:
                return self._submit_inline(scheduler, _Job(request, rows, now_ns))
            ends = parts_of(self._placement, group, rows)
            self._parts[request] = len(ends)
            woken = scheduler.submit(
                [_Job(request, end - start, now_ns) for start, end in itertools.pairwise([0, *ends])]
            )
        except RefusedError:
            self._refuse(request, now_ns)
            return now_ns
        for replica in woken:
            self._next_run(group, replica, now_ns, idle=True)
        return now_ns

    def _submit_inline(self, scheduler: Scheduler[_Job], job: _Job) -> int:
        here, _ = scheduler.enter(job)
        assert here, "one caller, which waits for each inline run, finds the replica idle"
        self._parts[job.request] = 1
        key = (0, 0)
        ended = job.submitted_ns + self._duration(key, job.rows, (job.submitted_ns - self._freed.get(key, 0)) or None)
        self._busy.add(key)
        self.advance(ended)
        self._busy.discard(key)
        self._freed[key] = ended
        self._finish(0, 0, (job,), ended - job.submitted_ns)
        self._end_part(job.request, ended)
        return ended

    def _next_run(self, group: int, replica: int, now_ns: int, idle: bool) -> None:
        """Let a replica that is free take what is next."""
        key = group, replica
        if key in self._busy:
            return  # the end of a wait that a full batch cut short
        scheduler = self._schedulers[group]
        while jobs := scheduler.take(replica, now_ns):
            if isinstance(jobs, Wait):
                if jobs.until_ns is not None:
                    self._push(_Event(jobs.until_ns, next(self._order), group, replica))
                return
            begun = [job for job in jobs if self._begins(scheduler, replica, job, now_ns)]
            if begun:
                scheduler.run_together(replica, len(begun))
                taken = self._duration(
                    key, sum(job.rows for job in begun), now_ns - self._freed.get(key, 0) if idle else None
                )
                self._busy.add(key)
                self._push(_Event(now_ns + taken, next(self._order), group, replica, begun, taken))
                return

    def _begins(self, scheduler: Scheduler[_Job], replica: int, job: _Job, now_ns: int) -> bool:
        """Return whether a job is still to be run: the turn of a split request comes with that of its first part."""
        if job.request not in self._begun:
            try:
                scheduler.admission.check_turn(job.submitted_ns, now_ns)
                self._begun[job.request] = True
            except RefusedError:
                self._begun[job.request] = False
                self._refuse(job.request, now_ns)
        if not self._begun[job.request]:
            scheduler.finish(replica, job.rows)
        return self._begun[job.request]

    def _end_run(self, event: _Event) -> None:
        self._busy.discard((event.group, event.replica))
        self._freed[event.group, event.replica] = event.at_ns
        self._finish(event.group, event.replica, event.jobs, event.taken_ns)
        for job in event.jobs:
            self._end_part(job.request, event.at_ns)

    def _finish(self, group: int, replica: int, jobs: Sequence[_Job], taken_ns: int) -> None:
        scheduler, rows = self._schedulers[group], sum(job.rows for job in jobs)
        if scheduler.admission.has_deadline:
            scheduler.admission.learn(rows, taken_ns)
        scheduler.finish(replica, rows, len(jobs))

    def _end_part(self, request: int, now_ns: int) -> None:
        self._parts[request] -= 1
        if self._parts[request] == 0:
            self._answered[request], self._finished[request] = True, now_ns

    def _refuse(self, request: int, now_ns: int) -> None:
        self._refused[request] = self._answered[request] = True
        self._finished[request] = now_ns

    def _duration(self, replica: tuple[int, int], rows: int, idle_ns: int | None) -> int:
        group, number = replica
        speed = self._speeds[number] if self._speeds and group == 0 else 1.0
        return max(1, round(self._service(group, rows, idle_ns, len(self._busy)) / speed))

    def _push(self, event: _Event) -> None:
        heapq.heappush(self._events, event)
