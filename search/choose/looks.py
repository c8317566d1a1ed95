"""Looks at the test split: each evaluation of a model there, numbered and recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from objectives.records import Quality

ALPHA = 0.05


@dataclass(frozen=True)
class ModelKey:
    """A model as it is scored: the file, where it runs, and the width that it computes in."""

    artifact: str
    engine: tuple[str, ...]
    compute: str


@dataclass(frozen=True)
class Look:
    """A look at test: its number, the first trial that it was taken for, the model, and what was seen."""

    look: int
    trial: int
    model: ModelKey
    quality: Quality


class Looks:
    """Looks at test of a study; each new one is recorded at once.

    Args:
        known: those so far
        record: records all of them
    """

    def __init__(self, known: Iterable[Look], record: Callable[[tuple[Look, ...]], None]) -> None:
        self._known, self._record = tuple(known), record

    def __len__(self) -> int:
        return len(self._known)

    def number_of(self, model: ModelKey) -> int:
        """Return the number of the look at a model: that of its first one, or the next."""
        return next((before.look for before in self._known if before.model == model), len(self) + 1)

    def add(self, look: Look) -> None:
        """Record a look, unless its model was looked at before."""
        if look.look > len(self):
            self._known = (*self._known, look)
            self._record(self._known)


def confidence_of(look: int) -> float:
    """Return the confidence level of the k-th evaluation on test.

    This is Bonferroni with unequal shares, alpha / (k (k + 1)), which sum to alpha. For any number of evaluations, the
    chance that any accepted point violates the limit stays below alpha, and the number need not be known beforehand.
    """
    return 1 - ALPHA / (look * (look + 1))
