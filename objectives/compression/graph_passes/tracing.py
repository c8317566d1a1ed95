"""Tracing of embedding bags and recurrent layers as operators for bags and sequences of any length, without loops.

To infer the shapes of a recurrent layer's outputs, torch unrolls its steps, which fixes the length to the example's.
Its own remedy (torch.export._patches) treats a layer as a loop, which costs seconds for each. Of a bag, the exporter
would write a loop over the bags.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_KEYS = (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)
# Added to a norm before a division, as in torch.
_LEAST = 1e-7
_SIGNATURE = inspect.signature(F.embedding_bag)


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
    """Return an output and last states of the layer's shapes, given its first state, or first state and cell."""
    states = [first] if isinstance(first, Tensor) else first
    # Of weights, biased, layers, dropout, train, both_ways, batch_first.
    directions = 2 if settings[5] else 1
    output = values.new_empty((*values.shape[:-1], directions * states[0].shape[-1]))
    return output, *map(torch.empty_like, states)


class BagsAsReductions(TorchFunctionMode):
    """Mode in which `F.embedding_bag`, which nn.EmbeddingBag calls, is a lookup and a reduction.

    For inference. Arguments that torch refuses are left for it to refuse.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.embedding_bag:
            given = _SIGNATURE.bind(*args, **(kwargs or {}))
            given.apply_defaults()
            of = given.arguments
            if of["input"].ndim == (2 if of["offsets"] is None else 1):
                return _reduced(**of)
        return func(*args, **(kwargs or {}))


def _reduced(
    input: Tensor,
    weight: Tensor,
    offsets: Tensor | None,
    max_norm: float | None,
    norm_type: float,
    mode: str,
    per_sample_weights: Tensor | None,
    include_last_offset: bool,
    padding_idx: int | None,
    **of_training: Any,
) -> Tensor:
    if padding_idx is not None and padding_idx < 0:
        padding_idx += weight.shape[0]
    kept = None if padding_idx is None else (input != padding_idx).unsqueeze(-1)
    rows = F.embedding(input, weight)
    if max_norm is not None:
        norm = rows.norm(norm_type, -1, keepdim=True)
        rows = torch.where(norm > max_norm, rows * (max_norm / (norm + _LEAST)), rows)
    if per_sample_weights is not None and mode != "max":
        rows = rows * per_sample_weights.unsqueeze(-1)
    if kept is not None:
        rows = rows.masked_fill(~kept, -torch.inf if mode == "max" else 0.0)
    if offsets is None:
        return _of_rows(rows, mode, kept)
    return _of_segments(rows, offsets[:-1] if include_last_offset else offsets, mode, kept)


def _of_rows(rows: Tensor, mode: str, kept: Tensor | None) -> Tensor:
    """Reduce bags of one length: (bags, length, dim), and (bags, length, 1), False at padding -> (bags, dim)."""
    if mode == "max":
        return rows.amax(1) if kept is None else rows.amax(1).masked_fill(~kept.any(1), 0.0)
    if mode != "mean":
        return rows.sum(1)
    return rows.mean(1) if kept is None else rows.sum(1) / kept.sum(1).clamp(min=1)


def _of_segments(rows: Tensor, starts: Tensor, mode: str, kept: Tensor | None) -> Tensor:
    """Reduce concatenated bags of any length: (ids, dim), and (ids, 1), False at padding -> (bags, dim).

    Args:
        starts: (bags,), ascending from 0; an empty bag starts where the next one does
    """
    begun = torch.zeros(rows.shape[0] + 1, dtype=torch.int64).index_add(0, starts, torch.ones_like(starts))
    bag = begun.cumsum(0)[:-1] - 1
    count = torch.zeros(starts.shape[0], 1, dtype=rows.dtype)
    ones = torch.ones_like(rows[:, :1]) if kept is None else kept.to(rows.dtype)
    held = count.index_add(0, bag, ones)
    empty = torch.zeros(starts.shape[0], rows.shape[1], dtype=rows.dtype)
    if mode == "max":
        highest = (empty - torch.inf).scatter_reduce(0, bag.unsqueeze(-1).expand_as(rows), rows, "amax")
        return highest.masked_fill(held == 0, 0.0)
    total = empty.index_add(0, bag, rows)
    return total / held.clamp(min=1) if mode == "mean" else total
