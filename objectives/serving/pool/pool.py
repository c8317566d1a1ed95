"""The pool of a placement: its replicas' threads, and the path of requests to them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType

from objectives.arrays import Arrays
from objectives.serving.engines import open_replica
from objectives.serving.pool.balancing import Balance
from objectives.serving.pool.cores import cores_here, share_cores
from objectives.serving.pool.inline import InlineReplicas
from objectives.serving.pool.pending_result import Job, PendingResult, rows_of
from objectives.serving.pool.replica import Replica
from objectives.serving.pool.replicas import Replicas
from objectives.serving.pool.scheduler import GroupLoad, Scheduler, group_of, parts_of, schedulers
from objectives.serving.pool.splitting import Splitter
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import InstanceGroup, Placement

Prepare = Callable[[Arrays], Arrays]


class Pool:
    """Replicas of one model, each with its own thread.

    A request is routed by its rows, then split, accepted or refused, and batched among the replicas of its instance
    group, by the same rules in every group; only the first group runs inline, and then the caller's thread runs where
    it is, pinned or not. `submit` may be called from several threads; the requests of one replica are run in the order
    of submission, but for those that are moved to it from one that hangs.
    """

    def __init__(
        self,
        placement: Placement,
        open_engine: Callable[[InstanceGroup], Engine],
        prepare: Prepare | None = None,
        balances: Sequence[Balance] = (),
    ) -> None:
        """Open every replica, each in its own thread; if one fails, all are closed and its error is raised.

        Args:
            prepare: turns a request into one that the graph takes, or raises ValueError, on the caller's thread
            balances: policy of each instance group by which requests go to its replicas; none for the fewest rows

        Raises:
            EngineError: there are fewer cores than pinned replicas need.
            ValueError: requests are to be batched for a graph that takes inputs once a request.
        """
        groups = placement.instance_groups
        cores = share_cores(groups, cores_here())
        self._placement, self._prepare = placement, prepare
        guided: list[Scheduler[Job]] = schedulers(placement, balances)
        self._groups = [
            _replicas(scheduler, group.replicas, placement.inline and number == 0, placement.keep_warm_ms)
            for number, (group, scheduler) in enumerate(zip(groups, guided, strict=True))
        ]
        self._splitters = [
            Splitter(replicas, partial(parts_of, placement, number)) for number, replicas in enumerate(self._groups)
        ]
        try:
            for number, (group, replicas) in enumerate(zip(groups, self._groups, strict=True)):
                replicas.start(partial(open_engine, group), cores[number], f"replica-{number}")
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(
        cls,
        model: Path,
        placement: Placement,
        compute: str = "fp32",
        prepare: Prepare | None = None,
        opened: Callable[[Engine, InstanceGroup], None] | None = None,
        balances: Sequence[Balance] = (),
    ) -> Pool:
        """Load a model file into every replica of a placement.

        Args:
            opened: called with each engine in its replica's own thread before it serves
            balances: as in the constructor

        Raises:
            EngineError: an engine is missing or cannot do what is asked.
        """

        def open_engine(group: InstanceGroup) -> Engine:
            engine = open_replica(model, group, placement.embedding_device, compute)
            if opened is not None:
                opened(engine, group)
            return engine

        return cls(placement, open_engine, prepare, balances)

    def submit(self, request: Arrays, here: bool = True, waited_ns: int = 0) -> PendingResult:
        """Submit a request of named arrays of (rows, ...).

        Args:
            here: whether an idle inline replica may run on this thread; if not, it runs on its own
            waited_ns: nanoseconds that the request waits before and after, which count for its deadline

        Returns:
            A future of the scores, (rows,), or of the run's error or a RefusedError.

        Raises:
            RuntimeError: the pool is closed.
            ValueError: the request has no rows, or cannot be prepared.
        """
        if self._prepare is not None:
            request = self._prepare(request)
        rows = rows_of(request)
        return self._splitters[group_of(self._placement, rows)].take(request, rows, here, waited_ns)

    @property
    def waiting(self) -> int:
        """Number of requests submitted and not answered; each part of a split one counts."""
        return sum(replicas.waiting for replicas in self._groups)

    @property
    def load(self) -> GroupLoad | None:
        """Load by which admission decides, or None in a placement that routes or splits requests.

        There the load depends on the request.
        """
        if self._placement.route is not None or self._placement.split_rows is not None:
            return None
        return self._groups[0].load

    @property
    def queued(self) -> int:
        """Number of requests that wait for a replica; a split one counts once while any part of it waits."""
        return sum(replicas.queued for replicas in self._groups)

    @property
    def hanging(self) -> int:
        """Number of replicas whose run lasts longer than any may."""
        return sum(replicas.hanging for replicas in self._groups)

    @property
    def refused(self) -> int:
        """Number of requests refused so far."""
        return sum(replicas.refused for replicas in self._groups)

    def hangs(self, lasting_ns: int | None = None) -> bool:
        """Return whether every replica of an instance group hangs, or has had its run for so many nanoseconds."""
        return any(replicas.all_hang(lasting_ns) for replicas in self._groups)

    def relieve(self) -> None:
        """Move what waits for replicas that hang to others of their instance group, as each `submit` does too."""
        for replicas in self._groups:
            replicas.relieve()

    def rest(self) -> None:
        """Keep no engine warm until its next request, and return when none is run for that."""
        for replicas in self._groups:
            replicas.rest()

    def close(self) -> None:
        """Finish the submitted requests, then stop the replicas."""
        for replicas in self._groups:
            replicas.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _replicas(scheduler: Scheduler[Job], replicas: int, inline: bool, keep_warm_ms: float | None) -> Replicas:
    lock = threading.Lock()
    if inline:
        return InlineReplicas(scheduler, lock, keep_warm_ms)
    own = [Replica(number, scheduler, lock, keep_warm_ms) for number in range(replicas)]
    return Replicas(own, scheduler, lock)
