"""A student starts from what the teacher knows."""

from __future__ import annotations

import torch
from torch import nn


def start_from(student: nn.Module, teacher: nn.Module) -> tuple[str, ...]:
    """Copy every parameter and buffer that both have by the same name and in the same shape; returns the names."""
    known = teacher.state_dict()
    copied = []
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            if name in known and known[name].shape == tensor.shape:
                tensor.copy_(known[name])
                copied.append(name)
    return tuple(copied)
