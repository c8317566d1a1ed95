"""Limits of the loss: of the metric over all held-out rows, and on slices or of other outputs, by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from objectives.records import Interval, Quality
from search.config.yaml_reader import nearest, show
from search.errors import ConfigError

# Multiple of the tolerated loss beyond which the search takes no loss to be worse.
WORST_LOSS = 5.0


@dataclass(frozen=True)
class Limits:
    """Tolerated relative losses, over all rows and by slice."""

    max_loss: float
    slices: Mapping[str, float] = field(default_factory=dict)

    def kept(self, quality: Quality) -> bool:
        """Return whether every point loss is within its limit; a slice on which it is undefined violates none."""
        return all(excess <= 0 for excess in self.excesses(quality).values())

    def excesses(self, quality: Quality) -> dict[str, float]:
        """Return the excess of each point loss over its limit, negative where it is within; named for a constraint."""
        each = self._each(quality)
        return {f"loss{where or ' on all rows'}": loss - limit for where, loss, _, limit in each if loss is not None}

    def violated(self, quality: Quality) -> str | None:
        """Return the first limit that a point loss is above, in words; None where all are kept."""
        for where, loss, interval, limit in self._each(quality):
            if loss is not None and loss > limit:
                between = "" if interval is None else f" [{interval[0]:.2%}, {interval[1]:.2%}]"
                return f"its loss of {loss:.2%}{between}{where} is above the tolerated {limit:.2%}"
        return None

    def unproved(self, quality: Quality) -> str | None:
        """Return the first limit that an interval's upper end exceeds, or whose loss is undefined; None without any."""
        for where, loss, interval, limit in self._each(quality):
            if loss is None or interval is None:
                return f"the loss{where} is undefined, and must be at most {limit:.2%}"
            if not interval[1] <= limit:
                return f"the loss{where} may be {interval[1]:.2%}, {interval[1] - limit:.2%} above the {limit:.2%}"
        return None

    def margins(self, quality: Quality) -> dict[str, float | None]:
        """Return the distance of each loss's upper bound below its limit; None where a loss is undefined."""
        each = self._each(quality)
        return {f"loss{where}": None if interval is None else limit - interval[1] for where, _, interval, limit in each}

    def _each(self, quality: Quality) -> Iterator[tuple[str, float | None, Interval | None, float]]:
        """Yield the place in words, empty for all rows, the loss, its interval and its limit, then those of slices."""
        yield "", quality.loss, quality.loss_interval, self.max_loss
        of = {part.name: part for part in quality.parts}
        for name, limit in self.slices.items():
            part = of.get(name)
            yield f" on {name}", part.loss if part else None, part.loss_interval if part else None, limit


def check_slices(limits: Mapping[str, float], parts: Sequence[str]) -> None:
    """Check that each limit belongs to an existing part.

    Raises:
        ConfigError: a limit is on a part that the held-out rows do not have.
    """
    for name in limits:
        if name not in parts:
            known = f"one of {', '.join(parts)}" if parts else "left out, since the held-out rows have no slices"
            raise ConfigError(f"quality.slices: must be {known}, but got {show(name)}{nearest(name, parts)}")
