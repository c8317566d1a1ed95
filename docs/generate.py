"""Write the pages that follow from the code: `python docs/generate.py` renders commands.md and settings.md anew."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from search.cli.parser import _parser
from search.config.data_sections import FORMS, MovieLensData
from search.config.section import Section, _ReadsDomain, written
from search.config.sections import StudyConfig
from search.config.yaml_reader import show

DOCS = Path(__file__).parent
_NOTICE = "<!-- Written by docs/generate.py from the code; edit that, not this page. -->"


# -- commands


def commands_page() -> str:
    """Every command with its arguments and options, as the parser has them."""
    commands = _commands()
    everywhere = _common([actions for _, _, actions in commands])
    of_studies = [actions for _, _, actions in commands if "STUDY" in _positional(actions)]
    of_a_study = [one for one in _common(of_studies) if one.option_strings and not _among(one, everywhere)]
    shared = [*everywhere, *of_a_study]
    parts = [
        _NOTICE,
        "# Commands",
        "Exit status: 0 done, 1 the work failed, 2 the input was wrong (one line says which field, what it must be and "
        "what it was), 130 interrupted.",
        "Options of every command:",
        _options(everywhere),
        "Options of every command that takes a STUDY, which is a preset's name, such as `ml-100k`, or a YAML file:",
        _options(of_a_study),
    ]
    for name, what, actions in commands:
        own = [one for one in actions if one.option_strings and not _among(one, shared)]
        synopsis = " ".join(["leanrec", name, *_positional(actions), *(["[options]"] if own else [])])
        parts += [f"## {name}", f"{what[0].upper()}{what[1:]}.", f"    {synopsis}", *([_options(own)] if own else [])]
    return "\n\n".join(parts) + "\n"


def _commands() -> list[tuple[str, str, list[argparse.Action]]]:
    """Name, purpose and actions of each command."""
    (choices,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    return [
        (name, command.description, [a for a in command._actions if not isinstance(a, argparse._HelpAction)])
        for name, command in choices.choices.items()
    ]


def _common(commands: Sequence[Sequence[argparse.Action]]) -> list[argparse.Action]:
    """Actions of the first command that all the others have as well."""
    first, *others = commands
    return [one for one in first if all(_among(one, of) for of in others)]


def _among(action: argparse.Action, others: Sequence[argparse.Action]) -> bool:
    return any((action.dest, action.help) == (other.dest, other.help) for other in others)


def _positional(actions: Sequence[argparse.Action]) -> list[str]:
    return [str(one.metavar) for one in actions if not one.option_strings]


def _options(actions: Sequence[argparse.Action]) -> str:
    return "\n".join(f"- `{_spelled(one)}`{f': {one.help}' if one.help else ''}{_default(one)}" for one in actions)


def _spelled(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else action.metavar or "|".join(action.choices or ()) or action.dest.upper()
    return f"{action.option_strings[0]} {value}".strip()


def _default(action: argparse.Action) -> str:
    told = action.nargs == 0 or action.default in (None, []) or "default" in (action.help or "")
    return "" if told else f" (default `{action.default}`)"


# -- settings


def settings_page() -> str:
    """Every key of a study file: rule and default as the models have them, meaning as the template explains it."""
    meanings = _meanings(resources.files("search.config").joinpath("presets/template.yaml").read_text("utf-8"))
    parts = [
        _NOTICE,
        "# Settings",
        "A study file is YAML; every key has a default except `name` and, for a built-in model, `data.source`. "
        "`leanrec init FILE` writes a file with all of them, and `--set KEY.PATH=VALUE` overrides one.",
        *_entries("", StudyConfig, _leaves(StudyConfig), meanings),
    ]
    for path, title, section in _walk(StudyConfig):
        leaves = [name for name in _leaves(section) if title == "data" or f"{path}.{name}" != "data.source"]
        if leaves:
            parts += [f"## {title}", *meanings.get(path, []), *_entries(path, section, leaves, meanings)]
    return "\n\n".join(parts) + "\n"


def _walk(section: type[Section], path: str = "") -> Iterator[tuple[str, str, type[Section]]]:
    """Path, title and model of each section within one."""
    for name, field in section.model_fields.items():
        within = f"{path}.{name}".removeprefix(".")
        for form, inner in _sections(name, field):
            yield within, f"{within} ({form})" if form else within, inner
            yield from _walk(inner, within)


def _leaves(section: type[Section]) -> list[str]:
    return [name for name, field in section.model_fields.items() if not _sections(name, field)]


def _sections(name: str, field: FieldInfo) -> list[tuple[str, type[Section]]]:
    """The sections that a field may hold, and what tells them apart; none of a leaf."""
    if name == "data":
        return [("", MovieLensData), *((form.strip("<>"), section) for form, section in FORMS.items())]
    kind = field.annotation
    return [("", kind)] if isinstance(kind, type) and issubclass(kind, Section) else []


def _entries(
    path: str, section: type[Section], names: Sequence[str], meanings: Mapping[str, list[str]]
) -> Iterator[str]:
    for name in names:
        field, within = section.model_fields[name], f"{path}.{name}".removeprefix(".")
        default = "" if field.is_required() else f" Default `{_written_default(field)}`."
        rule = _rule(field)
        more = [new for text in meanings.get(within, []) if (new := _beyond(rule, text))]
        yield "\n\n".join([f"- **`{within}`**: {rule}.{default}", *(textwrap.indent(text, "  ") for text in more)])


def _beyond(rule: str, text: str) -> str:
    """Return the part of a paragraph that says more than the rule: neither a text nor a first clause of its words."""
    known = {*_words(rule), "or"}
    if text.startswith("- "):
        return text
    if set(_words(text)) <= known:
        return ""
    clause, colon, rest = text.partition(": ")
    if colon and ";" not in clause and set(_words(clause)) <= known - {"null"}:
        text = rest
    first = text.split()[0]
    return f"{text[0].upper()}{text[1:]}" if first.isalpha() and (first not in known or first == "a") else text


def _words(text: str) -> list[str]:
    return re.findall(r"[\w.{}-]*\w", text.lower())


def _written_default(field: FieldInfo) -> str:
    assert field.default is not PydanticUndefined
    return field.default if isinstance(field.default, str) else show(written(field.default))


def _rule(field: FieldInfo) -> str:
    """The rule that a value must keep, which completes "must be"."""
    if field.description:
        return field.description
    parts = [field.annotation, *get_args(field.annotation)]
    domains = [one for part in parts for one in (*get_args(part), *field.metadata) if isinstance(one, _ReadsDomain)]
    if domains:
        return f"a domain of {domains[0].rule}, or null"
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(field.annotation)))}"
    raise TypeError(f"A setting has a description, a domain or choices, but got {field!r}.")


def _meanings(template: str) -> dict[str, list[str]]:
    """Read the template's comments: paragraphs of Markdown by the dotted path of the key that they explain."""
    found: dict[str, list[str]] = defaultdict(list)
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in template.splitlines():
        indent, text = len(line) - len(line.lstrip()), line.strip()
        if not text:
            above = []
            continue
        if example := re.fullmatch(r"# for example: (.*)", text):
            found[_dotted(path)].append(f"Example: `{example[1]}`")
            continue
        # A key that is commented out, as those of other sources of data, lies deeper by its own indent.
        hidden = r"(?:#( +))?" if path and path[0][1] == "data" else "()"
        key = re.fullmatch(hidden + r"(\w+):(| .*)", text)
        if key is None:
            _continue(found, path, indent, text, above)
            continue
        name, rest = key[2], key[3]
        indent += len(key[1] or " ") - 1
        path = [*((depth, part) for depth, part in path if depth < indent), (indent, name)]
        comment = re.search(r"\s# ?(.*)$", rest)
        found[_dotted(path)] += [*_paragraphs(above), *([_sentence(comment[1])] if comment else [])]
        above = []
    return dict(found)


