"""Results of applying each technique to a model once, to decide which to offer. No torch."""

from __future__ import annotations

from dataclasses import dataclass

# Names of techniques, in addition to those of widths and of the forms of tables.
PRUNING, LOW_RANK, LEARNED_ROUNDING = "pruning", "low rank", "learned rounding"


@dataclass(frozen=True)
class Tried:
    """Result of one technique on one group, or on one table.

    refused: the reason why it cannot be applied, None where it can
    """

    group: str
    technique: str
    refused: str | None = None
