"""Simple scores that a recommender has to beat: how popular an item is, and a logistic regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from objectives.recommenders.features import Dataset, Field
from objectives.recommenders.split import Part

_PRIOR_ROWS = 10  # imagined rows of each item with the mean label
_INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0)


def popularity_scores(dataset: Dataset, part: Part) -> NDArray[np.float64]:
    """The smoothed mean label in train rows of each row's item, (n_part,); of all rows where the data name no items."""
    inputs, labels, _ = dataset.rows("train")
    mean, held_out = labels.mean(dtype=np.float64), dataset.rows(part)[0]
    item = dataset.field("item")
    if item is None:
        return np.full(len(getattr(dataset.split, part)), mean)
    count = np.bincount(inputs["item"], minlength=item.vocabulary)
    positives = np.bincount(inputs["item"], weights=labels, minlength=item.vocabulary)
    score = (positives + _PRIOR_ROWS * mean) / (count + _PRIOR_ROWS)
    return np.asarray(score[held_out["item"]], dtype=np.float64)


def logistic_regression_scores(dataset: Dataset, part: Part, seed: int) -> NDArray[np.float64]:
    """The log-odds of each row, (n_part,), by all fields; with the penalty that does best on validation."""
    train, validation = _columns(dataset, "train"), _columns(dataset, "validation")
    models = [
        LogisticRegression(C=inverse_penalty, max_iter=1000, random_state=seed).fit(*train)
        for inverse_penalty in _INVERSE_PENALTIES
    ]
    best = max(models, key=lambda model: roc_auc_score(validation[1], model.decision_function(validation[0])))
    return np.asarray(best.decision_function(_columns(dataset, part)[0]), dtype=np.float64)


def _columns(dataset: Dataset, part: Part) -> tuple[scipy.sparse.csr_array, NDArray[np.float32]]:
    """A column for each code of each field and for each numeric one, (n_part, columns), and the labels, (n_part,)."""
    inputs, labels, _ = dataset.rows(part)
    blocks = [_block(field, inputs[field.name]) for field in dataset.fields]
    return scipy.sparse.csr_array(scipy.sparse.hstack(blocks, format="csr")), labels


def _block(field: Field, values: NDArray[Any]) -> scipy.sparse.csr_array:
    """(n, vocabulary), 1 where the row has the code, or (n, 1) numbers."""
    if field.kind == "numeric":
        return scipy.sparse.csr_array(values[:, None].astype(np.float64))
    codes = values.reshape(len(values), -1)
    # A code of 0 is padding where there are several, else the category of all that is unseen or too rare.
    row, place = np.nonzero(codes) if field.kind == "multi" else np.indices(codes.shape).reshape(2, -1)
    return scipy.sparse.csr_array((np.ones(len(row)), (row, codes[row, place])), shape=(len(values), field.vocabulary))
