"""Sparse attention: limits on the positions that an attention reads."""

from __future__ import annotations

from dataclasses import dataclass

from spaces.domains import Scalar
from spaces.techniques.reshaping import Reshaping


@dataclass(frozen=True)
class Attention(Reshaping):
    """Limits of a sparse attention.

    window: number of positions that each position attends to, itself included; None for all before it
    history: number of latest positions that are read at all; None for all
    """

    ablated = "sparse attention"
    window: int | None = None
    history: int | None = None

    def __post_init__(self) -> None:
        if self.window is None and self.history is None:
            raise ValueError("Sparse attention has a window or a history, but got neither.")
        for name in ("window", "history"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"A {name} of attention is at least 1, but got {value}.")

    def knobs(self) -> dict[str, Scalar]:
        return {"attention.window": self.window or 0, "attention.history": self.history or 0}
