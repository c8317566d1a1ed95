"""Plain data from one YAML document, and the words in which what is wrong with it is said."""

from __future__ import annotations

import contextlib
import difflib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from search.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain scalars: 1e-2 is a number; yes, on, 010, 0x1, 1:30 and 2026-01-01 are text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own attribute


_TAG = "tag:yaml.org,2002:"
_DIGITS = "[0-9]+(?:_[0-9]+)*"
for _name, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)", list("-+0123456789")),
    (
        "float",
        rf"[-+]?(?:(?:{_DIGITS}\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|{_DIGITS}[eE][-+]?[0-9]+"
        r"|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"^(?:{_pattern})\Z"), _first)


def plain(text: str, label: str, path: tuple[str, ...] = ()) -> Any:
    """The plain data in the text of one YAML document; None if it is empty.

    Raises:
        ConfigError: not YAML (with label and line), a key given twice, a tag that is not plain data.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _build(node, path, label, {})
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{label}{line}: not valid YAML: {error.problem or error.context}") from error
    except yaml.reader.ReaderError as error:
        line = f", line {text.count(chr(10), 0, error.position) + 1}"
        raise ConfigError(f"{label}{line}: not valid YAML: a character that may not be printed") from error
    except RecursionError as error:
        raise ConfigError(f"{label}: nested too deeply for a study file") from error


_OPEN = object()  # a node whose inside is being read


def _build(node: yaml.Node, path: tuple[Any, ...], label: str, seen: dict[int, Any]) -> Any:
    """The data of a node. Those of an alias are shared by all its places: nested aliases must not multiply."""
    if id(node) in seen:
        if seen[id(node)] is _OPEN:
            raise ConfigError(f"{dotted(path)}: must be plain data, but got an alias of what it is part of")
        return seen[id(node)]
    seen[id(node)] = _OPEN
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = _scalar(node, path)
    elif isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        value = [_build(item, (*path, index), label, seen) for index, item in enumerate(node.value)]
    elif isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
        value = {}
        for key, item in _entries(node, path, label):
            value[key] = _build(item, (*path, key), label, seen)
    else:
        raise _not_plain(node, path)
    seen[id(node)] = value
    return value


def _entries(node: yaml.MappingNode, path: tuple[Any, ...], label: str) -> Iterator[tuple[Any, yaml.Node]]:
    lines: dict[Any, int] = {}
    for key_node, item in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise ConfigError(f"{label}, line {line}: a key must be a word, but got a list or a mapping")
        key = _scalar(key_node, path)
        if key in lines:
            where = f"lines {lines[key]} and {line}" if line != lines[key] else f"line {line}"
            raise ConfigError(f"{dotted((*path, key))}: must be given once, but got it twice ({label}, {where})")
        lines[key] = line
        yield key, item


def _scalar(node: yaml.ScalarNode, path: tuple[Any, ...]) -> Any:
    text: str = node.value
    match node.tag.removeprefix(_TAG):
        case "str":
            return text
        case "null":
            return None
        case "bool" if text.lower() in ("true", "false"):
            return text.lower() == "true"
        case "int" | "float" as kind:
            # Python writes infinity and "not a number" without YAML's dot.
            with contextlib.suppress(ValueError):
                return int(text) if kind == "int" else float(re.sub(r"\.(?=inf|nan)", "", text.lower()))
    raise _not_plain(node, path)


def _not_plain(node: yaml.Node, path: tuple[Any, ...]) -> ConfigError:
    tag = node.tag.replace(_TAG, "!!")
    got = f"{tag} {show(node.value)}" if isinstance(node, yaml.ScalarNode) else tag
    return ConfigError(f"{dotted(path)}: must be plain data (text, a number, a list, a mapping), but got {got}")


def nearest(word: object, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(word), known, n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def dotted(path: Sequence[object]) -> str:
    return ".".join(str(key) if re.fullmatch(r"[\w<>-]+", str(key)) else show(key) for key in path) or "study"


def show(value: object, depth: int = 3) -> str:
    """A value as YAML writes it, on one line and short."""
    if isinstance(value, Mapping) and depth:
        text = "{" + ", ".join(f"{dotted([k])}: {show(v, depth - 1)}" for k, v in list(value.items())[:9]) + "}"
    elif isinstance(value, (list, tuple)) and depth:
        text = "[" + ", ".join(show(item, depth - 1) for item in value[:9]) + "]"
    elif value is None or isinstance(value, bool):
        text = "null" if value is None else str(value).lower()
    elif isinstance(value, float) and not math.isfinite(value):
        text = ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    elif isinstance(value, int) and value.bit_length() > 256:
        text = "a number of more than 77 digits"
    else:
        text = "..." if isinstance(value, (Mapping, list, tuple)) else repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
