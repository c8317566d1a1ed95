"""Units: positions along axes that leave a model together, and their course through changes of shape."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# The unit at each position of an axis; None where no unit can be removed.
Axis = NDArray[np.int64] | None
# Axis that may be narrowed where a split of one axis in two is ambiguous: the number of parts (heads of fixed size), or
# the size of each part (a fixed number of heads).
Narrowing = Literal["outer", "inner"]

_MIXED = "its positions are mixed with others by a change of shape"


class Units:
    """Disjoint sets of positions (Tarjan 1975). A set that is pinned keeps all of its positions, for a reason.

    Attributes:
        narrowing: which axis keeps its units where a split leaves both possible
        ambiguous: whether there was such a split
    """

    def __init__(self, narrowing: Narrowing = "outer") -> None:
        self.narrowing = narrowing
        self.ambiguous = False
        self._parent: list[int] = []
        self._source: list[int] = []
        self._reason: dict[int, str] = {}
        self._spanned: set[int] = set()
        self._copied: set[int] = set()

    def fresh(self, size: int) -> NDArray[np.int64]:
        """Create units, (size,), each by itself, of one source: one axis of one tensor."""
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        self._source.extend([start] * size)
        return np.arange(start, start + size)

    def copies(self, size: int) -> NDArray[np.int64]:
        """Create units for one value that is expanded: the number of positions may depend on another tensor."""
        axis = self.fresh(size)
        self._copied.update(axis.tolist())
        return axis

    def source(self, unit: int) -> int:
        """Return the first unit of the axis that the unit was created for."""
        return self._source[unit]

    def root(self, unit: int) -> int:
        """Return the root of the unit's set, equal for all tied units."""
        while self._parent[unit] != unit:
            self._parent[unit] = unit = self._parent[self._parent[unit]]
        return unit

    def roots(self, axis: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self.root(int(unit)) for unit in axis.flat], dtype=np.int64).reshape(axis.shape)

    def tie(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Tie two axes position by position. The older root stays one, so that results do not depend on the order."""
        for a, b in zip(one.flat, other.flat, strict=True):
            roots = self.root(int(a)), self.root(int(b))
            old, new = min(roots), max(roots)
            if old == new:
                continue
            self._parent[new] = old
            if new in self._reason:
                self._reason.setdefault(old, self._reason.pop(new))
            for marked in (self._spanned, self._copied):
                if new in marked:
                    marked.add(old)

    def pin(self, axis: Axis, reason: str) -> None:
        if axis is not None:
            for unit in axis.flat:
                self._reason.setdefault(self.root(int(unit)), reason)

    def span(self, axis: Axis) -> None:
        """Mark units over which a normalisation or a scale is computed together."""
        if axis is not None:
            self._spanned.update(self.root(int(unit)) for unit in axis.flat)

    def pinned(self, unit: int) -> str | None:
        """Return the reason why the unit is kept, None where it may be removed."""
        return self._reason.get(self.root(unit))

    def spanned(self, unit: int) -> bool:
        return self.root(unit) in self._spanned

    def copied(self, unit: int) -> bool:
        """Return whether the unit meets one value that was expanded to as many positions."""
        return self.root(unit) in self._copied

    def join(self, axes: Sequence[Axis], reason: str) -> Axis:
        """Join axes of one length that are the same: tied, or all pinned where one of them is fixed."""
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes):
            for axis in known:
                self.pin(axis, reason)
            return None
        for axis in known[1:]:
            self.tie(known[0], axis)
        return known[0]


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
    old, new = ([i for i, size in enumerate(sizes) if size != 1] for sizes in (before, after))
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
    free = [i for i, axis in enumerate(axes) if axis is not None and any(units.pinned(int(u)) is None for u in axis)]
    kept = free[-1] if free else None
    for i, axis in enumerate(axes):
        if i != kept:
            units.pin(axis, _MIXED)
    if kept is None or (axis := axes[kept]) is None:
        return None
    shape = [1] * len(sizes)
    shape[kept] = sizes[kept]
    return np.broadcast_to(axis.reshape(shape), tuple(sizes)).reshape(-1)


def _split(units: Units, flat: Axis, sizes: Sequence[int]) -> tuple[Axis, ...]:
    if flat is None or len(sizes) == 1:
        return (flat,) * len(sizes)
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
