"""The pool of a placement; the path of requests through its parts is fixed when it is opened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol

from objectives.arrays import Arrays
from objectives.bags import Bags, padded
from objectives.serving.engines import Engine, open_replica
from objectives.serving.pool.admission import AcceptAll, AdmissionController
from objectives.serving.pool.batching import BatchingReplica
from objectives.serving.pool.cores import cores_here, share_cores
from objectives.serving.pool.inline import InlineReplicas
from objectives.serving.pool.pending_result import PendingResult, rows_of
from objectives.serving.pool.replica import Replica
from objectives.serving.pool.replicas import Replicas
from objectives.serving.pool.splitting import Splitter
from spaces.techniques.placement import Admission, InstanceGroup, Placement


class _Way(Protocol):
    """One stage of a request's path to the engines."""

    def take(self, request: Arrays, rows: int) -> PendingResult: ...


class Pool:
    """Replicas of one model, each with its own thread.

    A request is routed by its rows, then split, accepted or refused, and batched among the replicas of its instance
    group, by the same rules in every group; only the first group runs inline, and then the caller's thread runs where
    it is, pinned or not. `submit` may be called from several threads; the requests of one replica are run in the order
    of submission.
    """

    def __init__(
        self, placement: Placement, open_engine: Callable[[InstanceGroup], Engine], bags: Sequence[Bags] = ()
    ) -> None:
        """Open every replica, each in its own thread; if one fails, all are closed and its error is raised.

        Args:
            bags: inputs that a request may give flat, with offsets

        Raises:
            EngineError: there are fewer cores than pinned replicas need.
            ValueError: requests are to be batched for a graph that takes inputs once a request.
        """
        cores = share_cores(placement.instance_groups, cores_here())
        first, *others = placement.instance_groups
        self._seats = [_replicas(placement, first, placement.inline), *(_replicas(placement, s, False) for s in others)]
        try:
            for number, (instance_group, replicas) in enumerate(
                zip(placement.instance_groups, self._seats, strict=True)
            ):
                replicas.start(partial(open_engine, instance_group), cores[number], f"replica-{number}")
        except BaseException:
            self.close()
            raise
        self._way, self._bags = _way(placement, self._seats), bags

    @classmethod
    def open(cls, model: Path, placement: Placement, compute: str = "fp32", bags: Sequence[Bags] = ()) -> Pool:
        """Load a model file into every replica of a placement.

        Raises:
            EngineError: an engine is missing or cannot do what is asked.
        """
        return cls(
            placement,
            lambda instance_group: open_replica(model, instance_group, placement.embedding_device, compute),
            bags,
        )

    def submit(self, request: Arrays) -> PendingResult:
        """Submit a request of named arrays of (rows, ...).

        Returns:
            A future of the scores, (rows,), or of the run's error or a RefusedError.

        Raises:
            RuntimeError: the pool is closed.
            ValueError: the request has no rows, or offsets that do not fit their values.
        """
        if self._bags:
            request = padded(request, self._bags)
        return self._way.take(request, rows_of(request))

    @property
    def waiting(self) -> int:
        """Number of requests submitted and not answered; each part of a split one counts."""
        return sum(replicas.waiting for replicas in self._seats)

    @property
    def refused(self) -> int:
        """Number of requests refused so far."""
        return sum(replicas.refused for replicas in self._seats)

    def close(self) -> None:
        """Finish the submitted requests, then stop the replicas."""
        for replicas in self._seats:
            replicas.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Router:
    """Router of requests by size: those of more than `above` rows go to the second instance group."""

    def __init__(self, small: _Way, large: _Way, above: int) -> None:
        self._small, self._large, self._above = small, large, above

    def take(self, request: Arrays, rows: int) -> PendingResult:
        return (self._large if rows > self._above else self._small).take(request, rows)


def _replicas(placement: Placement, instance_group: InstanceGroup, inline: bool) -> Replicas:
    lock = threading.Lock()
    controller = AcceptAll() if placement.admission == Admission() else AdmissionController(placement.admission)
    if inline:
        return InlineReplicas(lock, controller)
    if placement.batching is None:
        return Replicas([Replica(lock, controller) for _ in range(instance_group.replicas)], lock, controller)
    return Replicas(
        [BatchingReplica(lock, controller, placement.batching) for _ in range(instance_group.replicas)],
        lock,
        controller,
    )


def _way(placement: Placement, instance_groups: list[Replicas]) -> _Way:
    def within(replicas: Replicas) -> _Way:
        above = placement.split_rows
        return replicas if above is None or len(replicas) == 1 else Splitter(replicas, above)

    if placement.route is None:
        return within(instance_groups[0])
    small, large = instance_groups
    return _Router(within(small), within(large), placement.route.above_rows)
