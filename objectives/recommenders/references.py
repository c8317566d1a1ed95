"""Simple references that a recommender has to beat: the popularity of items, and a logistic regression."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from objectives.arrays import Numbers
from objectives.recommenders.datasets.features import Dataset, Field
from objectives.recommenders.datasets.split import Part

_PRIOR_ROWS = 10  # prior rows of each item, with the mean label
_INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False)
class Linear:
    """Linear model: a bias, and by field a weight for each code, (vocabulary,), or for the number, (1,)."""

    weights: Mapping[str, NDArray[np.float64]]
    bias: float


def popularity(dataset: Dataset) -> Linear:
    """Return the smoothed mean label of each item in train rows; of all rows where the data name no items."""
    labels, item = dataset.label[dataset.split.train], dataset.field("item")
    mean = float(labels.mean(dtype=np.float64))
    if item is None:
        return Linear({}, mean)
    codes = dataset.codes("item", "train")
    count = np.bincount(codes, minlength=item.vocabulary)
    positives = np.bincount(codes, weights=labels, minlength=item.vocabulary)
    return Linear({"item": (positives + _PRIOR_ROWS * mean) / (count + _PRIOR_ROWS)}, 0.0)


def popularity_scores(dataset: Dataset, part: Part) -> NDArray[np.float64]:
    """Return the scores of `popularity` for each row of a part, (n_part,)."""
    found = popularity(dataset)
    scores = np.full(len(getattr(dataset.split, part)), found.bias)
    for name, weights in found.weights.items():
        scores += weights[dataset.codes(name, part)]
    return scores


def logistic_regression(dataset: Dataset, seed: int) -> Linear:
    """Fit a logistic regression on all fields, with the penalty that is best on validation."""
    best = _regression(dataset, seed)
    sizes = [1 if field.kind == "numeric" else field.vocabulary for field in dataset.fields]
    parts = np.split(best.coef_[0], np.cumsum(sizes)[:-1])
    names = [field.name for field in dataset.fields]
    return Linear(dict(zip(names, parts, strict=True)), float(best.intercept_[0]))


def logistic_regression_scores(dataset: Dataset, part: Part, seed: int) -> NDArray[np.float64]:
    """Return the log-odds of `logistic_regression` for each row of a part, (n_part,)."""
    return np.asarray(_regression(dataset, seed).decision_function(_columns(dataset, part)[0]), dtype=np.float64)


def _regression(dataset: Dataset, seed: int) -> LogisticRegression:
    train, validation = _columns(dataset, "train"), _columns(dataset, "validation")
    models = [
        LogisticRegression(C=inverse_penalty, max_iter=1000, random_state=seed).fit(*train)
        for inverse_penalty in _INVERSE_PENALTIES
    ]
    return max(models, key=lambda model: roc_auc_score(validation[1], model.decision_function(validation[0])))


def _columns(dataset: Dataset, part: Part) -> tuple[scipy.sparse.csr_array, NDArray[np.float32]]:
    """Return a matrix with a column for each code of each field and for each numeric one, (n_part, columns), and the
    labels, (n_part,).
    """
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
