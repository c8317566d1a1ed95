"""Kind of a model's outputs, which determines the comparison of a student's outputs with the teacher's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# `lists` are logits of shape (lists, candidates); `values` are outputs of a regression.
Scale = Literal["logits", "probabilities", "values", "lists"]


@dataclass(frozen=True)
class OutputKind:
    """Kind of one output.

    unit: what differences of values are divided by before they are squared, so that their mean square has the curvature
        of the user's loss: 1 for the mean squared error. Where a value has no labels, or the loss no curvature above 0,
        it is the value's standard deviation over train.
    """

    scale: Scale
    unit: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.unit < float("inf"):
            raise ValueError(f"unit: must be above 0 and finite, but got {self.unit}")
