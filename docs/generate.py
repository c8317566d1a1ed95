"""Write the pages that follow from the code: `python docs/generate.py` renders commands.md and settings.md anew."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from search.cli.parser import _parser
from search.config.data_sections import FORMS
from search.config.section import Section, _ReadsDomain, written
from search.config.sections import StudyConfig
from search.config.yaml_reader import show

DOCS = Path(__file__).parent
_NOTICE = "<!-- Written by docs/generate.py from the code; edit that, not this page. -->"


# -- commands


def commands_page() -> str:
    """Every command with its arguments and options, as the parser has them."""
    commands = _commands()
    everywhere = _common([options for _, _, _, options in commands])
    of_studies = _common([options for _, _, arguments, options in commands if "STUDY" in arguments])
    of_a_study = [option for option in of_studies if option not in everywhere]
    parts = [
        _NOTICE,
        "# Commands",
        "Exit status: 0 done, 1 the work failed, 2 the input was wrong (one line says which field, what it must be and "
        "what it was), 130 interrupted.",
        "Options of every command:",
        "\n".join(everywhere),
        "Options of every command that takes a STUDY, which is a preset's name, such as `ml-100k`, or a YAML file:",
        "\n".join(of_a_study),
    ]
    for name, what, arguments, options in commands:
        own = [option for option in options if option not in (*everywhere, *of_a_study)]
        synopsis = " ".join(["leanrec", name, *arguments, *(["[options]"] if own else [])])
        parts += [f"## {name}", f"{what[0].upper()}{what[1:]}.", f"    {synopsis}", *(["\n".join(own)] if own else [])]
    return "\n\n".join(parts) + "\n"


def _commands() -> list[tuple[str, str, list[str], list[str]]]:
    """Name, purpose, arguments and described options of each command."""
    (choices,) = (one for one in _parser()._actions if isinstance(one, argparse._SubParsersAction))
    found = []
    for name, command in choices.choices.items():
        actions = [one for one in command._actions if not isinstance(one, argparse._HelpAction)]
        arguments = [str(one.metavar) for one in actions if not one.option_strings]
        found.append((name, command.description, arguments, [_option(one) for one in actions if one.option_strings]))
    return found


def _common(commands: Sequence[Sequence[str]]) -> list[str]:
    """Options of the first command that all the others have as well."""
    first, *others = commands
    return [option for option in first if all(option in options for options in others)]


def _option(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else action.metavar or "|".join(action.choices or ()) or action.dest.upper()
    told = action.nargs == 0 or action.default in (None, []) or "default" in (action.help or "")
    default = "" if told else f" (default `{action.default}`)"
    return f"- `{f'{action.option_strings[0]} {value}'.strip()}`{f': {action.help}' if action.help else ''}{default}"


# -- settings


def settings_page() -> str:
    """Every key of a study file: the template that explains them, then the rule and the default of each by section."""
    template = resources.files("search.config").joinpath("presets/template.yaml").read_text("utf-8")
    parts = [
        _NOTICE,
        "# Settings",
        "A study file is YAML; every key has a default except `name` and, for a built-in model, `data.source`, "
        "with `data.columns` where that is a table. "
        "`leanrec init FILE` writes the file below, and `--set KEY.PATH=VALUE` overrides one key. The rules "
        "of all keys follow it.",
        f"```yaml\n{template.strip()}\n```",
    ]
    for path, title, section in _walk(StudyConfig, "", "study"):
        if entries := _entries(path, section):
            parts += [f"## {title}", entries]
    return "\n\n".join(parts) + "\n"


def _walk(section: type[Section], path: str, title: str) -> Iterator[tuple[str, str, type[Section]]]:
    """Path, title and model of a section and of each within it."""
    yield path, title, section
    for name, field in section.model_fields.items():
        within = f"{path}.{name}".removeprefix(".")
        for form, inner in _sections(name, field):
            yield from _walk(inner, within, f"{within} ({form})" if form else within)


def _sections(name: str, field: FieldInfo) -> list[tuple[str, type[Section]]]:
    """The sections that a field may hold, and what tells them apart; none of a leaf."""
    if name == "data":
        return [(form.strip("<>"), section) for form, section in FORMS.items()]
    kind = field.annotation
    return [("", kind)] if isinstance(kind, type) and issubclass(kind, Section) else []


def _entries(path: str, section: type[Section]) -> str:
    """Rules and defaults of a section's keys, without those of its sections."""
    entries = []
    for name, field in section.model_fields.items():
        if not _sections(name, field):
            default = "" if field.is_required() else f" Default `{_written_default(field)}`."
            entries.append(f"- **`{f'{path}.{name}'.removeprefix('.')}`**: {_rule(field)}.{default}")
    return "\n".join(entries)


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


PAGES: Mapping[str, Callable[[], str]] = {"commands.md": commands_page, "settings.md": settings_page}


if __name__ == "__main__":
    for page, render in PAGES.items():
        (DOCS / page).write_text(render(), encoding="utf-8")
        sys.stdout.write(f"{DOCS / page}\n")
