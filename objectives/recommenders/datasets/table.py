"""Reader of any table, CSV or Parquet, into a log of clicks, by a schema of its columns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from objectives.arrays import Array
from objectives.recommenders.datasets.click_log import ClickLog, Kind, Side
from objectives.recommenders.datasets.columns import categories, ids, labels, numbers, seconds, sets

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_COMPRESSED = (".gz", ".zst")


@dataclass(frozen=True)
class Schema:
    """Roles of a table's columns. A feature that is neither the user's nor the item's is of the moment (context).

    label: 0 or 1; or with positive_from any number, 1 from that one on (such as 4 stars)
    timestamp: seconds, dates, times or ISO 8601 text
    user, item: ids, integers or text; None where the table has none
    categorical: a missing value is a category of its own
    numeric: a missing value counts as the mean
    multi: lists, in Parquet, or text with the separator between the values
    """

    label: str
    timestamp: str
    user: str | None = None
    item: str | None = None
    categorical: tuple[str, ...] = ()
    numeric: tuple[str, ...] = ()
    multi: tuple[str, ...] = ()
    separator: str = "|"
    of_user: tuple[str, ...] = ()
    of_item: tuple[str, ...] = ()
    positive_from: float | None = None

    def __post_init__(self) -> None:
        features = (*self.categorical, *self.numeric, *self.multi)
        inputs = (*features, *(name for name in (self.user, self.item) if name is not None))
        every = [*inputs, self.label, self.timestamp]
        if twice := sorted({name for name in every if every.count(name) > 1}):
            raise ValueError(f"a schema must name each column once, but got {twice[0]!r} more than once")
        if not inputs:
            raise ValueError("a schema must name a user, an item or a feature, but got none")
        if reserved := sorted({"user", "item"} & set(features)):
            raise ValueError(f"a feature must not be called user or item, but got {reserved[0]!r}")
        owned = (*self.of_user, *self.of_item)
        if wrong := sorted({name for name in owned if name not in features or owned.count(name) > 1}):
            raise ValueError(f"of_user and of_item must share out features, but got {wrong[0]!r}, none or twice")
        if not self.separator:
            raise ValueError("the separator must be at least 1 character, but got ''")

    @property
    def kinds(self) -> dict[str, Kind]:
        """Kind of each feature."""
        numeric: dict[str, Kind] = dict.fromkeys(self.numeric, "numeric")
        multi: dict[str, Kind] = dict.fromkeys(self.multi, "multi")
        return {**dict.fromkeys(self.categorical, "categorical"), **numeric, **multi}

    @property
    def sides(self) -> dict[str, Side]:
        """Side of each feature."""
        owners: dict[str, Side] = {**dict.fromkeys(self.of_user, "user"), **dict.fromkeys(self.of_item, "item")}
        return {name: owners.get(name, "context") for name in self.kinds}


def read_table(path: Path, schema: Schema) -> ClickLog:
    """Read the rows of a .csv, .tsv (.gz and .zst too) or .parquet file, with a header, by the schema.

    Raises:
        ValueError: the file does not fit the schema; the message has the file, the column and the value.
    """
    try:
        name, table = _open(path)
        known = table.collect_schema().names()
        ids_of = [column for column in (schema.user, schema.item) if column is not None]
        wanted = [schema.label, schema.timestamp, *ids_of, *schema.kinds]
        if missing := [column for column in wanted if column not in known]:
            raise ValueError(f"a column must be among {', '.join(known)}, but got {missing[0]!r}")
        return _log(name, table.select(wanted).collect(), schema)
    except (OSError, pl.exceptions.PolarsError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def _open(path: Path) -> tuple[str, pl.LazyFrame]:
    """Return the name of the table and the table, a CSV with all columns as text."""
    plain = path.with_suffix("") if path.suffix in _COMPRESSED else path
    if not path.is_file():
        raise ValueError("a table must be a file, but got none")
    if plain.suffix in _DELIMITERS:
        return plain.stem, pl.scan_csv(path, separator=_DELIMITERS[plain.suffix], infer_schema=False)
    if path.suffix == ".parquet":
        return path.stem, pl.scan_parquet(path)
    endings = ", ".join([*_DELIMITERS, *(kind + end for kind in _DELIMITERS for end in _COMPRESSED), ".parquet"])
    raise ValueError(f"a table must end in one of {endings}, but got {path.name!r}")


def _log(name: str, table: pl.DataFrame, schema: Schema) -> ClickLog:
    if len(table) == 0:
        raise ValueError("a table must have at least 1 row, but got 0")
    columns: dict[str, Array] = {}
    for feature, kind in schema.kinds.items():
        if kind == "numeric":
            columns[feature] = numbers(table[feature])
        elif kind == "multi":
            columns[feature] = sets(table[feature], schema.separator)
        else:
            columns[feature] = categories(table[feature])
    return ClickLog(
        name,
        None if schema.user is None else ids(table[schema.user]),
        None if schema.item is None else ids(table[schema.item]),
        seconds(table[schema.timestamp]),
        labels(table[schema.label], schema.positive_from).astype(np.float32),
        columns,
        schema.sides,
        schema.kinds,
    )
