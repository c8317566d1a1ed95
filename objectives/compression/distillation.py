"""A smaller model learns from the labels and from the baseline's softened outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.distillation import Distillation

BATCH = 1024
_WARM_UP = 0.1
# One cycle bears a higher peak than a constant rate does (Smith and Topin 2018).
_PEAK = 3.0


def soft_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 times the cross entropy between softened outputs (Hinton et al. 2015, section 2), for one logit.

    One logit z is the two-class softmax of (z, 0), so softening it is sigmoid(z / T). T^2 keeps the gradient's size
    independent of T.

    Args:
        student, teacher: (rows,) logits
    """
    target = torch.sigmoid(teacher / temperature)
    return temperature**2 * F.binary_cross_entropy_with_logits(student / temperature, target)


def predict(model: nn.Module, inputs: Mapping[str, Tensor], batch: int = 8192) -> Tensor:
    """Scores of (rows,), without dropout and without a graph."""
    model.eval()
    rows = len(next(iter(inputs.values())))
    with torch.inference_mode():
        parts = [model(**{k: v[i : i + batch] for k, v in inputs.items()}) for i in range(0, rows, batch)]
    return torch.cat(parts).clone()


def distil(
    student: nn.Module,
    teacher_scores: Tensor,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    distillation: Distillation,
    seed: int,
) -> None:
    """Train the student in place: (1 - a) loss(z, y) + a soft_loss(z, z_teacher, T), one cycle of learning rate.

    Args:
        teacher_scores: (rows,) logits of the teacher on the same rows
        inputs, labels: train rows, (rows, ...) each
    """
    generator = torch.Generator().manual_seed(seed)
    rows = len(labels)
    batch = min(BATCH, rows)
    steps = distillation.passes * (rows // batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [_PEAK * g["lr"] for g in optimizer.param_groups],
        total_steps=steps,
        pct_start=_WARM_UP,
        cycle_momentum=False,
    )
    student.train()
    order = torch.randperm(rows, generator=generator)
    at = 0
    for _ in range(steps):
        if at + batch > rows:
            order, at = torch.randperm(rows, generator=generator), 0
        pick = order[at : at + batch]
        at += batch
        outputs = student(**{name: values[pick] for name, values in inputs.items()})
        soft = soft_loss(outputs, teacher_scores[pick], distillation.temperature)
        total = (1 - distillation.teacher_weight) * loss(outputs, labels[pick]) + distillation.teacher_weight * soft
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    student.eval()
