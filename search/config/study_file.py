"""Study file: reading, and the comparison of two studies."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from search.config.data_sections import FORMS
from search.config.renamed_keys import read_renamed
from search.config.section import Range, Section
from search.config.sections import StudyConfig
from search.config.yaml_reader import dotted, nearest, plain, replaced, show, value_at
from search.errors import ConfigError

# Sections that a resumed study may have changed: duration and place of the search, not its subject.
FREE_SECTIONS = ("sampler", "start_from", "budget", "workers", "tracking_uri", "storage")

_PRESETS = resources.files("search.config").joinpath("presets")
_TEMPLATE = "template.yaml"


def preset_names() -> tuple[str, ...]:
    """Return the names of the studies included in leanrec."""
    names = sorted(entry.name for entry in _PRESETS.iterdir() if entry.name.endswith(".yaml"))
    return tuple(name.removesuffix(".yaml") for name in names if name != _TEMPLATE)


def load(source: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """Load the study of a preset's name or a YAML file, with `key.path=value` overrides, of which the last counts.

    A relative DIR or FILE, or JSON file to start from, is resolved from the folder of the file that contains it; in an
    override or a preset, from the working directory.

    Raises:
        ConfigError: the file is missing or malformed, or a field is wrong; one line.
    """
    text, label, folder = _read_source(source)
    data = plain(text, label)
    if data is None:
        raise ConfigError(f"{label}: is empty; a study file is a mapping (`leanrec init FILE` writes one)")
    if not isinstance(data, dict):
        raise ConfigError(f"{label}: must hold a mapping with the keys {_keys(StudyConfig)}, but got {show(data)}")
    data = _absolute(read_renamed(data), folder)
    for override in overrides:
        path, value = _read_override(override)
        data = read_renamed(replaced(data, path, value))
    data = _absolute(data, Path.cwd())
    config = parse(data)
    for place, prefix, what, name in _on_disk(data):
        kind, exists = ("folder", Path(name).is_dir()) if what == "DIR" else ("file", Path(name).is_file())
        if not exists:
            raise ConfigError(f"{dotted(place)}: must name a {kind} that exists, but got {show(prefix + name)}")
    return config


def parse(data: object) -> StudyConfig:
    """Parse a study from plain data, as YAML or JSON give them.

    Raises:
        ConfigError: a field is wrong; the first in the order of the data, in one line.
    """
    try:
        return StudyConfig.model_validate(read_renamed(data) if isinstance(data, dict) else data)
    except ValidationError as error:
        details = sorted(error.errors(include_url=False), key=lambda detail: _order(data, _place(detail)))
        more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
        raise ConfigError(_line(details[0]) + more) from error


def write_template(path: Path) -> None:
    """Write a commented study file with every key at its default, completely or not at all.

    Raises:
        ConfigError: the path exists already, or cannot be written.
    """
    text = _PRESETS.joinpath(_TEMPLATE).read_text(encoding="utf-8")
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8")
        try:
            path.hardlink_to(draft)  # unlike a rename, it never replaces an existing file
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except FileExistsError as error:
        raise ConfigError(f"{path}: exists already; name a new file") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()


def _read_source(source: str) -> tuple[str, str, Path]:
    """Return the text, its label in messages, and the folder from which its relative paths are resolved."""
    if source in preset_names():
        return _PRESETS.joinpath(f"{source}.yaml").read_text(encoding="utf-8"), source, Path.cwd()
    path = Path(source)
    label = source or "''"
    try:
        return path.read_bytes().decode("utf-8-sig"), label, path.parent
    except FileNotFoundError as error:
        names = preset_names()
        near = nearest(source, names)
        raise ConfigError(f"{label}: no such file, nor a preset; the presets are {', '.join(names)}{near}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{label}: must be UTF-8 text, but byte {error.start} is not") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{label}: must be a preset or a YAML file, but cannot be read: {reason}") from error


def _read_override(override: str) -> tuple[tuple[str, ...], object]:
    key, equals, text = override.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        raise ConfigError(f"--set: must read key.path=value, such as budget.minutes=5, but got {show(override)}")
    return path, plain(text, f"--set {key.strip()}", path)


# Settings that name a file or folder, after a prefix; it has to exist.
_ON_DISK = (
    (("data", "source"), "movielens:", "DIR"),
    (("data", "source"), "table:", "FILE"),
    (("data", "source"), "criteo:", "FILE"),
    (("traffic", "pattern"), "log:", "FILE"),
    (("traffic", "rows", "file"), "", "FILE"),
)
_STARTS = "start_from"


def _on_disk(data: Mapping[str, object]) -> Iterator[tuple[tuple[str, ...], str, str, str]]:
    """Yield the place, the prefix, DIR or FILE, and the path of each setting that names one."""
    for place, prefix, what in _ON_DISK:
        value = value_at(data, place)
        if isinstance(value, str) and value.startswith(prefix) and value != prefix:
            yield place, prefix, what, value.removeprefix(prefix)


def _absolute(data: dict[str, object], folder: Path) -> dict[str, object]:
    for place, prefix, what, name in _on_disk(data):
        data = replaced(data, place, prefix + _resolved(name, folder, place, prefix + what, prefix + name))
    sources = data.get(_STARTS)
    if isinstance(sources, str | list):
        listed = [sources] if isinstance(sources, str) else sources
        data = data | {_STARTS: [_start(source, folder) for source in listed]}
    return data


def _start(source: object, folder: Path) -> object:
    """Return where a search begins: a study by its name, or the absolute path of a file."""
    if not isinstance(source, str):
        return source
    path = _resolved(source, folder, (_STARTS,), "a study or a JSON file", source)
    return path if Path(source).name != source or (Path(path).is_file() and path.endswith(".json")) else source


def _resolved(name: str, folder: Path, place: tuple[str, ...], what: str, given: str) -> str:
    try:
        return str((folder / Path(name).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as error:  # no home of that name, a loop of links, a null character
        raise ConfigError(f"{dotted(place)}: must be {what}, but got {show(given)}: {error}") from error


def _line(detail: ErrorDetails) -> str:
    """Describe one of pydantic's errors in one line."""
    place = _place(detail)
    section, field = _described(detail["loc"])
    context = detail.get("ctx", {})
    got = f"but got {show(detail['input'])}"
    match detail["type"]:
        case "rule":
            return f"{dotted(place)}: {context['message']}"
        case "extra_forbidden" | "invalid_key":
            return f"{dotted(place)}: unknown key; {_known(section, place[-1], detail['input'])}"
        case "missing":
            return f"{dotted(place)}: missing; must be {field}"
        case "literal_error":
            options = [option.strip("'") for option in re.split(", | or ", context["expected"])]
            may_be = options[0] if len(options) == 1 else f"one of {', '.join(options)}"
            return f"{dotted(place)}: must be {may_be}, {got}{nearest(detail['input'], options)}"
    if "[key]" in detail["loc"]:
        return f"{dotted(place)}: must have text as its key (put it in quotes), {got}"
    if place and place[-1] not in section.model_fields:  # inside a field: a group's widths, or one of them
        inner = _INNER.get(detail["type"])
        field = inner.format(**context) if inner else field
    if detail["type"] == "string_type" and isinstance(detail["input"], (bool, int, float)):
        got += " (put it in quotes)"
    return f"{dotted(place)}: must be {field}, {got}"


