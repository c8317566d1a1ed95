"""Importance of a knob for an objective, as the report shows it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class KnobImportance:
    """Importance of one knob for one objective, as shares of 1.

    surrogate: by how much the models' predictions change if the knob's values are permuted, over all trials whose cost
        or loss is known
    ped_anova: how the best tenth of the complete trials differs from all of them in the knob (Watanabe et al., 2023);
        None where they are too few, or the knob is derived from those that were suggested (replicas from the layout)
    """

    knob: str
    surrogate: float
    ped_anova: float | None
