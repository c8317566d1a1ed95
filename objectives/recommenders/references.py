"""Simple scores that a recommender has to beat: how popular an item is, and a logistic regression."""

import numpy as np
import scipy.sparse
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from objectives.recommenders.features import Dataset
from objectives.recommenders.split import Part

_PRIOR_ROWS = 10  # imagined rows of each item with the mean label
_INVERSE_PENALTIES = (0.1, 0.3, 1.0, 3.0)


def popularity_scores(dataset: Dataset, part: Part) -> NDArray[np.float64]:
    """The smoothed mean label in train rows of each row's item, (n_part,)."""
    inputs, labels, _ = dataset.rows("train")
    vocabulary = dataset.fields[1].vocabulary
    count = np.bincount(inputs["item"], minlength=vocabulary)
    positives = np.bincount(inputs["item"], weights=labels, minlength=vocabulary)
    score = (positives + _PRIOR_ROWS * labels.mean(dtype=np.float64)) / (count + _PRIOR_ROWS)
    return np.asarray(score[dataset.rows(part)[0]["item"]], dtype=np.float64)


def logistic_regression_scores(dataset: Dataset, part: Part, seed: int) -> NDArray[np.float64]:
    """The log-odds of each row, (n_part,), by all fields; with the penalty that does best on validation."""
    train, validation = _one_hot(dataset, "train"), _one_hot(dataset, "validation")
    models = [
        LogisticRegression(C=inverse_penalty, max_iter=1000, random_state=seed).fit(*train)
        for inverse_penalty in _INVERSE_PENALTIES
    ]
    best = max(models, key=lambda model: roc_auc_score(validation[1], model.decision_function(validation[0])))
    return np.asarray(best.decision_function(_one_hot(dataset, part)[0]), dtype=np.float64)


def _one_hot(dataset: Dataset, part: Part) -> tuple[scipy.sparse.csr_array, NDArray[np.float32]]:
    """A column for each code of each field, (n_part, sum of vocabularies), and the labels, (n_part,)."""
    inputs, labels, _ = dataset.rows(part)
    vocabularies = [field.vocabulary for field in dataset.fields]
    first = np.concatenate(([0], np.cumsum(vocabularies)))
    columns = np.stack([inputs[field.name] for field in dataset.fields], axis=1) + first[:-1]
    starts = np.arange(len(labels) + 1) * len(vocabularies)
    ones = np.ones(columns.size)
    return scipy.sparse.csr_array((ones, columns.ravel(), starts), shape=(len(labels), first[-1])), labels
