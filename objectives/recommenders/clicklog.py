"""The log of clicks (or ratings) that a data set is made from: raw values, in time order."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

Side = Literal["user", "item", "context"]


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view of the same values."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, eq=False)
class ClickLog:
    """n rows, sorted by (timestamp, user, item); `in_time_order` makes one from rows in any order.

    A `side` says whose feature a column is: the user's, the item's, or of the moment (context).
    """

    name: str
    user: NDArray[np.int64]  # (n,) raw ids
    item: NDArray[np.int64]  # (n,) raw ids
    timestamp: NDArray[np.int64]  # (n,) seconds
    label: NDArray[np.float32]  # (n,) 0 or 1
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)  # name -> (n,) strings or integers
    sides: Mapping[str, Side] = field(default_factory=dict)  # column -> whose it is
    bayes_auc: float | None = None  # the AUC of the true probability; known for synthetic logs only

    def __post_init__(self) -> None:
        rows = len(self.user)
        if rows == 0:
            raise ValueError(f"log {self.name!r} must have at least 1 row, but got 0")
        for name in ("user", "item", "timestamp", "label"):
            wanted = np.float32 if name == "label" else np.int64
            array = getattr(self, name)
            _check_shape(name, array, rows)
            if array.dtype != wanted:
                raise ValueError(f"{name} must be {np.dtype(wanted)}, but got {array.dtype}")
            object.__setattr__(self, name, frozen(array))
        if set(self.sides) != set(self.columns):
            raise ValueError(f"sides must name the columns {sorted(self.columns)}, but got {sorted(self.sides)}")
        for name, column in self.columns.items():
            if name in ("user", "item"):
                raise ValueError(f"a further column must not be called user or item, but got {name!r}")
            _check_shape(f"column {name!r}", column, rows)
            if column.dtype.kind not in "iuUO":
                raise ValueError(f"column {name!r} must hold strings or integers, but got {column.dtype}")
            if self.sides[name] not in get_args(Side):
                raise ValueError(f"side of {name!r} must be one of {get_args(Side)}, but got {self.sides[name]!r}")
        object.__setattr__(self, "columns", {name: frozen(column) for name, column in self.columns.items()})
        object.__setattr__(self, "sides", {name: self.sides[name] for name in self.columns})
        positives = np.count_nonzero(self.label == 1)
        negatives = np.count_nonzero(self.label == 0)
        if positives + negatives != rows:
            raise ValueError(f"labels must be 0 or 1, but got {self.label[(self.label != 0) & (self.label != 1)][0]}")
        if positives == 0 or negatives == 0:
            raise ValueError(f"both labels must occur, but got {positives} positive and {negatives} negative rows")
        if self.bayes_auc is not None and not 0 <= self.bayes_auc <= 1:
            raise ValueError(f"bayes_auc must be between 0 and 1, but got {self.bayes_auc}")
        if not _in_order(self.timestamp, self.user, self.item):
            raise ValueError(
                f"rows of log {self.name!r} must be sorted by (timestamp, user, item), but got them unsorted"
            )


def in_time_order(
    name: str,
    user: ArrayLike,
    item: ArrayLike,
    timestamp: ArrayLike,
    label: ArrayLike,
    columns: Mapping[str, NDArray[Any]] | None = None,
    sides: Mapping[str, Side] | None = None,
    bayes_auc: float | None = None,
) -> ClickLog:
    """A log of the given rows, each (n,), sorted by (timestamp, user, item); equal rows keep their order."""
    arrays = [np.asarray(values) for values in (user, item, timestamp)]
    for what, array in zip(("user", "item", "timestamp"), arrays, strict=True):
        if array.dtype.kind not in "iu":
            raise ValueError(f"{what} must hold integers, but got {array.dtype}")
        _check_shape(what, array, len(arrays[0]))
    for what, column in (columns or {}).items():
        _check_shape(f"column {what!r}", column, len(arrays[0]))
    labels = np.asarray(label, dtype=np.float32)
    _check_shape("label", labels, len(arrays[0]))
    order = np.lexsort((arrays[1], arrays[0], arrays[2]))
    users, items, timestamps = (array[order].astype(np.int64, copy=False) for array in arrays)
    return ClickLog(
        name=name,
        user=users,
        item=items,
        timestamp=timestamps,
        label=labels[order],
        columns={what: column[order] for what, column in (columns or {}).items()},
        sides=sides or {},
        bayes_auc=bayes_auc,
    )


def _check_shape(what: str, array: NDArray[Any], rows: int) -> None:
    if array.shape != (rows,):
        raise ValueError(f"{what} must have one value for each of the {rows} rows, but got shape {array.shape}")


def _in_order(*keys: NDArray[np.int64]) -> bool:
    """Whether the rows of keys, each (n,), never descend, the first key counting most."""
    tied = np.ones(len(keys[0]) - 1, dtype=bool)
    for key in keys:
        # Compared, not subtracted: a difference of two int64 may overflow.
        if np.any(tied & (key[1:] < key[:-1])):
            return False
        tied &= key[1:] == key[:-1]
    return True
