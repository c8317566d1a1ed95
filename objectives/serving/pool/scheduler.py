"""Decisions of a pool as a pure state machine without threads, clock or model.

The pool's threads drive it, and so does a virtual clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar

from objectives.serving.pool.admission import AdmissionControl
from objectives.serving.pool.balancing import Balance, least_rows
from spaces.techniques.placement import Admission, Batching, Placement


class Queued(Protocol):
    """An entry of a replica's queue: a request, or a part of one."""

    @property
    def rows(self) -> int: ...

    @property
    def submitted_ns(self) -> int: ...

    @property
    def whole(self) -> object | None:
        """Return what the parts of a split request have in common, None for a request that is not split."""
        ...


J = TypeVar("J", bound=Queued)
# A run takes milliseconds; a replica whose run lasts longer than this hangs until it ends.
HANGS_NS = 3_000_000_000
# Between two looks for replicas that hang.
_LOOK_NS = 100_000_000


class Wait(NamedTuple):
    """A replica has nothing to run until it is woken, or until a time in nanoseconds if one is given."""

    until_ns: int | None


_UNTIL_WOKEN = Wait(None)


class GroupLoad(NamedTuple):
    """Load of an instance group: waiting requests, and outstanding rows of the replica that has fewest."""

    queued: int
    least_rows: int


class _State(Generic[J]):
    """Queue and load of one replica.

    rows, requests: outstanding ones, those being run included
    running: requests that are run together; 1 where the replica is idle, since it takes the next one at once
    parked: the replica waits to be woken
    taken, taken_ns: jobs of the run that are not finished, and when it began
    warming: the run has no job, but keeps an idle engine warm; its row is outstanding
    """

    __slots__ = ("number", "parked", "queue", "requests", "rows", "running", "taken", "taken_ns", "warming")

    def __init__(self, number: int) -> None:
        self.number, self.rows, self.requests, self.running, self.parked = number, 0, 0, 1, False
        self.queue: deque[J] = deque()
        self.taken = self.taken_ns = 0
        self.warming = False

    def begin(self, count: int, now_ns: int) -> list[J]:
        """Take so many jobs from the start of the queue."""
        self.taken_ns = now_ns  # before the count, by which others who look now know of the run
        self.taken += count
        return [self.queue.popleft() for _ in range(count)]

    def hangs(self, now_ns: int, lasting_ns: int) -> bool:
        return (self.taken > 0 or self.warming) and now_ns - self.taken_ns > lasting_ns


class _Hanging(NamedTuple):
    """Load of a replica that hangs, more than that of any other."""

    rows: int = 1 << 60
    requests: int = 1 << 60


_HANGING = _Hanging()


