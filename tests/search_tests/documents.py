"""Fronts read back from their JSON."""

from __future__ import annotations

from dataclasses import fields, replace

from search.results import Front, Point, Row, read_choice
from spaces.serialization import Json, from_plain


def read_front(plain: Json) -> Front:
    """The front that `front_json` wrote, and that `leanrec report` keeps."""
    chosen = plain.get("chosen")
    front = from_plain(Front, {**_fields(Front, plain), "rows": (), "chosen": None})
    rows = tuple(_read_row(row) for row in plain["rows"])
    return replace(front, rows=rows, chosen=None if chosen is None else read_choice(chosen))


def _read_row(plain: Json) -> Row:
    kind = Point if plain["state"] == "complete" else Row
    return from_plain(kind, _fields(kind, plain))


def _fields(kind: type[Row | Front], plain: Json) -> Json:
    """The keys that are fields, without those that follow from them."""
    return {f.name: plain[f.name] for f in fields(kind) if f.name in plain}
