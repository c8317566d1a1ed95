"""DLRM: an MLP over dot products of embeddings (Naumov et al. 2019, arXiv 1906.00091)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

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
    """Sizes of a DLRM.

    bottom: widths of the hidden layers of the bottom MLP, whose last layer has the embedding dimension
    top: widths of the hidden layers of the top MLP, whose last layer is the logit
    """

    embedding_dim: int
    bottom: tuple[int, ...]
    top: tuple[int, ...]
    hidden = "top"

    def __post_init__(self) -> None:
        if min((self.embedding_dim, *self.bottom, *self.top)) < 1 or not self.top:
            raise ValueError(f"Sizes are positive and the top MLP has at least one hidden layer, but got {self}.")

    def build(self, fields: Sequence[Field]) -> DLRM:
        return DLRM(fields, self)

    def student(self, fields: Sequence[Field]) -> Mapping[str, Choice]:
        return {name: domain for name, domain in STUDENT.items() if name != "bottom" or numeric(fields)}

    def layout(self, fields: Sequence[Field]) -> Layout:
        count, vector = len(numeric(fields)), (DIMENSION, self.embedding_dim)
        vectors = len(embedded(fields)) + (count > 0)
        found = dict(table_layouts(fields, self.embedding_dim))
        if count:
            found |= _tower_layouts("bottom", (("", count),), self.bottom)
            read, last = (f"bottom {len(self.bottom) - 1}", self.bottom[-1]), len(self.bottom)
            found |= linear_layouts(f"bottom.{3 * last}", (read,), (vector,), f"after {last} layers")
        products = ("", vectors * (vectors - 1) // 2)
        found |= _tower_layouts("top", (vector, products) if count else (products,), self.top)
        read, last = (f"top {len(self.top) - 1}", self.top[-1]), len(self.top)
        return found | linear_layouts("head", (read,), (("", 1),), f"after {last} layers")


# The published sizes for Criteo's Kaggle data (github.com/facebookresearch/dlrm, bench/dlrm_s_criteo_kaggle.sh:
# arch-sparse-feature-size 16, arch-mlp-bot 13-512-256-64-16, arch-mlp-top 512-256-1).
BASELINE = Sizes(embedding_dim=16, bottom=(512, 256, 64), top=(512, 256))

STUDENT: Mapping[str, Choice] = {
    "embedding_dim": Choice((4, 8, 16)),
    "bottom": Choice(("16", "32", "64", "64-32", "128-64", "512-256-64")),
    "top": Choice(("16", "32", "64", "64-32", "128-64", "256-128", "512-256")),
}


class DLRM(nn.Module):
    """DLRM: logit = top([bottom(numbers); dot products of all pairs of bottom(numbers) and the fields' vectors]).

    Args:
        sizes: widths; those of the bottom count where a field is numeric
        dropout: share of the top MLP's units dropped in training; the paper has none

    Raises:
        ValueError: fewer than two vectors, so that there is no pair.
    """

    def __init__(self, fields: Sequence[Field], sizes: Sizes, dropout: float = 0.0) -> None:
        super().__init__()
        self.fields = tuple(fields)
        self.tables = make_tables(fields, sizes.embedding_dim)
        count, dimension = len(numeric(fields)), sizes.embedding_dim
        self.bottom = _tower((count, *sizes.bottom, dimension)) if count else None
        vectors = len(self.tables) + (count > 0)
        if vectors < 2:
            raise ValueError(f"Dot products need two vectors or more, but got {vectors} of {list(self.fields)}.")
        row, column = torch.tril_indices(vectors, vectors, offset=-1)
        # Positions of the lower triangle, row by row, in the flattened matrix of all products.
        self.register_buffer("pairs", row * vectors + column, persistent=False)
        width = (dimension if count else 0) + vectors * (vectors - 1) // 2
        self.top = _tower((width, *sizes.top), dropout)
        self.head = _linear(sizes.top[-1], 1)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Compute logits, (rows,), from each field's codes (rows,), codes (rows, length) or numbers (rows,)."""
        vectors = lookup(self.tables, self.fields, inputs)
        if self.bottom is None:
            return self._logit(self._dot_products(vectors))
        dense = self.bottom(torch.cat(columns(self.fields, inputs), dim=1))
        return self._logit(torch.cat([dense, self._dot_products([dense, *vectors])], dim=1))

    def _dot_products(self, vectors: Sequence[Tensor]) -> Tensor:
        """Compute the dot products of each vector, (rows, d), with each one before it, (rows, pairs).

        One product computes all pairs, of which the lower triangle is taken. The rows are the last axis meanwhile: ONNX
        Runtime then copies runs of them instead of single numbers (a third of the time at 26 fields and 200 rows).
        """
        stacked = torch.cat(tuple(vectors), dim=1).reshape(-1, len(vectors), vectors[0].shape[1])
        products = (stacked @ stacked.transpose(1, 2)).flatten(1)
        return products.t().index_select(0, self.get_buffer("pairs")).t()

    def _logit(self, features: Tensor) -> Tensor:
        return self.head(self.top(features)).squeeze(1)  # type: ignore[no-any-return]


def _tower(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths):
        layers += [_linear(fan_in, fan_out), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _tower_layouts(name: str, read: Axis, widths: Sequence[int]) -> Layout:
    """Return the layouts of the hidden layers of a tower."""
    found: dict[str, TensorLayout] = {}
    for number, width in enumerate(widths):
        units: Axis = ((f"{name} {number}", width),)
        found |= linear_layouts(f"{name}.{3 * number}", read, units)
        read = units
    return found


def _linear(fan_in: int, fan_out: int) -> nn.Linear:
    """Make a layer as create_mlp of dlrm_s_pytorch.py: weights with variance 2 / (in + out), bias 1 / out."""
    layer = nn.Linear(fan_in, fan_out)
    nn.init.xavier_normal_(layer.weight)
    nn.init.normal_(layer.bias, std=fan_out**-0.5)
    return layer
