"""Renamed keys and values of the study file; files of the version before are still read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from search.config.yaml_reader import dotted
from search.errors import RenamedKeyWarning

_KEYS = {
    ("space", "tables", "own"): "full_rows_share",
    ("space", "distillation", "passes"): "epochs",
    ("space", "placement", "lookup"): "embedding_device",
    ("space", "quantisation_aware"): "quantization_aware",
}
_VALUES = {("space", "tables", "form"): {"shared-rows": "quotient-remainder"}}


def read_renamed(data: Mapping[str, object]) -> dict[str, object]:
    """Replace old keys and values by those of this version, with a RenamedKeyWarning for each.

    A file that holds both the old and the new key keeps the old one, so that it is refused as an unknown key.
    """
    found = dict(data)
    for place, name in _KEYS.items():
        found = _with_key(found, place, name, place)
    for place, names in _VALUES.items():
        found = _with_values(found, place, names, place)
    return found


def _with_key(data: dict[str, object], rest: tuple[str, ...], name: str, place: tuple[str, ...]) -> dict[str, object]:
    key, *inner = rest
    if key not in data:
        return data
    if inner:
        value = data[key]
        return {**data, key: _with_key(value, tuple(inner), name, place)} if isinstance(value, dict) else data
    if name in data:
        return data
    _warn(dotted(place), dotted((*place[:-1], name)))
    return {name if given == key else given: value for given, value in data.items()}


def _with_values(
    data: dict[str, object], rest: tuple[str, ...], names: Mapping[str, str], place: tuple[str, ...]
) -> dict[str, object]:
    key, *inner = rest
    value = data.get(key)
    if inner:
        return {**data, key: _with_values(value, tuple(inner), names, place)} if isinstance(value, dict) else data
    if not isinstance(value, list):
        return data
    for old, new in names.items():
        if old in value:
            _warn(f"{dotted(place)}: {old}", new)
    return {**data, key: [names.get(one, one) if isinstance(one, str) else one for one in value]}


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name is read for one more version", RenamedKeyWarning, stacklevel=5)
