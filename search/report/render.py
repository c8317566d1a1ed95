"""Templates filled with values. HTML is escaped by jinja2; the number formats of `search/format.py` are filters."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from search.format import (
    MISSING,
    column_percent,
    count,
    metric_name,
    milliseconds,
    pairs,
    percent,
    ranged,
    rate,
    significant,
    times,
)

_FILTERS = (column_percent, count, metric_name, milliseconds, pairs, percent, ranged, rate, significant, times)

_ENVIRONMENT = Environment(
    loader=PackageLoader("search.report"),
    autoescape=select_autoescape(("html.j2",), default_for_string=False),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
# `count` takes the place of an alias of jinja2's `length`.
_ENVIRONMENT.filters |= {function.__name__: function for function in _FILTERS} | {"formatted": format}
_ENVIRONMENT.globals["MISSING"] = MISSING
# JavaScript knows neither NaN nor infinity, and the order of keys is kept.
_ENVIRONMENT.policies["json.dumps_kwargs"] = {"allow_nan": False}


def render(template: str, **values: object) -> str:
    """Fill a template of `search/report/templates` with values.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not there.
    """
    return _ENVIRONMENT.get_template(template).render(values)
