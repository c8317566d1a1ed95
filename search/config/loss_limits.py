"""What may be lost: of the metric over all held-out rows, and of it on slices, or of other outputs, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from objectives.records import Interval, Quality
from search.config.yaml_reader import nearest, show
from search.errors import ConfigError

_ALL = "all rows"


@dataclass(frozen=True)
class Limits:
    """The tolerated relative losses, over all rows and by slice."""

    max_loss: float
    slices: Mapping[str, float] = field(default_factory=dict)

    def kept(self, quality: Quality) -> bool:
        """Whether every point loss is within its limit; a slice that cannot be told breaks none."""
        return all(excess <= 0 for excess in self.excesses(quality).values())

    def excesses(self, quality: Quality) -> dict[str, float]:
        """By how much each point loss is above its limit, below zero where it is within."""
        return {name: loss - limit for name, loss, _, limit in self._each(quality) if loss is not None}

    def lost(self, quality: Quality) -> str | None:
        """Which limit is broken for certain, the whole interval being above it; None where none is."""
        for name, loss, interval, limit in self._each(quality):
            if loss is not None and interval is not None and interval[0] > limit:
                low, high = interval
                where = "" if name == _ALL else f" on {name}"
                return f"its loss of {loss:.2%} [{low:.2%}, {high:.2%}]{where} is above the tolerated {limit:.2%}"
        return None

    def unproved(self, quality: Quality) -> str | None:
        """Which limit is not kept for certain, the upper end of an interval being above it; None where all are."""
        for name, loss, interval, limit in self._each(quality):
            where = "" if name == _ALL else f" on {name}"
            if loss is None or interval is None:
                return f"the loss{where} cannot be told, and may be {limit:.2%} at most"
            if not interval[1] <= limit:
                return f"the loss{where} may be {interval[1]:.2%}, {interval[1] - limit:.2%} above the {limit:.2%}"
        return None

    def margins(self, quality: Quality) -> dict[str, float | None]:
        """How far the upper end of each loss's interval lies below its limit; None where a loss cannot be told."""
        each = self._each(quality)
        return {
            "loss" if name == _ALL else f"loss on {name}": None if interval is None else limit - interval[1]
            for name, _, interval, limit in each
        }

    def _each(self, quality: Quality) -> list[tuple[str, float | None, Interval | None, float]]:
        """Name, loss, interval and limit."""
        every: list[tuple[str, float | None, Interval | None, float]] = [
            (_ALL, quality.loss, quality.loss_interval, self.max_loss)
        ]
        of = {part.name: part for part in quality.parts}
        for name, limit in self.slices.items():
            part = of.get(name)
            every.append((name, part.loss if part else None, part.loss_interval if part else None, limit))
        return every


def check_slices(limits: Mapping[str, float], parts: Sequence[str]) -> None:
    """
    Raises:
        ConfigError: a limit is on a part that the held-out rows do not have.
    """
    for name in limits:
        if name not in parts:
            known = f"one of {', '.join(parts)}" if parts else "left out, since the held-out rows have no slices"
            raise ConfigError(f"quality.slices: must be {known}, but got {show(name)}{nearest(name, parts)}")
