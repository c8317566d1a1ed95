"""An oracle of models without some of their dimensions: norms over the others alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class NormOfSome(nn.Module):
    """A layer norm over these positions alone; the others are 0."""

    def __init__(self, norm: nn.LayerNorm, kept: Sequence[int]) -> None:
        super().__init__()
        self.norm, self.kept = norm, list(kept)

    def forward(self, x: Tensor) -> Tensor:
        some = x[..., self.kept]
        centred = some - some.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + self.norm.eps).sqrt()
        out = torch.zeros_like(x)
        out[..., self.kept] = scaled * self.norm.weight[self.kept] + self.norm.bias[self.kept]
        return out
