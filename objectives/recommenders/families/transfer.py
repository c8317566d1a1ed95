"""Initialisation of a student from its teacher's weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def start_from(student: nn.Module, teacher: nn.Module) -> None:
    """Copy to the student every parameter and buffer that the teacher has under the same name.

    Of a larger float tensor, the entries at even distances along each axis are copied (weight selection, Xu et al.,
    ICLR 2024), at the same positions for equal sizes. Other tensors keep their initial values.
    """
    known = teacher.state_dict()
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            if name in known and _holds(known[name], tensor):
                tensor.copy_(_selected(known[name], tensor.shape))


def _holds(larger: Tensor, smaller: Tensor) -> bool:
    if larger.shape == smaller.shape:
        return True
    fits = larger.dim() == smaller.dim() and all(a >= b for a, b in zip(larger.shape, smaller.shape, strict=True))
    # a part of an integer tensor, such as positions, may point beyond the student's range
    return fits and smaller.is_floating_point()


def _selected(tensor: Tensor, shape: torch.Size) -> Tensor:
    for axis, size in enumerate(shape):
        if size < tensor.shape[axis]:
            tensor = tensor.index_select(axis, torch.arange(size) * tensor.shape[axis] // size)
    return tensor
