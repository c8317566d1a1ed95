"""The synthetic log: its Bayes AUC is an oracle, so it is checked against two others."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.synthetic import expected_auc, hidden_order, synthetic_log
from tests.datasets_tests.transitions import popularity, probabilities

ROOT = Path(__file__).resolve().parents[2]


def _same(one: ClickLog, other: ClickLog) -> bool:
    def values(log: ClickLog) -> list[object]:
        arrays: list[NDArray[Any]] = [log.user, log.item, log.timestamp, log.label, *log.columns.values()]
        return [array.tolist() for array in arrays]

    return values(one) == values(other)


@pytest.mark.parametrize("decimals", [1, 16])
def test_expected_auc_is_the_sum_over_all_pairs(decimals: int) -> None:
    p = np.round(np.random.default_rng(0).random(80), decimals)  # one decimal: many ties
    pairs = right = 0.0
    for i in range(len(p)):
        for j in range(len(p)):
            if i != j:
                weight = p[i] * (1 - p[j])
                pairs += weight
                right += weight * ((p[i] > p[j]) + 0.5 * (p[i] == p[j]))
    assert expected_auc(p) == pytest.approx(right / pairs, abs=1e-12)


def test_expected_auc_is_the_same_on_any_number_of_cores() -> None:
    """The value is part of the data's key, so that it is equal to the last digit; BLAS splits a long sum by threads."""
    code = (
        "import numpy as np; from objectives.recommenders.datasets.synthetic import expected_auc; "
        "print(repr(expected_auc(np.random.default_rng(0).random(300_000))))"
    )
    told = [
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True,
            env={**os.environ, "OPENBLAS_NUM_THREADS": threads},
        ).stdout
        for threads in ("1", "2")
    ]  # fmt: skip
    assert told[0] == told[1]


def test_expected_auc_is_that_of_drawn_labels() -> None:
    random = np.random.default_rng(1)
    p = random.beta(1, 2, 200_000)
    drawn = [roc_auc_score(random.random(len(p)) < p, p) for _ in range(3)]
    assert expected_auc(p) == pytest.approx(np.mean(drawn), abs=0.003)


def test_a_sure_thing_is_1_and_pure_noise_is_a_half() -> None:
    assert expected_auc(np.array([0.0, 1.0, 1.0])) == 1
    assert expected_auc(np.full(9, 0.3)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"probabilities .*1\."):
        expected_auc(np.ones(3))
    assert synthetic_log(2000, 20, 20, signal=0).bayes_auc == pytest.approx(0.5)


