"""Reference scores: by hand on a small table, and between chance and the best there can be on a synthetic log."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from objectives.recommenders import references
from objectives.recommenders.datasets.click_log import SEPARATOR, ClickLog
from objectives.recommenders.datasets.features import Dataset, encode
from objectives.recommenders.datasets.split import Part, Split, split_in_time
from objectives.recommenders.datasets.synthetic import synthetic_log
from objectives.recommenders.references import LinearModel, logistic_regression, popularity


def _scores(model: LinearModel, data: Dataset, part: Part) -> NDArray[np.float32]:
    inputs = {name: torch.from_numpy(values) for name, values in data.rows(part)[0].items()}
    with torch.inference_mode():
        scores: NDArray[np.float32] = model(**inputs).numpy()
    return scores


def test_popularity_is_the_smoothed_mean_label_of_the_item_in_train() -> None:
    item = [7, 7, 7, 9, 9, 7, 9, 7, 5]
    log = ClickLog("tiny", [1] * 9, item, range(9), [1, 1, 0, 0, 1, 0, 1, 1, 0])
    split = Split(np.arange(5), np.array([5, 6]), np.array([7, 8]), "over_all", "")
    data = encode(log, split)
    prior = 3 / 5
    seven, nine = (2 + 10 * prior) / 13, (1 + 10 * prior) / 12
    assert _scores(popularity(data), data, "validation") == pytest.approx([seven, nine])
    assert _scores(popularity(data), data, "test") == pytest.approx([seven, prior])


@pytest.mark.parametrize("penalty_rows", [200_000, 700])
def test_logistic_regression_sees_every_code_and_number(penalty_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does so from all rows, also where its penalty is chosen on some of them."""
    monkeypatch.setattr(references, "_PENALTY_ROWS", penalty_rows)
    random = np.random.default_rng(0)
    rows, letters = 3000, np.array(list("abcdef"))
    colour, price = random.integers(3, size=rows), random.normal(size=rows)
    has = random.random((rows, 6)) < 0.3
    tags = np.array([SEPARATOR.join(letters[row]) for row in has], dtype=object)
    logit = np.array([-1, 0, 1])[colour] + 1.5 * price + has @ np.array([2, -2, 1, -1, 0, 0])
    label = random.random(rows) < 1 / (1 + np.exp(-logit))
    columns = {"colour": colour, "price": price, "tags": tags}
    kinds = {"price": "numeric", "tags": "multi"}
    log = ClickLog("mixed", None, None, range(rows), label, columns, dict.fromkeys(columns, "item"), kinds=kinds)  # type: ignore[arg-type]
    data = encode(log, split_in_time(log))
    # The same by pandas and scikit-learn from the raw values; a column for what is unseen, never set, changes nothing.
    hot = np.column_stack([pd.get_dummies(colour), data.inputs["price"], has])
    parts = {part: getattr(data.split, part) for part in ("train", "validation", "test")}
    train, held = parts["train"], parts["validation"]
    some = train[np.sort(np.random.default_rng(0).permutation(len(train))[:penalty_rows])]

    def fitted(penalty: float, rows: NDArray[np.int64]) -> LogisticRegression:
        return LogisticRegression(C=penalty, max_iter=1000).fit(hot[rows], log.label[rows])

    def auc(penalty: float) -> float:
        return float(roc_auc_score(log.label[held], fitted(penalty, some).decision_function(hot[held])))

    expected = fitted(max((0.1, 0.3, 1.0, 3.0), key=auc), train).decision_function(hot[parts["test"]])
    np.testing.assert_allclose(_scores(logistic_regression(data, seed=0), data, "test"), expected, atol=0.01)


def test_scores_lie_between_chance_and_the_best_there_can_be() -> None:
    log = synthetic_log(20_000, 100, 100, fields=6, seed=1)
    data = encode(log, split_in_time(log))
    label = data.rows("test")[1]
    popular = roc_auc_score(label, _scores(popularity(data), data, "test"))
    regression, again = (
        roc_auc_score(label, _scores(logistic_regression(data, seed=0), data, "test")) for _ in range(2)
    )
    assert log.bayes_auc is not None
    assert 0.55 < popular < regression < log.bayes_auc + 0.01
    assert regression == again


def test_the_data_layer_loads_neither_torch_nor_sklearn() -> None:
    names = (
        "datasets.click_log",
        "datasets.columns",
        "datasets.table",
        "datasets.criteo",
        "datasets.movielens",
        "datasets.fetch",
        "datasets.synthetic",
        "datasets.split",
        "datasets.features",
        "requests",
    )
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
