"""Reads a folder of MovieLens, in any of the four shapes it is distributed in, into a log of clicks."""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from objectives.recommenders.clicklog import ClickLog, Side, in_time_order

POSITIVE_FROM = 4.0  # stars; a rating of at least this many is a click
UNKNOWN = "unknown"
# The 19 flags that end a row of u.item, in the order of that data set's README.
_GENRES_100K = (
    "unknown|Action|Adventure|Animation|Children's|Comedy|Crime|Documentary|Drama|Fantasy|Film-Noir|Horror|Musical|"
    "Mystery|Romance|Sci-Fi|Thriller|War|Western"
).split("|")


@dataclass(frozen=True)
class _Tables:
    """All values are strings. ratings: user, item, rating, timestamp; users: user, age, gender, occupation, zip;
    items: item, title, year (or a date), genres (a list). Side tables may lack columns, or be missing."""

    ratings: pl.DataFrame
    users: pl.DataFrame | None
    items: pl.DataFrame | None


def read_movielens(folder: Path) -> ClickLog:
    """The ratings in folder with the features of users and items; what is missing reads as "unknown"."""
    for pattern, read in _KINDS.items():
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{folder} must hold one {pattern} file, but got {[path.name for path in found]}")
        if found:
            try:
                return _log(folder.resolve().name, read(found[0]))
            except (pl.exceptions.PolarsError, UnicodeDecodeError, ValueError) as error:
                message = " ".join(str(error).split())
                raise ValueError(f"{folder}: {found[0].name} or a file beside it is malformed: {message}") from error
    expected = "*.inter (RecBole), u.data (100K), ratings.dat (1M) or ratings.csv (latest)"
    names = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
    raise ValueError(f"a MovieLens folder must hold {expected}, but got {folder}: {names}")


def _log(name: str, tables: _Tables) -> ClickLog:
    ratings = tables.ratings.select(
        pl.col("user", "item").cast(pl.Int64),
        pl.col("rating").cast(pl.Float64),
        # RecBole declares timestamps as floats.
        pl.col("timestamp").cast(pl.Float64).cast(pl.Int64),
    )
    if ratings.null_count().sum_horizontal().item() > 0 or not ratings["rating"].is_finite().all():
        raise ValueError("each rating must have a user, an item, a finite rating and a timestamp")
    columns: dict[str, NDArray[Any]] = {}
    sides: dict[str, Side] = {}
    if tables.users is not None:
        users = tables.users.with_columns(pl.col("user").cast(pl.Int64))
        for column, of_user in _USER_COLUMNS.items():
            columns[column], sides[column] = _shared(_joined(ratings, users.select("user", of_user), "user")), "user"
    if tables.items is not None:
        items = _item_features(tables.items)
        for column in ("year", "genres"):
            columns[column], sides[column] = _shared(_joined(ratings, items.select("item", column), "item")), "item"
    timestamp = ratings["timestamp"].to_numpy()
    columns["hour"], sides["hour"] = timestamp // 3600 % 24, "context"
    label = ratings["rating"].to_numpy() >= POSITIVE_FROM
    return in_time_order(name, ratings["user"].to_numpy(), ratings["item"].to_numpy(), timestamp, label, columns, sides)


def _decade(years: pl.Expr) -> pl.Expr:
    start = years.cast(pl.Int64, strict=False) // 10 * 10
    return pl.format("{}-{}", start, start + 9)


_USER_COLUMNS = {
    "age": _decade(pl.col("age")).alias("age"),
    "gender": pl.col("gender"),
    "occupation": pl.col("occupation"),
    # Some Canadian codes start with a letter: they have no such region.
    "zip": pl.col("zip").str.extract(r"^(\d)").alias("zip"),
}


def _item_features(items: pl.DataFrame) -> pl.DataFrame:
    # The last year in brackets: a title may hold another before it, and a series has a span, as in "(2006-2007)".
    in_title = pl.col("title").str.extract_all(r"\(\d{4}(?:[–-]\d{0,4})?\)").list.last()  # noqa: RUF001
    year = pl.coalesce(pl.col(column).str.extract(r"(\d{4})") for column in ("year",) if column in items.columns)
    if "year" not in items.columns:
        year = in_title.str.extract(r"(\d{4})")
    else:
        year = pl.coalesce(year, in_title.str.extract(r"(\d{4})"))
    start = year.cast(pl.Int64) // 5 * 5
    genres = pl.col("genres").list.eval(pl.element().filter(pl.element() != "")).list.sort().list.join("|")
    return items.select(
        pl.col("item").cast(pl.Int64),
        pl.format("{}-{}", start, start + 4).alias("year"),
        pl.when(genres.is_in(["", "(no genres listed)"])).then(None).otherwise(genres).alias("genres"),
    )
