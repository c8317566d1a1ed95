"""From raw values to the numbers of embedding rows; what the encoding knows, it knows from train rows only."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import polars as pl
from numpy.typing import NDArray

from objectives.recommenders.clicklog import ClickLog, Side, frozen
from objectives.recommenders.split import Part, Split


@dataclass(frozen=True)
class Field:
    """A categorical input. Its codes are 1 to vocabulary - 1, the most frequent first; 0 is unseen or too rare."""

    name: str
    vocabulary: int  # rows of its table
    side: Side

    def __post_init__(self) -> None:
        if self.vocabulary < 1:
            raise ValueError(f"the vocabulary of field {self.name!r} must be at least 1, but got {self.vocabulary}")
        if self.side not in get_args(Side):
            raise ValueError(f"the side of field {self.name!r} must be one of {get_args(Side)}, but got {self.side!r}")


@dataclass(frozen=True, eq=False)
class Dataset:
    """n encoded rows in time order, and how they are split."""

    name: str
    fields: tuple[Field, ...]  # user, item, then the log's columns in their order
    inputs: Mapping[str, NDArray[np.int64]]  # field -> (n,) codes
    label: NDArray[np.float32]  # (n,) 0 or 1
    group: NDArray[np.int64]  # (n,) number of the user, 0 to users - 1, unseen users included
    timestamp: NDArray[np.int64]  # (n,) seconds
    split: Split
    bayes_auc: float | None = None

    def __post_init__(self) -> None:
        names = [field.name for field in self.fields]
        if names[:2] != ["user", "item"] or len(set(names)) != len(names) or set(names) != set(self.inputs):
            raise ValueError(f"fields must be user, item and one for each input, but got {names}, {list(self.inputs)}")
        rows = len(self.label)
        for name, array in [*self.inputs.items(), ("group", self.group), ("timestamp", self.timestamp)]:
            if array.shape != (rows,) or array.dtype != np.int64:
                raise ValueError(f"{name} must be ({rows},) int64, but got {array.shape} {array.dtype}")
        for field in self.fields:
            codes = self.inputs[field.name]
            if rows and (codes.min() < 0 or codes.max() >= field.vocabulary):
                range_ = f"{codes.min()} to {codes.max()}"
                raise ValueError(f"codes of {field.name!r} must be 0 to {field.vocabulary - 1}, but got {range_}")
        for part in get_args(Part):
            of_part = getattr(self.split, part)
            if of_part.min() < 0 or of_part.max() >= rows:
                raise ValueError(f"{part} must hold rows 0 to {rows - 1}, but got {of_part.min()} to {of_part.max()}")
            if len(np.unique(self.label[of_part])) < 2:
                raise ValueError(f"both labels must occur in {part}, but got {self.label[of_part[0]]:.0f} only")
        object.__setattr__(self, "inputs", {name: frozen(self.inputs[name]) for name in names})
        for name in ("label", "group", "timestamp"):
            object.__setattr__(self, name, frozen(getattr(self, name)))

    def rows(self, part: Part) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.float32], NDArray[np.int64]]:
        """Copies of the inputs, labels and groups of a part, each (n_part,), in time order."""
        rows = getattr(self.split, part)
        return {name: codes[rows] for name, codes in self.inputs.items()}, self.label[rows], self.group[rows]

    def key(self) -> str:
        """SHA-256, in hex, of the whole content."""
        digest = hashlib.sha256()
        plain = (self.name, self.fields, self.split.how, self.bayes_auc)
        digest.update(repr(plain).encode())
        parts = [getattr(self.split, part) for part in get_args(Part)]
        for array in [*self.inputs.values(), self.label, self.group, self.timestamp, *parts]:
            digest.update(f"{array.dtype.str}{array.shape}".encode())  # so that no array can pass for two
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def encode(log: ClickLog, split: Split, min_count: int = 1) -> Dataset:
    """The log in codes: a value's code is its rank by count in train rows, ties by value.

    A value with fewer than min_count train rows is 0.
    """
    if min_count < 1:
        raise ValueError(f"min_count must be at least 1, but got {min_count}")
    raw: dict[str, tuple[NDArray[Any], Side]] = {"user": (log.user, "user"), "item": (log.item, "item")}
    raw |= {name: (column, log.sides[name]) for name, column in log.columns.items()}
    fields, inputs = [], {}
    for name, (values, side) in raw.items():
        inputs[name], vocabulary = _codes(name, values, split.train, min_count)
        fields.append(Field(name, vocabulary, side))
    group = np.unique(log.user, return_inverse=True)[1].astype(np.int64)
    return Dataset(log.name, tuple(fields), inputs, log.label, group, log.timestamp, split, log.bayes_auc)


def _codes(name: str, values: NDArray[Any], train: NDArray[np.int64], min_count: int) -> tuple[NDArray[np.int64], int]:
    """The code of each value, (n,), and the size of the vocabulary."""
    try:
        every = pl.Series("value", values, dtype=pl.String if values.dtype.kind in "OU" else None).to_frame()
    except TypeError as error:
        raise ValueError(f"column {name!r} must hold strings or integers, but got a mixture ({error})") from error
    counted = every[train].drop_nulls().group_by("value").len().filter(pl.col("len") >= min_count)
    vocabulary = counted.sort(["len", "value"], descending=[True, False]).select("value").with_row_index("code", 1)
    joined = every.join(vocabulary, on="value", how="left", maintain_order="left")
    return joined["code"].fill_null(0).cast(pl.Int64).to_numpy(), len(vocabulary) + 1
