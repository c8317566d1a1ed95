"""Tensor data in JSON: parsing, flattening, and arrays of numbers without silent conversions."""

from __future__ import annotations

import itertools
import json
import math
import reprlib
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from objectives.arrays import Array
from objectives.serving.http.datatypes import DATATYPES, family

# Characters of a value that an error repeats.
_SHOWN = 60
# Text of a value however large or deep it is, at the cost of a small one.
_TEXT = reprlib.Repr()
_TEXT.maxlevel, _TEXT.maxstring, _TEXT.maxother = 3, _SHOWN, _SHOWN
# JSON's types that stand for values of each family: 1 is no boolean, true no number, and 1.0 no integer.
_TYPES: dict[str, frozenset[type]] = {
    "booleans": frozenset({bool}),
    "integers": frozenset({int}),
    "floats": frozenset({int, float}),
}


class RequestError(ValueError):
    """A request that cannot be answered as it was sent: one line with the field, the rule and the value."""


def shown(value: object) -> str:
    """Return a value for one line of an error, cut where it is long."""
    text = value if isinstance(value, str) else _TEXT.repr(value)
    text = " ".join(text[: 2 * _SHOWN].split())
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def read_json(text: bytes) -> Any:
    """Parse a JSON document in UTF-8.

    Raises:
        RequestError: it is none, or holds NaN or Infinity, which JSON does not have.
    """
    try:
        return json.loads(text.decode(), parse_constant=_refuse_constant)
    except RequestError:
        raise
    except RecursionError as error:
        raise RequestError("body: must be JSON of a few levels, but got too many") from error
    except ValueError as error:
        raise RequestError(f"body: must be JSON in UTF-8, but got {shown(text[:_SHOWN])}: {error}") from error


def flatten(field: str, data: object, shape: Sequence[int]) -> list[object]:
    """Return the values of a tensor in row-major order, from data that is flat or nested as the shape is.

    Raises:
        RequestError: the data is neither.
    """
    if not isinstance(data, list):
        raise RequestError(f"{field}: must be a list, but got {shown(data)}")
    flat = data
    if len(shape) > 1 and any(type(part) is list for part in data):
        if len(data) != shape[0]:
            raise RequestError(f"{field}: must have {shape[0]} parts, but got {len(data)}")
        for size in shape[1:]:
            if not all(type(part) is list and len(part) == size for part in flat):
                raise RequestError(f"{field}: must be flat, or nested as the shape {list(shape)} is")
            flat = list(itertools.chain.from_iterable(flat))
    if len(flat) != math.prod(shape):
        raise RequestError(f"{field}: must have the {math.prod(shape)} values of {list(shape)}, but got {len(flat)}")
    return flat


def read_numbers(field: str, flat: list[object], dtype: np.dtype[np.generic]) -> Array:
    """Return JSON values as a flat array.

    Raises:
        RequestError: a value is of another type, or the dtype cannot hold it.
    """
    wrong = set(map(type, flat)) - _TYPES[family(dtype)]
    if wrong:
        example = next(value for value in flat if type(value) in wrong)
        raise RequestError(f"{field}: must hold {family(dtype)}, but got {_shown_json(example)}")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype)
    except OverflowError as error:
        raise RequestError(f"{field}: must fit {DATATYPES[dtype]}: {error}") from error


def _shown_json(value: object) -> str:
    """Return a value that JSON held, as JSON writes it."""
    return "more levels" if isinstance(value, (list, dict)) else shown(json.dumps(value))


def _refuse_constant(name: str) -> NoReturn:
    raise RequestError(f"body: must hold finite numbers, but got {name}")
