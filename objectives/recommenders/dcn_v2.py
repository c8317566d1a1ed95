"""DCN-V2: cross layers beside an MLP over concatenated embeddings (Wang et al., WWW 2021)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from objectives.recommenders.embedding import columns, lookup, make_tables, numeric
from objectives.recommenders.features import Field
from objectives.recommenders.groups import group_of, names_of, tower_widths
from spaces.anatomy import Anatomy, Cut, Width
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

    x_0 holds the vectors of the fields with codes, in the order of the fields, and then the numbers.

    Args:
        sizes: widths.
        dropout: share of MLP units dropped in training.
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
        """Of each field codes (rows,), codes (rows, length) or numbers (rows,) -> logits (rows,)."""
        x0 = torch.cat([*lookup(self.tables, self.fields, inputs), *columns(self.fields, inputs)], dim=1)
        x = x0
        for layer in self.cross:
            x = x0 * layer(x) + x
        return self.head(torch.cat([x, self.mlp(x0)], dim=1)).squeeze(1)  # type: ignore[no-any-return]


def hidden(model: DCNV2) -> str:
    """The module whose outputs, (rows, units), are the features to distil."""
    return "mlp"


def anatomy(model: DCNV2) -> Anatomy:
    """Its groups: all tables, the cross network, the MLP; the head's single unit is in none.

    Of a model as it was built or pruned: every layer a Linear, every table an Embedding.
    """
    tables = tuple(f"tables.{name}" for name in model.tables)
    cross, mlp = names_of(model, "cross", nn.Linear), names_of(model, "mlp", nn.Linear)
    norms = names_of(model, "mlp", nn.BatchNorm1d)
    behind_x = Cut("head.weight", 1, first=model.get_parameter("mlp.0.weight").shape[1])
    tied = "its width is tied to the embeddings by the elementwise product with x_0, and narrows with the tables"
    groups = [
        group_of(model, "tables", "table", tables, [_embedding_width(model, tables, cross)]),
        *([group_of(model, "cross", "linear", cross, reason=tied)] if cross else []),
        group_of(model, "mlp", "linear", mlp, tower_widths(model, mlp, behind_x, norms)),
    ]
    return Anatomy(tuple(groups))


def _embedding_width(model: DCNV2, tables: Sequence[str], cross: Sequence[str]) -> Width:
    """A dimension that is 0 in x_0 stays 0 in every x_l: it leaves each of them, once for each table."""
    dimension = model.get_parameter(f"{tables[0]}.weight").shape[1]

    def in_x(tensor: str, axis: int) -> Cut:
        return Cut(tensor, axis, repeats=len(tables), period=dimension if len(tables) > 1 else 0)

    cuts = [Cut(f"{table}.weight", 1) for table in tables]
    for layer in cross:
        cuts += [in_x(f"{layer}.weight", 0), in_x(f"{layer}.weight", 1), in_x(f"{layer}.bias", 0)]
    cuts += [in_x("mlp.0.weight", 1), in_x("head.weight", 1)]
    return Width("embedding_dim", dimension, tuple(cuts))
