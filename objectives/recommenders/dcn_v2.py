"""DCN-V2: cross layers beside an MLP over concatenated embeddings (Wang et al., WWW 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spaces.anatomy import Anatomy, Group
from spaces.architecture import Architecture
from spaces.domains import Choice, Domain


@dataclass(frozen=True)
class Sizes:
    """Embedding dimension, number of cross layers, widths of the MLP."""

    embedding_dim: int
    crosses: int
    mlp: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.embedding_dim < 1 or self.crosses < 0 or not self.mlp or min(self.mlp) < 1:
            raise ValueError(f"Sizes are positive and the MLP has at least one layer, but got {self}.")

    @classmethod
    def of(cls, architecture: Architecture) -> Sizes:
        sizes = architecture.as_dict()
        mlp = tuple(int(width) for width in str(sizes["mlp"]).split("-"))
        return cls(int(sizes["embedding_dim"]), int(sizes["crosses"]), mlp)


# The tuned DCNv2 of the BARS benchmark on MovieLens (Zhu et al., SIGIR 2022; github.com/reczoo/BARS,
# ranking/ctr/DCNv2/DCNv2_movielenslatest_x1: embedding_dim 10, num_cross_layers 5, parallel_dnn_hidden_units
# [400, 400, 400], batch_norm, net_dropout 0.2, Adam at 1e-3, batches of 4096).
BASELINE = Sizes(embedding_dim=10, crosses=5, mlp=(400, 400, 400))
DROPOUT = 0.2

# A student's sizes; the baseline's own are among them.
STUDENT: Mapping[str, Domain] = {
    "embedding_dim": Choice((4, 8, 10, 16)),
    "crosses": Choice((1, 2, 3, 5)),
    "mlp": Choice(("16", "32", "64", "64-32", "128-64", "256-128", "400-400-400")),
}


class DCNV2(nn.Module):
    """The parallel form: logit = w [x_L ; MLP(x_0)] with x_{l+1} = x_0 * (W_l x_l + b_l) + x_l (eq. 1).

    Args:
        fields: rows of the embedding table of each input, in the order of concatenation.
        sizes: widths.
        dropout: share of MLP units dropped in training.
    """

    def __init__(self, fields: Mapping[str, int], sizes: Sizes, dropout: float = DROPOUT) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.tables = nn.ModuleDict({name: nn.Embedding(rows, sizes.embedding_dim) for name, rows in fields.items()})
        for table in self.tables.values():
            nn.init.normal_(table.weight, std=1e-2)  # type: ignore[arg-type]
        width = len(self.fields) * sizes.embedding_dim
        self.cross = nn.ModuleList(nn.Linear(width, width) for _ in range(sizes.crosses))
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip((width, *sizes.mlp), sizes.mlp, strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.BatchNorm1d(fan_out), nn.ReLU(), nn.Dropout(dropout)]
        self.mlp = nn.Sequential(*layers)
        self.head = nn.Linear(width + sizes.mlp[-1], 1)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Codes of shape (rows,) for each field -> logits of shape (rows,)."""
        x0 = torch.cat([self.tables[name](inputs[name]) for name in self.fields], dim=1)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.head(torch.cat([x, self.mlp(x0)], dim=1)).squeeze(1)  # type: ignore[no-any-return]


def anatomy(model: DCNV2) -> Anatomy:
    """Its groups: all tables, the cross network, the MLP; the head's single unit is left alone."""

    def parameters(modules: Sequence[str]) -> int:
        return sum(p.numel() for name in modules for p in model.get_submodule(name).parameters())

    tables = tuple(f"tables.{name}" for name in model.fields)
    cross = tuple(f"cross.{i}" for i in range(len(model.cross)))
    mlp = tuple(f"mlp.{i}" for i, layer in enumerate(model.mlp) if isinstance(layer, nn.Linear))
    tied = "its width is tied to the embeddings by the elementwise product with x_0"
    groups = [
        Group("tables", "table", tables, parameters(tables), False, "its width is tied to the cross network's"),
        *([Group("cross", "linear", cross, parameters(cross), False, tied)] if cross else []),
        Group("mlp", "linear", mlp, parameters(mlp), True),
    ]
    return Anatomy(tuple(groups))
