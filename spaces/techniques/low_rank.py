"""Low-rank factorisation of linear groups into two thin factors each."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.domains import Scalar
from spaces.techniques.reshaping import Reshaping


@dataclass(frozen=True)
class LowRank(Reshaping):
    """The rank of each named group's factors, as a share of the full rank, in (0, 1)."""

    ablated = "low rank"
    by_group = "shares"
    shares: tuple[tuple[str, float], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shares", tuple(sorted(self.shares)))
        if not self.shares or len(dict(self.shares)) != len(self.shares):
            raise ValueError(f"Low rank names each group once, but got {self.shares}.")
        for group, share in self.shares:
            if not 0.0 < share < 1.0:
                raise ValueError(f"A share of the rank lies between 0 and 1, but {group!r} got {share}.")

    def knobs(self) -> dict[str, Scalar]:
        return {f"low_rank.{group}": share for group, share in self.shares}
