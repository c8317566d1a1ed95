"""Renamed keys and values of the study file; files of the version before are still read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from search.config.yaml_reader import dotted, replaced, value_at
from search.errors import RenamedKeyWarning

_KEYS: Mapping[tuple[str, ...], str] = {
    ("space", "tables", "own"): "full_rows_share",
    ("space", "distillation", "passes"): "epochs",
    ("space", "placement", "lookup"): "embedding_device",
    ("space", "quantisation_aware"): "quantization_aware",
    ("timing", "near_blocks"): "final_blocks",
}
_VALUES = {("space", "tables", "form"): {"shared-rows": "quotient-remainder"}}


def read_renamed(data: Mapping[str, object]) -> dict[str, object]:
    """Replace old keys and values by those of this version, with a RenamedKeyWarning for each.

    A file that holds both the old and the new key keeps the old one, so that it is refused as an unknown key.
    """
    found = dict(data)
    for (*path, old), name in _KEYS.items():
        section = value_at(found, path)
        if isinstance(section, dict) and old in section and name not in section:
            _warn(dotted((*path, old)), dotted((*path, name)))
            renamed = {name if key == old else key: value for key, value in section.items()}
            found = replaced(found, tuple(path), renamed)
    for place, names in _VALUES.items():
        values = value_at(found, place)
        if isinstance(values, list):
            for old in names:
                if old in values:
                    _warn(f"{dotted(place)}: {old}", names[old])
            found = replaced(found, place, [names.get(one, one) if isinstance(one, str) else one for one in values])
    return found


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is now {new}; the old name is read for one more version", RenamedKeyWarning, stacklevel=3)
