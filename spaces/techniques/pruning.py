"""Structured pruning: the share of units removed from each layer group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from spaces.domains import Scalar
from spaces.model_structure import Group, PrunableDim
from spaces.techniques.reshaping import Reshaping

# Importance of a unit: the norm of its weights; the first-order change of the loss without it; the mean strength of its
# activations.
Importance = Literal["magnitude", "taylor", "activation"]
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)


@dataclass(frozen=True)
class Pruning(Reshaping):
    """The share of units removed from each group, least important first.

    ratios: share in (0, 1) by group
    importance: criterion by which units are ranked
    steps: number of pruning steps, with training between them; 1 is one-shot
    multiple: the remaining size is a multiple of this, since kernels work in vectors
    """

    ablated = "pruning"
    by_group = "ratios"
    ratios: tuple[tuple[str, float], ...]
    importance: Importance = "magnitude"
    steps: int = 1
    multiple: int = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(sorted(self.ratios)))
        if not self.ratios or len(dict(self.ratios)) != len(self.ratios):
            raise ValueError(f"Pruning names each group once, but got {self.ratios}.")
        for group, ratio in self.ratios:
            if not 0.0 < ratio < 1.0:
                raise ValueError(f"A pruning ratio lies between 0 and 1, but {group!r} got {ratio}.")
        if self.importance not in IMPORTANCES:
            raise ValueError(f"Importance is one of {', '.join(IMPORTANCES)}, but got {self.importance!r}.")
        if self.steps < 1 or self.multiple < 1:
            raise ValueError(f"Steps and the multiple are at least 1, but got {self.steps} and {self.multiple}.")

    def knobs(self) -> dict[str, Scalar]:
        ratios = {f"pruning.{group}": ratio for group, ratio in self.ratios}
        return {**ratios, "pruning.importance": self.importance, "pruning.steps": self.steps}


def kept_units(units: int, ratio: float, multiple: int = 16, size: int = 1) -> int:
    """Return the units that remain when a share `ratio` is removed, rounded to a size that kernels handle well.

    Kernels work in vectors of `multiple` numbers, and a size between two multiples costs as much as the higher one. The
    number is rounded to the units that fill a vector, halved until they are half of the dimension or fewer: a dimension
    of 10 is pruned in steps of 4, one of 4 heads of 16 numbers in steps of 1. At least one such step remains.

    Args:
        ratio: 0 leaves the dimension as it is
        size: adjacent numbers that one unit fills, such as those of an attention head
    """
    if ratio == 0:
        return units
    step = math.ceil(multiple / size)
    while step > max(1, units // 2):
        step //= 2
    return min(units, step * max(1, round(units * (1 - ratio) / step)))


def kept_of(width: PrunableDim, ratio: float, multiple: int) -> int:
    """Return the number of units of a prunable dimension that remain at this ratio."""
    return kept_units(width.units, ratio, multiple, min(cut.size for cut in width.axis_slices))


def ways_to_prune(group: Group, ratios: Sequence[float], multiple: int) -> tuple[float, ...]:
    """Select, in their order, one ratio for each shape that the group may get: the nearest to the share removed."""
    nearest: dict[tuple[int, ...], tuple[float, float]] = {}
    for ratio in ratios:
        kept = tuple(kept_of(width, ratio, multiple) for width in group.dims)
        away = sum(abs(width.units * (1 - ratio) - left) for width, left in zip(group.dims, kept, strict=True))
        nearest[kept] = min(nearest.get(kept, (away, ratio)), (away, ratio))
    chosen = {ratio for _, ratio in nearest.values()}
    return tuple(ratio for ratio in ratios if ratio in chosen)
