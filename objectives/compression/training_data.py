"""Training data of a model, in batches that are drawn anew in each epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.training_rows import Inputs, Labels, NumberedBatch, TrainingRows

Outputs = Callable[[nn.Module, Inputs], object]
Loss = Callable[[object, Labels], Tensor]


def as_they_are(outputs: object) -> Tensor:
    """Return the scores of a model whose outputs are its scores."""
    assert isinstance(outputs, Tensor)
    return outputs


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch: inputs by name, (rows, ...) each, and labels; the teacher's scores of them where they are known."""

    inputs: Inputs
    labels: Labels
    teacher_scores: Tensor | None = None


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Training data of any recommender.

    batches: one epoch of train, ordered by the generator; inputs may be drawn anew in each
    batches_per_epoch: number of batches in an epoch
    loss: (outputs, labels) -> a scalar, mean over rows or lists
    soft: (student's scores, teacher's scores, temperature) -> a scalar, mean over rows or lists
    outputs: (model, inputs) -> the model's outputs
    hidden: dotted name of the module, in student and teacher, whose output is compared where features are distilled
    scores: maps outputs to scores
    """

    batches: Callable[[torch.Generator], Iterator[TrainingBatch]]
    batches_per_epoch: int
    loss: Loss
    soft: Callable[[Tensor, Tensor, float], Tensor]
    outputs: Outputs
    hidden: str | None = None
    scores: Callable[[object], Tensor] = as_they_are

    def __post_init__(self) -> None:
        if self.batches_per_epoch < 1:
            raise ValueError(f"An epoch has at least one batch, but got {self.batches_per_epoch}.")


def training_batches(
    rows: TrainingRows, teacher_scores: Callable[[NumberedBatch], Tensor] | None = None
) -> tuple[Callable[[torch.Generator], Iterator[TrainingBatch]], int]:
    """Return the batches of an epoch, with the teacher's scores where they are known, and their number."""

    def batches(generator: torch.Generator) -> Iterator[TrainingBatch]:
        for batch in rows.epoch(generator):
            yield TrainingBatch(batch.inputs, batch.labels, None if teacher_scores is None else teacher_scores(batch))

    return batches, rows.batches_per_epoch
