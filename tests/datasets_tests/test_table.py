"""Tables written by pandas, polars and pyarrow read to the rows they were made of; what is wrong is named."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from objectives.recommenders.datasets.click_log import SEPARATOR, ClickLog
from objectives.recommenders.datasets.features import encode
from objectives.recommenders.datasets.split import split_in_time
from objectives.recommenders.datasets.table import Schema, read_table
from objectives.recommenders.requests import draw_requests

SCHEMA = Schema(
    label="clicked",
    timestamp="at",
    user="who",
    item="what",
    categorical=("town", "shelf"),
    numeric=("age", "price"),
    multi=("tags",),
    of_user=("town", "age"),
    of_item=("price", "tags"),
)
ROWS = 200
RANDOM = np.random.default_rng(0)
START = datetime(2024, 1, 1, tzinfo=UTC)
TABLE = pl.DataFrame(
    {
        "unused": np.arange(ROWS),
        "tags": [RANDOM.choice(list("abcde"), RANDOM.integers(4)).tolist() for _ in range(ROWS)],
        "clicked": RANDOM.integers(2, size=ROWS),
        "at": [START + timedelta(seconds=int(second)) for second in RANDOM.permutation(ROWS)],
        "who": RANDOM.choice(["ann", 'bob, the "one"', "çelik", "d\ne"], ROWS).tolist(),
        "what": RANDOM.integers(1000, 1030, ROWS),
        "town": RANDOM.choice(["Graz", "Łódź", None], ROWS).tolist(),
        "shelf": RANDOM.integers(5, size=ROWS),
        "age": [None if age < 20 else age for age in RANDOM.integers(10, 90, ROWS).tolist()],
        "price": RANDOM.lognormal(2, 1, ROWS),
    }
)


def _flat(table: pl.DataFrame) -> pl.DataFrame:
    """The frame as CSV can hold it."""
    return table.with_columns(pl.col("tags").list.join("|"), pl.col("at").dt.strftime("%Y-%m-%dT%H:%M:%SZ"))


def _polars_csv(table: pl.DataFrame, folder: Path) -> Path:
    _flat(table).write_csv(folder / "shop.csv")
    return folder / "shop.csv"


def _pandas_csv(table: pl.DataFrame, folder: Path) -> Path:
    _flat(table).to_pandas().to_csv(folder / "shop.csv", index=False)
    return folder / "shop.csv"


def _tsv(table: pl.DataFrame, folder: Path) -> Path:
    _flat(table).write_csv(folder / "shop.tsv", separator="\t")
    return folder / "shop.tsv"


def _gzip(table: pl.DataFrame, folder: Path) -> Path:
    (folder / "shop.csv.gz").write_bytes(gzip.compress(_flat(table).write_csv().encode()))
    return folder / "shop.csv.gz"


def _zstd(table: pl.DataFrame, folder: Path) -> Path:
    path = folder / "shop.csv.zst"
    with pa.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(_flat(table).write_csv().encode())
    return path


def _polars_parquet(table: pl.DataFrame, folder: Path) -> Path:
    table.write_parquet(folder / "shop.parquet")
    return folder / "shop.parquet"


def _pandas_parquet(table: pl.DataFrame, folder: Path) -> Path:
    table.to_pandas().astype({"town": "category"}).to_parquet(folder / "shop.parquet")
    return folder / "shop.parquet"


WRITERS = [_polars_csv, _pandas_csv, _tsv, _gzip, _zstd, _polars_parquet, _pandas_parquet]
Write = Callable[[pl.DataFrame, Path], Path]


@pytest.mark.parametrize("write", WRITERS)
def test_each_format_reads_to_the_rows_that_were_written(write: Write, tmp_path: Path) -> None:
    log = read_table(write(TABLE, tmp_path), SCHEMA)
    who = sorted(set(TABLE["who"]))
    rows = sorted(TABLE.to_dicts(), key=lambda row: row["at"])
    assert log.name == "shop"
    assert log.user is not None and log.user.tolist() == [who.index(row["who"]) for row in rows]
    assert log.item is not None and log.item.tolist() == [row["what"] for row in rows]
    assert log.timestamp.tolist() == [int(row["at"].timestamp()) for row in rows]
    assert log.label.tolist() == [row["clicked"] for row in rows]
    assert log.columns["town"].tolist() == [row["town"] or "" for row in rows]
    assert log.columns["shelf"].tolist() == [str(row["shelf"]) for row in rows]
    np.testing.assert_array_equal(log.columns["age"], [np.nan if row["age"] is None else row["age"] for row in rows])
    np.testing.assert_allclose(log.columns["price"], [row["price"] for row in rows], rtol=1e-15)
    assert log.columns["tags"].tolist() == [SEPARATOR.join(row["tags"]) for row in rows]
    assert log.kinds == {
        "town": "categorical",
        "shelf": "categorical",
        "age": "numeric",
        "price": "numeric",
        "tags": "multi",
    }
    assert log.sides == {"town": "user", "shelf": "context", "age": "user", "price": "item", "tags": "item"}


def _csv(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text)
    return folder / name


def _labels(log: ClickLog) -> list[float]:
    labels: list[float] = log.label.tolist()
    return labels


def test_user_and_item_may_be_left_out_and_the_rest_still_makes_requests(tmp_path: Path) -> None:
    schema = replace(SCHEMA, user=None, item=None)
    log = read_table(_polars_csv(TABLE, tmp_path), schema)
    assert log.user is None and log.item is None
    data = encode(log, split_in_time(log))
    assert [field.name for field in data.fields] == ["town", "shelf", "age", "price", "tags"]
    drawn = draw_requests(data, np.array([5, 2]), seed=0)
    assert drawn[0]["tags"].shape == (5, 3) and len(set(drawn[0]["town"].tolist())) == 1


def test_the_label_may_be_a_rating_and_the_separator_any_text(tmp_path: Path) -> None:
    path = _csv(tmp_path, "stars,t,tags\n3.5,3,a; b\n4,2,\n5,1,b\n")
    log = read_table(path, Schema("stars", "t", multi=("tags",), separator="; ", positive_from=4))
    assert _labels(log) == [1, 1, 0]
    assert log.columns["tags"].tolist() == ["b", "", f"a{SEPARATOR}b"]


def test_several_values_may_be_text_in_parquet_too(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pd.DataFrame({"y": [True, False], "t": [1.5, 2.5], "tags": ["a|b", None]}).to_parquet(path)
    log = read_table(path, Schema("y", "t", multi=("tags",)))
    assert _labels(log) == [1, 0] and log.timestamp.tolist() == [1, 2]
    assert log.columns["tags"].tolist() == [f"a{SEPARATOR}b", ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("y,t\n1,1\n0,2\n", "y, t, .*'c'"),
        ("y,t,c\n", "1 row.*0"),
        ("", "empty"),
        ("y,t,c\n1,1,a\n2,2,b\n", "'y' .*'2' in row 2"),
        ("y,t,c\n1,1,a\nyes,2,b\n", "'y' .*'yes' in row 2"),
        ("y,t,c\n1,1,a\n,2,b\n", "'y' .*row 2"),
        ("y,t,c\n1,1,a\n1,2,b\n", "labels .*2 positive .*0 negative"),
        ("y,t,c\n1,1,a\n0,soon,b\n", "'t' .*'soon' in row 2"),
        ("y,t,c\n1,1,a\n0,2,b,c\n", "more fields"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_it(text: str, message: str, tmp_path: Path) -> None:
    path = _csv(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path, Schema("y", "t", categorical=("c",)))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (Schema("y", "t", user="c"), "'c' .*row 2"),
        (Schema("y", "t", numeric=("c",)), "'c' .*'a' in row 1"),
        (Schema("y", "t", numeric=("d",)), "'d' .*inf"),
    ],
)
def test_what_is_wrong_in_a_column_is_named(schema: Schema, message: str, tmp_path: Path) -> None:
    path = _csv(tmp_path, "y,t,c,d\n1,1,a,inf\n0,2,,1\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path, schema)
    assert str(path) in str(caught.value)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    schema = Schema("y", "t", categorical=("c",))
    with pytest.raises(ValueError, match=r"none\.csv"):
        read_table(tmp_path / "none.csv", schema)
    with pytest.raises(ValueError, match=r"\.csv, \.tsv, .*, \.parquet, .*'t\.xlsx'"):
        read_table(_csv(tmp_path, "", "t.xlsx"), schema)
    for name in ("t.parquet", "t.csv.gz"):
        with pytest.raises(ValueError, match=name) as caught:
            read_table(_csv(tmp_path, "no such thing", name), schema)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"label": "at"}, "'at'"),
        ({"numeric": ("age", "price", "town")}, "'town'"),
        ({"numeric": ("age", "price", "who")}, "'who'"),
        ({"of_user": ("city",)}, "of_user .*'city'"),
        ({"of_user": ("town", "price")}, "of_user .*'price'"),
        ({"of_user": ("who",)}, "of_user .*'who'"),
        ({"separator": ""}, "separator"),
        ({"user": None, "categorical": ("user", "town", "shelf")}, "'user'"),
    ],
)
def test_a_schema_that_cannot_be_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SCHEMA, **wrong)


def test_a_schema_names_an_input() -> None:
    with pytest.raises(ValueError, match=r"user.* item"):
        Schema("y", "t")
    assert Schema("y", "t", user="user", item="item").kinds == {}
