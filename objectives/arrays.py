"""Types of arrays, and groups of rows that are equal byte for byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Any values: codes, numbers, flags or texts.
Array = NDArray[np.generic]
# Codes or real numbers.
Numbers = NDArray[np.number]
# Inputs of a model, or columns of a table, by name: (rows, ...) each.
Arrays = Mapping[str, Array]

# Bytes up to which comparing a copy is faster than comparing an array's elements: 0.5 us instead of 2.3 for 200 ids.
_COPIED = 16_384


def are_rows_equal(values: Array) -> bool:
    """Return whether all rows of an array of one row or more are the same."""
    if values.nbytes <= _COPIED:
        data = values.tobytes()
        return data[: len(data) // len(values)] * len(values) == data
    rows = _bytes(values)
    return np.array_equal(rows[1:], rows[:-1])


def groups_of_equal_rows(arrays: Sequence[Array]) -> list[NDArray[np.int64]]:
    """Return the row numbers, ascending, of each group that is equal in all arrays, one or more of (rows, ...)."""
    # Compared by bytes, which joins codes, numbers and several codes a row in one array.
    _, group = np.unique(np.concatenate([_bytes(values) for values in arrays], axis=1), axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group[order])) + 1)


def _bytes(values: Array) -> NDArray[np.uint8]:
    """View an array as bytes, (rows, bytes of a row)."""
    return np.ascontiguousarray(values).reshape(len(values), math.prod(values.shape[1:])).view(np.uint8)