# Requirements inside a field, by the kind of pydantic's error.
_INNER = {
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list",
    "bool_type": "true or false",
    "int_type": "a whole number",
    "greater_than_equal": "at least {ge}",
}


def _place(detail: ErrorDetails) -> tuple[str | int, ...]:
    """Return the keys from the top to the error, without pydantic's additions for the branches of a union."""
    inner = detail["ctx"]["at"] if detail["type"] == "rule" else ()
    return (*(key for key in detail["loc"] if key != "[key]" and key not in _TAGGED), *inner)


_TAGGED: Mapping[str, type[Section]] = {"<range>": Range, **FORMS}


def _described(location: tuple[str | int, ...]) -> tuple[type[Section], str]:
    """Return the innermost section on the way to an error, and the requirement there."""
    section: type[Section] = StudyConfig
    text = ""
    for key in location:
        field = section.model_fields.get(str(key))
        if str(key) in _TAGGED:
            section = _TAGGED[str(key)]
        elif field is not None:
            kind = field.annotation
            if isinstance(kind, type) and issubclass(kind, Section):
                section, text = kind, ""
            text = field.description or text
    return section, text or f"a mapping with the keys {_keys(section)}"


def _known(section: type[Section], key: object, value: object) -> str:
    for tag, form in FORMS.items():
        if section in FORMS.values() and section is not form and key in form.model_fields:
            return f"only data of source {tag.strip('<>')} have it (got {show(value)})"
    near = nearest(key, tuple(section.model_fields))
    return near.removeprefix("; ") or f"the keys here are {_keys(section)}"


def _keys(section: type[Section]) -> str:
    return ", ".join(section.model_fields)


def _order(data: object, place: tuple[str | int, ...]) -> tuple[float, ...]:
    """Return the position of a place in the data; a missing one comes last in its section."""
    order: list[float] = []
    for key in place:
        keys = list(data) if isinstance(data, Mapping) else []
        order.append(keys.index(key) if key in keys else key if isinstance(key, int) else math.inf)
        data = data[key] if isinstance(data, Mapping) and key in data else None
    return tuple(order)


def difference(a: StudyConfig | Mapping[str, object], b: StudyConfig | Mapping[str, object]) -> str | None:
    """Describe the first setting that differs from a to b, in one line; None when there is none.

    Plain data that this version cannot read are compared unchanged.
    """
    return _difference(_settings(a), _settings(b), ())


def _settings(config: StudyConfig | Mapping[str, object]) -> dict[str, object]:
    try:
        study = parse(config)
    except ConfigError:
        return {key: value for key, value in dict(config).items() if key not in FREE_SECTIONS}
    return study.model_dump(mode="json", exclude=set(FREE_SECTIONS))


def _difference(a: Mapping[str, object], b: Mapping[str, object], path: tuple[str, ...]) -> str | None:
    for key in (*b, *(key for key in a if key not in b)):
        old, new = a.get(key, _ABSENT), b.get(key, _ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found = _difference(old, new, (*path, key))
            if found:
                return found
        elif _canonical(old) != _canonical(new):
            was, now = ("absent" if value is _ABSENT else show(value) for value in (old, new))
            return f"{dotted((*path, key))} was {was}, now {now}"
    return None


_ABSENT = object()


def _canonical(value: object) -> str:
    # As text: Python holds 1, 1.0 and true for equal, the sampler does not.
    return json.dumps(value, sort_keys=True, default=str)
