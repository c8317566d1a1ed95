"""Pieces of the report's HTML. What is text is escaped here; a cell's or a section's body is HTML already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

from search.format import MISSING


def section(title: str, lead: str, body: str) -> str:
    """`title` and `lead` are text, `body` is HTML."""
    paragraph = f'<p class="lead">{escape(lead)}</p>' if lead else ""
    return f"<section>\n<h2>{escape(title)}</h2>\n{paragraph}{body}\n</section>\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`rows` are HTML cells."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>'


def cell(value: float | None, word: Callable[[float], str], interval: Sequence[float] | None = None) -> str:
    """A number in words, its interval below it."""
    if value is None:
        return MISSING
    ends = f"<small>{escape(word(interval[0]))} to {escape(word(interval[1]))}</small>" if interval else ""
    return f"{escape(word(value))}{ends}"
