"""Assignment of cores to replicas."""

from __future__ import annotations

import os
from collections.abc import Sequence

from objectives.serving.engines import EngineError
from spaces.techniques.placement import InstanceGroup

Cores = frozenset[int] | None


def cores_here() -> tuple[int, ...]:
    """Return the numbers of the cores that this thread may use; none where the system does not report them."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def share_cores(instance_groups: Sequence[InstanceGroup], allowed: Sequence[int]) -> tuple[tuple[Cores, ...], ...]:
    """Assign cores to each replica of each instance group.

    A replica of a pinned group gets the next `threads` cores in order, any other gets None.

    Raises:
        EngineError: there are fewer cores than the pinned replicas need.
    """
    needed = sum(
        instance_group.replicas * (instance_group.threads or 0)
        for instance_group in instance_groups
        if instance_group.pinned
    )
    if needed > len(allowed):
        raise EngineError(f"Pinned replicas need {needed} cores of their own, but got {len(allowed)}.")
    free = iter(allowed)
    return tuple(
        tuple(
            frozenset(next(free) for _ in range(instance_group.threads))
            if instance_group.pinned and instance_group.threads
            else None
            for _ in range(instance_group.replicas)
        )
        for instance_group in instance_groups
    )
