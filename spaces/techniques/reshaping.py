"""Base class of the techniques that change a model before it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from spaces.domains import Scalar


@dataclass(frozen=True)
class Reshaping(ABC):
    """A technique that changes the shapes, weights or reach of a model, which then learns from the baseline.

    A subclass is a frozen record, alone or in a tuple of `Weights`; what it does is in
    `objectives.compression.pipeline`.

    ablated: the technique's name in an ablation
    by_group: name of the field of pairs of a group and its value, None for a technique on no single groups
    """

    ablated: ClassVar[str]
    by_group: ClassVar[str | None] = None

    @property
    def groups(self) -> tuple[str | None, ...]:
        """Layer groups or tables that it changes, each of which an ablation takes back alone; None: the whole model."""
        return (None,) if self.by_group is None else tuple(group for group, _ in getattr(self, self.by_group))

    def within(self, groups: Collection[str | None]) -> Self | None:
        """Return the technique on those of its groups that are among these, None where there are none."""
        kept = [group for group in self.groups if group in groups]
        if self.by_group is None or not kept:
            return self if kept else None
        pairs = tuple(pair for pair in getattr(self, self.by_group) if pair[0] in groups)
        return replace(self, **{self.by_group: pairs})

    @abstractmethod
    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name."""
