"""The synthetic log: its Bayes AUC is an oracle, so it is checked against two others."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from objectives.recommenders.clicklog import ClickLog
from objectives.recommenders.synthetic import expected_auc, synthetic_log


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


def test_expected_auc_is_that_of_drawn_labels() -> None:
    random = np.random.default_rng(1)
    p = random.beta(1, 2, 200_000)
    drawn = [roc_auc_score(random.random(len(p)) < p, p) for _ in range(3)]
    assert expected_auc(p) == pytest.approx(np.mean(drawn), abs=0.003)


def test_a_sure_thing_is_1_and_pure_noise_is_a_half() -> None:
    assert expected_auc(np.array([0.0, 1.0, 1.0])) == 1
    assert expected_auc(np.full(9, 0.3)) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="positive and a negative"):
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


def test_items_follow_zipf() -> None:
    counts = np.sort(np.bincount(synthetic_log(50_000, 50, 100, zipf=1.0).item, minlength=100))[::-1]
    share = 1 / np.arange(1, 101) / np.sum(1 / np.arange(1, 101))
    np.testing.assert_allclose(counts[:10] / 50_000, share[:10], rtol=0.15)


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


def test_the_seed_decides() -> None:
    assert _same(synthetic_log(500, 9, 9, seed=5), synthetic_log(500, 9, 9, seed=5))
    assert not _same(synthetic_log(500, 9, 9, seed=5), synthetic_log(500, 9, 9, seed=6))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"rows": 3}, "rows must be at least the number of users, 10, but got 3"),
        ({"items": 0}, "items must be at least 1, but got 0"),
        ({"fields": 1}, "fields must be at least 2, but got 1"),
        ({"user_turnover": 1.5}, "user_turnover must be between 0 and 1, but got 1.5"),
        ({"positive_rate": 0}, "positive_rate must be between 0 and 1, but got 0"),
        ({"zipf": -1}, "zipf and signal must be at least 0, but got -1"),
    ],
)
def test_bad_arguments_are_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        synthetic_log(**{"rows": 100, "users": 10, "items": 10, **wrong})  # type: ignore[arg-type]
