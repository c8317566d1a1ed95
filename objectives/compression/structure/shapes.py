"""Units through a change of shape: the matching of axes, and the axis of several that keeps its units."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np
from numpy.typing import NDArray

from objectives.compression.structure.units import Axis, Units

_MIXED = "its positions are mixed with others by a change of shape"


def reshape(units: Units, axes: Sequence[Axis], before: Sequence[int], after: Sequence[int]) -> tuple[Axis, ...]:
    """Return the axes of the result of a view or reshape.

    Of several axes that become one, the last that has units keeps them; where one becomes several, the units stay on
    the axis that they were on before, else on the inner axis where the outer one joined several sources (vectors side
    by side). Where all have one source, like the heads of a projection, the shapes are ambiguous: the narrowing of the
    units decides.
    """
    found: list[Axis] = [None] * len(after)
    for old, new in _matched(before, after):
        flat = _merged(units, [axes[i] for i in old], [before[i] for i in old])
        for i, axis in zip(new, _split(units, flat, [after[i] for i in new]), strict=True):
            found[i] = axis
    return tuple(found)


def _matched(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Match runs of axes, without those of size 1, that hold the same number of values."""
    old = [i for i, size in enumerate(before) if size != 1]
    new = [i for i, size in enumerate(after) if size != 1]
    matched: list[tuple[list[int], list[int]]] = []
    while old and new:
        left, right = [old.pop(0)], [new.pop(0)]
        while (have := prod(before[i] for i in left)) != (want := prod(after[i] for i in right)):
            if have < want:
                left.append(old.pop(0))
            else:
                right.append(new.pop(0))
        matched.append((left, right))
    return matched


def _merged(units: Units, axes: Sequence[Axis], sizes: Sequence[int]) -> Axis:
    """Merge axes: the last that has units keeps them, and the others' are pinned."""
    kept = max((i for i, axis in enumerate(axes) if _free(units, axis)), default=None)
    for i, axis in enumerate(axes):
        if i != kept:
            units.pin(axis, _MIXED)
    if kept is None:
        return None
    axis = axes[kept]
    assert axis is not None
    shape = [1] * len(sizes)
    shape[kept] = sizes[kept]
    return np.broadcast_to(axis.reshape(shape), tuple(sizes)).reshape(-1)


def _split(units: Units, flat: Axis, sizes: Sequence[int]) -> tuple[Axis, ...]:
    if flat is None or len(sizes) == 1:
        return (flat,) if len(sizes) == 1 else (None,) * len(sizes)
    grid = flat.reshape(tuple(sizes))
    kept = _kept(units, grid)
    lines = np.moveaxis(grid, kept, 0).reshape(sizes[kept], -1)
    for other in range(1, lines.shape[1]):
        units.tie(lines[:, 0], lines[:, other])
    return tuple(lines[:, 0] if i == kept else None for i in range(len(sizes)))


def _kept(units: Units, grid: NDArray[np.int64]) -> int:
    roots = units.roots(grid)
    for axis in reversed(range(grid.ndim)):
        lines = np.moveaxis(roots, axis, 0).reshape(grid.shape[axis], -1)
        if (lines == lines[:, :1]).all() and len(np.unique(lines[:, 0])) > 1:
            return axis
    sources = {units.source(int(unit)) for unit in grid.reshape(grid.shape[0], -1)[:, 0]}
    if len(sources) > 1:
        return grid.ndim - 1
    units.ambiguous = True
    if units.narrowing == "inner":
        return grid.ndim - 1
    return 1 if grid.ndim == 3 else 0  # queries, keys and values side by side, each of several heads


def _free(units: Units, axis: Axis) -> bool:
    return axis is not None and any(units.pinned(int(unit)) is None for unit in axis)
