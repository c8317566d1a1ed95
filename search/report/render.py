"""Templates filled with values. HTML is escaped by jinja2; the number formats of `search/format.py` are filters."""

from __future__ import annotations

from collections.abc import Callable
from inspect import getmembers, isfunction

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from search import format as words
from search.report.theme import css_variables

_FILTERS: dict[str, Callable[..., str]] = dict(getmembers(words, isfunction))

_ENVIRONMENT = Environment(
    loader=PackageLoader("search.report"),
    autoescape=select_autoescape(("html.j2",), default_for_string=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
# Data for scripts: in the order that they were given, since words are shown in it.
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
# `count` takes the place of an alias of jinja2's `length`.
_ENVIRONMENT.filters |= _FILTERS | {"formatted": format, "css_variables": css_variables}
_ENVIRONMENT.globals["MISSING"] = words.MISSING


def render(template: str, **values: object) -> str:
    """Fill a template of `search/report/templates` with values; jinja2.UndefinedError where it asks for another."""
    return _ENVIRONMENT.get_template(template).render(values)
