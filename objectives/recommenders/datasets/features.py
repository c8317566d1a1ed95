"""Encoding of raw values as a model's inputs, fitted on train rows only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from objectives.arrays import Array, Numbers
from objectives.recommenders.datasets.click_log import SEPARATOR, ClickLog, Integers, Kind, Side, content_key, frozen
from objectives.recommenders.datasets.split import Part, Split

LONGEST = 16  # codes of a multi-valued input


@dataclass(frozen=True)
class Field:
    """Input of a model, one row for each candidate.

    categorical: int64 (rows,) codes, 1 to vocabulary - 1, the most frequent first; 0 is unseen or too rare.
    numeric: float32 (rows,), standardised.
    multi: int64 (rows, length) codes of the same sort, padded with 0; the embedding of a row is the mean over its codes
    that are not 0, zeros where all are.
    """

    name: str
    side: Side
    kind: Kind = "categorical"
    vocabulary: int = 0  # rows of its table; a numeric field has none
    length: int = 1  # codes a row; only of a multi field more than 1

    def __post_init__(self) -> None:
        for what, given, known in (("side", self.side, get_args(Side)), ("kind", self.kind, get_args(Kind))):
            if given not in known:
                raise ValueError(f"the {what} of field {self.name!r} must be one of {known}, but got {given!r}")
        if (self.vocabulary < 1) != (self.kind == "numeric") or self.vocabulary < 0:
            rule = "0, since it is numeric" if self.kind == "numeric" else "at least 1"
            raise ValueError(f"the vocabulary of field {self.name!r} must be {rule}, but got {self.vocabulary}")
        if self.length < 1 or (self.length > 1 and self.kind != "multi"):
            rule = "at least 1" if self.kind == "multi" else f"1, since it is {self.kind}"
            raise ValueError(f"the length of field {self.name!r} must be {rule}, but got {self.length}")
        if self.name in ("user", "item") and (self.side, self.kind) != (self.name, "categorical"):
            raise ValueError(f"field {self.name!r} must be that side's ids, but got {self.side!r}, {self.kind!r}")

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "numeric" else "int64"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return (self.length,) if self.kind == "multi" else ()


@dataclass(frozen=True, eq=False)
class Dataset:
    """Encoded rows, n in time order, with their split."""

    name: str
    fields: tuple[Field, ...]  # user and item where the log has them, then its columns in their order
    inputs: Mapping[str, Numbers]  # field -> (n,) codes or numbers, or (n, length) codes
    label: NDArray[np.float32]  # (n,) 0 or 1
    group: Integers  # (n,) number of the user, 0 to users - 1, unseen users included; else of the row
    timestamp: Integers  # (n,) seconds
    split: Split
    bayes_auc: float | None = None
    encoding: str = ""  # hash of what codes stand for

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if not names or len(set(names)) != len(names) or set(names) != set(self.inputs):
            raise ValueError(f"fields must be one for each input, but got {names}, {list(self.inputs)}")
        rows = len(self.label)
        for name in ("group", "timestamp"):
            _check_array(name, getattr(self, name), (rows,), "int64")
        for field in self.fields:
            values = self.inputs[field.name]
            _check_array(f"input {field.name!r}", values, (rows, *field.shape), field.dtype)
            if field.kind == "numeric" and not np.isfinite(values).all():
                raise ValueError(f"values of {field.name!r} must be finite, but got {values[~np.isfinite(values)][0]}")
            if field.kind != "numeric" and values.size and (values.min() < 0 or values.max() >= field.vocabulary):
                rule = f"codes of {field.name!r} must be 0 to {field.vocabulary - 1}"
                raise ValueError(f"{rule}, but got {values.min()} to {values.max()}")
        for part in get_args(Part):
            of_part = getattr(self.split, part)
            if of_part.min() < 0 or of_part.max() >= rows:
                raise ValueError(f"{part} must hold rows 0 to {rows - 1}, but got {of_part.min()} to {of_part.max()}")
            if len(np.unique(self.label[of_part])) < 2:
                raise ValueError(f"both labels must occur in {part}, but got {self.label[of_part[0]]:.0f} only")
        object.__setattr__(self, "inputs", {name: frozen(self.inputs[name]) for name in names})
        for name in ("label", "group", "timestamp"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def field(self, name: str) -> Field | None:
        """Return the field of this name, None if there is none."""
        return next((field for field in self.fields if field.name == name), None)

    def rows(self, part: Part) -> tuple[dict[str, Numbers], NDArray[np.float32], Integers]:
        """Copy the inputs, labels and groups of a part, n_part rows of each, in time order."""
        rows = getattr(self.split, part)
        return {name: values[rows] for name, values in self.inputs.items()}, self.label[rows], self.group[rows]

    def codes(self, name: str, part: Part | None = None) -> Integers:
        """Return the codes of an input that is not numeric, of all rows or of a part."""
        codes = self.inputs[name].astype(np.int64, copy=False)
        return codes if part is None else codes[getattr(self.split, part)]

    def key(self) -> str:
        """Return the SHA-256 of the whole content, in hex."""
        plain = (self.name, self.fields, self.split.how, self.bayes_auc)
        parts = [getattr(self.split, part) for part in get_args(Part)]
        return content_key(plain, [*self.inputs.values(), self.label, self.group, self.timestamp, *parts])


def encode(log: ClickLog, split: Split, min_count: int = 1) -> Dataset:
    """Encode the log as inputs.

    categorical: a value's code is its rank by count in train rows, ties by value; with fewer than min_count it is 0.
    numeric: (y - mean) / deviation of y = sign(x) log(1 + |x|), by the train rows that have one; a missing one is 0,
        and so are all where train rows have no two different ones. (The DLRM reference code takes the same logarithm of
        Criteo's counts, with negative ones set to 0; here they keep their sign.)
    multi: codes as above, each once, the most frequent first; the length is that of the longest train row, at most 16,
        so that the rarest codes beyond it are dropped.

    Raises:
        ValueError: min_count is below 1, or a column mixes strings and integers.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, but got {min_count}")
    columns: dict[str, tuple[Side, Kind, Array]] = {}
    if log.user is not None:
        columns["user"] = ("user", "categorical", log.user)
    if log.item is not None:
        columns["item"] = ("item", "categorical", log.item)
    columns |= {name: (log.sides[name], log.kinds[name], column) for name, column in log.columns.items()}
    fields: list[Field] = []
    inputs: dict[str, Numbers] = {}
    meanings: list[object] = []
    for name, (side, kind, values) in columns.items():
        if kind == "numeric":
            inputs[name], vocabulary = _standardised(values, split.train), 0
        else:
            codes_of = _codes_of_several if kind == "multi" else _codes
            inputs[name], coded = codes_of(name, values, split.train, min_count)
            vocabulary = len(coded) + 1
            meanings.append((name, kind, coded))
        fields.append(Field(name, side, kind, vocabulary, inputs[name].shape[1] if kind == "multi" else 1))
    group = np.arange(len(log.label), dtype=np.int64)
    if log.user is not None:
        group = np.unique(log.user, return_inverse=True)[1].astype(np.int64)
    encoding = content_key(meanings, ())[:20]
    return Dataset(log.name, tuple(fields), inputs, log.label, group, log.timestamp, split, log.bayes_auc, encoding)


def _standardised(values: Array, train: Integers) -> NDArray[np.float32]:
    """Standardise numbers, (n,), with missing ones at 0."""
    number = values.astype(np.float64)
    number = np.sign(number) * np.log1p(np.abs(number))
    known = number[train][~np.isnan(number[train])]
    # Compared first: the deviation of equal numbers may differ from 0 in its last digit.
    deviation = known.std() if len(known) and known.min() < known.max() else 0.0
    if deviation == 0:
        return np.zeros(len(number), dtype=np.float32)
    standard = (number - known.mean()) / deviation
    return np.where(np.isnan(standard), 0, standard).astype(np.float32)


def _codes(name: str, values: Array, train: Integers, min_count: int) -> tuple[Integers, list[object]]:
    """Return the code of each value, (n,), and the values of the codes from 1."""
    every = _series(name, values).to_frame()
    vocabulary = _vocabulary(every[train].drop_nulls().group_by("value").len(), min_count)
    joined = every.join(vocabulary, on="value", how="left", maintain_order="left")
    return joined["code"].fill_null(0).cast(pl.Int64).to_numpy(), vocabulary["value"].to_list()


def _codes_of_several(name: str, values: Array, train: Integers, min_count: int) -> tuple[Integers, list[object]]:
    """Return the codes of each row's values, (n, length), and the values of the codes from 1."""
    # Computed once for each different string of values: there are far fewer of them than rows.
    text = _series(name, values).fill_null("")
    texts = text.unique()
    of_row = text.cast(pl.Enum(texts)).to_physical().to_numpy()
    every = texts.str.split(SEPARATOR).to_frame().with_row_index("text")
    every = every.with_columns(train=np.bincount(of_row[train], minlength=len(texts)))
    single = every.explode("value").filter(pl.col("value") != "").unique()
    counted = single.group_by("value").agg(len=pl.col("train").sum()).filter(pl.col("len") > 0)
    vocabulary = _vocabulary(counted, min_count)
    coded = single.join(vocabulary, on="value").sort("text", "code")
    coded = coded.with_columns(place=pl.int_range(pl.len()).over("text"))
    places = coded.filter(pl.col("train") > 0)["place"].to_numpy()
    length = min(int(places.max(initial=0)) + 1, LONGEST)
    kept = coded.filter(pl.col("place") < length)
    codes = np.zeros((len(texts), length), dtype=np.int64)
    codes[kept["text"].to_numpy(), kept["place"].to_numpy()] = kept["code"].to_numpy()
    return codes[of_row], vocabulary["value"].to_list()


def _series(name: str, values: Array) -> pl.Series:
    try:
        return pl.Series("value", values, dtype=pl.String if values.dtype.kind in "OU" else None)
    except TypeError as error:
        raise ValueError(f"column {name!r} must hold strings or integers, but got a mixture ({error})") from error


def _vocabulary(counted: pl.DataFrame, min_count: int) -> pl.DataFrame:
    """Assign a code to each value that is frequent enough, given values with their counts (len)."""
    frequent = counted.filter(pl.col("len") >= min_count).sort(["len", "value"], descending=[True, False])
    return frequent.select("value").with_row_index("code", 1)


def _check_array(what: str, array: Array, shape: tuple[int, ...], dtype: str) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{what} must be {shape} {dtype}, but got {array.shape} {array.dtype}")
