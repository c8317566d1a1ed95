"""Copy of a model that is to be trained."""

from __future__ import annotations

import copy

from torch import nn


def learning_copy(model: nn.Module) -> nn.Module:
    """Copy a model to be trained: what is frozen stays frozen, unless nothing else is left."""
    copied = copy.deepcopy(model)
    if not any(parameter.requires_grad for parameter in copied.parameters()):
        for parameter in copied.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    return copied
