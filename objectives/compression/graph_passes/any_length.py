"""Tracing of recurrent layers as one operator for sequences of any length.

To infer the shapes of a layer's outputs, torch unrolls its steps, which fixes the length to the example's. Its own
remedy (torch.export._patches) treats a layer as a loop, which costs seconds for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table

_KEYS = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)


@contextmanager
def any_length() -> Iterator[None]:
    """Infer the shapes of nn.GRU and nn.LSTM without their steps while a model is traced."""
    operators: tuple[Any, ...] = (torch.ops.aten.gru.input, torch.ops.aten.lstm.input)
    written = {operator: decomposition_table[operator] for operator in operators}
    kernels = {operator: dict(operator.py_kernels) for operator in operators}
    try:
        for operator in operators:
            decomposition_table[operator] = _outputs
            operator.py_kernels.update(dict.fromkeys(_KEYS, _outputs))
            operator._dispatch_cache.clear()
        yield
    finally:
        decomposition_table.update(written)
        for operator, before in kernels.items():
            operator.py_kernels.clear()
            operator.py_kernels.update(before)
            operator._dispatch_cache.clear()


def _outputs(values: Tensor, first: Tensor | list[Tensor], *settings: object) -> tuple[Tensor, ...]:
    """Return an output and last states of the layer's shapes.

    Args:
        first: the first state, or the first state and cell of nn.LSTM
        settings: weights, biased, layers, dropout, train, both_ways, batch_first
    """
    states = [first] if isinstance(first, Tensor) else first
    directions = 2 if settings[5] else 1
    output = values.new_empty((*values.shape[:-1], directions * states[0].shape[-1]))
    return output, *map(torch.empty_like, states)
