"""Conversion of a polars table's columns to the arrays of a log; an invalid value is reported with its row."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import numpy as np
import polars as pl
from numpy.typing import NDArray

from objectives.recommenders.datasets.click_log import SEPARATOR

_MOMENTS = "seconds, dates or ISO 8601 text in each row"


def categories(column: pl.Series, missing: str = "") -> NDArray[np.object_]:
    """Convert any column to strings, (n,); a null or empty value becomes `missing`, a value like any other.

    Equal strings of the object array are one object: it takes 8 bytes a row.

    Raises:
        ValueError: the column cannot be read as text.
    """
    text = _cast(column, pl.String(), "single values").fill_null(missing)
    values = text.unique().sort()
    codes = text.cast(pl.Enum(values)).to_physical().to_numpy()
    shared: NDArray[np.object_] = np.array(values.to_list(), dtype=object)
    return shared.take(codes)


def sets(column: pl.Series, separator: str, missing: str = "") -> NDArray[np.object_]:
    """Convert lists, or text with `separator` between the values, to strings, (n,), with SEPARATOR between them.

    Empty values are dropped; a row without any becomes `missing`.

    Raises:
        ValueError: a value contains SEPARATOR, or the column is of neither kind.
    """
    if isinstance(column.dtype, (pl.List, pl.Array)):
        lists = _cast(column, pl.List(pl.String), "lists of single values")
    else:
        lists = _cast(column, pl.String(), "lists or text").str.split(separator)
    separated = lists.list.eval(pl.element().str.contains(SEPARATOR, literal=True)).list.any()
    refuse(column, separated, f"values without {SEPARATOR!r}")
    filled = lists.list.eval(pl.element().filter(pl.element() != ""))
    return categories(filled.list.join(SEPARATOR), missing)


def numbers(column: pl.Series) -> NDArray[np.float64]:
    """Convert a column to numbers, (n,); a null or empty value is NaN.

    Raises:
        ValueError: a value is not a number.
    """
    return _cast(column, pl.Float64(), "numbers").fill_null(math.nan).to_numpy()


def labels(column: pl.Series, positive_from: float | None = None) -> NDArray[np.bool_]:
    """Return whether each number is 1, (n,), for a column of 0 and 1; or whether it is at least positive_from.

    Raises:
        ValueError: a value is missing or not a number; or neither 0 nor 1, without positive_from.
    """
    number = numbers(column)
    if positive_from is None:
        refuse(column, pl.Series((number != 0) & (number != 1)), "0 or 1 in each row")
        return np.asarray(number == 1)
    refuse(column, pl.Series(np.isnan(number)), "a number in each row")
    return np.asarray(number >= positive_from)


def ids(column: pl.Series) -> NDArray[np.int64]:
    """Return the values, (n,), where all are integers, else their numbers in the order of text, from 0.

    Raises:
        ValueError: a value is null or empty.
    """
    text = _cast(column, pl.String(), "ids")
    refuse(text, text.is_null(), "an id in each row")
    whole = text.cast(pl.Int64, strict=False)
    if whole.cast(pl.String).eq_missing(text).all():  # "007" is not 7
        return whole.to_numpy()
    return text.rank("dense").cast(pl.Int64).to_numpy() - 1


def seconds(column: pl.Series) -> NDArray[np.int64]:
    """Return seconds since 1970, (n,): numbers rounded down; dates and times, as ISO 8601 text too, UTC by default.

    Raises:
        ValueError: a value is missing, or none of these.
    """
    refuse(column, column.is_null(), _MOMENTS)
    if isinstance(column.dtype, (pl.Date, pl.Datetime)):
        return column.dt.epoch("s").to_numpy()
    if not (column.dtype.is_numeric() or column.dtype == pl.String):
        raise ValueError(f"column {column.name!r} must hold {_MOMENTS}, but got {column.dtype}")
    exact = column.dtype.is_integer() or column.dtype == pl.String
    given = column if exact else column.cast(pl.Float64).floor()
    # An integer first: as a float, a large one would lose its last digits.
    whole, real = (given.cast(dtype, strict=False) for dtype in (pl.Int64(), pl.Float64()))
    found = pl.select(pl.coalesce(whole, real.floor().cast(pl.Int64, strict=False))).to_series()
    others = found.is_null().arg_true()
    moments = pl.Series(map(_since_1970, given.gather(others)), dtype=pl.Int64)
    found = found.scatter(others, moments)
    refuse(given, found.is_null(), _MOMENTS)
    return found.to_numpy()


def _since_1970(text: object) -> int | None:
    try:
        moment = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def _cast(column: pl.Series, dtype: pl.DataType, what: str) -> pl.Series:
    """Cast the column to this type; empty text is null."""
    given = column.replace("", None) if column.dtype == pl.String else column
    try:
        cast = given.cast(dtype, strict=False)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"column {column.name!r} must hold {what}, but got {column.dtype}") from error
    refuse(column, cast.is_null() & given.is_not_null(), what)
    return cast


def refuse(column: pl.Series, wrong: pl.Series, what: str) -> None:
    """Raise ValueError with the first wrong row's value, if any."""
    for row in wrong.arg_true().head(1):
        found = "nothing" if column[row] is None else repr(column[row])
        raise ValueError(f"column {column.name!r} must hold {what}, but got {found} in row {row + 1}")
