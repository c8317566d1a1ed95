"""Model families that score the rows of a request by their fields."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from objectives.recommenders.datasets.features import Field
from objectives.recommenders.families import dcn_v2, dlrm
from spaces.domains import Choice
from spaces.techniques.architecture import Architecture


@dataclass(frozen=True)
class Family:
    """Construction of a family's models, and their sizes.

    baseline: the published sizes
    build: makes a model of fields and sizes
    sizes: reads sizes from an architecture
    student: sizes that a sibling over these fields may take, where it stays below its baseline
    hidden: returns the dotted name of the module whose outputs are a model's features
    """

    baseline: Any
    build: Callable[[Sequence[Field], Any], nn.Module]
    sizes: Callable[[Architecture], Any]
    student: Callable[[Sequence[Field]], Mapping[str, Choice]]
    hidden: Callable[[Any], str]


FAMILIES: Mapping[str, Family] = {
    "dcn-v2": Family(dcn_v2.BASELINE, dcn_v2.DCNV2, dcn_v2.Sizes.of, lambda _: dcn_v2.STUDENT, dcn_v2.hidden),
    "dlrm": Family(dlrm.BASELINE, dlrm.DLRM, dlrm.Sizes.of, dlrm.student, dlrm.hidden),
}
