"""The loss on parts of the held-out rows, in the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from search.format import MISSING

Slice = Mapping[str, Any]


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
