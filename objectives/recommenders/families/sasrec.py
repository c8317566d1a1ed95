"""SASRec: self-attention over a history, and the product with an item's embedding (Kang and McAuley, ICDM 2018)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from objectives.recommenders.families.embedding import DIMENSION, linear_layouts
from objectives.recommenders.families.self_attention import SelfAttention
from objectives.recommenders.families.sizes import no_larger, told
from objectives.tensor_layout import Axis, Layout, TensorLayout
from spaces.domains import Choice, Scalar

DROPOUT = 0.2
# Added to the score of a padding key: its weight after the softmax is 0, and where every key is padding all are equal,
# so that the scores stay finite. Half precision can represent it.
_PADDING = -1e4
_EPSILON = 1e-8


@dataclass(frozen=True)
class Sizes:
    """Embedding dimension, blocks, heads in each, width of their feed-forward, positions of a history."""

    embedding_dim: int
    blocks: int
    heads: int
    feed_forward: int
    length: int

    def __post_init__(self) -> None:
        if min(getattr(self, f.name) for f in fields(self)) < 1 or self.embedding_dim % self.heads:
            raise ValueError(f"Sizes are positive and the heads divide the dimension, but got {self}.")


# Section IV of the paper and the defaults of the authors' main.py; they take a length of 200 for ML-1M, and a dropout
# of 0.5 for the sparser sets.
BASELINE = Sizes(embedding_dim=50, blocks=2, heads=1, feed_forward=50, length=50)

# The length of a history is determined by the requests and not chosen by a student.
STUDENT: Mapping[str, Choice] = {
    "embedding_dim": Choice((8, 16, 32, 50)),
    "blocks": Choice((1, 2)),
    "heads": Choice((1, 2)),
    "feed_forward": Choice((16, 32, 50)),
}


def student(own: Sizes) -> dict[str, tuple[Scalar, ...]]:
    """Return the sizes of students of a baseline: none larger, and any number of heads that divides all dimensions."""
    offered = {name: no_larger(STUDENT[name], size).values for name, size in told(own, STUDENT).items()}
    dims = tuple(int(d) for d in offered["embedding_dim"] if int(d) % own.heads == 0)
    heads = sorted({own.heads, *(int(h) for h in STUDENT["heads"].values if all(d % int(h) == 0 for d in dims))})
    return {**offered, "embedding_dim": dims, "heads": tuple(heads)}


def layout(items: int, sizes: Sizes) -> Layout:
    """Return the layout of the tensors of a model of these sizes."""
    vector: Axis = ((DIMENSION, sizes.embedding_dim),)
    found = {
        "tables.item.weight": TensorLayout(((("", items + 1),), vector)),
        "tables.position.weight": TensorLayout(((("", sizes.length),), vector)),
        **_norm_layouts("norm", vector, f"after {sizes.blocks} blocks"),
    }
    for number in range(sizes.blocks):
        block = f"blocks.{number}"
        units: Axis = ((f"heads {number}", sizes.embedding_dim),)
        inner: Axis = ((f"feed_forward {number}", sizes.feed_forward),)
        found |= _norm_layouts(f"{block}.attention_norm", vector) | _norm_layouts(f"{block}.feed_forward_norm", vector)
        for name in ("q", "k", "v"):
            found |= linear_layouts(f"{block}.attention.{name}", vector, units)
        found |= linear_layouts(f"{block}.attention.out", units, vector)
        found |= linear_layouts(f"{block}.feed_forward.inner", vector, inner)
        found |= linear_layouts(f"{block}.feed_forward.outer", inner, vector)
    return found


def _norm_layouts(name: str, units: Axis, role: str = "") -> dict[str, TensorLayout]:
    return {f"{name}.{parameter}": TensorLayout((units,), role) for parameter in ("weight", "bias")}


class FeedForward(nn.Module):
    """Two linear layers, applied to each position separately (eq. 4)."""

    def __init__(self, d: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(d, width)
        self.outer = nn.Linear(width, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(self.dropout(torch.relu(self.inner(x)))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each with a residual connection and normalisation of its input (section III-C).

    As in the authors' code (github.com/kang205/SASRec, model.py), which gave the published numbers, the residual is the
    normalised input, and keys and values read the input without normalisation. The output layer after the heads is that
    of Vaswani et al. 2017, section 3.2.2; with it, heads can be pruned and the dimension kept.
    """

    def __init__(self, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.embedding_dim, eps=_EPSILON)
        self.attention = SelfAttention(sizes.embedding_dim, sizes.heads, sizes.embedding_dim // sizes.heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(sizes.embedding_dim, eps=_EPSILON)
        self.feed_forward = FeedForward(sizes.embedding_dim, sizes.feed_forward, dropout)

    def forward(self, x: Tensor, padding: Tensor, wanted: int, window: int | None) -> Tensor:
        """Apply the block: (..., S, d), (..., 1, S) -> (..., wanted, d), for the last positions."""
        queries = self.attention_norm(x[..., -wanted:, :])
        x = self.feed_forward_norm(queries + self.attention(queries, x, padding, window))
        return x + self.feed_forward(x)  # type: ignore[no-any-return]


class SASRec(nn.Module):
    """SASRec with positions numbered from the end, so that the latest has the same embedding at any length.

    Args:
        items: number of items in the catalogue, coded 1 to items; 0 is padding, on the left of a history
        sizes: widths
        dropout: share of embeddings, attention weights and units dropped in training

    Attributes:
        window: number of positions that each position attends to, itself included; None for all before it
        history: number of latest positions that are read; None for all
    """

    def __init__(self, items: int, sizes: Sizes, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.window: int | None = None
        self.history: int | None = None
        tables = {
            "item": nn.Embedding(items + 1, sizes.embedding_dim, padding_idx=0),
            "position": nn.Embedding(sizes.length, sizes.embedding_dim),
        }
        self.tables = nn.ModuleDict(tables)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(sizes, dropout) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.embedding_dim, eps=_EPSILON)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            tables["item"].weight[0] = 0

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """Compute logits, (rows,), of candidates, (rows,), from one history, (1, L) codes, L at most the sizes' length.

        Of a history of several rows the first is read.
        """
        read = history[0] if self.history is None else history[0, -self.history :]
        state = self.norm(self._states(read, 1))
        # The vector is on the left: ONNX Runtime takes ten times as long for a matrix times a vector.
        return F.linear(state, self.tables["item"](item)).squeeze(0)

    def states(self, history: Tensor) -> Tensor:
        """Compute the vectors of histories, (B, L) codes -> (B, d), that `forward` multiplies candidates' with."""
        read = history if self.history is None else history[:, -self.history :]
        return self.norm(self._states(read, 1)).squeeze(1)  # type: ignore[no-any-return]

    def positions(self, history: Tensor, candidates: Tensor, shared: Tensor | None = None) -> Tensor:
        """Compute training logits, (B, L, C + S), of candidates for the item after each position of (B, L) codes.

        Each position has (B, L, C) candidates of its own; (B, S) candidates are shared by all positions of a history.

        Where only the latest positions of a history are read, the L positions are cut into pieces of that length from
        the end, and each piece reads itself: the last position reads the same as when serving, and all L get logits.
        """
        return self.scored(self.position_states(history), candidates, shared)

    def scored(self, states: Tensor, candidates: Tensor, shared: Tensor | None = None) -> Tensor:
        """Compute logits, (B, L, C + S), of states, (B, L, d), with candidates, (B, L, C), and shared ones, (B, S)."""
        items = self.tables["item"]
        logits: Tensor = (items(candidates) @ states.unsqueeze(-1)).squeeze(-1)
        return logits if shared is None else torch.cat([logits, states @ items(shared).mT], dim=-1)

    def position_states(self, history: Tensor) -> Tensor:
        """Compute the vector of each position, (B, L) codes -> (B, L, d), that `scored` multiplies candidates' with."""
        length = history.shape[1]
        piece = min(length, self.history or length)
        pieces = torch.unflatten(F.pad(history, (-length % piece, 0)), 1, (-1, piece))
        return self.norm(self._states(pieces, piece).flatten(1, 2)[:, -length:])  # type: ignore[no-any-return]

    def _states(self, history: Tensor, last: int) -> Tensor:
        """Compute the states of the last positions, (..., L) codes -> (..., last, d), before the final normalisation.

        No block computes a position on which these do not depend: the last block computes only the requested ones, and
        with a window each block before it only window - 1 more.
        """
        spans = [last]
        for _ in self.blocks:
            widened = history.shape[-1] if self.window is None else spans[0] + self.window - 1
            spans.insert(0, min(history.shape[-1], widened))
        history = history[..., -spans[0] :]
        x, padding = self._embed(history)
        for block, wanted in zip(self.blocks, spans[1:], strict=True):
            x = block(x, padding, wanted, self.window)
            padding = padding[..., -wanted:]
        return x

    def _embed(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """Embed codes, (..., L) -> (..., L, d), 0 at padding (eq. 1), and return its addend to scores, (..., 1, L)."""
        padded = history == 0
        items = self.tables["item"](history)
        from_end = torch.arange(history.shape[-1] - 1, -1, -1)
        x = items * math.sqrt(items.shape[-1]) + self.tables["position"](from_end)
        x = self.dropout(x).masked_fill(padded.unsqueeze(-1), 0.0)
        return x, torch.where(padded.unsqueeze(-2), _PADDING, 0.0)


def outputs(model: SASRec, inputs: Mapping[str, Tensor]) -> Tensor:
    """Compute logits, (M, C + S), of the M positions of a batch that have a target: candidate 0 is not padding.

    Args:
        inputs: `history` (B, L), `candidates` (B, L, C) and, where there are more, `shared` (B, S)
    """
    return of_targets(model.positions(**inputs), inputs["candidates"])


def of_targets(logits: Tensor, candidates: Tensor) -> Tensor:
    """Select the positions of (B, L, C) that have a target, candidate 0: (M, C)."""
    return logits[candidates[..., 0] != 0]


def loss(outputs: Tensor) -> Tensor:
    """Return the binary cross entropy of (M, C) lists: candidate 0 against the mean of the others (section III-E: one).

    Raises:
        ValueError: no list, or one without a negative.
    """
    if outputs.dim() != 2 or outputs.shape[0] < 1 or outputs.shape[1] < 2:
        raise ValueError(f"Lists hold the target and a negative or more, but got outputs of {tuple(outputs.shape)}.")
    return F.softplus(-outputs[:, 0]).mean() + F.softplus(outputs[:, 1:]).mean()
