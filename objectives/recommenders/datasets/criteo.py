"""Reader of Criteo's logs of display advertisements: a label, 13 counts and 26 hashed categories, separated by tabs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from objectives.arrays import Array
from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.columns import labels, numbers, refuse

NUMERIC = tuple(f"I{number}" for number in range(1, 14))
CATEGORICAL = tuple(f"C{number}" for number in range(1, 27))
ABSENT = -1  # the category of a missing value


def read_criteo(path: Path) -> ClickLog:
    """Read a file like train.txt of the Kaggle challenge or a day of the terabyte log, .gz and .zst too.

    The files name neither users nor items nor moments: all features are the item's, and a row's moment is its number.

    Raises:
        ValueError: the file is not Criteo's; the message has the file, the column and the value.
    """
    names = ["label", *NUMERIC, *CATEGORICAL]
    try:
        schema = dict.fromkeys(names, pl.String)
        table = pl.read_csv(path, separator="\t", has_header=False, schema=schema, quote_char=None)
        columns: dict[str, Array] = {name: numbers(table[name]) for name in NUMERIC}
        columns |= {name: _hashes(table[name]) for name in CATEGORICAL}
        return ClickLog(
            path.name.partition(".")[0],
            user=None,
            item=None,
            timestamp=np.arange(len(table)),
            label=labels(table["label"]).astype(np.float32),
            columns=columns,
            sides=dict.fromkeys(columns, "item"),
            kinds=dict.fromkeys(NUMERIC, "numeric"),
        )
    except (OSError, pl.exceptions.PolarsError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} must have Criteo's {len(names)} columns, but got: {reason}") from error


def _hashes(column: pl.Series) -> NDArray[np.int64]:
    """Convert hexadecimal text to numbers, (n,)."""
    number = column.str.to_integer(base=16, strict=False)
    refuse(column, number.is_null() & column.is_not_null(), "hexadecimal")
    return number.fill_null(ABSENT).to_numpy()
