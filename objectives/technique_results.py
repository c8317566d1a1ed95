"""Techniques that were applied to a model once, to see whether they can be offered. No torch."""

from __future__ import annotations

from dataclasses import dataclass

# Names of techniques, beside those of widths and of the forms of tables.
PRUNING, LOW_RANK, LEARNED_ROUNDING = "pruning", "low rank", "learned rounding"


@dataclass(frozen=True)
class Tried:
    """One technique on one group, or on one table; refused: why it cannot be done, None where it can."""

    group: str
    technique: str
    refused: str | None = None
