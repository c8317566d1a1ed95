"""Reader of the small YAML files of a plan, with one line for what is wrong."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from search.config.section import Section
from search.config.yaml_reader import dotted, nearest, plain, show
from search.errors import ConfigError

S = TypeVar("S", bound=Section)


def read_section(path: Path, option: str, kind: type[S]) -> S:
    """Read a file as a section.

    Raises:
        ConfigError: the file cannot be read or has a wrong value; the line names the option and the key.
    """
    try:
        data = plain(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option}: must be a YAML file, but {error}") from error
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{option}: {_explained(error, kind)}") from error


def _explained(error: ValidationError, top: type[Section]) -> str:
    """Explain the first error: which key, what it must be, and what it was."""
    first = error.errors()[0]
    where, (section, rule) = dotted(first["loc"]), _described(first["loc"], top)
    if first["type"] == "extra_forbidden":
        known = tuple(section.model_fields)
        return f"{where}: unknown key; the keys here are {', '.join(known)}{nearest(first['loc'][-1], known)}"
    if first["type"] == "missing":
        return f"{where}: missing; must be {rule}"
    return f"{where}: must be {rule}, but got {show(first['input'])}"


def _described(location: tuple[str | int, ...], top: type[Section]) -> tuple[type[Section], str]:
    """Return the innermost section on the way to an error, and the requirement there."""
    section, rule = top, f"a mapping with the keys {', '.join(top.model_fields)}"
    for key in location:
        field = section.model_fields.get(str(key))
        if field is not None:
            rule = field.description or rule
            inner = _section_in(field.annotation)
            if inner is None:
                break
            section = inner
    return section, rule


def _section_in(annotation: object) -> type[Section] | None:
    """Return the section that an annotation holds: itself, or None, or several of it."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _section_in(part)) is not None), None)
