"""Copies of models."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

from torch import Tensor, nn


def copy_model(model: nn.Module, shared: Mapping[int, object] | None = None) -> nn.Module:
    """Copy a model deeply, with what it computed and kept, such as attention weights, apart from the computation.

    PyTorch copies no tensor that is a step of a computation with gradients, and a forward may leave one in an
    attribute.

    Args:
        shared: objects that are not copied, by their id
    """
    kept = {id(tensor): tensor.detach().clone() for tensor in _tensors(model) if not tensor.is_leaf}
    return copy.deepcopy(model, {**kept, **(shared or {})})


def learning_copy(model: nn.Module) -> nn.Module:
    """Copy a model to be trained: what is frozen stays frozen, unless nothing else is left."""
    copied = copy_model(model)
    if not any(parameter.requires_grad for parameter in copied.parameters()):
        for parameter in copied.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
    return copied


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the tensors in the attributes of all modules, and in their lists, tuples and mappings."""
    found: list[object] = [value for module in model.modules() for value in vars(module).values()]
    seen = set[int]()
    while found:
        value = found.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            found += value.values() if isinstance(value, dict) else value
