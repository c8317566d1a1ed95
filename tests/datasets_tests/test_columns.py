"""Polars columns as arrays: read as Python reads them, value by value."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.recommenders.datasets.click_log import SEPARATOR
from objectives.recommenders.datasets.columns import categories, ids, labels, numbers, seconds, sets

words = st.text(st.characters(exclude_characters=SEPARATOR + "|", exclude_categories=["Cs"]), max_size=4)


@given(st.lists(st.none() | words, min_size=1, max_size=30))
def test_categories_are_the_text_and_equal_ones_one_object(values: list[str | None]) -> None:
    read = categories(pl.Series("x", values, dtype=pl.String), missing="?")
    assert read.tolist() == [value or "?" for value in values]
    assert len({id(value) for value in read}) == len(set(read.tolist()))


def test_categories_of_other_types_are_their_text() -> None:
    assert categories(pl.Series([7, None, -1])).tolist() == ["7", "", "-1"]
    assert categories(pl.Series([True, False])).tolist() == ["true", "false"]
    assert categories(pl.Series(["b", None, "a"], dtype=pl.Categorical)).tolist() == ["b", "", "a"]
    assert categories(pl.Series([date(2024, 2, 29)])).tolist() == ["2024-02-29"]
    with pytest.raises(ValueError, match=r"'x' .*List"):
        categories(pl.Series("x", [[1], [2]]))


@given(st.lists(st.none() | st.lists(words, max_size=5), min_size=1, max_size=20))
def test_sets_of_lists_and_of_text_are_the_same(values: list[list[str] | None]) -> None:
    lists = pl.Series("x", values, dtype=pl.List(pl.String))
    text = pl.Series("x", [None if value is None else "|".join(value) for value in values], dtype=pl.String)
    expected = [SEPARATOR.join(filter(None, value or [])) for value in values]
    assert sets(lists, "|").tolist() == expected
    assert sets(text, "|").tolist() == expected


def test_sets_of_other_types_and_what_is_missing() -> None:
    assert sets(pl.Series([[1, 2], None, [], [None, 3]]), "|", "none").tolist() == ["1\x1f2", "none", "none", "3"]
    assert sets(pl.Series([[1, 2], [3, 4]], dtype=pl.Array(pl.Int64, 2)), "|").tolist() == ["1\x1f2", "3\x1f4"]
    assert sets(pl.Series([12, None]), ",").tolist() == ["12", ""]
    assert sets(pl.Series(["a, b", "a,b"]), ", ").tolist() == ["a\x1fb", "a,b"]
    with pytest.raises(ValueError, match=r"'x' .*'b\\x1fc' in row 2"):
        sets(pl.Series("x", ["a", "b\x1fc"]), "|")
    with pytest.raises(ValueError, match=r"'x' .*List"):
        sets(pl.Series("x", [[[1]], [[2]]]), "|")


def test_numbers_are_as_python_reads_them_and_missing_ones_not_a_number() -> None:
    text = ["1", "-2.5", "1e3", "", None, "nan", "12345678901234567"]
    expected = [float(value or "nan") for value in text]
    np.testing.assert_array_equal(numbers(pl.Series(text)), expected)
    np.testing.assert_array_equal(numbers(pl.Series([3, None])), [3, np.nan])
    np.testing.assert_array_equal(numbers(pl.Series([Decimal("1.25"), None])), [1.25, np.nan])
    with pytest.raises(ValueError, match=r"'x' .*'1,5' in row 3"):
        numbers(pl.Series("x", ["1", "", "1,5"]))
    with pytest.raises(ValueError, match=r"'x' .*List"):
        numbers(pl.Series("x", [[1]]))


def test_labels_are_0_and_1_or_from_a_number_on() -> None:
    assert labels(pl.Series(["0", "1", "1.0"])).tolist() == [False, True, True]
    assert labels(pl.Series([True, False])).tolist() == [True, False]
    assert labels(pl.Series([3.5, 4, 5, -1]), positive_from=4).tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match=r"'y' .*2 in row 3"):
        labels(pl.Series("y", [0, 1, 2]))
    for positive_from in (None, 0.5):
        with pytest.raises(ValueError, match=r"'y' .*row 2"):
            labels(pl.Series("y", ["0", None, "1"]), positive_from)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20))
def test_whole_numbers_are_their_own_ids(values: list[int]) -> None:
    assert ids(pl.Series(values, dtype=pl.Int64)).tolist() == values
    assert ids(pl.Series([str(value) for value in values])).tolist() == values


@given(st.lists(words.filter(bool), min_size=1, max_size=20))
def test_text_is_numbered_in_its_order(values: list[str]) -> None:
    given = ["007", *values]
    assert ids(pl.Series(given)).tolist() == [sorted(set(given)).index(value) for value in given]


def test_an_id_is_never_missing_and_never_cut() -> None:
    largest = 2**64 - 1
    assert ids(pl.Series([largest, 7], dtype=pl.UInt64)).tolist() == [0, 1]
    for missing in (None, ""):
        with pytest.raises(ValueError, match=r"'u' .*row 2"):
            ids(pl.Series("u", ["ann", missing]))


MOMENT = datetime(2024, 2, 29, 13, 5, 7, 900_000, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5, -3], [5, -3]),
        ([2**62 + 1, 0], [2**62 + 1, 0]),
        ([1.9, -1.5], [1, -2]),
        ([Decimal("2.75")], [2]),
        (["1700000000", "-1.5", str(2**62 + 1)], [1_700_000_000, -2, 2**62 + 1]),
        ([date(1970, 1, 2), date(1969, 12, 31)], [86400, -86400]),
        ([datetime(1970, 1, 1, 0, 1), datetime(1969, 12, 31, 23, 59, 59, 500_000)], [60, -1]),
        ([MOMENT], [int(MOMENT.timestamp())]),
        (
            ["1970-01-02", "1970-01-01T00:01:00Z", "1970-01-01 00:00:01.9", "1970-01-01T00:00:00-01:00", "12"],
            [86400, 60, 1, 3600, 12],
        ),
        (["1969-12-31T23:59:59.5"], [-1]),
        ([MOMENT.isoformat()], [int(MOMENT.astimezone(UTC).timestamp())]),
    ],
)
def test_moments_are_seconds_rounded_down(values: list[Any], expected: list[int]) -> None:
    read = seconds(pl.Series("t", values))
    assert read.dtype == np.int64 and read.tolist() == expected


@pytest.mark.parametrize(
    ("values", "got"),
    [
        (["2024-01-01", "yesterday"], "'yesterday' in row 2"),
        (["1", "2024-13-01"], "'2024-13-01' in row 2"),
        (["1", "nan"], "'nan' in row 2"),
        ([1.0, float("inf")], "inf in row 2"),
        ([1, None], "row 2"),
        ([True, False], "Boolean"),
        ([[1], [2]], "List"),
    ],
)
def test_what_is_no_moment_is_named(values: list[Any], got: str) -> None:
    with pytest.raises(ValueError, match=f"'t' .*{got}"):
        seconds(pl.Series("t", values))
