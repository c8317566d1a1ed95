"""How much of each layer group is cut away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

# Of a unit: the norm of its weights; the change of the loss without it, to first order; how strongly it answers.
Importance = Literal["magnitude", "taylor", "activation"]
IMPORTANCES: tuple[Importance, ...] = get_args(Importance)


@dataclass(frozen=True)
class Pruning:
    """The share of units removed from each group, units going by their importance, least first.

    steps: in one shot, or in so many steps with training between them
    multiple: what is left of a width is a multiple of this, since kernels work in vectors
    """

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
