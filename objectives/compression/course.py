"""What there is to learn for a model, in batches that come again with each pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from objectives.compression.soft_loss import soft_loss

Inputs = Mapping[str, Tensor]
Outputs = Callable[[nn.Module, Inputs], Any]
Loss = Callable[[Any, Any], Tensor]
# (student's outputs, teacher's outputs, temperature) -> a scalar.
Soft = Callable[[Any, Any, float], Tensor]

BATCH = 1024


def by_name(model: nn.Module, inputs: Inputs) -> Any:
    """What a model gives that takes its inputs by name."""
    return model(**inputs)


@dataclass(frozen=True, eq=False)
class Lesson:
    """One batch: inputs by name, (rows, ...) each, and labels; the teacher's outputs on them where they are known."""

    inputs: Inputs
    labels: Any
    taught: Any = None


@dataclass(frozen=True, eq=False)
class Course:
    """What there is to learn, for any recommender.

    lessons: one pass over train, ordered by the generator; inputs may be drawn anew in each
    per_pass: lessons in a pass
    loss: of outputs and labels, mean over rows or lists
    outputs: of a model on inputs
    hidden: dotted name of the module, in student and teacher, whose output is compared where features are learned
    soft: of a student's outputs and the teacher's, at a temperature; the mean likewise
    """

    lessons: Callable[[torch.Generator], Iterator[Lesson]]
    per_pass: int
    loss: Loss
    outputs: Outputs = by_name
    hidden: str | None = None
    soft: Soft = soft_loss

    def __post_init__(self) -> None:
        if self.per_pass < 1:
            raise ValueError(f"A pass has at least one lesson, but got {self.per_pass}.")


def lessons_of(
    inputs: Inputs, labels: Tensor, taught: Tensor | None = None, batch: int = BATCH
) -> tuple[Callable[[torch.Generator], Iterator[Lesson]], int]:
    """The lessons of fixed rows, shuffled anew in each pass, and how many it has; a last, smaller batch is left out.

    Args:
        inputs, labels, taught: (rows, ...) each
    """
    rows = len(labels)
    size = min(batch, rows)
    if size < 1:
        raise ValueError(f"There is at least one row in a batch, but got {rows} rows and batches of {batch}.")

    def lessons(generator: torch.Generator) -> Iterator[Lesson]:
        order = torch.randperm(rows, generator=generator)
        for start in range(0, rows - size + 1, size):
            pick = order[start : start + size]
            chosen = {name: values[pick] for name, values in inputs.items()}
            yield Lesson(chosen, labels[pick], None if taught is None else taught[pick])

    return lessons, rows // size
