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


class Slowness(Protocol):
    """How many times as long a run takes beside others as beside none, by the arguments of a `ServiceTime`."""

    def __call__(self, group: int, rows: int, idle_ns: int | None, busy: int) -> float: ...


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
    """A replica, when it last ended a run, and the run that it is busy with."""

    __slots__ = ("freed_ns", "group", "number", "run", "scheduler", "speed")

    def __init__(self, group: int, number: int, scheduler: Scheduler[_Job], speed: float) -> None:
        self.group, self.number, self.scheduler, self.speed = group, number, scheduler, speed
        self.freed_ns = 0
        self.run: _Run | None = None


class _Run:
    """A run of jobs with so many rows.

    beside: other replicas of the pool that run: those of its own instance group at its start, and of others now
    ends_ns: when it ends, unless runs of other instance groups begin or end before
    """

    __slots__ = ("began_ns", "beside", "ends_ns", "idle_ns", "jobs", "rows")

    def __init__(
        self, jobs: Sequence[_Job], rows: int, idle_ns: int | None, beside: int, began_ns: int, ends_ns: int
    ) -> None:
        self.jobs, self.rows, self.idle_ns, self.beside = jobs, rows, idle_ns, beside
        self.began_ns, self.ends_ns = began_ns, ends_ns


# The time, the number of the event, then the end of a replica's run, or, with no run, of its wait for a batch. A plain
# tuple, since there are several of them for each request.
_Event = tuple[int, int, _Replica, "_Run | None"]


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
        slowness: Slowness | None = None,
    ) -> None:
        """Begin with idle replicas.

        Args:
            balance, speeds, slowness: as in `simulate`

        Raises:
            ValueError: there is not one speed above 0 for each replica.
        """
        if speeds and (len(speeds) != placement.instance_group.replicas or min(speeds) <= 0):
            raise ValueError(
                f"Each of {placement.instance_group.replicas} replicas has a speed above 0, but got {speeds}."
            )
        self._placement, self._service = placement, service
        self._slowness = None if placement.route is None else slowness
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
        return tuple(sum(replica.run is not None for replica in replicas) for replicas in self._replicas)

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
            at_ns, _, replica, run = heapq.heappop(events)
            if run is not None:
                if run is not replica.run or run.ends_ns != at_ns:
                    continue  # its end has been moved
                self._end_run(replica, run, at_ns)
            self._next_run(replica, at_ns, idle=run is None)

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
        request = job.request
        request.parts = 1
        self._begin(replica, (job,), job.rows, (job.submitted_ns - replica.freed_ns) or None, job.submitted_ns)
        while request.finished_ns < 0:
            self.advance(self._events[0][0])
        return request.finished_ns

    def _next_run(self, replica: _Replica, now_ns: int, idle: bool) -> None:
        """Let a replica that is free take what is next."""
        if replica.run is not None:
            return  # the end of a wait that a full batch cut short
        scheduler = replica.scheduler
        while jobs := scheduler.take(replica.number, now_ns):
            if isinstance(jobs, Wait):
                if jobs.until_ns is not None:
                    heapq.heappush(self._events, (jobs.until_ns, next(self._order), replica, None))
                return
            if scheduler.admission.has_deadline:
                jobs = [job for job in jobs if self._begins(replica, job, now_ns)]
            if jobs:
                rows = jobs[0].rows
                if len(jobs) > 1:
                    scheduler.run_together(replica.number, len(jobs), now_ns)
                    rows = sum([job.rows for job in jobs])
                self._begin(replica, jobs, rows, now_ns - replica.freed_ns if idle else None, now_ns)
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

    def _begin(self, replica: _Replica, jobs: Sequence[_Job], rows: int, idle_ns: int | None, now_ns: int) -> None:
        """Occupy a replica with a run."""
        taken = self._service(replica.group, rows, idle_ns, self._running) / replica.speed
        replica.run = run = _Run(jobs, rows, idle_ns, self._running, now_ns, now_ns + max(1, round(taken)))
        heapq.heappush(self._events, (run.ends_ns, next(self._order), replica, run))
        self._running += 1
        if self._slowness is not None:
            self._slow_down_others(replica.group, 1, now_ns, self._slowness)

    def _end_run(self, replica: _Replica, run: _Run, now_ns: int) -> None:
        scheduler = replica.scheduler
        replica.run, replica.freed_ns = None, now_ns
        self._running -= 1
        if self._slowness is not None:
            self._slow_down_others(replica.group, -1, now_ns, self._slowness)
        if scheduler.admission.has_deadline:
            scheduler.admission.learn(run.rows, now_ns - run.began_ns)
        scheduler.finish(replica.number, run.rows, len(run.jobs))
        for job in run.jobs:
            job.request.parts -= 1
            if not job.request.parts:
                job.request.finished_ns = now_ns
                self.requests -= 1

    def _slow_down_others(self, group: int, by: int, now_ns: int, slowness: Slowness) -> None:
        """Move the ends of what other instance groups run, beside which so many more replicas now run.

        The measured times of a group hold what its own replicas add to each other's runs, also to those that began
        before.
        """
        for replicas in (replicas for number, replicas in enumerate(self._replicas) if number != group):
            for replica in replicas:
                if (run := replica.run) is None:
                    continue
                before = slowness(replica.group, run.rows, run.idle_ns, run.beside)
                run.beside += by
                after = slowness(replica.group, run.rows, run.idle_ns, run.beside)
                if after != before:
                    run.ends_ns = now_ns + round((run.ends_ns - now_ns) * after / before)
                    heapq.heappush(self._events, (run.ends_ns, next(self._order), replica, run))
