"""Which cores each replica has for itself."""

from __future__ import annotations

import os
from collections.abc import Sequence

from objectives.serving.engines import EngineError
from spaces.techniques.placement import Seat

Cores = frozenset[int] | None


def cores_here() -> tuple[int, ...]:
    """The cores that this thread may use, by number; none where the system does not tell."""
    return tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()


def share_cores(seats: Sequence[Seat], allowed: Sequence[int]) -> tuple[tuple[Cores, ...], ...]:
    """Cores for each replica of each seat: `threads` of them in order where the seat is pinned, else None.

    Raises:
        EngineError: there are fewer cores than the pinned seats need.
    """
    needed = sum(seat.replicas * (seat.threads or 0) for seat in seats if seat.pinned)
    if needed > len(allowed):
        raise EngineError(f"Pinned replicas need {needed} cores of their own, but got {len(allowed)}.")
    free = iter(allowed)
    return tuple(
        tuple(
            frozenset(next(free) for _ in range(seat.threads)) if seat.pinned and seat.threads else None
            for _ in range(seat.replicas)
        )
        for seat in seats
    )
