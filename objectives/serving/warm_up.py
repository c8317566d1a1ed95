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
# Most sizes for engines whose buffers grow with the largest request; those that prepare kernels by size get all.
_SIZES = 20
# Seconds after which the engines of a pool, all together, begin no further size.
SECONDS = 1.0


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
) -> None:
    """Run an engine of an instance group of a placement with the sizes that it will get.

    Buffers grow with the largest size, which is therefore the first. The others, the more probable ones sooner, follow
    while there is time; an engine that prepares kernels by size gets all of them. Second is the single row that keeps
    an idle engine warm, where one does.

    Args:
        quantiles: of the rows of requests, as `row_quantiles` returns them; none to run nothing
        request: returns a request of so many rows
    """
    end = time.perf_counter() + SECONDS / placement.replicas
    for rows in sizes_of(placement, group, quantiles):
        engine.run(request(rows))
        if time.perf_counter() > end:
            return


def sizes_of(placement: Placement, group: InstanceGroup, quantiles: Sequence[int]) -> list[int]:
    """Return the sizes of the runs that warm an engine of an instance group up, each once, the largest first."""
    sizes = list(itertools.chain.from_iterable(_runs(placement, group, quantiles)))
    alone = [] if placement.keep_warm_ms is None or not sizes else [1]
    found = list(dict.fromkeys([*sorted(sizes)[-1:], *alone, *sizes]))
    return found if placement.prepared_by_size else found[:_SIZES]


def _runs(placement: Placement, group: InstanceGroup, quantiles: Sequence[int]) -> Iterator[list[int]]:
    """Yield a full batch, and what each size becomes in a group: nothing where it is routed elsewhere, or its parts."""
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
