"""Simple references as models of the same inputs: exported, evaluated, benchmarked and served like any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from objectives.arrays import Array, Arrays
from objectives.recommenders.datasets.features import Field


class LinearModel(nn.Module):
    """Logistic regression: a bias plus a weight for each code of each field and a slope for each number."""

    def __init__(self, fields: Sequence[Field], weights: Arrays, bias: float) -> None:
        """Make a model of given weights.

        Args:
            weights: by field (vocabulary,), or (1,) for a numeric one; a field without weights is ignored
        """
        super().__init__()
        self.fields = tuple(field for field in fields if field.name in weights)
        self.tables = nn.ModuleDict()
        for field in self.fields:
            self.tables[field.name] = _table(weights[field.name])
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32), requires_grad=False)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Compute log-odds, (rows,), from each field's codes (rows,), codes (rows, length) padded with 0, or numbers
        (rows,).
        """
        terms = [self._term(field, inputs[field.name]) for field in self.fields]
        return torch.stack(terms).sum(0) + self.bias

    def _term(self, field: Field, values: Tensor) -> Tensor:
        table = self.tables[field.name]
        if field.kind == "numeric":
            return values * table.weight[0, 0]  # type: ignore[index]
        weights: Tensor = table(values).squeeze(-1)
        return torch.where(values != 0, weights, 0.0).sum(-1) if field.kind == "multi" else weights


class ItemTable(nn.Module):
    """Model with a score for each item, independent of the history."""

    def __init__(self, scores: Array) -> None:
        """Make a model of given scores.

        Args:
            scores: (items + 1,), by code
        """
        super().__init__()
        self.table = _table(scores)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """Return the scores, (rows,), of candidates, (rows,); the history, (1, L) codes, is not read."""
        scores: Tensor = self.table(item).squeeze(-1)
        return scores


def _table(weights: Array) -> nn.Embedding:
    """Make a table of one column that is not trained, from (rows,)."""
    table = nn.Embedding(len(weights), 1)
    table.weight = nn.Parameter(torch.from_numpy(np.asarray(weights, dtype=np.float32)[:, None]), requires_grad=False)
    return table
