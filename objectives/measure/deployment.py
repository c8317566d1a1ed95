"""Deployments under measurement: a model file and its placement."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from objectives.measurement.load_generator import PendingAnswer, Request, Submit, precise_sleep, was_refused
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.pace import PaceTimer
from objectives.records import Artifact, rows_of
from objectives.serving.pool import Pool
from objectives.serving.pool.pending_result import cut_rows
from spaces.techniques.placement import InstanceGroup, Placement

_SWITCH_SECONDS = 5e-5
# Seconds after which the machine may have another speed, so that earlier service times no longer count.
_FRESH_SECONDS = 2.0
# Requests in flight for each of several replicas that keep all of them busy, whatever their sizes.
_EACH_OF_SEVERAL = 8


@dataclass(frozen=True)
class Deployment:
    """An artifact and how it is run: its model file on this machine, its placement and its compute type."""

    artifact: Artifact
    model: str
    placement: Placement
    compute: str


def open_deployment(deployment: Deployment) -> Pool:
    return Pool.open(Path(deployment.model), deployment.placement, deployment.compute)


class _KeptOpen:
    """Pool of a baseline's model on one thread that stays open between jobs, and the timer of the machine's pace."""

    deployment: Deployment | None = None
    pool: Pool | None = None
    timer: PaceTimer | None = None
    timed_s = 0.0


def on_one_thread(deployment: Deployment) -> Deployment:
    """Return a deployment of the same files in the same engine, on the same device, with one replica of one thread."""
    group, of_graph = deployment.placement.instance_group, deployment.placement.of_graph
    alone = InstanceGroup(group.engine, group.device, threads=1)
    return replace(deployment, placement=replace(of_graph, instance_group=alone))


def pace_ms(baseline: Deployment, requests: Sequence[Request]) -> float:
    """Return the machine's pace: milliseconds of a request to the baseline's model on one thread, one at a time.

    This is the median of three looks, each from idle: one now and the two before, which are repeated if they are not
    recent. The pool stays open until `close_kept` or until the pace of another baseline is asked for.

    On two threads a request to a DLRM took 0.7 or 1.1 ms by turns, whatever the machine's speed. The logarithm of its
    time had a standard deviation of 0.26, on one thread of 0.08 (`tests/benchmarks/pace.py`).
    """
    deployment = on_one_thread(baseline)
    if _KeptOpen.pool is None or _KeptOpen.deployment != deployment:
        close_kept()
        _KeptOpen.deployment, _KeptOpen.pool = deployment, open_deployment(deployment)
        warm_up(_KeptOpen.pool.submit, requests, deployment.placement)
    if _KeptOpen.timer is None:
        _KeptOpen.timer = PaceTimer(load_target(_KeptOpen.pool, deployment.placement, requests), requests)
    elif time.monotonic() - _KeptOpen.timed_s > _FRESH_SECONDS:
        _KeptOpen.timer.restart()
    found, _KeptOpen.timed_s = _KeptOpen.timer(), time.monotonic()
    return found


def close_kept() -> None:
    """Close the pool that `pace_ms` opened, if any."""
    if _KeptOpen.pool is not None:
        _KeptOpen.pool.close()
    _KeptOpen.deployment = _KeptOpen.pool = _KeptOpen.timer = None


class Submitter(Protocol):
    """A pool, or what stands for one."""

    def submit(self, request: Request) -> PendingAnswer: ...


def load_target(pool: Submitter, placement: Placement, requests: Sequence[Request], travelling: int = 0) -> LiveTarget:
    """Wrap a pool, or what stands for one, for the load generator.

    Args:
        travelling: requests that are on their way to the pool or back at the same time, and may change places
    """
    batches, outstanding = placement.batching is not None, saturating(placement, requests) + travelling
    return LiveTarget(
        pool.submit,
        placement.served_together,
        outstanding,
        one_by_one=placement.replicas == 1 and not batches,
        first=outstanding if batches else 1,
        in_turn=None if travelling else placement.in_turn,
    )


def saturating(placement: Placement, requests: Sequence[Request]) -> int:
    """Return the requests in flight with which a replica has one more request, or batch of them, waiting.

    Of several replicas each has seven, since a large request that is not answered yet holds up those that follow it.
    """
    rows, batching = int(np.median([rows_of(request) for request in requests])), placement.batching
    together = 1 if batching is None else max(1, batching.rows // rows)
    each = 2 if placement.replicas == 1 else _EACH_OF_SEVERAL
    return each * placement.replicas * together


def warm_up(submit: Submit, requests: Sequence[Request], placement: Placement) -> None:
    """Warm a pool up with requests of many sizes.

    Buffers grow with the largest request. An engine that prepares kernels by size gets every size once, as in its first
    minutes of service, and a single row where it is kept warm by that.
    """
    sizes = {rows_of(request): request for request in requests}
    if placement.keep_warm_ms is not None:
        sizes.setdefault(1, cut_rows(requests[0], 0, 1))
    ordered = sorted(sizes, reverse=True)
    for rows in ordered if placement.prepared_by_size else ordered[:: max(1, len(ordered) // 20)]:
        for answer in [submit(sizes[rows]) for _ in range(placement.replicas)]:
            was_refused(answer)


@contextmanager
def quiet() -> Iterator[None]:
    """Reduce timer and interpreter noise during a measurement.

    Threads wake on time, a finished replica gets the interpreter at once (the default wait of 5 ms would show as
    latency), and garbage collection is off.
    """
    before = sys.getswitchinterval()
    precise_sleep()
    sys.setswitchinterval(_SWITCH_SECONDS)
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        sys.setswitchinterval(before)
