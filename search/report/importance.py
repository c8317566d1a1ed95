"""Table of the importance of knobs for each objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from search.format import MISSING, percent
from search.report.columns import Cell, Column
from search.results import Front
from search.samplers.knob_importance import KnobImportance

# Most knobs that are shown, and the share below which a knob matters for no objective.
_MOST, _LEAST = 12, 0.01


@dataclass(frozen=True)
class KnobRow:
    """A knob with its importance by objective."""

    knob: str
    by_objective: Mapping[str, KnobImportance]

    @property
    def largest(self) -> float:
        return max(one.surrogate for one in self.by_objective.values())


def importance_rows(front: Front) -> list[KnobRow]:
    """Return the knobs that matter most for any objective, the most important first."""
    knobs = {one.knob for ranked in front.importance.values() for one in ranked}
    rows = [
        KnobRow(knob, {name: one for name, ranked in front.importance.items() for one in ranked if one.knob == knob})
        for knob in sorted(knobs)
    ]
    return sorted((row for row in rows if row.largest >= _LEAST), key=lambda row: -row.largest)[:_MOST]


def importance_columns(front: Front) -> list[Column[KnobRow]]:
    """Return the columns: the knob, and each objective with both estimates."""
    columns = [Column[KnobRow]("knob", lambda row: Cell(row.knob), "left")]
    return columns + [Column(name.replace("_", " "), partial(_shares, name)) for name in front.importance]


def _shares(objective: str, row: KnobRow) -> Cell:
    one = row.by_objective.get(objective)
    if one is None:
        return Cell(MISSING)
    beside = "" if one.ped_anova is None else f"PED-ANOVA {percent(one.ped_anova)}"
    return Cell(percent(one.surrogate), beside)
