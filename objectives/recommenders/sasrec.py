"""SASRec: self-attention over a history, and the product with an item's embedding (Kang and McAuley, ICDM 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.anatomy import Anatomy, Cut, Group, Kind, Width
from spaces.architecture import Architecture
from spaces.domains import Choice, Domain

DROPOUT = 0.2
# Added to the score of a key that is padding: none of it is left after the softmax, and where every key is padding
# all are alike, so that the scores stay finite. Half precision holds it.
_PADDING = -1e4
_EPSILON = 1e-8


@dataclass(frozen=True)
class Sizes:
    """Embedding dimension, blocks, heads in each, width of their feed-forward, positions of a history."""

    d: int
    blocks: int
    heads: int
    feed_forward: int
    length: int

    def __post_init__(self) -> None:
        if min(self.d, self.blocks, self.heads, self.feed_forward, self.length) < 1 or self.d % self.heads:
            raise ValueError(f"Sizes are positive and the heads divide the dimension, but got {self}.")

    @property
    def head_dim(self) -> int:
        return self.d // self.heads

    @classmethod
    def of(cls, architecture: Architecture, length: int = 50) -> Sizes:
        """A student's sizes; the length of a history is not its choice but the requests'."""
        sizes = {name: int(value) for name, value in architecture.as_dict().items()}
        return cls(sizes["embedding_dim"], sizes["blocks"], sizes["heads"], sizes["feed_forward"], length)


# Section 4.3 of the paper, and the authors' main.py; a length of 200 and a dropout of 0.2 for ML-1M, 0.5 for the
# sparse sets.
BASELINE = Sizes(d=50, blocks=2, heads=1, feed_forward=50, length=50)

# A student's sizes; the baseline's own are among them.
STUDENT: Mapping[str, Domain] = {
    "embedding_dim": Choice((8, 16, 32, 50)),
    "blocks": Choice((1, 2)),
    "heads": Choice((1, 2)),
    "feed_forward": Choice((16, 32, 50)),
}


class Attention(nn.Module):
    """Causal multi-head attention whose queries are the last positions of those that it reads (eqs. 2 to 4).

    Heads may be cut away: their number is that of the projections' units over `head_dim`.
    """

    def __init__(self, d: int, heads: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q, self.k, self.v = (nn.Linear(d, heads * head_dim) for _ in range(3))
        self.out = nn.Linear(heads * head_dim, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, read: Tensor, padding: Tensor, window: int | None) -> Tensor:
        """(..., Q, d), (..., S, d), (..., 1, S) -> (..., Q, d).

        Args:
            queries: of the last Q positions
            padding: what is added to the scores of each key
            window: positions that each query sees, itself included, or None for all before it
        """
        q, k, v = self.q(queries), self.k(read), self.v(read)
        heads = q.shape[-1] // self.head_dim
        if heads > 1:
            q, k, v = (torch.unflatten(values, -1, (heads, -1)).transpose(-3, -2) for values in (q, k, v))
            padding = padding.unsqueeze(-3)
        if window is None or q.shape[-2] <= window:
            mixed = self._mix_at_once(q, k, v, padding, window)
        else:
            mixed = self._mix_in_blocks(q, k, v, padding, window)
        return self.out(mixed.transpose(-3, -2).flatten(-2) if heads > 1 else mixed)  # type: ignore[no-any-return]

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """(..., Q, head_dim), twice (..., S, head_dim), (..., Q or 1, S) -> (..., Q, head_dim)."""
        scores = q @ k.transpose(-1, -2) / math.sqrt(self.head_dim)
        return self.dropout(torch.softmax(scores + mask, -1)) @ v  # type: ignore[no-any-return]

    def _mix_at_once(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor, window: int | None) -> Tensor:
        asked, seen = q.shape[-2], k.shape[-2]
        if asked == 1 and (window is None or seen <= window):
            return self._mix(q, k, v, padding)  # the last position sees all
        return self._mix(q, k, v, padding + _hidden(torch.arange(seen - asked, seen), torch.arange(seen), window))

    def _mix_in_blocks(self, q: Tensor, k: Tensor, v: Tensor, padding: Tensor, window: int) -> Tensor:
        """Blocks of `window` queries, each with the keys that one of them sees: the cost grows with the number of
        queries times the window. The first block may begin before the first query."""
        asked, seen = q.shape[-2], k.shape[-2]
        blocks = -(-asked // window)
        first = seen - blocks * window + window * torch.arange(blocks).unsqueeze(1)
        of_query, of_key = first + torch.arange(window), first + torch.arange(1 - window, window)
        mask = _take(padding.squeeze(-2), of_key, -1).unsqueeze(-2) + _hidden(of_query, of_key, window)
        of_query = of_query - (seen - asked)
        mixed = self._mix(_take(q, of_query, -2), _take(k, of_key, -2), _take(v, of_key, -2), mask)
        return mixed.flatten(-3, -2)[..., -asked:, :]


def _hidden(asked: Tensor, seen: Tensor, window: int | None) -> Tensor:
    """(..., Q), (..., S) numbers of positions -> (..., Q, S): 0 where a query sees a key, else minus infinity.

    Each sees itself at least; none sees one before 0.
    """
    behind = asked.unsqueeze(-1) - seen.unsqueeze(-2)
    sees = (behind >= 0) & (seen >= 0).unsqueeze(-2)
    if window is not None:
        sees &= behind < window
    return torch.zeros(behind.shape).masked_fill(~(sees | (behind == 0)), -math.inf)


def _take(values: Tensor, at: Tensor, axis: int) -> Tensor:
    """The axis becomes two, those of `at`; below 0 stands for 0."""
    return torch.unflatten(values.index_select(axis, at.clamp(min=0).flatten()), axis, at.shape)


class FeedForward(nn.Module):
    """Two linear layers for each position alone (eq. 5)."""

    def __init__(self, d: int, width: int, dropout: float) -> None:
        super().__init__()
        self.inner = nn.Linear(d, width)
        self.outer = nn.Linear(width, d)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(self.dropout(torch.relu(self.inner(x)))))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each normalised before and added to what it read.

    Queries and what is added are normalised, keys and values are not: so it is in the authors' code, whose numbers
    are the published ones (github.com/kang205/SASRec, model.py). The layer after the heads is that of Vaswani et al.
    2017, section 3.2.2; with it the heads are free of the dimension.
    """

    def __init__(self, sizes: Sizes, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(sizes.d, eps=_EPSILON)
        self.attention = Attention(sizes.d, sizes.heads, sizes.head_dim, dropout)
        self.feed_forward_norm = nn.LayerNorm(sizes.d, eps=_EPSILON)
        self.feed_forward = FeedForward(sizes.d, sizes.feed_forward, dropout)

    def forward(self, x: Tensor, padding: Tensor, wanted: int, window: int | None) -> Tensor:
        """(..., S, d), (..., 1, S) -> (..., wanted, d), of the last positions."""
        queries = self.attention_norm(x[..., -wanted:, :])
        x = self.feed_forward_norm(queries + self.attention(queries, x, padding, window))
        return x + self.feed_forward(x)  # type: ignore[no-any-return]


class SASRec(nn.Module):
    """A position is numbered by its distance from the end, so the latest item's embedding is 0's for any length.

    Args:
        items: of the catalogue, coded 1 to items; 0 is padding, on the left of a history
        sizes: widths
        dropout: share of embeddings, attention weights and units dropped in training

    Attributes:
        window: positions that each position attends to, itself included; None for all before it
        history: the latest so many positions that are read; None for all
    """

    def __init__(self, items: int, sizes: Sizes, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.window: int | None = None
        self.history: int | None = None
        tables = {
            "item": nn.Embedding(items + 1, sizes.d, padding_idx=0),
            "position": nn.Embedding(sizes.length, sizes.d),
        }
        self.tables = nn.ModuleDict(tables)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(sizes, dropout) for _ in range(sizes.blocks))
        self.norm = nn.LayerNorm(sizes.d, eps=_EPSILON)
        self._initialise(tables["item"])

    @torch.no_grad()
    def _initialise(self, items: nn.Embedding) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                nn.init.xavier_uniform_(parameter)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        items.weight[0] = 0

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """(1, L) codes of one history, (rows,) of candidates -> (rows,) logits; L is at most the sizes' length.

        Of a history of several rows the first is read.
        """
        read = history[0] if self.history is None else history[0, -self.history :]
        state = self.norm(self._states(read, 1))
        # The vector on the left: ONNX Runtime takes ten times as long for a matrix times a vector.
        return F.linear(state, self.tables["item"](item)).squeeze(0)

    def positions(self, history: Tensor, candidates: Tensor) -> Tensor:
        """(B, L) codes, (B, L, C) candidates for the item after each -> (B, L, C) logits, for training.

        Where only the latest positions of a history are read, the L are cut into pieces of so many from the end, and
        each reads its own: the last position sees what it sees when serving, and all L are answered.
        """
        length = history.shape[1]
        piece = min(length, self.history or length)
        pieces = torch.unflatten(F.pad(history, (-length % piece, 0)), 1, (-1, piece))
        states = self.norm(self._states(pieces, piece).flatten(1, 2)[:, -length:])
        return (self.tables["item"](candidates) @ states.unsqueeze(-1)).squeeze(-1)  # type: ignore[no-any-return]

    def _states(self, history: Tensor, last: int) -> Tensor:
        """(..., L) codes -> (..., last, d): what is known after each of the last positions, not yet normalised.

        No block computes a position on which these do not depend: the last block only the asked ones, and with a
        window each block before it only window - 1 more.
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
        """(..., L) codes -> (..., L, d), zeros where padded (eq. 1); (..., 1, L), what padding adds to any score."""
        padded = history == 0
        items = self.tables["item"](history)
        from_end = torch.arange(history.shape[-1] - 1, -1, -1)
        x = items * math.sqrt(items.shape[-1]) + self.tables["position"](from_end)
        x = self.dropout(x).masked_fill(padded.unsqueeze(-1), 0.0)
        return x, torch.where(padded.unsqueeze(-2), _PADDING, 0.0)


class TrainingForm(nn.Module):
    """The model with `positions` as its forward, for what traces or hooks a forward."""

    def __init__(self, model: SASRec) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor, candidates: Tensor) -> Tensor:
        return self.model.positions(history, candidates)


def targeted(logits: Tensor, candidates: Tensor) -> Tensor:
    """(B, L, C), (B, L, C) -> (M, C): the lists whose target, candidate 0, is an item."""
    return logits[candidates[..., 0] != 0]


def outputs(model: SASRec, inputs: Mapping[str, Tensor]) -> Tensor:
    """(M, C) logits of the M positions of a batch, `history` (B, L) and `candidates` (B, L, C), that have a target."""
    return targeted(model.positions(inputs["history"], inputs["candidates"]), inputs["candidates"])


def loss(outputs: Tensor) -> Tensor:
    """Binary cross entropy of (M, C) lists, candidate 0 against the mean of the others (eq. 7, with one other).

    Raises:
        ValueError: no list, or one without a negative.
    """
    if outputs.dim() != 2 or outputs.shape[0] < 1 or outputs.shape[1] < 2:
        raise ValueError(f"Lists hold the target and a negative or more, but got outputs of {tuple(outputs.shape)}.")
    return F.softplus(-outputs[:, 0]).mean() + F.softplus(outputs[:, 1:]).mean()


def hidden(model: SASRec) -> str:
    """The module whose output a student's features are compared with: (..., d), the final normalisation."""
    return "norm"


def anatomy(model: SASRec) -> Anatomy:
    """Its groups: the tables, whose dimension every layer reads or gives; the attention of all blocks; their MLPs."""
    blocks = {name: module for name, module in model.named_modules() if isinstance(module, Block)}
    tables = [f"tables.{name}" for name in model.tables]
    attention = [f"{block}.attention.{part}" for block in blocks for part in ("q", "k", "v", "out")]
    mlp = [f"{block}.feed_forward.{part}" for block in blocks for part in ("inner", "outer")]
    parameters = {name: parameter.numel() for name, parameter in model.named_parameters()}

    def group(name: str, kind: Kind, modules: Sequence[str], widths: Sequence[Width], reason: str | None) -> Group:
        total = sum(
            size for parameter, size in parameters.items() if parameter.startswith(tuple(f"{m}." for m in modules))
        )
        return Group(name, kind, tuple(modules), total, tuple(widths), reason)

    heads = [width for name, block in blocks.items() if (width := _heads(name, block.attention)).units > 1]
    units = [_units(name, block.feed_forward) for name, block in blocks.items()]
    return Anatomy(
        (
            group("tables", "table", tables, [_dimension(model, tables, blocks)], None),
            group("attention", "attention", attention, heads, None if heads else "each block has one head"),
            group("mlp", "linear", mlp, units, None),
        )
    )


def _dimension(model: SASRec, tables: Iterable[str], blocks: Iterable[str]) -> Width:
    """Of embeddings and states: what reads them along axis 1 of its weight, what gives them along axis 0."""
    norms = ["norm", *(f"{b}.{n}" for b in blocks for n in ("attention_norm", "feed_forward_norm"))]
    readers = [f"{b}.{n}" for b in blocks for n in ("attention.q", "attention.k", "attention.v", "feed_forward.inner")]
    givers = [f"{b}.{n}" for b in blocks for n in ("attention.out", "feed_forward.outer")]
    cuts = [Cut(f"{name}.weight", 1) for name in (*tables, *readers)]
    cuts += [Cut(f"{name}.{of}", 0) for name in (*norms, *givers) for of in ("weight", "bias")]
    return Width("d", model.norm.weight.shape[0], tuple(cuts), normalised=True)


def _heads(block: str, attention: Attention) -> Width:
    name, size = f"{block}.attention", attention.head_dim
    cuts = [Cut(f"{name}.{part}.{of}", 0, size=size) for part in "qkv" for of in ("weight", "bias")]
    units = attention.q.weight.shape[0] // size
    return Width(f"{name}.heads", units, (*cuts, Cut(f"{name}.out.weight", 1, size=size)))


def _units(block: str, mlp: FeedForward) -> Width:
    name = f"{block}.feed_forward"
    cuts = (Cut(f"{name}.inner.weight", 0), Cut(f"{name}.inner.bias", 0), Cut(f"{name}.outer.weight", 1))
    return Width(f"{name}.units", mlp.inner.weight.shape[0], cuts)
