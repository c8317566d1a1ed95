"""Simple references that a recommender has to beat, as models of the same inputs, treated like any other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from objectives.arrays import Array, Arrays, Numbers
from objectives.recommenders.datasets.features import Dataset, Field
from objectives.recommenders.datasets.split import Part

_PRIOR_ROWS = 10  # prior rows of each item, with the mean label
_INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0)
# Train rows that the penalty is chosen on: a penalty is what is believed of the weights, however many rows there are.
_PENALTY_ROWS = 200_000


class LinearModel(nn.Module):
    """Logistic regression: a bias plus a weight for each code of each field and a slope for each number."""

    def __init__(self, fields: Sequence[Field], weights: Arrays, bias: float) -> None:
        """Make a model of given weights: by field (vocabulary,), or (1,) for a numeric one."""
        super().__init__()
        self.fields = tuple(fields)
        self.tables = nn.ModuleDict({field.name: _table(weights[field.name]) for field in fields})
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32), requires_grad=False)

    @classmethod
    def zeros(cls, fields: Sequence[Field]) -> LinearModel:
        """Make a model whose weights are loaded later."""
        return cls(fields, {field.name: np.zeros(_size(field)) for field in fields}, 0.0)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Compute log-odds, (rows,), from fields' codes, (rows,) or 0-padded (rows, length), and numbers, (rows,)."""
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
        """Make a model of given scores, (items + 1,), by code."""
        super().__init__()
        self.table = _table(scores)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        """Return the scores, (rows,), of candidates, (rows,); the history, (1, L) codes, is not read."""
        scores: Tensor = self.table(item).squeeze(-1)
        return scores


def _size(field: Field) -> int:
    """Return the number of a field's weights."""
    return 1 if field.kind == "numeric" else field.vocabulary


def _table(weights: Array) -> nn.Embedding:
    """Make a table of one column that is not trained, from (rows,)."""
    table = nn.Embedding(len(weights), 1)
    table.weight = nn.Parameter(torch.from_numpy(np.asarray(weights, dtype=np.float32)[:, None]), requires_grad=False)
    return table


def popularity(dataset: Dataset) -> LinearModel:
    """Return the smoothed mean label of each item in train rows, of data that name items."""
    item, labels = dataset.field("item"), dataset.label[dataset.split.train]
    assert item is not None
    codes, mean = dataset.codes("item", "train"), float(labels.mean(dtype=np.float64))
    count = np.bincount(codes, minlength=item.vocabulary)
    positives = np.bincount(codes, weights=labels, minlength=item.vocabulary)
    return LinearModel([item], {"item": (positives + _PRIOR_ROWS * mean) / (count + _PRIOR_ROWS)}, 0.0)


def logistic_regression(dataset: Dataset, seed: int) -> LinearModel:
    """Fit a logistic regression on all fields, with the penalty that is best on validation.

    The penalty is chosen on some of the train rows where they are many, and the fit to all begins with that to those.
    """
    (columns, labels), validation = _columns(dataset, "train"), _columns(dataset, "validation")
    rows = np.sort(np.random.default_rng(seed).permutation(len(labels))[:_PENALTY_ROWS])
    some = columns[rows], labels[rows]
    models = [
        LogisticRegression(C=inverse_penalty, max_iter=1000, random_state=seed, warm_start=True)
        for inverse_penalty in _INVERSE_PENALTIES
    ]
    for model in models:
        model.fit(*some)
    best = max(models, key=lambda model: roc_auc_score(validation[1], model.decision_function(validation[0])))
    if len(rows) < len(labels):
        best.fit(columns, labels)
    parts = np.split(best.coef_[0], np.cumsum([_size(field) for field in dataset.fields])[:-1])
    names = [field.name for field in dataset.fields]
    return LinearModel(dataset.fields, dict(zip(names, parts, strict=True)), float(best.intercept_[0]))


def _columns(dataset: Dataset, part: Part) -> tuple[scipy.sparse.csr_array, NDArray[np.float32]]:
    """Return a matrix, (n_part, columns), a column for each code and each numeric field, and the labels, (n_part,)."""
    inputs, labels, _ = dataset.rows(part)
    blocks = [_block(field, inputs[field.name]) for field in dataset.fields]
    return scipy.sparse.csr_array(scipy.sparse.hstack(blocks, format="csr")), labels


def _block(field: Field, values: Numbers) -> scipy.sparse.csr_array:
    """Return one-hot codes, (n, vocabulary), or numbers, (n, 1)."""
    if field.kind == "numeric":
        return scipy.sparse.csr_array(values[:, None].astype(np.float64))
    codes = values.reshape(len(values), -1)
    # Code 0 is padding in a multi-valued field, else the category of unseen and rare values.
    row, place = np.nonzero(codes) if field.kind == "multi" else np.indices(codes.shape).reshape(2, -1)
    return scipy.sparse.csr_array((np.ones(len(row)), (row, codes[row, place])), shape=(len(values), field.vocabulary))
