"""Random recommenders: embeddings, shared tables, concatenations, residuals, gates, attention, normalisations."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LENGTH = 6
# Enough for a table to take another form.
ITEMS = 300
# How a forward counts its heads: their size is fixed, their number is, or both are.
Heads = Literal["of a size", "of a number", "of both"]
HEADS: tuple[Heads, ...] = get_args(Heads)


class Residual(nn.Module):
    """A block x + f(x), f with a hidden layer of its own."""

    def __init__(self, width: int, hidden: int, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(width, hidden), nn.Linear(hidden, width), act

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.act(self.inner(x)))


class AcceptAll(nn.Module):
    """A block x times a gate between 0 and 1 for each unit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(x))


class GatedUnit(nn.Module):
    """One half of a layer gates the other (Dauphin et al. 2017)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.both = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.both(x).chunk(2, dim=-1)
        return value * torch.sigmoid(gate)


class Squeeze(nn.Module):
    """Units weighted by a bottleneck that reads them all (Huang et al. 2019, SENet of FiBiNET)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.relu(self.up(torch.relu(self.down(x))))


class Cross(nn.Module):
    """The cross network x0 * (W x + b) + x."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x0: Tensor) -> Tensor:
        x = x0
        for layer in self.layers:
            x = x0 * layer(x) + x
        return x


class Attention(nn.Module):
    """Scaled dot products of several heads, or torch's own fused form."""

    def __init__(self, d: int, heads: int, fused: bool, form: Heads = "of a size") -> None:
        super().__init__()
        self.heads, self.fused, self.form = heads, fused, form
        self.q, self.k, self.v, self.out = (nn.Linear(d, d) for _ in range(4))
        self.head_dim = d // heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(layer(x)).transpose(-3, -2) for layer in (self.q, self.k, self.v))
        if self.fused:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = torch.softmax(q @ k.transpose(-1, -2) / self.head_dim**0.5, -1) @ v
        return x + self.out(mixed.transpose(-3, -2).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        rows, length, d = x.shape
        if self.form == "of a size":
            return x.unflatten(-1, (-1, self.head_dim))
        return x.reshape(rows, length, self.heads, d // self.heads if self.form == "of a number" else self.head_dim)


class Interest(nn.Module):
    """A history weighted by how each entry fits the item (DIN, Zhou et al. 2018)."""

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(3 * d, hidden), nn.PReLU(), nn.Linear(hidden, 1))

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        beside = item.unsqueeze(1).expand_as(history)
        weights = torch.softmax(self.score(torch.cat([history, beside, history * beside], -1)), 1)
        return (weights * history).sum(1)


class RandomModel(nn.Module):
    """A model drawn by the seed that reads user, item, history (rows, LENGTH) and two numbers."""

    def __init__(self, seed: int, heads: Heads) -> None:
        super().__init__()
        random = Random(seed)
        torch.manual_seed(seed)
        d = random.choice([8, 12, 16])
        self.item = nn.Embedding(ITEMS, d)
        self.user = nn.Embedding(40, d)
        self.history = self.item if random.random() < 0.5 else nn.Embedding(ITEMS, d)
        self.pool = random.choice(["mean", "attention", "multihead", "interest", "last"])
        if self.pool in ("attention", "multihead"):
            self.attend: nn.Module = (
                Attention(d, random.choice([1, 2, 4]), random.random() < 0.5, heads)
                if self.pool == "attention"
                else nn.MultiheadAttention(d, 2, batch_first=True)
            )
        if self.pool == "interest":
            self.attend = Interest(d, random.choice([8, 16]))
        self.normed = nn.LayerNorm(d) if random.random() < 0.3 else nn.Identity()
        self.join = random.choice(["concat", "dots", "factorised", "sum"])
        width = {"concat": 3 * d + 2, "dots": 3 + 2 + d, "factorised": d + 2, "sum": d + 2}[self.join]
        trunk: list[nn.Module] = []
        for _ in range(random.randint(1, 4)):
            layer, width = self._layer(random, width)
            trunk.append(layer)
        self.trunk = nn.Sequential(*trunk)
        self.shortcut = random.random() < 0.3
        self.head = nn.Linear(width + (2 if self.shortcut else 0), 1)

    def _layer(self, random: Random, width: int) -> tuple[nn.Module, int]:
        act: Any = random.choice([torch.relu, F.gelu, F.silu, torch.tanh])
        out = random.choice([16, 24, 32])
        kind = random.choice(["plain", "norm", "batch", "residual", "gate", "glu", "squeeze", "cross"])
        if kind == "plain":
            return nn.Sequential(nn.Linear(width, out), nn.ReLU(), nn.Dropout(0.1)), out
        if kind == "norm":
            return nn.Sequential(nn.Linear(width, out), nn.LayerNorm(out), nn.SiLU()), out
        if kind == "batch":
            return nn.Sequential(nn.Linear(width, out, bias=False), nn.BatchNorm1d(out), nn.LeakyReLU()), out
        if kind == "residual":
            return Residual(width, out, act), width
        if kind == "gate":
            return AcceptAll(width), width
        if kind == "glu":
            return GatedUnit(width, out), out
        if kind == "squeeze":
            return Squeeze(width, 8), width
        return Cross(width, random.randint(1, 2)), width

    def forward(self, user: Tensor, item: Tensor, history: Tensor, numbers: Tensor) -> Tensor:
        u, i, read = self.user(user), self.item(item), self.history(history)
        if self.pool == "mean":
            past = read.mean(1)
        elif self.pool == "attention":
            past = self.attend(read).mean(1)
        elif self.pool == "multihead":
            past = self.attend(read, read, read, need_weights=False)[0].mean(1)
        elif self.pool == "interest":
            past = self.attend(read, i)
        else:
            past = read[:, -1]
        past = self.normed(past)
        if self.join == "concat":
            x = torch.cat([u, i, past, numbers], 1)
        elif self.join == "dots":
            vectors = torch.stack([u, i, past], 1)
            products = vectors @ vectors.transpose(1, 2)
            row, column = torch.tril_indices(3, 3, offset=-1)
            x = torch.cat([past, products[:, row, column], numbers], 1)
        elif self.join == "factorised":
            summed = u + i + past
            x = torch.cat([0.5 * (summed.square() - u.square() - i.square() - past.square()), numbers], 1)
        else:
            x = torch.cat([u + i * past, numbers], 1)
        x = self.trunk(x)
        if self.shortcut:
            x = torch.cat([x, numbers], 1)
        return self.head(x).squeeze(1)


def random_model(seed: int, heads: Heads | None = None) -> RandomModel:
    """Return a model whose normalisations have other statistics than fresh ones.

    Args:
        heads: how an attention counts them; None for each way in turn, by the seed
    """
    model = RandomModel(seed, heads or HEADS[seed % len(HEADS)])
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(generator=generator)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2, generator=generator)  # type: ignore[union-attr]
    return model.eval()


def rows(count: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def codes(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, (count, *shape), generator=generator)

    return {
        "user": codes(40),
        "item": codes(ITEMS),
        "history": codes(ITEMS, LENGTH),
        "numbers": torch.randn(count, 2, generator=generator),
    }
