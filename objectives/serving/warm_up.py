"""Warm-up of the engines of a pool before it serves, with the sizes of requests that a bundle was measured with."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from objectives.arrays import Arrays
from objectives.serving.pool.pending_result import rows_of
from objectives.serving.pool.scheduler import group_of, parts_of
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import InstanceGroup, Placement

# Quantiles of the rows of requests that a bundle keeps: two to the power of so many, and the largest.
_BITS = 7
# Sizes for engines whose buffers grow with the largest request; others get as many as there is time for.
_SIZES = 20
# Seconds for all engines of a pool together.
_SECONDS = 1.0


def row_quantiles(requests: Sequence[Arrays]) -> list[int]:
    """Return equally spaced quantiles of the rows of requests, ascending, for a bundle to keep."""
    rows = [rows_of(request) for request in requests]
    quantiles = np.quantile(rows, np.linspace(0.0, 1.0, 2**_BITS + 1), method="nearest")
    return [int(quantile) for quantile in quantiles]


def warm_up(
    engine: Engine,
    group: InstanceGroup,
    placement: Placement,
    quantiles: Sequence[int],
    request: Callable[[int], Arrays],
    seconds: float = _SECONDS,
) -> None:
    """Run an engine of an instance group of a placement with the sizes that it will get.

    Buffers grow with the largest request, which is therefore the first. An engine that prepares kernels by size gets
    as many sizes as there is time for, the more probable ones sooner.

    Args:
        quantiles: of the rows of requests, as `row_quantiles` returns them; none to run nothing
        request: returns a request of so many rows
        seconds: for all engines of the placement
    """
    end = time.perf_counter() + seconds / placement.replicas
    for rows in sizes_of(placement, group, quantiles):
        engine.run(request(rows))
        if time.perf_counter() > end:
            return


def sizes_of(placement: Placement, group: InstanceGroup, quantiles: Sequence[int]) -> list[int]:
    """Return the sizes of the runs that warm an engine of an instance group up, each once, in their order."""
    found = list(dict.fromkeys(itertools.chain.from_iterable(_runs(placement, group, quantiles))))
    return found if placement.prepared_by_size else found[:_SIZES]


def _runs(placement: Placement, group: InstanceGroup, quantiles: Sequence[int]) -> Iterator[list[int]]:
    """Yield what each size becomes in an instance group: nothing where it is routed elsewhere, or its parts."""
    if placement.batching is not None and quantiles:
        yield [placement.batching.rows]
    for rows in _ordered(quantiles):
        number = group_of(placement, rows)
        if placement.instance_groups[number] == group:
            yield np.diff(parts_of(placement, number, rows), prepend=0).tolist()


def _ordered(quantiles: Sequence[int]) -> list[int]:
    """Return the largest size, and the others in the order of van der Corput: each amid those before it."""
    by_bits = sorted(range(2**_BITS), key=lambda number: f"{number:0{_BITS}b}"[::-1])
    return [quantiles[-1], *(quantiles[at] for at in by_bits if at < len(quantiles))] if quantiles else []