def _continue(
    found: dict[str, list[str]], path: Sequence[tuple[int, str]], indent: int, text: str, above: list[str]
) -> None:
    """A comment far to the right goes on with the one beside the key; any other stands above the next key."""
    last = found[_dotted(path)]
    if path and indent > path[-1][0] + 4 and last and not above:
        last[-1] = _sentence(f"{last[-1].removesuffix('.')} {text.lstrip('# ')}")
    else:
        above.append(text.removeprefix("#"))


def _paragraphs(lines: Sequence[str]) -> list[str]:
    """Prose as one paragraph; lines of a word, a gap and its explanation as a list."""
    prose: list[str] = []
    items: list[str] = []
    for line in lines:
        if item := re.fullmatch(r" (\S+) {2,}(\S.*)", line):
            items.append(f"- `{item[1]}`: {item[2]}")
        elif items and line.startswith("   "):
            items[-1] += f" {line.strip()}"
        else:
            prose.append(line.strip())
    return [*([_sentence(" ".join(prose))] if prose else []), *(["\n".join(items)] if items else [])]


def _sentence(text: str) -> str:
    text = text.strip().removesuffix(":")
    return text if text.endswith(".") else f"{text}."


def _dotted(path: Sequence[tuple[int, str]]) -> str:
    return ".".join(name for _, name in path)


PAGES: Mapping[str, Callable[[], str]] = {"commands.md": commands_page, "settings.md": settings_page}


if __name__ == "__main__":
    for page, render in PAGES.items():
        (DOCS / page).write_text(render(), encoding="utf-8")
        sys.stdout.write(f"{DOCS / page}\n")
