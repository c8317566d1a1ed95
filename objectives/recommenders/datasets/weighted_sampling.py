"""Weighted sampling of a few out of many, without replacement."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class ByWeight:
    """Sampler of 0 to n - 1 by weight, (n,); a number with a weight of 0 is never drawn."""

    def __init__(self, weight: NDArray[np.float64]) -> None:
        if weight.ndim != 1 or not np.all(np.isfinite(weight)) or not np.all(weight >= 0) or not weight.any():
            raise ValueError(f"weights must be finite, at least 0, and not all 0, but got {weight}")
        self._weight = weight
        self._cumulative = np.cumsum(weight)

    @property
    def possible(self) -> NDArray[np.bool_]:
        """Return whether each number can be drawn at all, (n,)."""
        return self._weight > 0

    def draw(self, count: int, allowed: NDArray[np.bool_], random: np.random.Generator) -> NDArray[np.int64]:
        """Draw numbers, (count,), one after the other by weight, without replacement while the allowed suffice.

        Args:
            allowed: (n,), True for some of the possible ones, and at least one

        Raises:
            ValueError: nothing is allowed.
        """
        if np.count_nonzero(allowed) < count:
            among = np.flatnonzero(allowed)
            if len(among) == 0:
                raise ValueError(f"{count} things must be drawn from at least 1 that is allowed, but got none")
            share = self._weight[among] / self._weight[among].sum()
            repeated: NDArray[np.int64] = random.choice(among, size=count, p=share)
            return repeated
        # Drawing from all and skipping the excluded ones is fast as long as most of the weight is left ...
        drawn = np.searchsorted(self._cumulative, random.random(4 * count) * self._cumulative[-1], side="right")
        drawn = np.minimum(drawn, len(self._weight) - 1)  # rounding may reach the very end
        drawn = drawn[allowed[drawn]]
        taken: NDArray[np.int64] = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:count]
        if len(taken) == count:
            return taken
        # ... else the rest come by an exponential race: the first to arrive at a rate of its weight is drawn next.
        left = np.setdiff1d(np.flatnonzero(allowed), taken, assume_unique=True)
        arrival = random.exponential(size=len(left)) / self._weight[left]
        return np.concatenate([taken, left[np.argsort(arrival, kind="stable")[: count - len(taken)]]])
