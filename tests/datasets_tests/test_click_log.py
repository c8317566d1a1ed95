"""A log that exists is valid and in time order."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from objectives.recommenders.datasets.click_log import SEPARATOR, ClickLog

GOOD: dict[str, Any] = {
    "name": "tiny",
    "user": [2, 1, 1, 3],
    "item": [5, 9, 8, 5],
    "timestamp": [30, 10, 10, 20],
    "label": [1, 0, 1, 0],
    "columns": {"colour": np.array(["c", "b", "a", "d"])},
    "sides": {"colour": "item"},
}


def test_rows_are_sorted_by_time_then_user_then_item_with_their_columns() -> None:
    log = ClickLog(**GOOD)
    rows = list(zip(log.timestamp, log.user, log.item, log.label, log.columns["colour"], strict=True))
    assert rows == [(10, 1, 8, 1, "a"), (10, 1, 9, 0, "b"), (20, 3, 5, 0, "d"), (30, 2, 5, 1, "c")]


def test_a_log_cannot_be_written_to() -> None:
    log = ClickLog(**GOOD)
    with pytest.raises(ValueError, match="read-only"):
        log.columns["colour"][0] = "z"
    with pytest.raises(ValueError, match="read-only"):
        log.label[0] = 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": [1, 0, 1]}, r"label .*4 rows.*\(3,\)"),
        ({"label": [1, 0, 2, 0]}, "label.* got 2"),
        ({"label": [1, 0, np.nan, 0]}, "label.* got nan"),
        ({"label": [1, 1, 1, 1]}, "labels .*4 positive"),
        ({"item": [1.5, 2, 3, 4]}, "item .*float64"),
        ({"sides": {}}, "sides .*colour"),
        ({"sides": {"colour": "film"}}, "side of 'colour' .*'film'"),
        ({"columns": {"colour": np.ones(3)}}, r"'colour' .*4 rows.*\(3,\)"),
        ({"columns": {"colour": np.ones(4)}}, "'colour' .*float64"),
        ({"columns": {"user": np.arange(4)}, "sides": {"user": "user"}}, "'user'"),
        ({"kinds": {"colour": "word"}}, "kind of 'colour' .*'word'"),
        ({"kinds": {"size": "numeric"}}, r"kinds .*\['colour'\].*\['size'\]"),
        ({"kinds": {"colour": "numeric"}}, "numeric .*'colour' .*<U1"),
        ({"columns": {"colour": np.arange(4)}, "kinds": {"colour": "multi"}}, "multi .*'colour' .*int64"),
        (
            {"columns": {"colour": np.array([1, -np.inf, 2, np.nan])}, "kinds": {"colour": "numeric"}},
            "'colour' .*-inf",
        ),
        ({"timestamp": [1.5, 2, 3, 4]}, "timestamp .*float64"),
        ({"bayes_auc": 1.5}, "bayes_auc .*1.5"),
    ],
)
def test_bad_rows_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClickLog(**{**GOOD, **wrong})


def test_no_rows_are_refused() -> None:
    none = np.array([], dtype=np.int64)
    with pytest.raises(ValueError, match=r"'empty' .*0"):
        ClickLog("empty", none, none, none, none.astype(np.float32))


def test_columns_are_categorical_unless_their_kind_is_given() -> None:
    size, tags = np.array([1.5, np.nan, -2, 0]), np.array(["x", SEPARATOR.join("xy"), "", "y"], dtype=object)
    columns, sides = {**GOOD["columns"], "size": size, "tags": tags}, dict.fromkeys(("colour", "size", "tags"), "item")
    log = ClickLog(**{**GOOD, "columns": columns, "sides": sides}, kinds={"tags": "multi", "size": "numeric"})
    assert log.kinds == {"colour": "categorical", "size": "numeric", "tags": "multi"}
    assert list(log.kinds) == list(log.columns)
    np.testing.assert_array_equal(log.columns["size"], [-2, np.nan, 0, 1.5])
    assert log.columns["tags"].tolist() == ["", "x\x1fy", "y", "x"]
    assert replace(log, name="same").kinds == log.kinds


@pytest.mark.parametrize("absent", [("user",), ("item",), ("user", "item")])
def test_a_log_may_name_no_users_or_no_items(absent: tuple[str, ...]) -> None:
    log = ClickLog(**{**GOOD, **dict.fromkeys(absent)})
    for name in absent:
        assert getattr(log, name) is None
    order = {("user",): [2, 1, 3, 0], ("item",): [1, 2, 3, 0], ("user", "item"): [1, 2, 3, 0]}[absent]
    for name in {"user", "item", "timestamp", "label"} - set(absent):
        assert getattr(log, name).tolist() == [GOOD[name][row] for row in order]
    assert log.columns["colour"].tolist() == [GOOD["columns"]["colour"][row] for row in order]
