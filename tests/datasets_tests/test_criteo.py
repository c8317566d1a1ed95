"""Criteo's rows, written as the challenge has them, read to what they say."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from objectives.recommenders.datasets.criteo import CATEGORICAL, NUMERIC, read_criteo
from objectives.recommenders.datasets.features import encode
from objectives.recommenders.datasets.split import split_in_time
from objectives.recommenders.requests import draw_requests

RANDOM = np.random.default_rng(0)
ROWS = 60


def _row(label: int) -> list[str]:
    counts = [str(count) if count >= -1 else "" for count in RANDOM.integers(-3, 500, 13)]
    hashes = [f"{RANDOM.integers(2**32):08x}" if RANDOM.random() < 0.5 else "05db9164" for _ in range(26)]
    hashes = ["" if RANDOM.random() < 0.1 else value for value in hashes]
    return [str(label), *counts, *hashes]


TABLE = [_row(label) for label in RANDOM.permutation(np.arange(ROWS) % 2).tolist()]


def _text(rows: list[list[str]]) -> str:
    return "".join("\t".join(row) + "\n" for row in rows)


@pytest.mark.parametrize("name", ["train.txt", "day_0.gz"])
def test_rows_read_in_their_order(name: str, tmp_path: Path) -> None:
    content = _text(TABLE).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    log = read_criteo(tmp_path / name)
    assert log.name == name.partition(".")[0]
    assert log.user is None and log.item is None
    assert log.timestamp.tolist() == list(range(ROWS))
    assert log.label.tolist() == [float(row[0]) for row in TABLE]
    assert list(log.columns) == [*NUMERIC, *CATEGORICAL] and len(log.columns) == 39
    assert set(log.sides.values()) == {"item"}
    for place, column in enumerate(NUMERIC, start=1):
        assert log.kinds[column] == "numeric"
        np.testing.assert_array_equal(log.columns[column], [float(row[place] or "nan") for row in TABLE])
    for place, column in enumerate(CATEGORICAL, start=14):
        assert log.kinds[column] == "categorical"
        assert log.columns[column].tolist() == [int(row[place], 16) if row[place] else -1 for row in TABLE]


def test_rows_are_split_in_their_order_and_make_requests(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text(_text(TABLE))
    log = read_criteo(tmp_path / "train.txt")
    split = split_in_time(log)
    assert (split.train.max(), split.validation.max(), split.test.max()) == (47, 53, 59)
    data = encode(log, split)
    assert {field.kind for field in data.fields} == {"numeric", "categorical"} and len(data.fields) == 39
    # A missing category is one like any other: with about one row in ten it is known.
    missing = np.array([row[14] == "" for row in TABLE])
    assert np.all(data.inputs["C1"][missing] > 0) and len(set(data.inputs["C1"][missing].tolist())) == 1
    drawn = draw_requests(data, np.array([4, 9]), seed=0)
    test = {tuple(data.inputs[field.name][row].item() for field in data.fields) for row in split.test}
    for request in drawn:
        assert {tuple(values) for values in zip(*(request[f.name].tolist() for f in data.fields), strict=True)} <= test


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, "3", "'label' .*'3' in row 2"),
        (0, "", "'label' .*row 2"),
        (5, "many", "'I5' .*'many' in row 2"),
        (20, "xyz", "'C7' .*'xyz' in row 2"),
    ],
)
def test_a_value_that_is_not_criteos_is_named(place: int, value: str, message: str, tmp_path: Path) -> None:
    rows = [list(row) for row in TABLE]
    rows[1][place] = value
    (tmp_path / "train.txt").write_text(_text(rows))
    with pytest.raises(ValueError, match=message) as caught:
        read_criteo(tmp_path / "train.txt")
    assert str(tmp_path / "train.txt") in str(caught.value)


def test_a_file_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    for content in (_text([row[1:] for row in TABLE]), _text([[*row, "x"] for row in TABLE]), "", "label,I1\n0,1\n"):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"test\.txt .*40 columns") as caught:
            read_criteo(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"none\.txt"):
        read_criteo(tmp_path / "none.txt")