class Scheduler(Generic[J]):
    """Scheduler of one instance group: admission, choice of the replica, batching.

    A request, and each part of a split one, goes to the replica that the balancing policy takes: by default the one
    with the fewest outstanding rows. The driver calls `relieve` and `submit` for each request, `take` whenever a
    replica is free or woken, and `finish` for what was run or dropped; a run without a job is between `begin_warm_run`
    and `end_warm_run`. Calls from several threads need a lock.
    """

    def __init__(
        self, replicas: int, batching: Batching | None, admission: Admission, balance: Balance = least_rows
    ) -> None:
        self.admission = AdmissionControl(admission)
        self._states: list[_State[J]] = [_State(number) for number in range(replicas)]
        # Replicas that get jobs, and what a policy sees of all: the states, or what stands for those that hang.
        self._able = self._states
        self._loads: Sequence[_State[J] | _Hanging] = self._states
        self._look_ns = 0
        self._batching, self._balance = batching, balance
        self._turn = 0
        self._closed = self._splits = False

    @property
    def batches(self) -> bool:
        """Return whether several requests may be run together."""
        return self._batching is not None

    @property
    def waiting(self) -> int:
        """Number of jobs submitted and not finished."""
        return sum(state.requests for state in self._states)

    @property
    def rows(self) -> int:
        """Rows of the jobs submitted and not finished."""
        return sum(state.rows for state in self._states)

    @property
    def load(self) -> GroupLoad:
        return GroupLoad(self.queued, min(state.rows for state in self._able))

    @property
    def queued(self) -> int:
        """Number of requests that wait for a replica; a split one counts once while any part of it waits.

        The first job of an idle replica does not wait for one.
        """
        return self._queued(self._states)

    def _queued(self, states: Sequence[_State[J]]) -> int:
        if not self._splits:
            return sum(max(0, state.requests - state.running) for state in states)
        wholes = [job.whole for state in states for job in islice(state.queue, int(not state.taken), None)]
        return wholes.count(None) + len({id(whole) for whole in wholes if whole is not None})

    def hanging(self, now_ns: int, lasting_ns: int | None = None) -> int:
        """Return the number of replicas whose run lasts longer than a limit, by default than that of one that hangs."""
        return sum(state.hangs(now_ns, HANGS_NS if lasting_ns is None else lasting_ns) for state in self._states)

    def relieve(self, now_ns: int) -> list[int]:
        """Leave out the replicas that hang, and move what waits for one to the others, unless all hang.

        What such a replica runs stays with it: a request at which every engine hangs would take all, one by one. A
        replica whose run has ended is among the others again.

        Returns:
            The replicas to wake.
        """
        # Once the pool closes, the threads of replicas with empty queues end, and would take nothing more.
        if self._closed or now_ns < self._look_ns:
            return []
        self._look_ns = now_ns + _LOOK_NS
        if self.hanging(now_ns) in (0, len(self._states)):
            self._loads = self._able = self._states
            return []
        self._able = [state for state in self._states if not state.hangs(now_ns, HANGS_NS)]
        self._loads = [state if state in self._able else _HANGING for state in self._states]
        return [number for state in self._states if state not in self._able for number in self._move(state)]

    def submit(self, jobs: Sequence[J], waited_ns: int = 0) -> list[int]:
        """Queue all jobs of one request, of whose deadline so much is spent elsewhere.

        Returns:
            The replicas to wake.

        Raises:
            RefusedError: none of them was queued.
            RuntimeError: the scheduler is closed.
        """
        self._admit(jobs, waited_ns)
        self._splits |= len(jobs) > 1
        woken = []
        for job in jobs:
            state = self._chosen(job)
            state.queue.append(job)
            if self._count(state, job):
                woken.append(state.number)
        return woken

    def enter(self, job: J, waited_ns: int = 0) -> tuple[bool, list[int]]:
        """Count a job as running if the only replica is idle, so that the caller runs it itself; else queue it.

        Returns:
            Whether the caller runs the job, and the replicas to wake.

        Raises:
            RefusedError, RuntimeError: as in `submit`.
        """
        self._admit((job,), waited_ns)
        state = self._states[0]
        if state.requests or state.warming:
            state.queue.append(job)
            return False, [state.number] if self._count(state, job) else []
        state.rows, state.requests, state.taken_ns = job.rows, 1, job.submitted_ns
        state.taken += 1
        return True, []

    def take(self, replica: int, now_ns: int) -> Sequence[J] | Wait:
        """Take the jobs that a free replica runs next, from the start of its queue: one, or a batch.

        Return a `Wait` where the replica has to wait for jobs, and none once the scheduler is closed and the replica's
        queue is empty.

        A batch has one job of any size, and further ones while all have `rows` together at most. The wait for further
        jobs is counted from the submission of the first.
        """
        state = self._states[replica]
        if self._batching is None and state.queue:
            return state.begin(1, now_ns)
        count, until_ns = self._batch(state.queue)
        state.parked = not self._closed and (not count or (until_ns is not None and now_ns < until_ns))
        if state.parked:
            return _UNTIL_WOKEN if until_ns is None else Wait(until_ns)
        return state.begin(count, now_ns)

    def run_together(self, replica: int, jobs: int, now_ns: int) -> None:
        """Note that a replica runs so many of the jobs that it took at once, which therefore do not wait."""
        self._states[replica].running = jobs
        self._states[replica].taken_ns = now_ns

    def finish(self, replica: int, rows: int, jobs: int = 1) -> None:
        """Stop counting jobs as outstanding: they were run, or dropped when their turn came."""
        state = self._states[replica]
        state.rows -= rows
        state.requests -= jobs
        state.taken -= jobs
        state.running = 1

    def begin_warm_run(self, replica: int, now_ns: int) -> bool:
        """Note that a replica runs its engine to keep it warm; return False where it has a job and must not."""
        state = self._states[replica]
        if state.requests:
            return False
        state.taken_ns = now_ns  # before the mark, as in `begin`
        state.warming = True
        state.rows += 1
        return True

    def end_warm_run(self, replica: int) -> None:
        state = self._states[replica]
        state.warming = False
        state.rows -= 1

    def close(self) -> None:
        """Accept no further jobs; queued ones are still taken, without waiting for a batch to fill."""
        self._closed = True

    def _admit(self, jobs: Sequence[J], waited_ns: int) -> None:
        if self._closed:
            raise RuntimeError("The pool is closed.")
        if self.admission.limited:
            self.admission.check(self._able, jobs, lambda: self._queued(self._able), waited_ns)

    def _chosen(self, job: J) -> _State[J]:
        """Return the replica that gets a job: the policy's choice, or, where that hangs, the one with fewest rows."""
        at = self._balance(self._turn, self._loads, job.rows)
        if self._loads[at] is _HANGING:
            at = least_rows(self._turn, self._loads, job.rows)
        self._turn += 1
        return self._states[at]

    def _move(self, hanging: _State[J]) -> list[int]:
        """Move the queue of a replica that hangs to the start of the others', and return those to wake."""
        woken = []
        while hanging.queue:
            # From the last to the first, so that each queue has them in the order of submission.
            job = hanging.queue.pop()
            hanging.rows -= job.rows
            hanging.requests -= 1
            state = self._chosen(job)
            state.queue.appendleft(job)
            if self._count(state, job):
                woken.append(state.number)
        return woken

    @staticmethod
    def _count(state: _State[J], job: J) -> bool:
        """Count a job that was queued, and return whether the replica has to be woken."""
        state.rows += job.rows
        state.requests += 1
        parked, state.parked = state.parked, False
        return parked

    def _batch(self, queue: deque[J]) -> tuple[int, int | None]:
        """Return how many jobs from the start of the queue are run together, and until when more could join.

        The time is None where none could.
        """
        if self._batching is None or not queue:
            return 0, None
        count, room = 1, self._batching.rows - queue[0].rows
        while count < len(queue) and queue[count].rows <= room:
            room -= queue[count].rows
            count += 1
        full = count < len(queue) or room <= 0
        return count, None if full else queue[0].submitted_ns + self._batching.wait_us * 1000


def schedulers(placement: Placement, balances: Sequence[Balance] = ()) -> list[Scheduler[J]]:
    """Make the scheduler of each instance group of a placement.

    Args:
        balances: policy of each; none for the fewest outstanding rows
    """
    groups = placement.instance_groups
    return [
        Scheduler(group.replicas, placement.batching, placement.admission, balance)
        for group, balance in zip(groups, balances or [least_rows] * len(groups), strict=True)
    ]


def group_of(placement: Placement, rows: int) -> int:
    """Return the number of the instance group that serves a request of so many rows."""
    return int(placement.route is not None and rows > placement.route.above_rows)


def parts_of(placement: Placement, group: int, rows: int) -> list[int]:
    """Return the end of each part that a request is split into in an instance group.

    There are as many nearly equal parts as replicas, but none of fewer than half of `split_rows` rows.
    """
    above, replicas = placement.split_rows, placement.instance_groups[group].replicas
    if above is None or rows <= above:
        return [rows]
    parts = min(replicas, rows // -(-above // 2))
    return [rows * (i + 1) // parts for i in range(parts)]
