"""Held-out rows and requests come back as they were written, whatever their lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.arrays import are_rows_equal, groups_of_equal_rows
from objectives.held_out_rows import HeldOut, read_held_out, read_requests, runs, write_held_out, write_requests


def test_requests_of_several_lengths_come_back(tmp_path: Path) -> None:
    """An input that is given once, one of each row, and one whose length differs between requests."""
    random = np.random.default_rng(0)
    sent = [
        {
            "user": random.integers(9, size=1),
            "item": random.integers(9, size=rows),
            "history": random.integers(9, size=(rows, length)),
            "price": random.random((rows, 2)).astype(np.float32),
        }
        for rows, length in ((3, 2), (1, 5), (4, 1), (2, 0))
    ]
    write_requests(sent, tmp_path)
    found = read_requests(tmp_path)
    assert len(found) == len(sent)
    for one, other in zip(found, sent, strict=True):
        assert list(one) == list(other)
        for name in one:
            assert one[name].dtype == other[name].dtype and np.array_equal(one[name], other[name])


def test_blocks_slices_and_other_labels_come_back(tmp_path: Path) -> None:
    blocks = ({"item": np.arange(3), "history": np.ones((3, 2))}, {"item": np.arange(2), "history": np.ones((2, 4))})
    held = HeldOut(blocks, np.arange(5), np.arange(5), {"odd.ones": np.arange(5) % 2 == 1}, others={"like": np.ones(5)})
    write_held_out(held, tmp_path, "test")
    found = read_held_out(tmp_path, "test")
    assert [{n: v.tolist() for n, v in block.items()} for block in found.inputs] == [
        {n: v.tolist() for n, v in block.items()} for block in blocks
    ]
    assert found.labels.tolist() == found.groups.tolist() == list(range(5)) and found.seen is found.items is None
    assert found.slices["odd.ones"].tolist() == [False, True, False, True, False]
    assert found.others["like"].tolist() == [1.0] * 5
    assert found.parts == ("odd.ones", "output like")


def test_a_ranking_has_a_catalogue_and_what_was_seen_of_it() -> None:
    with pytest.raises(ValueError, match="catalogue"):
        HeldOut(({},), np.arange(2), np.arange(2), items=np.arange(3))


def test_rows_run_together_are_so_many() -> None:
    inputs = {"user": np.array([2, 1, 2]), "item": np.arange(3)}
    assert [part.tolist() for part in runs(inputs, (), most=2)] == [[0, 1], [2]]
    assert sorted(part.tolist() for part in runs(inputs, {"user"})) == [[0, 2], [1]]


ROWS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from([0.0, 0.5, float("nan")])), min_size=1, max_size=12)


@given(ROWS, st.integers(1, 3), st.sampled_from([1, 500]))
def test_rows_are_grouped_by_what_is_equal_in_them(rows: list[tuple[int, float]], columns: int, times: int) -> None:
    """A dictionary is the oracle; NaN is equal to itself; arrays have few bytes and many."""
    codes = np.repeat(np.array([code for code, _ in rows])[:, None], columns * times, axis=1)
    numbers = np.array([number for _, number in rows], dtype=np.float32)
    expected: dict[tuple[int, str], list[int]] = {}
    for number, (code, value) in enumerate(rows):
        expected.setdefault((code, str(value)), []).append(number)
    found = [group.tolist() for group in groups_of_equal_rows([codes, numbers])]
    assert sorted(found) == sorted(expected.values())
    assert are_rows_equal(codes) == (len({code for code, _ in rows}) == 1)
    assert are_rows_equal(numbers) == (len({str(value) for _, value in rows}) == 1)


def test_rows_of_no_values_are_equal() -> None:
    empty = np.empty((3, 0), np.int64)
    assert are_rows_equal(empty) and [group.tolist() for group in groups_of_equal_rows([empty])] == [[0, 1, 2]]
