"""Recommenders that read a history step by step, as GRU4Rec (Tan et al. 2016) and NARM (Li et al. 2017) do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

ITEMS, INPUTS, HIDDEN, LENGTH = 50, 8, 12, 6


def last_of(values: Tensor, length: Tensor) -> Tensor:
    """The state at each history's end, as RecBole's gather_indexes."""
    index = (length - 1).view(-1, 1, 1).expand(-1, -1, values.shape[-1])
    return values.gather(dim=1, index=index).squeeze(1)


class Recurrent(nn.Module):
    """Histories are padded behind their end by 0; the state at the end meets the item's embedding."""

    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, **options: Any) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, INPUTS, padding_idx=0)
        self.encoder = kind(INPUTS, HIDDEN, batch_first=True, **options)
        self.out = nn.Linear(HIDDEN * (2 if self.encoder.bidirectional else 1), INPUTS)

    def forward(self, item: Tensor, history: Tensor, length: Tensor) -> Tensor:
        states, _ = self.encoder(self.item(history))
        return (self.out(last_of(states, length)) * self.item(item)).sum(1)


class LastState(Recurrent):
    """A model that reads what the layer gives beside its outputs."""

    def forward(self, item: Tensor, history: Tensor, length: Tensor) -> Tensor:
        _, state = self.encoder(self.item(history))
        last = state[0][-1] if isinstance(state, tuple) else state[-1]
        return (self.out(last) * self.item(item)).sum(1)


class Attentive(nn.Module):
    """NARM, as RecBole writes it: the mask is spread over as many positions as the encoder has units."""

    def __init__(self) -> None:
        super().__init__()
        self.item = nn.Embedding(ITEMS, INPUTS, padding_idx=0)
        self.encoder = nn.GRU(INPUTS, HIDDEN, bias=False, batch_first=True)
        self.a_1, self.a_2 = (nn.Linear(HIDDEN, HIDDEN, bias=False) for _ in range(2))
        self.v_t = nn.Linear(HIDDEN, 1, bias=False)
        self.b = nn.Linear(2 * HIDDEN, INPUTS, bias=False)

    def forward(self, item: Tensor, history: Tensor, length: Tensor) -> Tensor:
        states, _ = self.encoder(self.item(history))
        last = last_of(states, length)
        mask = history.gt(0).unsqueeze(2).expand_as(states)
        first = self.a_1(states)
        second = self.a_2(last).unsqueeze(1).expand_as(first)
        alpha = self.v_t(mask * torch.sigmoid(first + second))
        local = torch.sum(alpha.expand_as(states) * states, 1)
        return (self.b(torch.cat([local, last], 1)) * self.item(item)).sum(1)


class Begun(Recurrent):
    """A model whose first state has a size of its own."""

    def forward(self, item: Tensor, history: Tensor, length: Tensor) -> Tensor:
        begun = torch.full((1, len(history), HIDDEN), 0.5)
        states, _ = self.encoder(self.item(history), begun)
        return (self.out(last_of(states, length)) * self.item(item)).sum(1)


def rows(count: int, seed: int = 0, steps: int = LENGTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    length = torch.randint(1, steps + 1, (count,), generator=generator)
    history = torch.randint(1, ITEMS, (count, steps), generator=generator)
    return {
        "item": torch.randint(1, ITEMS, (count,), generator=generator),
        "history": history * (torch.arange(steps) < length[:, None]),
        "length": length,
    }


def seeded(model: type[nn.Module], *arguments: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return model(*arguments, **options).eval()
