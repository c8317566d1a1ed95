"""Loss between a student's scores and the teacher's, softened by a temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from objectives.output_kind import OutputKind

# Smallest distance of a probability from 0 and from 1.
_RAREST, _NEAREST_TO_1 = 1e-12, 1e-7


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 times the cross entropy between softened outputs (Hinton et al. 2015, section 2), mean over rows or
    lists.

    One logit z is the two-class softmax of (z, 0), so softening it is sigmoid(z / T). T^2 keeps the gradient's size
    independent of T.

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
    """Return the soft loss of scores whose columns are of these kinds, (rows,) or (rows, outputs), or (lists,
    candidates) for lists; the sum over several outputs.

    Probabilities are converted to logits. Values have no temperature: their loss is the squared distance in units of
    their spread, which is 1 for a student that only predicts their mean.
    """
    if kinds[0].scale == "lists":
        return soft_loss(student, teacher, temperature)
    pairs = zip(student.reshape(len(student), -1).T, teacher.reshape(len(teacher), -1).T, strict=True)
    losses = [_of_one(kind, *pair, temperature) for kind, pair in zip(kinds, pairs, strict=True)]
    return torch.stack(losses).sum()


def _of_one(kind: OutputKind, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    if kind.scale == "values":
        return F.mse_loss(student / kind.spread, teacher / kind.spread)
    if kind.scale == "probabilities":
        return soft_loss(_logit(student), _logit(teacher), temperature)
    return soft_loss(student, teacher, temperature)


def _logit(probability: Tensor) -> Tensor:
    """Return the logit of a probability, clamped: a float resolves far smaller steps near 0 than near 1 (6e-8)."""
    certain = probability.clamp(_RAREST, 1 - _NEAREST_TO_1)
    return certain.log() - torch.log1p(-certain)
