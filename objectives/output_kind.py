"""What a model's outputs are, which says how a student's are compared with a teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# Lists are logits of (lists, candidates); values are what a regression gives.
Scale = Literal["logits", "probabilities", "values", "lists"]


@dataclass(frozen=True)
class OutputKind:
    """Of one output.

    spread: of values, the unit that differences are told in: their standard deviation over train
    """

    scale: Scale
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.spread < float("inf"):
            raise ValueError(f"spread: must be above 0 and finite, but got {self.spread}")
