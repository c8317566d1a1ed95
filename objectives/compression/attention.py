"""Sparse attention: each position looks at the few before it, and only the latest of a history are read."""

from __future__ import annotations

import copy
from typing import Protocol, runtime_checkable

from torch import nn

from spaces.techniques.attention import Attention


@runtime_checkable
class Narrowable(Protocol):
    """A module whose attention can be narrowed: its forward reads both at each call and computes that much less.

    window: positions that each position attends to, itself included; None for all before it
    history: the latest so many positions that are read; None for all
    """

    window: int | None
    history: int | None


def sparsify(model: nn.Module, attention: Attention) -> nn.Module:
    """A copy with the same weights, all of whose narrowable modules look at this much and no more.

    Raises:
        ValueError: the model has no such module.
    """
    narrowed = copy.deepcopy(model)
    found = [module for module in narrowed.modules() if isinstance(module, Narrowable)]
    if not found:
        asked = f"window={attention.window}, history={attention.history}"
        raise ValueError(f"{type(model).__name__} has no attention that can be narrowed, but got {asked}.")
    for module in found:
        module.window, module.history = attention.window, attention.history
    return narrowed
