"""Model families that score the rows of a request by their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families import dcn_v2, dlrm
from objectives.recommenders.families.sizes import FieldSizes
from spaces.domains import Choice
from spaces.techniques.architecture import Architecture


@dataclass(frozen=True)
class Family:
    """Construction of a family's models, and their sizes.

    baseline: the published sizes
    sizes: reads sizes from an architecture
    student: sizes that a sibling over these fields may take, where it stays below its baseline
    hidden: dotted name of the module whose outputs are a model's features
    """

    baseline: FieldSizes
    sizes: Callable[[Architecture], FieldSizes]
    student: Callable[[Sequence[Field]], Mapping[str, Choice]]
    hidden: str


FAMILIES: Mapping[str, Family] = {
    "dcn-v2": Family(dcn_v2.BASELINE, dcn_v2.Sizes.of, lambda _: dcn_v2.STUDENT, dcn_v2.HIDDEN),
    "dlrm": Family(dlrm.BASELINE, dlrm.Sizes.of, dlrm.student, dlrm.HIDDEN),
}
