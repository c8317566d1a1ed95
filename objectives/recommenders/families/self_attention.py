"""Causal multi-head attention: whole, for the last positions only, or through a window at a proportional cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Scores of a query and a key that blocks must save: they gather queries, keys and values, which takes ONNX Runtime as
# long as this many scores do (5 to 8 us on an AVX-512 core, with heads of 50).
WORTHWHILE = 4096


class SelfAttention(nn.Module):
    """Attention of each position to those up to itself; the queries are the last of the positions that are read.

    Heads may be pruned: their number is that of the projections' units over `head_dim`. A single head has no axis of
    its own, which saves ONNX Runtime 8 nodes.
    """

    def __init__(self, d: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q, self.k, self.v = (nn.Linear(d, heads * head_dim) for _ in range(3))
        self.out = nn.Linear(heads * head_dim, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, read: Tensor, padding: Tensor, window: int | None = None) -> Tensor:
        """Attend: (..., Q, d), (..., S, d), (..., 1, S) -> (..., Q, d).

        Args:
            queries: the last Q of the S positions
            padding: addend to the scores of each key
            window: number of positions that each query attends to, itself included, or None for all up to itself
        """
        q, k, v = self.q(queries), self.k(read), self.v(read)
        heads = q.shape[-1] // self.head_dim
        if heads > 1:
            q, k, v = (torch.unflatten(values, -1, (heads, -1)).transpose(-3, -2) for values in (q, k, v))
            padding = padding.unsqueeze(-3)
        if window is not None and _spared(q.shape[-2], k.shape[-2], window) > WORTHWHILE:
            mixed = self._in_blocks(q, k, v, padding, window)
        else:
            mixed = self._at_once(q, k, v, padding, window)
        return self.out(mixed.transpose(-3, -2).flatten(-2) if heads > 1 else mixed)  # type: ignore[no-any-return]

    def _at_once(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor, window: int | None) -> Tensor:
        """Attend in one product: (..., Q, head_dim), twice (..., S, head_dim), (..., 1, S) -> (..., Q, head_dim)."""
        asked, read = q.shape[-2], k.shape[-2]
        if asked == 1 and (window is None or read <= window):
            return self._mix(q, k, v, padding)  # the last position attends to all
        return self._mix(q, k, v, padding + _unseen(torch.arange(read - asked, read), torch.arange(read), window))

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor, window: int) -> Tensor:
        """Attend in blocks of `window` queries, each with the keys that one of them attends to.

        The cost grows with the queries times the window. The first block may begin before the first query.
        """
        asked, read = q.shape[-2], k.shape[-2]
        blocks = -(-asked // window)
        first = read - blocks * window + window * torch.arange(blocks).unsqueeze(1)
        of_query, of_key = first + torch.arange(window), first + torch.arange(1 - window, window)
        mask = _take(padding.squeeze(-2), of_key, -1).unsqueeze(-2) + _unseen(of_query, of_key, window)
        queries = _take(q, of_query - (read - asked), -2)
        mixed = self._mix(queries, _take(k, of_key, -2), _take(v, of_key, -2), mask)
        return mixed.flatten(-3, -2)[..., -asked:, :]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Compute scaled dot products, masked, as weights of the values (Vaswani et al. 2017, eq. 1)."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        return self.dropout(torch.softmax(scores + mask, -1)) @ v  # type: ignore[no-any-return]


def _spared(asked: int, read: int, window: int) -> int:
    """Count the scores of all queries with all keys, less those of blocks of `window` queries."""
    return asked * read - -(-asked // window) * window * (2 * window - 1)


def _unseen(query: Tensor, key: Tensor, window: int | None) -> Tensor:
    """Return a mask, (..., Q), (..., S) -> (..., Q, S): 0 where a query attends to a key, else minus infinity.

    No query attends to a key before 0, but each to itself, so that no row is empty.
    """
    behind = query.unsqueeze(-1) - key.unsqueeze(-2)
    seen = (behind >= 0) & (key >= 0).unsqueeze(-2)
    if window is not None:
        seen &= behind < window
    return torch.zeros(behind.shape).masked_fill(~(seen | (behind == 0)), -math.inf)


def _take(values: Tensor, at: Tensor, axis: int) -> Tensor:
    """Select positions, with the axis replaced by those of `at`; a number below 0 counts as 0."""
    return torch.unflatten(values.index_select(axis, at.clamp(min=0).flatten()), axis, at.shape)
