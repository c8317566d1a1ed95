"""A pool on a virtual clock, driven by the schedulers of the real pool."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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


class _Request:
    """A request that was submitted.

    finished_ns: when it was answered or refused; negative before
    parts: those that are not finished yet
    begun: whether its turn came in time; None before its turn
    """

    __slots__ = ("begun", "finished_ns", "parts", "refused", "submitted_ns")

    def __init__(self, submitted_ns: int) -> None:
        self.submitted_ns, self.finished_ns, self.parts = submitted_ns, -1, 0
        self.begun: bool | None = None
        self.refused = False

    def refuse(self, now_ns: int) -> None:
        self.refused, self.finished_ns = True, now_ns


class _Job:
    """A request, or a part of one, in the queue of a replica.

    whole: the request that it is a part of; None where that is not split
    """

    __slots__ = ("request", "rows", "submitted_ns", "whole")

    def __init__(self, request: _Request, rows: int, whole: _Request | None = None) -> None:
        self.request, self.rows, self.submitted_ns, self.whole = request, rows, request.submitted_ns, whole


class _Replica:
    """A replica, and when it last ended a run."""

    __slots__ = ("busy", "freed_ns", "group", "number", "scheduler", "speed")

    def __init__(self, group: int, number: int, scheduler: Scheduler[_Job], speed: float) -> None:
        self.group, self.number, self.scheduler, self.speed = group, number, scheduler, speed
        self.busy, self.freed_ns = False, 0


# The time, the number of the event, then the end of a run of jobs with so many rows that took so many nanoseconds, or,
# with no jobs, of a wait for a batch. A plain tuple, since there are several of them for each request.
_Event = tuple[int, int, _Replica, Sequence[_Job], int, int]


class VirtualPool:
    """A pool on a virtual clock, which its caller moves.

    An event is handled at its time, and events of the same time in the order in which they were made.

    requests: number of requests that wait or run
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
        self._placement, self._service = placement, service
        # Whether every request goes to the first instance group as a whole.
        self._undivided = placement.route is None and placement.split_rows is None and not placement.inline
        self._schedulers: list[Scheduler[_Job]] = schedulers(placement, [balance] * len(placement.instance_groups))
        self._replicas = [
            [_Replica(group, number, scheduler, speeds[number] if speeds and group == 0 else 1.0)
             for number in range(placement.instance_groups[group].replicas)]
            for group, scheduler in enumerate(self._schedulers)
        ]  # fmt: skip
        self._running = self.requests = 0
        self._events: list[_Event] = []
        self._order = itertools.count()
        self._requests: list[_Request] = []
        self.free_ns = 0
        for replica in itertools.chain(*self._replicas):
            self._next_run(replica, 0, idle=True)

    @property
    def queued(self) -> int:
        """Number of requests that wait for a replica."""
        return sum(scheduler.queued for scheduler in self._schedulers)

    @property
    def rows(self) -> int:
        """Rows that wait or run."""
        return sum(scheduler.rows for scheduler in self._schedulers)

    @property
    def next_ns(self) -> float:
        """Time of the next event, infinite where there is none."""
        return self._events[0][0] if self._events else math.inf

    @property
    def busy(self) -> tuple[int, ...]:
        """Number of replicas of each instance group that run."""
        return tuple(sum(replica.busy for replica in replicas) for replicas in self._replicas)

    def refuse(self, now_ns: int) -> None:
        """Refuse a request before it reaches the pool."""
        request = _Request(now_ns)
        self._requests.append(request)
        request.refuse(now_ns)

    def submit(self, rows: int, now_ns: int) -> None:
        """Submit a request at a time to which the clock was moved."""
        request = _Request(now_ns)
        self._requests.append(request)
        self.requests += 1
        try:
            self.free_ns = self._submit(request, rows, now_ns)
        except RefusedError:
            request.refuse(now_ns)
            self.requests -= 1
            self.free_ns = now_ns

    def answer_ns(self, request: int) -> float | None:
        """Return when a request was answered, infinite where it was refused, or None where it waits."""
        asked = self._requests[request]
        if asked.finished_ns < 0:
            return None
        return math.inf if asked.refused else asked.finished_ns

    def advance_to_answer(self, request: int) -> int:
        """Move the clock until a request is answered, and return when that is; 0 if it was answered before."""
        now, asked = 0, self._requests[request]
        while asked.finished_ns < 0:
            now = self._events[0][0]
            self.advance(now)
        return now

    def finish(self) -> Simulated:
        """Let all requests be answered, and return their times in the order of submission."""
        self.advance(math.inf)
        return Simulated(
            np.array([request.submitted_ns for request in self._requests], np.int64),
            np.array([request.finished_ns for request in self._requests], np.int64),
            np.array([request.refused for request in self._requests], np.bool_),
        )

    def advance(self, now_ns: float) -> None:
        """Handle all events up to a time."""
        events = self._events
        while events and events[0][0] <= now_ns:
            at_ns, _, replica, jobs, rows, taken_ns = heapq.heappop(events)
            if jobs:
                self._end_run(replica, jobs, rows, taken_ns, at_ns)
            self._next_run(replica, at_ns, idle=not jobs)

    def _submit(self, request: _Request, rows: int, now_ns: int) -> int:
        """Submit a request, and return when the caller is free again; RefusedError where it is refused."""
        group, jobs = 0, [_Job(request, rows)]
        if not self._undivided:
            group = group_of(self._placement, rows)
            if self._placement.inline and group == 0:
                return self._submit_inline(self._replicas[0][0], jobs[0])
            ends = parts_of(self._placement, group, rows)
            if len(ends) > 1:
                jobs = [_Job(request, end - start, request) for start, end in itertools.pairwise((0, *ends))]
        request.parts = len(jobs)
        scheduler = self._schedulers[group]
        for number in scheduler.relieve(now_ns):
            self._next_run(self._replicas[group][number], now_ns, idle=True)
        for number in scheduler.submit(jobs):
            self._next_run(self._replicas[group][number], now_ns, idle=True)
        return now_ns

    def _submit_inline(self, replica: _Replica, job: _Job) -> int:
        here, _ = replica.scheduler.enter(job)
        assert here, "one caller, which waits for each inline run, finds the replica idle"
        job.request.parts = 1
        taken = self._begin(replica, job.rows, (job.submitted_ns - replica.freed_ns) or None)
        ended = job.submitted_ns + taken
        self.advance(ended)
        self._end_run(replica, (job,), job.rows, taken, ended)
        return ended

    def _next_run(self, replica: _Replica, now_ns: int, idle: bool) -> None:
        """Let a replica that is free take what is next."""
        if replica.busy:
            return  # the end of a wait that a full batch cut short
        scheduler = replica.scheduler
        while jobs := scheduler.take(replica.number, now_ns):
            if isinstance(jobs, Wait):
                if jobs.until_ns is not None:
                    heapq.heappush(self._events, (jobs.until_ns, next(self._order), replica, (), 0, 0))
                return
            if scheduler.admission.has_deadline:
                jobs = [job for job in jobs if self._begins(replica, job, now_ns)]
            if jobs:
                rows = jobs[0].rows
                if len(jobs) > 1:
                    scheduler.run_together(replica.number, len(jobs), now_ns)
                    rows = sum([job.rows for job in jobs])
                taken = self._begin(replica, rows, now_ns - replica.freed_ns if idle else None)
                heapq.heappush(self._events, (now_ns + taken, next(self._order), replica, jobs, rows, taken))
                return

    def _begins(self, replica: _Replica, job: _Job, now_ns: int) -> bool:
        """Return whether a job is still to be run: the turn of a split request comes with that of its first part."""
        request = job.request
        if request.begun is None:
            try:
                replica.scheduler.admission.check_turn(job.submitted_ns, now_ns)
                request.begun = True
            except RefusedError:
                request.begun = False
                request.refuse(now_ns)
                self.requests -= 1
        if not request.begun:
            replica.scheduler.finish(replica.number, job.rows)
        return request.begun

    def _begin(self, replica: _Replica, rows: int, idle_ns: int | None) -> int:
        """Occupy a replica with a run, and return the nanoseconds that it takes."""
        taken = self._service(replica.group, rows, idle_ns, self._running) / replica.speed
        replica.busy = True
        self._running += 1
        return max(1, round(taken))

    def _end_run(self, replica: _Replica, jobs: Sequence[_Job], rows: int, taken_ns: int, now_ns: int) -> None:
        scheduler = replica.scheduler
        replica.busy, replica.freed_ns = False, now_ns
        self._running -= 1
        if scheduler.admission.has_deadline:
            scheduler.admission.learn(rows, taken_ns)
        scheduler.finish(replica.number, rows, len(jobs))
        for job in jobs:
            job.request.parts -= 1
            if not job.request.parts:
                job.request.finished_ns = now_ns
                self.requests -= 1
