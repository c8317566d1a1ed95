"""Reader of plain data from one YAML document, with its error messages."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping, Sequence

from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from search.errors import ConfigError


def plain(text: str, label: str, path: tuple[str, ...] = ()) -> object:
    """Read plain data from the text of one YAML 1.2 document; None if it is empty.

    Args:
        label: names the text in an error
        path: where the data belong in the study, for an error

    Raises:
        ConfigError: not YAML (with label and line), a key given twice, a tag that is not plain data.
    """
    try:
        return YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{label}, line {1 if mark is None else mark.line + 1}"
        if isinstance(error, DuplicateKeyError):
            key = str(error.problem).partition('"')[2].partition('"')[0]
            raise ConfigError(f"{dotted((*path, key))}: must be given once, but got it twice ({where})") from error
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from error
    except ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{label}, line {line}: not valid YAML: a character that may not be printed") from error
    except (YAMLError, ValueError, TypeError) as error:  # a tag whose value is none of its kind; a list as a key
        raise ConfigError(f"{label}: not valid YAML: {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{label}: nested too deeply for a study file") from error


def value_at(data: object, path: Sequence[str]) -> object:
    """Return the value at a path of keys, None where there is none."""
    for key in path:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def replaced(
    data: Mapping[str, object], path: tuple[str, ...], value: object, *, done: tuple[str, ...] = ()
) -> dict[str, object]:
    """Copy data with the value at path replaced, since data under an anchor may be shared."""
    key, *rest = path
    if not rest:
        return {**data, key: value}
    inner = data.get(key)
    if inner is not None and not isinstance(inner, dict):
        where = dotted((*done, key))
        raise ConfigError(f"{dotted((*done, *path))}: {where} holds no further keys; it is {show(inner)}")
    return {**data, key: replaced(inner or {}, tuple(rest), value, done=(*done, key))}


def nearest(word: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def dotted(path: Sequence[object]) -> str:
    return ".".join(str(key) if re.fullmatch(r"[\w<>-]+", str(key)) else show(key) for key in path) or "study"


def show(value: object, depth: int = 3) -> str:
    """Format a value as in YAML, on one short line."""
    if isinstance(value, Mapping) and depth:
        text = "{" + ", ".join(f"{dotted([k])}: {show(v, depth - 1)}" for k, v in list(value.items())[:9]) + "}"
    elif isinstance(value, (list, tuple)) and depth:
        text = "[" + ", ".join(show(item, depth - 1) for item in value[:9]) + "]"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    else:
        text = "..." if isinstance(value, (Mapping, list, tuple)) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
