"""How far a student's scores are from the teacher's, softened by a temperature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["logits", "probabilities", "values", "lists"]
# A probability is taken to be at least so far from 0 and 1.
_CERTAIN = 1e-6


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross entropy between softened outputs (Hinton et al. 2015, section 2), mean over rows or lists.

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


def soft_loss_of(kind: Kind) -> Callable[[Tensor, Tensor, float], Tensor]:
    """The soft loss of scores of a kind, (rows,) or (rows, outputs), or (lists, candidates) of lists; the sum over
    several outputs.

    Probabilities are taken back to the logits that they came from. Values have no temperature: theirs is the squared
    distance in units of the teacher's variance.
    """

    def of_columns(one: Callable[[Tensor, Tensor, float], Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
        def summed(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
            pairs = zip(student.reshape(len(student), -1).T, teacher.reshape(len(teacher), -1).T, strict=True)
            return torch.stack([one(mine, theirs, temperature) for mine, theirs in pairs]).sum()

        return summed

    def of_probabilities(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return soft_loss(torch.logit(student, _CERTAIN), torch.logit(teacher, _CERTAIN), temperature)

    def of_values(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        return F.mse_loss(student, teacher) / teacher.var(correction=0).clamp(min=torch.finfo(teacher.dtype).tiny)

    if kind == "lists":
        return soft_loss
    return of_columns({"logits": soft_loss, "probabilities": of_probabilities, "values": of_values}[kind])
