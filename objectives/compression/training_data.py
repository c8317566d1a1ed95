"""What there is to learn for a model, in batches that come again with each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from objectives.compression.soft_loss import soft_loss
from objectives.training_rows import NumberedBatch, TrainingRows

Inputs = Mapping[str, Tensor]
Outputs = Callable[[nn.Module, Inputs], Any]
Loss = Callable[[Any, Any], Tensor]
# (student's scores, teacher's scores, temperature) -> a scalar.
Soft = Callable[[Tensor, Tensor, float], Tensor]


def by_name(model: nn.Module, inputs: Inputs) -> Any:
    """What a model gives that takes its inputs by name."""
    return model(**inputs)


def as_they_are(outputs: Any) -> Any:
    """The scores of a model whose outputs are its scores."""
    return outputs


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch: inputs by name, (rows, ...) each, and labels; the teacher's scores of them where they are known."""

    inputs: Inputs
    labels: Any
    teacher_scores: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TrainingData:
    """What there is to learn, for any recommender.

    lessons: one pass over train, ordered by the generator; inputs may be drawn anew in each
    per_pass: lessons in a pass
    loss: of outputs and labels, mean over rows or lists
    outputs: of a model on inputs
    hidden: dotted name of the module, in student and teacher, whose output is compared where features are learned
    scores: of those outputs
    soft: of a student's scores and the teacher's, at a temperature; the mean likewise
    """

    batches: Callable[[torch.Generator], Iterator[TrainingBatch]]
    batches_per_epoch: int
    loss: Loss
    outputs: Outputs = by_name
    hidden: str | None = None
    scores: Callable[[Any], Tensor] = as_they_are
    soft: Soft = soft_loss

    def __post_init__(self) -> None:
        if self.batches_per_epoch < 1:
            raise ValueError(f"A pass has at least one lesson, but got {self.batches_per_epoch}.")


def training_batches(
    rows: TrainingRows, teacher_scores: Callable[[NumberedBatch], Tensor] | None = None
) -> tuple[Callable[[torch.Generator], Iterator[TrainingBatch]], int]:
    """The lessons of an epoch, and how many it has.

    Args:
        taught: the teacher's scores of a batch; None where they are not known
    """

    def batches(generator: torch.Generator) -> Iterator[TrainingBatch]:
        for batch in rows.epoch(generator):
            yield TrainingBatch(batch.inputs, batch.labels, None if teacher_scores is None else teacher_scores(batch))

    return batches, rows.batches_per_epoch
