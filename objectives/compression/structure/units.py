"""Units: positions along axes of tensors that must be removed from a model together, as a union of tied positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

# The unit at each position of an axis; None where no unit can be removed.
Axis = NDArray[np.int64] | None
# Axis that may be narrowed where a split of one axis in two is ambiguous: the number of parts (heads of fixed size), or
# the size of each part (a fixed number of heads).
Narrowing = Literal["outer", "inner"]


class Units:
    """Disjoint sets of positions (Tarjan 1975). A pinned set keeps all of its positions, for a reason. A set that is
    pinned keeps all of its positions, for a reason.

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
        self._sources = 0

    def fresh(self, size: int) -> NDArray[np.int64]:
        """Create units, (size,), each by itself, of one source: one axis of one tensor."""
        start = len(self._parent)
        self._parent.extend(range(start, start + size))
        self._source.extend([self._sources] * size)
        self._sources += 1
        return np.arange(start, start + size)

    def copies(self, size: int) -> NDArray[np.int64]:
        """Create units for one value that is expanded to this many positions: their number may depend on another
        tensor.
        """
        axis = self.fresh(size)
        self._copied.update(axis.tolist())
        return axis

    def source(self, unit: int) -> int:
        """Return the number of the axis that the unit was created for."""
        return self._source[unit]

    def root(self, unit: int) -> int:
        """Return the root of the unit's set, equal for all tied units."""
        while self._parent[unit] != unit:
            self._parent[unit] = unit = self._parent[self._parent[unit]]
        return unit

    def roots(self, axis: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self.root(int(unit)) for unit in axis.flat], dtype=np.int64).reshape(axis.shape)

    def tie(self, one: NDArray[np.int64], other: NDArray[np.int64]) -> None:
        """Tie two axes position by position."""
        for a, b in zip(one.flat, other.flat, strict=True):
            self._tie(int(a), int(b))

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

    def _tie(self, one: int, other: int) -> None:
        a, b = self.root(one), self.root(other)
        if a == b:
            return
        # The older one stays the root, so that results do not depend on the order.
        a, b = min(a, b), max(a, b)
        self._parent[b] = a
        if b in self._reason:
            self._reason.setdefault(a, self._reason.pop(b))
        if b in self._spanned:
            self._spanned.discard(b)
            self._spanned.add(a)
        if b in self._copied:
            self._copied.discard(b)
            self._copied.add(a)
