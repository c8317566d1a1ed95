"""Datatypes of the protocol as NumPy dtypes, and conversions between them that keep every value."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from objectives.arrays import Array

# BYTES and BF16 have no NumPy dtype that a model takes.
_INTEGERS = {f"{sign}INT{bits}": f"{sign.lower()}int{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)}
DTYPES: Mapping[str, np.dtype[np.generic]] = {
    name: np.dtype(dtype)
    for name, dtype in {"BOOL": "bool", **_INTEGERS, "FP16": "float16", "FP32": "float32", "FP64": "float64"}.items()
}
DATATYPES: Mapping[np.dtype[np.generic], str] = {dtype: name for name, dtype in DTYPES.items()}
# Kinds of NumPy dtypes whose values may be converted to one another.
_FAMILIES = {"b": "booleans", "i": "integers", "u": "integers", "f": "floats"}


def family(dtype: np.dtype[np.generic]) -> str:
    """Return whether a dtype holds booleans, integers or floats."""
    return _FAMILIES[dtype.kind]


def convert_exactly(values: Array, dtype: np.dtype[np.generic]) -> Array:
    """Convert to another dtype of the same family.

    Raises:
        ValueError: the families differ, or a value has no equal in the other dtype.
    """
    if values.dtype == dtype:
        return values
    if family(values.dtype) != family(dtype):
        raise ValueError(f"must have the datatype {DATATYPES[dtype]}, but got {DATATYPES[values.dtype]}")
    with np.errstate(over="ignore"):
        converted = values.astype(dtype)
    if np.can_cast(values.dtype, dtype, "safe"):
        return converted
    # A sign that wrapped around is equal in neither direction, since NumPy compares integers of mixed signs exactly.
    changed = converted != values
    if changed.any():
        raise ValueError(
            f"must have values that {DATATYPES[dtype]} can hold exactly, but got {values[changed].flat[0]!s} "
            f"in {DATATYPES[values.dtype]}"
        )
    return converted
