"""DCN-V2: cross layers in parallel with an MLP over concatenated embeddings (Wang et al., WWW 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families.embedding import (
    DIMENSION,
    columns,
    embedded,
    linear_layouts,
    lookup,
    make_tables,
    numeric,
    table_layouts,
)
from objectives.recommenders.families.sizes import FieldSizes
from objectives.tensor_layout import Axis, Layout, TensorLayout
from spaces.domains import Choice


@dataclass(frozen=True)
class Sizes(FieldSizes):
    """Embedding dimension, number of cross layers, widths of the MLP."""

    embedding_dim: int
    crosses: int
    mlp: tuple[int, ...]
    hidden = "mlp"

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or self.crosses < 0 or not self.mlp or min(self.mlp) < 1:
            raise ValueError(f"Sizes are positive and the MLP has at least one layer, but got {self}.")

    def build(self, fields: Sequence[Field]) -> DCNV2:
        return DCNV2(fields, self)

    def student(self, fields: Sequence[Field]) -> Mapping[str, Choice]:
        return STUDENT

    def layout(self, fields: Sequence[Field]) -> Layout:
        x0: Axis = (*((DIMENSION, self.embedding_dim),) * len(embedded(fields)), ("", len(numeric(fields))))
        found = dict(table_layouts(fields, self.embedding_dim))
        for number in range(self.crosses):
            found |= linear_layouts(f"cross.{number}", x0, x0)
        read = x0
        for number, width in enumerate(self.mlp):
            units: Axis = ((f"mlp {number}", width),)
            found |= linear_layouts(f"mlp.{4 * number}", read, units)
            norm = f"mlp.{4 * number + 1}"
            found |= {f"{norm}.{n}": TensorLayout((units,)) for n in ("weight", "bias", "running_mean", "running_var")}
            read = units
        return found | linear_layouts("head", (*x0, *read), (("", 1),), f"after {len(self.mlp)} layers")


# The tuned DCNv2 of the BARS benchmark on MovieLens (Zhu et al., SIGIR 2022; github.com/reczoo/BARS,
# ranking/ctr/DCNv2/DCNv2_movielenslatest_x1: embedding_dim 10, num_cross_layers 5, parallel_dnn_hidden_units
# [400, 400, 400], batch_norm, net_dropout 0.2, Adam at 1e-3, batches of 4096).
BASELINE = Sizes(embedding_dim=10, crosses=5, mlp=(400, 400, 400))
DROPOUT = 0.2

STUDENT: Mapping[str, Choice] = {
    "embedding_dim": Choice((4, 8, 10, 16)),
    "crosses": Choice((1, 2, 3, 5)),
    "mlp": Choice(("16", "32", "64", "64-32", "128-64", "256-128", "400-400-400")),
}


class DCNV2(nn.Module):
    """DCN-V2 in its parallel form: logit = w [x_L ; MLP(x_0)] with x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (eq. 1).

    x_0 holds the vectors of the fields with codes, in the order of the fields, and then the numbers.

    Args:
        sizes: embedding dimension, cross layers and MLP widths
        dropout: share of MLP units dropped in training
    """

    def __init__(self, fields: Sequence[Field], sizes: Sizes, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.tables = make_tables(fields, sizes.embedding_dim)
        width = len(self.tables) * sizes.embedding_dim + len(numeric(fields))
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(sizes.crosses))
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip((width, *sizes.mlp), sizes.mlp, strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers)
        self.head = nn.Linear(width + sizes.mlp[-1], 1)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Compute logits, (rows,), from each field's codes (rows,), codes (rows, length) or numbers (rows,)."""
        x0 = torch.cat([*lookup(self.tables, self.fields, inputs), *columns(self.fields, inputs)], dim=1)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.head(torch.cat([x, self.mlp(x0)], dim=1)).squeeze(1)  # type: ignore[no-any-return]
