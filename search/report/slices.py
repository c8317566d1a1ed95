"""Who pays: the loss on parts of the held-out rows, in the report and in the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from search.format import MISSING, column_percent, metric_name
from search.report.html import cell, section, table
from search.verdict import subject

Slice = Mapping[str, Any]
_HEADS = ("rows", "of them", "users or requests", "baseline", "this model", "loss", "")


def slices_of(document: Mapping[str, Any]) -> tuple[str, Sequence[Slice]]:
    """What was looked at, and its slices: of the chosen trial on test, else of the best compromise on validation."""
    row = subject(document)
    if row is None:
        return "", ()
    confirmed = (document.get("chosen") or {}).get("confirmed") or {}
    part = "test" if "slices" in confirmed else "validation"
    metric = metric_name(row["quality"]["metric"])
    found = confirmed.get("slices", row["quality"].get("slices")) or ()
    return f"{metric} of trial {row['trial']} on parts of the {part} rows", found


def slices_section(document: Mapping[str, Any]) -> str:
    """HTML; empty where the data name no slices."""
    what, slices = slices_of(document)
    if not slices:
        return ""
    lead = (
        f"{what}, beside the baseline's on the same rows. Each interval is at the same confidence, "
        "not adjusted for their number."
    )
    body = table(_HEADS, [_row(part) for part in slices]).replace("<table>", '<table class="slices">')
    return section("Who pays", lead, body)


def _row(part: Slice) -> Sequence[str]:
    score = "{:.4f}".format
    return (
        escape(part["name"]),
        f"{part['rows']:,}",
        f"{part['groups']:,}",
        cell(part["baseline"], score),
        cell(part["value"], score),
        cell(part["loss"], column_percent, part["loss_interval"]),
        escape(part["reason"] or _standing(part)),
    )


def _standing(part: Slice) -> str:
    low, high = part["loss_interval"]
    if low > 0:
        return "loses"
    return "gains" if high < 0 else "no loss that this data can show"


def slices_markdown(slices: Sequence[Slice]) -> str:
    """A table of the model card with an empty line after it; empty without slices."""
    if not slices:
        return ""
    lines = ["| on test, by slice | rows | this model | baseline | loss, interval |", "|---|---|---|---|---|"]
    lines += [f"| {part['name']} | {part['rows']:,} | {_numbers(part)} |" for part in slices]
    return "\n".join(lines) + "\n\n"


def _numbers(part: Slice) -> str:
    if part["reason"] is not None:
        return f"{MISSING} | {MISSING} | not told: {part['reason']}"
    low, high = part["loss_interval"]
    return f"{part['value']:.4f} | {part['baseline']:.4f} | {part['loss']:+.2%} [{low:+.2%}, {high:+.2%}]"
