"""Conversion of frozen records to plain data and back, and a hash of their content."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")
# An object as `json.loads` gives it.
Json = dict[str, Any]
_FORMERLY, _LATER = "formerly", "later"


def to_plain(value: object) -> Any:
    """Convert to plain data: dataclasses become dicts; tuples and mappings become JSON lists and objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: type[T], data: object) -> T:
    """Read the record that `to_plain` wrote.

    Raises:
        ValueError: the data has a key that `kind` does not have, or lacks one that it needs.
    """
    return typing.cast(T, _read(kind, data))


def fields_in(kind: type, values: Mapping[str, object]) -> Json:
    """Return the values that a record has a field for, by its name."""
    return {f.name: values[f.name] for f in dataclasses.fields(kind) if f.name in values}


def formerly(key: str) -> dict[str, str]:
    """Return metadata for a field that older files hold under another key; `from_plain` reads both."""
    return {_FORMERLY: key}


def added_later() -> dict[str, bool]:
    """Return metadata for a field that was added to a record later.

    `digest` leaves the field out where it has its default, so that earlier records keep their hashes.
    """
    return {_LATER: True}


def digest(*values: object) -> str:
    """Return the SHA-256 of the canonical JSON of the values, in hex."""
    text = json.dumps([_canonical(v) for v in values], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object) -> Any:
    """Convert to plain data as `to_plain` does, without later fields that have their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = [(f, getattr(value, f.name)) for f in dataclasses.fields(value)]
        return {f.name: _canonical(item) for f, item in given if not (_LATER in f.metadata and item == f.default)}
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return value


def _read(kind: object, data: object) -> object:
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _read_record(kind, data)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None:
            return None
        present = [a for a in arguments if a is not type(None)]
        return _read(present[0], data) if len(present) == 1 else data
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ValueError(f"A tuple is read from a list, but got {data!r}.")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_read(arguments[0], item) for item in data)
        return tuple(_read(a, item) for a, item in zip(arguments, data, strict=True))
    if origin in (dict, Mapping):
        if not isinstance(data, Mapping):
            raise ValueError(f"A mapping is read from a mapping, but got {data!r}.")
        return {key: _read(arguments[1], item) for key, item in data.items()}
    return data


_type_hints = functools.cache(typing.get_type_hints)


def _read_record(kind: type, data: object) -> object:
    if not isinstance(data, Mapping):
        raise ValueError(f"{kind.__name__} is read from a mapping, but got {data!r}.")
    hints = _type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}
    renamed = {f.metadata[_FORMERLY]: f.name for f in dataclasses.fields(kind) if _FORMERLY in f.metadata}
    data = {renamed.get(str(key), str(key)): item for key, item in data.items()}
    unknown = sorted(set(data) - known)
    if unknown:
        raise ValueError(f"{kind.__name__} has the keys {sorted(known)}, but got {unknown}.")
    try:
        return kind(**{key: _read(hints[key], item) for key, item in data.items()})
    except TypeError as error:
        raise ValueError(f"{kind.__name__} needs the keys {sorted(known)}, but got {sorted(data)}.") from error
