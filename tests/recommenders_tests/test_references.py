"""Reference scores: by hand on a small table, and between chance and the best there can be on a synthetic log."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from objectives.recommenders import references
from objectives.recommenders.clicklog import in_time_order
from objectives.recommenders.features import encode
from objectives.recommenders.references import logistic_regression_scores, popularity_scores
from objectives.recommenders.split import Split, split_in_time
from objectives.recommenders.synthetic import synthetic_log


def test_popularity_is_the_smoothed_mean_label_of_the_item_in_train() -> None:
    item = [7, 7, 7, 9, 9, 7, 9, 7, 5]
    log = in_time_order("tiny", [1] * 9, item, range(9), [1, 1, 0, 0, 1, 0, 1, 1, 0])
    split = Split(np.arange(5), np.array([5, 6]), np.array([7, 8]), "over_all", "")
    data = encode(log, split)
    prior = 3 / 5
    seven, nine = (2 + 10 * prior) / 13, (1 + 10 * prior) / 12
    assert popularity_scores(data, "validation") == pytest.approx([seven, nine])
    assert popularity_scores(data, "test") == pytest.approx([seven, prior])


def test_scores_lie_between_chance_and_the_best_there_can_be() -> None:
    log = synthetic_log(20_000, 100, 100, fields=6, seed=1)
    data = encode(log, split_in_time(log))
    label = data.rows("test")[1]
    popularity = roc_auc_score(label, popularity_scores(data, "test"))
    regression = roc_auc_score(label, logistic_regression_scores(data, "test", seed=0))
    assert log.bayes_auc is not None
    assert 0.55 < popularity < regression < log.bayes_auc + 0.01
    again = roc_auc_score(label, logistic_regression_scores(data, "test", seed=0))
    assert regression == again


def test_the_data_layer_loads_neither_torch_nor_sklearn() -> None:
    names = ("clicklog", "movielens", "fetch", "synthetic", "split", "features", "requests")
    program = "import sys\n" + "".join(f"import objectives.recommenders.{name}\n" for name in names)
    program += "print(sorted({'torch', 'sklearn', 'search', 'optuna', 'mlflow'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(references.__file__).parents[2],
    )
    assert done.stdout.strip() == "[]"
