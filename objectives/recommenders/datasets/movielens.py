"""Reader of a MovieLens folder, in any of its four distributed formats, into a log of clicks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from objectives.arrays import Array
from objectives.recommenders.datasets.click_log import ClickLog, Kind, Side
from objectives.recommenders.datasets.columns import categories, sets

POSITIVE_FROM = 4.0  # stars; a rating of at least this many is a click
UNKNOWN = "unknown"
# The flags that end a row of u.item, in the order of that data set's README.
# fmt: off
_GENRES_100K = (
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy",
    "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western",
)
# fmt: on


@dataclass(frozen=True)
class _Tables:
    """Common form of every MovieLens format; all values are strings, genres are lists of them."""

    ratings: pl.DataFrame  # user, item, rating, timestamp
    users: pl.DataFrame | None  # user, age, gender, occupation, zip
    items: pl.DataFrame | None  # item, title, year (or a date, or null), genres


def read_movielens(folder: Path) -> ClickLog:
    """Read the ratings in a folder with the features of users and items; a missing value becomes "unknown".

    Genres are multi-valued, in the order of the alphabet.
    """
    for pattern, read in _SHAPES.items():
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise ValueError(f"{folder} must hold one {pattern} file, but got {[path.name for path in found]}")
        if found:
            try:
                return _log(folder.resolve().name, read(found[0]))
            except (pl.exceptions.PolarsError, ValueError) as error:  # a UnicodeDecodeError is a ValueError
                reason = " ".join(str(error).split())
                raise ValueError(
                    f"{folder}: {found[0].name} and the files beside it must be MovieLens's, but got: {reason}"
                ) from error
    names = sorted(path.name for path in folder.iterdir())[:8] if folder.is_dir() else "no such folder"
    raise ValueError(
        f"a folder of MovieLens must hold ratings as *.inter (RecBole), u.data (100K), ratings.dat (1M) or "
        f"ratings.csv (latest), but got {folder}: {names}"
    )


def _log(name: str, tables: _Tables) -> ClickLog:
    ratings = tables.ratings.select(
        pl.col("user", "item").cast(pl.Int64),
        pl.col("rating").cast(pl.Float64),
        pl.col("timestamp").cast(pl.Float64).cast(pl.Int64),  # RecBole declares it as a float
    )
    if ratings.null_count().sum_horizontal().item() > 0 or not ratings["rating"].is_finite().all():
        raise ValueError("a rating without a user, an item, a finite rating or a timestamp")
    columns: dict[str, Array] = {}
    sides: dict[str, Side] = {}
    kinds: dict[str, Kind] = {}
    features: dict[Side, pl.DataFrame] = {}
    if tables.users is not None:
        features["user"] = _user_features(tables.users)
    if tables.items is not None:
        features["item"] = _item_features(tables.items)
    for side, table in features.items():
        joined = ratings.select(side).join(table, on=side, how="left", validate="m:1", maintain_order="left")
        for column in joined.columns[1:]:
            several = column == "genres"
            columns[column] = sets(joined[column], "|", UNKNOWN) if several else categories(joined[column], UNKNOWN)
            sides[column], kinds[column] = side, "multi" if several else "categorical"
    timestamp = ratings["timestamp"].to_numpy()
    columns["hour"], sides["hour"] = timestamp // 3600 % 24, "context"
    label = (ratings["rating"].to_numpy() >= POSITIVE_FROM).astype(np.float32)
    user, item = ratings["user"].to_numpy(), ratings["item"].to_numpy()
    return ClickLog(name, user, item, timestamp, label, columns, sides, kinds)


def _user_features(users: pl.DataFrame) -> pl.DataFrame:
    return users.select(
        pl.col("user").cast(pl.Int64),
        _span(pl.col("age").cast(pl.Int64, strict=False), 10).alias("age"),
        "gender",
        "occupation",
        pl.col("zip").str.extract(r"^(\d)").alias("zip"),  # some Canadian codes start with a letter: no such region
    )


def _item_features(items: pl.DataFrame) -> pl.DataFrame:
    # The last year in brackets, since the title itself may contain another; a series has a span, as in "(2006-2007)".
    in_title = pl.col("title").str.extract_all(r"\(\d{4}(?:[–-]\d{0,4})?\)").list.last()
    year = pl.coalesce(pl.col("year").str.extract(r"(\d{4})"), in_title.str.extract(r"(\d{4})"))
    return items.select(
        pl.col("item").cast(pl.Int64),
        _span(year.cast(pl.Int64), 5).alias("year"),
        pl.col("genres").list.eval(pl.element().filter(pl.element() != "(no genres listed)")).list.sort(),
    )


def _span(number: pl.Expr, width: int) -> pl.Expr:
    """Return the bucket of an integer, such as "1995-1999"."""
    start = number // width * width
    return pl.format("{}-{}", start, start + (width - 1))


def _recbole(path: Path) -> _Tables:
    ratings = _recbole_table(path).select(user="user_id", item="item_id", rating="rating", timestamp="timestamp")
    users, items = None, None
    if (beside := path.with_suffix(".user")).exists():
        users = _recbole_table(beside).select("age", "gender", "occupation", user="user_id", zip="zip_code")
    if (beside := path.with_suffix(".item")).exists():
        named = _recbole_table(beside)
        genres = pl.col("class" if "class" in named.columns else "genre").str.split(" ")
        items = named.select(item="item_id", title="movie_title", year="release_year", genres=genres)
    return _Tables(ratings, users, items)


def _recbole_table(path: Path) -> pl.DataFrame:
    return _read(path, "\t").rename(lambda column: column.partition(":")[0])  # each is named as name:type


def _hundred_thousand(path: Path) -> _Tables:
    users, items = None, None
    if (beside := path.with_name("u.user")).exists():
        users = _read(beside, "|", ["user", "age", "gender", "occupation", "zip"], "latin-1")
    if (beside := path.with_name("u.item")).exists():
        flags = _read(beside, "|", ["item", "title", "year", "video", "url", *_GENRES_100K], "latin-1")
        listed = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in _GENRES_100K]
        items = flags.select("item", "title", "year", genres=pl.concat_list(listed).list.drop_nulls())
    return _Tables(_read(path, "\t", ["user", "item", "rating", "timestamp"]), users, items)


def _million(path: Path) -> _Tables:
    users, items = None, None
    if (beside := path.with_name("users.dat")).exists():
        users = _read(beside, "::", ["user", "gender", "age", "occupation", "zip"], "latin-1")
    if (beside := path.with_name("movies.dat")).exists():
        items = _titled(_read(beside, "::", ["item", "title", "genres"], "latin-1"))
    return _Tables(_read(path, "::", ["user", "item", "rating", "timestamp"], "latin-1"), users, items)


def _latest(path: Path) -> _Tables:
    ratings = _read(path, ",").select("rating", "timestamp", user="userId", item="movieId")
    beside = path.with_name("movies.csv")
    items = _titled(_read(beside, ",").rename({"movieId": "item"})) if beside.exists() else None
    return _Tables(ratings, None, items)


def _titled(items: pl.DataFrame) -> pl.DataFrame:
    """Complete items whose year is in the title only."""
    return items.with_columns(pl.col("genres").str.split("|"), year=pl.lit(None, pl.String))


def _read(path: Path, separator: str, names: Sequence[str] | None = None, encoding: str = "utf-8") -> pl.DataFrame:
    """Read all columns as strings; with names None, the first line holds them."""
    content = path.read_bytes()
    if encoding != "utf-8":
        content = content.decode(encoding).encode()
    if len(separator) > 1:  # polars takes a single byte
        content = content.replace(separator.encode(), b"\t")
    return pl.read_csv(
        content,
        separator=separator if len(separator) == 1 else "\t",
        has_header=names is None,
        schema=None if names is None else dict.fromkeys(names, pl.String),
        infer_schema=False,
        quote_char='"' if separator == "," else None,
    )


_SHAPES: dict[str, Callable[[Path], _Tables]] = {
    "*.inter": _recbole,
    "u.data": _hundred_thousand,
    "ratings.dat": _million,
    "ratings.csv": _latest,
}
