"""How much of each layer group is cut away."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Importance = Literal["magnitude"]


@dataclass(frozen=True)
class Pruning:
    """The share of units removed from each group, units going by their importance, least first."""

    ratios: tuple[tuple[str, float], ...]
    importance: Importance = "magnitude"

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratios", tuple(sorted(self.ratios)))
        if not self.ratios or len(dict(self.ratios)) != len(self.ratios):
            raise ValueError(f"Pruning names each group once, but got {self.ratios}.")
        for group, ratio in self.ratios:
            if not 0.0 < ratio < 1.0:
                raise ValueError(f"A pruning ratio lies between 0 and 1, but {group!r} got {ratio}.")
