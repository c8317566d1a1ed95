"""Kind of a model's outputs, which determines the comparison of a student's outputs with the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# `lists` are logits of shape (lists, candidates); `values` are outputs of a regression.
Scale = Literal["logits", "probabilities", "values", "lists"]


@dataclass(frozen=True)
class OutputKind:
    """Kind of one output; `spread` is the unit of its differences: the standard deviation of values over train."""

    scale: Scale
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.spread < float("inf"):
            raise ValueError(f"spread: must be above 0 and finite, but got {self.spread}")
