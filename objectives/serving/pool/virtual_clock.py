"""A placement on a virtual clock: the decisions of the real pool, with given service times in place of a model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from objectives.serving.pool.balancing import Balance, least_rows
from objectives.serving.pool.virtual_pool import ServiceTime, Simulated, VirtualPool
from spaces.techniques.placement import Placement


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

    Where one replica serves each request by itself there is nothing to decide, and Lindley's recursion does without
    the pool.

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
    most = outstanding or len(rows)
    if placement.in_turn == 1 and not speeds:
        return _served_in_turn(rows, due_ns, service, most, placement.inline)
    pool = VirtualPool(placement, service, balance, speeds)
    for request, (size, due) in enumerate(zip(rows, due_ns, strict=True)):
        now = max(due, pool.free_ns)
        pool.advance(now)
        if request >= most:
            now = max(now, pool.advance_to_answer(request - most))
        pool.submit(size, now)
    return pool.finish()


def _served_in_turn(
    rows: Sequence[int], due_ns: Sequence[int], service: ServiceTime, most: int, inline: bool
) -> Simulated:
    """Serve each request after the one before it (Lindley 1952).

    Args:
        most: requests that may be unanswered; more wait at the caller
        inline: whether the caller waits for each run, and always finds the replica free
    """
    submitted: list[int] = []
    finished: list[int] = []
    freed = 0
    for request, (size, due) in enumerate(zip(rows, due_ns, strict=True)):
        now = max(due, freed) if inline else due
        if request >= most:
            now = max(now, finished[request - most])
        submitted.append(now)
        idle_ns = now - freed
        if idle_ns > 0 or (idle_ns == 0 and not inline):
            freed = now + max(1, round(service(0, size, idle_ns, 0)))
        else:
            freed += max(1, round(service(0, size, None, 0)))
        finished.append(freed)
    return Simulated(np.array(submitted, np.int64), np.array(finished, np.int64), np.zeros(len(rows), np.bool_))
