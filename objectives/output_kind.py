"""Kind of a model's outputs, and the comparison of a student's outputs with the teacher's, which depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

# `lists` are logits of shape (lists, candidates); `values` are outputs of a regression.
Scale = Literal["logits", "probabilities", "values", "lists"]
# Smallest distance of a probability from 0 and from 1.
_RAREST, _NEAREST_TO_1 = 1e-12, 1e-7


@dataclass(frozen=True)
class OutputKind:
    """Kind of one output.

    weight: what the comparison with the teacher is multiplied by, so that it is as curved as the user's loss: 1 for the
        mean cross entropy of logits and for the mean squared error of values. Where an output has no labels, or the
        loss no curvature above 0, it is 1, and of values the inverse of their variance over train.
    """

    scale: Scale
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight: must be above 0 and finite, but got {self.weight}")

    def raw(self, scores: Tensor) -> Tensor:
        """Return what is compared: the logits of probabilities, else the scores themselves."""
        return _logit(scores) if self.scale == "probabilities" else scores

    def scores(self, raw: Tensor) -> Tensor:
        """Return the scores of what `raw` returns."""
        return torch.sigmoid(raw) if self.scale == "probabilities" else raw

    def distance(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Compare raw outputs, of logits softened and of values by the mean squared distance, without the weight."""
        if self.scale == "values":
            return F.mse_loss(student, teacher)
        return soft_loss(student, teacher, temperature)


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 times the cross entropy between softened outputs, the mean over rows or lists.

    The loss is that of Hinton et al. 2015, section 2. One logit z is the two-class softmax of (z, 0), so softening it
    is sigmoid(z / T). T^2 keeps the gradient's size independent of T.

    Args:
        student, teacher: logits, (rows,), or (lists, candidates)

    Raises:
        ValueError: the shapes differ, or are of neither form.
    """
    if student.shape != teacher.shape or student.ndim not in (1, 2):
        raise ValueError(
            "Student and teacher score the same rows, or the same lists of candidates, but got "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}."
        )
    if student.ndim == 1:
        target = torch.sigmoid(teacher / temperature)
        return temperature**2 * F.binary_cross_entropy_with_logits(student / temperature, target)
    return temperature**2 * F.cross_entropy(student / temperature, torch.softmax(teacher / temperature, dim=1))


def soft_loss_of(kinds: Sequence[OutputKind], student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the soft loss of scores whose columns are of these kinds, summed over the outputs with their weights.

    The scores are (rows,) or (rows, outputs), or (lists, candidates) for lists. Probabilities are converted to logits.
    Values have no temperature: their loss is the mean squared distance.
    """
    if kinds[0].scale == "lists":
        return kinds[0].weight * kinds[0].distance(student, teacher, temperature)
    pairs = zip(student.reshape(len(student), -1).T, teacher.reshape(len(teacher), -1).T, strict=True)
    losses = [
        kind.weight * kind.distance(kind.raw(ours), kind.raw(theirs), temperature)
        for kind, (ours, theirs) in zip(kinds, pairs, strict=True)
    ]
    return torch.stack(losses).sum()


def _logit(probability: Tensor) -> Tensor:
    """Return the logit of a probability, clamped: a float resolves far smaller steps near 0 than near 1 (6e-8)."""
    certain = probability.clamp(_RAREST, 1 - _NEAREST_TO_1)
    return certain.log() - torch.log1p(-certain)
