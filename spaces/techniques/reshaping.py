"""Base class of the techniques that change a model before it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from typing import ClassVar, Self

from spaces.domains import Scalar


class Reshaping(ABC):
    """A technique that changes the shapes, weights or reach of a model, which then learns from the baseline.

    A subclass is a frozen record, alone or in a tuple of `Weights`; what it does is in
    `objectives.compression.pipeline`.

    ablated: the technique's name in an ablation
    """

    ablated: ClassVar[str]

    @property
    def groups(self) -> tuple[str | None, ...]:
        """Layer groups or tables that it changes, each of which an ablation takes back alone; None: the whole model."""
        return (None,)

    def within(self, groups: Collection[str | None]) -> Self | None:
        """Return the technique on those of its groups that are among these, None where there are none."""
        return self if set(self.groups) & set(groups) else None

    @abstractmethod
    def knobs(self) -> dict[str, Scalar]:
        """Return every choice by its dotted name."""
