"""Log of clicks (or ratings) that a data set is made from: raw values, in time order."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Array, Arrays

S = TypeVar("S", bound=np.generic)
Integers = NDArray[np.int64]
Side = Literal["user", "item", "context"]
Kind = Literal["categorical", "numeric", "multi"]

SEPARATOR = "\x1f"  # between the values of a row of a multi-valued column: ASCII's unit separator, no part of a value

_DTYPES: Mapping[Kind, tuple[str, str]] = {  # kinds of dtype that a column may have, and in words
    "categorical": ("iuUO", "strings or integers"),
    "numeric": ("iuf", "numbers"),
    "multi": ("UO", "strings"),
}


def frozen(array: NDArray[S]) -> NDArray[S]:
    """Return a read-only view of the same values."""
    view = array.view()
    view.flags.writeable = False
    return view


def content_key(plain: object, arrays: Iterable[Array]) -> str:
    """Return the SHA-256 of a value's representation and of arrays, in hex."""
    digest = hashlib.sha256(repr(plain).encode())
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())  # so that two arrays never hash like one
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class ClickLog:
    """Log of n rows, given in any order and held sorted by (timestamp, user, item); equal rows keep their order.

    A column's `side` is the owner of the feature: the user, the item, or the moment (context). Its `kind` is the type
    of its values: one category a row (a missing one is a category like any other), a finite number (a missing one is
    NaN), or several categories, as one string with SEPARATOR between them (none: the empty string).
    """

    name: str
    user: Integers | None  # (n,) raw ids; None: the log names no users
    item: Integers | None  # (n,) raw ids; None: the log names no items
    timestamp: Integers  # (n,) seconds
    label: NDArray[np.float32]  # (n,) 0 or 1
    columns: Arrays = field(default_factory=dict)  # name -> (n,) values
    sides: Mapping[str, Side] = field(default_factory=dict)  # column -> owner
    # column -> type of its values; "categorical" where left out
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    bayes_auc: float | None = None  # the AUC of the true probability; known for synthetic logs only

    def __post_init__(self) -> None:
        rows = len(self.timestamp)
        if rows == 0:
            raise ValueError(f"log {self.name!r} must have at least 1 row, but got 0")
        given = {what: getattr(self, what) for what in ("timestamp", "user", "item", "label")}
        arrays: dict[str, Array] = {what: np.asarray(values) for what, values in given.items() if values is not None}
        for what, array in arrays.items():
            _check_shape(what, array, rows)
            if what != "label" and array.dtype.kind not in "iu":
                raise ValueError(f"{what} must hold integers, but got {array.dtype}")
            arrays[what] = array.astype(np.float32 if what == "label" else np.int64, copy=False)
        self._settle_columns(rows)
        label = arrays["label"]
        positives, negatives = (np.count_nonzero(label == value) for value in (1, 0))
        if positives + negatives != rows:
            raise ValueError(f"labels must be 0 or 1, but got {label[(label != 0) & (label != 1)][0]}")
        if positives == 0 or negatives == 0:
            raise ValueError(f"both labels must occur, but got {positives} positive and {negatives} negative rows")
        if self.bayes_auc is not None and not 0 <= self.bayes_auc <= 1:
            raise ValueError(f"bayes_auc must be between 0 and 1, but got {self.bayes_auc}")
        order = np.lexsort(tuple(arrays[what] for what in ("item", "user", "timestamp") if what in arrays))
        for what, array in arrays.items():
            object.__setattr__(self, what, frozen(array[order]))
        object.__setattr__(self, "columns", {name: frozen(column[order]) for name, column in self.columns.items()})

    def _settle_columns(self, rows: int) -> None:
        """Check the columns, and give each a kind."""
        if set(self.sides) != set(self.columns):
            raise ValueError(f"sides must name the columns {sorted(self.columns)}, but got {sorted(self.sides)}")
        if unknown := set(self.kinds) - set(self.columns):
            raise ValueError(f"kinds must name columns among {sorted(self.columns)}, but got {sorted(unknown)}")
        kinds: dict[str, Kind] = {name: self.kinds.get(name, "categorical") for name in self.columns}
        for name, column in self.columns.items():
            if name in ("user", "item"):
                raise ValueError(f"a further column must not be called user or item, but got {name!r}")
            _check_shape(f"column {name!r}", column, rows)
            for what, given, known in (("side", self.sides[name], get_args(Side)), ("kind", kinds[name], _DTYPES)):
                if given not in known:
                    raise ValueError(f"{what} of {name!r} must be one of {tuple(known)}, but got {given!r}")
            dtypes, words = _DTYPES[kinds[name]]
            if column.dtype.kind not in dtypes:
                raise ValueError(f"{kinds[name]} column {name!r} must hold {words}, but got {column.dtype}")
            if kinds[name] == "numeric" and (infinite := column[np.isinf(column)]).size:
                raise ValueError(f"column {name!r} must hold finite numbers or NaN, but got {infinite[0]}")
        object.__setattr__(self, "sides", {name: self.sides[name] for name in self.columns})
        object.__setattr__(self, "kinds", kinds)


def _check_shape(what: str, array: Array, rows: int) -> None:
    if array.shape != (rows,):
        raise ValueError(f"{what} must have one value for each of the {rows} rows, but got shape {array.shape}")
