"""Training data of a model: the rows, and what runs the model and computes its losses on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from objectives.training_rows import Inputs, Labels, NumberedBatch, TrainingRows

Outputs = Callable[[nn.Module, Inputs], object]
Loss = Callable[[object, Labels], Tensor]


def as_they_are(outputs: object) -> Tensor:
    """Return the scores of a model whose outputs are its scores."""
    assert isinstance(outputs, Tensor)
    return outputs


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data of any recommender.

    loss: (outputs, labels) -> a scalar, mean over rows or lists
    soft: (student's scores, teacher's scores, temperature) -> a scalar, mean over rows or lists
    outputs: (model, inputs) -> the model's outputs
    hidden: dotted name of the module, in student and teacher, whose output is compared where features are distilled
    scores: maps outputs to scores
    teacher_scores: returns the teacher's scores of a batch, where they are known
    """

    rows: TrainingRows
    loss: Loss
    soft: Callable[[Tensor, Tensor, float], Tensor]
    outputs: Outputs
    hidden: str | None = None
    scores: Callable[[object], Tensor] = as_they_are
    teacher_scores: Callable[[NumberedBatch], Tensor] | None = None