def test_the_log_is_as_asked() -> None:
    log = synthetic_log(30_000, 300, 200, fields=9, seed=3, positive_rate=0.3)
    assert len(log.label) == 30_000 and len(log.columns) == 7
    assert set(log.user.tolist()) == set(range(300)) and log.item.max() < 200
    assert {log.sides[name] for name in log.columns} == {"user", "item", "context"}
    assert log.label.mean() == pytest.approx(0.3, abs=0.02)
    assert np.all(np.diff(log.timestamp) >= 1)
    np.testing.assert_array_equal(log.columns["hour"], log.timestamp // 3600 % 24)
    for name, column in log.columns.items():
        if log.sides[name] != "context":  # a feature of the user, or of the item: one value each
            owner = log.user if log.sides[name] == "user" else log.item
            assert len(set(zip(owner.tolist(), column.tolist(), strict=True))) == len(np.unique(owner))
    assert list(synthetic_log(100, 5, 5, fields=2).columns) == []


def test_without_an_order_the_log_is_what_it_always_was() -> None:
    options = {"user_turnover": 0.3, "zipf": 0.8, "positive_rate": 0.3, "signal": 1.2}
    log = synthetic_log(4000, 100, 80, fields=9, seed=11, order=0.0, **options)
    digest = hashlib.sha256()
    for array in (log.user, log.item, log.timestamp, log.label, *log.columns.values()):
        digest.update(np.ascontiguousarray(array).data)
    assert digest.hexdigest() == "696981077b984b45f8a4f17a7131536d78cea76240e28a5c86cb42b87ee2ad77"
    assert log.bayes_auc == pytest.approx(0.8259223138331626)


@pytest.mark.parametrize("order", [0.0, 0.6, 1.0])
def test_items_follow_zipf(order: float) -> None:
    log = synthetic_log(50_000, 5000, 100, zipf=1.0, order=order)
    counts = np.sort(np.bincount(log.item, minlength=100))[::-1]
    share = 1 / np.arange(1, 101) / np.sum(1 / np.arange(1, 101))
    np.testing.assert_allclose(counts[:10] / 50_000, share[:10], rtol=0.15)


def _hit_rate(scores: NDArray[np.float64], target: NDArray[np.int64]) -> float:
    """The share of targets, (n,), among the ten best of their scores, (n, items)."""
    best = np.argsort(-scores, axis=1)[:, :10]
    return float(np.mean(best == target[:, None], dtype=np.float64) * 10)


def _bigrams_and_popularity(order: float) -> tuple[float, float]:
    """HR@10 of each user's last item, by what follows the one before it in the rest of the log, and by popularity."""
    items = 500
    log = synthetic_log(60_000, 5000, items, fields=2, seed=3, zipf=0.7, order=order)
    by_user = np.argsort(log.user, kind="stable")
    user, item = log.user[by_user], log.item[by_user]
    last = np.flatnonzero(np.diff(user, append=-1))
    before = np.setdiff1d(np.flatnonzero(user[:-1] == user[1:]), last - 1)
    popularity = np.bincount(np.delete(item, last), minlength=items).astype(np.float64)
    follows = np.zeros((items, items))
    np.add.at(follows, (item[before], item[before + 1]), 1)
    follows += 5 * popularity / popularity.sum()  # where little followed, popularity decides
    return _hit_rate(follows[item[last - 1]], item[last]), _hit_rate(np.tile(popularity, (len(last), 1)), item[last])


def test_what_came_before_tells_what_comes_next_as_far_as_there_is_an_order() -> None:
    bigrams, popularity = _bigrams_and_popularity(order=0.9)
    assert bigrams > 1.3 * popularity
    bigrams, popularity = _bigrams_and_popularity(order=0.0)
    assert bigrams < 1.02 * popularity


def test_the_best_there_can_be_is_that_of_the_hidden_order() -> None:
    users, items, zipf, seed = 2000, 500, 0.7, 3
    log = synthetic_log(30_000, users, items, fields=2, seed=seed, zipf=zipf, order=0.9)
    hidden = hidden_order(items, zipf, seed)
    hits, expected = [], []
    for user in range(users):
        *history, target = log.item[log.user == user].tolist()
        likely = probabilities(hidden, np.array(history), 0.9)
        best = np.argsort(-likely)[:10]
        hits.append(target in best)
        expected.append(likely[best].sum())
    deviation = np.sqrt(np.sum(np.multiply(expected, np.subtract(1, expected)))) / users
    assert abs(np.mean(hits) - np.mean(expected)) < 3 * deviation
    assert np.mean(expected) > 2 * np.sort(popularity(hidden))[-10:].sum()


def test_users_stay_or_come_and_go() -> None:
    for turnover, least, most in ((0.0, 0.75, 1.0), (1.0, 0.0, 0.03)):
        log = synthetic_log(5000, 100, 50, user_turnover=turnover)
        period = log.timestamp[-1] - log.timestamp[0]
        spans = [np.ptp(log.timestamp[log.user == user]) / period for user in range(100)]
        assert min(spans) >= least and max(spans) <= most
        assert np.bincount(log.user).min() >= 10


def test_columns_carry_signal() -> None:
    log = synthetic_log(30_000, 3000, 3000, seed=2)
    for name in ("user_0", "item_0"):
        column = log.columns[name]
        rates = [log.label[column == value].mean() for value in np.unique(column)]
        assert max(rates) - min(rates) > 0.1


@pytest.mark.parametrize("order", [0.0, 0.5])
def test_the_seed_decides(order: float) -> None:
    one, again, other = (synthetic_log(500, 9, 9, seed=seed, order=order) for seed in (5, 5, 6))
    assert _same(one, again) and not _same(one, other)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 3}, "rows .*10.*3"),
        ({"items": 0}, "items .*0"),
        ({"fields": 1}, "fields .*1"),
        ({"user_turnover": 1.5}, "user_turnover .*1.5"),
        ({"order": -0.1}, "order .*-0.1"),
        ({"positive_rate": 0}, "positive_rate .*0"),
        ({"zipf": -1}, "zipf .*-1"),
    ],
)
def test_bad_arguments_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_log(**{"rows": 100, "users": 10, "items": 10, **wrong})  # type: ignore[arg-type]
