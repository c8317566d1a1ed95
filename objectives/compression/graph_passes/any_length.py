"""Tracing of recurrent layers as one operator for sequences of any length.

To infer the shapes of a layer's outputs, torch unrolls its steps, which fixes the length to the example's. Its own
remedy (torch.export._patches) treats a layer as a loop, which costs seconds for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

_KEYS = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)


@contextmanager
def any_length() -> Iterator[None]:
    """Infer the shapes of nn.GRU and nn.LSTM without their steps while a model is traced."""
    rules: dict[Any, Callable[..., Any]] = {torch.ops.aten.gru.input: _gru, torch.ops.aten.lstm.input: _lstm}
    written = {operator: decomposition_table[operator] for operator in rules}
    kernels = {operator: dict(operator.py_kernels) for operator in rules}
    try:
        for operator, rule in rules.items():
            decomposition_table[operator] = rule
            operator.py_kernels.update(dict.fromkeys(_KEYS, rule))
            operator._dispatch_cache.clear()
        yield
    finally:
        decomposition_table.update(written)
        for operator, before in kernels.items():
            operator.py_kernels.clear()
            operator.py_kernels.update(before)
            operator._dispatch_cache.clear()


def _gru(values: Tensor, state: Tensor, *settings: object) -> tuple[Tensor, Tensor]:
    return _outputs(values, state, settings), torch.empty_like(state)


def _lstm(values: Tensor, states: list[Tensor], *settings: object) -> tuple[Tensor, Tensor, Tensor]:
    state, cell = states
    return _outputs(values, state, settings), torch.empty_like(state), torch.empty_like(cell)


def _outputs(values: Tensor, state: Tensor, settings: tuple[object, ...]) -> Tensor:
    """Return an output of the layer's shape.

    Args:
        settings: weights, biased, layers, dropout, train, both_ways, batch_first
    """
    directions = 2 if settings[5] else 1
    return values.new_empty((*values.shape[:-1], directions * state.shape[-1]))
