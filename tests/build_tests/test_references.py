"""Simple references as models: their exported scores are those of scikit-learn and of counting."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from objectives.recommenders import references
from objectives.recommenders.datasets.features import Dataset
from objectives.recommenders.families.pointwise import PointwiseRecommender
from objectives.recommenders.families.sequential import SequentialRecommender
from objectives.recommenders.protocol import Recommender
from objectives.task import Task
from spaces.techniques.distillation import Distillation
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.build_tests.staged import Form, export

Opened = Callable[[str], Recommender]
TaskOf = Callable[[str], Task]


def scored(task: Task, name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Scores of the file that the builder exports."""
    artifact, _ = export(task, Weights(reference=name), Precision(), Form(), lambda line: None)
    assert artifact.widths == {} and artifact.parity < 1e-4
    session = onnxruntime.InferenceSession(str(Path(task.home) / artifact.path), providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == set(inputs), "a request is given as to any model"
    scores: np.ndarray = session.run(None, inputs)[0]
    return scores


def regressed(dataset: Dataset, seed: int) -> np.ndarray:
    """Log-odds of each test row by scikit-learn, of the penalty that is best on validation."""
    train, validation, test = (references._columns(dataset, part) for part in ("train", "validation", "test"))
    models = [LogisticRegression(C=c, max_iter=1000, random_state=seed).fit(*train) for c in (0.1, 0.3, 1.0, 3.0)]
    best = max(models, key=lambda model: roc_auc_score(validation[1], model.decision_function(validation[0])))
    odds: np.ndarray = best.decision_function(test[0])
    return odds


def counted(dataset: Dataset) -> np.ndarray:
    """Smoothed mean label of each test row's item in train."""
    train, test = dataset.codes("item", "train"), dataset.codes("item", "test")
    labels = dataset.label[dataset.split.train]
    own = [labels[train == code] for code in test]
    return np.array([(found.sum() + 10 * labels.mean()) / (len(found) + 10) for found in own])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["dcn-v2", "dlrm"])
def test_references_of_rows_are_the_rules_that_they_are_named_by(family: str, opened: Opened, task_of: TaskOf) -> None:
    recommender = opened(family)
    assert isinstance(recommender, PointwiseRecommender)
    inputs = dict(recommender.held_out("test").inputs[0])
    expected = {"logistic_regression": regressed(recommender.dataset, recommender.task.seed)}
    if recommender.dataset.field("item"):
        expected["popularity"] = counted(recommender.dataset)
    assert set(recommender.references) == set(expected)
    for name, scores in expected.items():
        np.testing.assert_allclose(scored(task_of(family), name, inputs), scores, atol=1e-4)


def test_popularity_ranks_by_how_often_an_item_was_taken(opened: Opened, task_of: TaskOf) -> None:
    recommender = opened("sasrec")
    assert isinstance(recommender, SequentialRecommender)
    assert recommender.references == ("popularity",)
    items = np.arange(1, recommender.sequences.items + 1)
    history = np.ones((1, recommender.history()), dtype=np.int64)
    found = scored(task_of("sasrec"), "popularity", {"history": history, "item": items})
    np.testing.assert_array_equal(found, recommender.sequences.item_counts()[1:])


def test_a_reference_learns_nothing_from_the_baseline() -> None:
    with pytest.raises(ValueError, match="a distillation"):
        Weights(reference="popularity", distillation=Distillation(2.0, 0.5, 1))
    assert Weights(reference="logistic_regression").origin == "logistic regression"
