"""Sparse attention: each position attends to a few before it, and only the latest positions of a history are read."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn

from objectives.model_copy import copy_model
from spaces.techniques.attention import Attention


@runtime_checkable
class Narrowable(Protocol):
    """A module whose attention can be narrowed.

    Its forward reads both attributes at each call and computes less accordingly.

    window: number of positions that each position attends to, itself included; None for all before it
    history: number of latest positions that are read; None for all
    """

    window: int | None
    history: int | None


def sparsify(model: nn.Module, attention: Attention) -> nn.Module:
    """Copy the model, with the same weights, and narrow all of its narrowable modules.

    Raises:
        ValueError: the model has no such module.
    """
    narrowed = copy_model(model)
    found = [module for module in narrowed.modules() if isinstance(module, Narrowable)]
    if not found:
        asked = f"window={attention.window}, history={attention.history}"
        raise ValueError(f"{type(model).__name__} has no attention that can be narrowed, but got {asked}.")
    for module in found:
        module.window, module.history = attention.window, attention.history
    return narrowed
