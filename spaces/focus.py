"""Select the layer groups worth compressing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SHARE = 0.05


@dataclass(frozen=True)
class Part:
    """Share of one layer group in the time of a request and in the bytes of the weights, both in [0, 1]."""

    group: str
    time_share: float
    bytes_share: float

    def __post_init__(self) -> None:
        if not (0.0 <= self.time_share <= 1.0 and 0.0 <= self.bytes_share <= 1.0):
            raise ValueError(f"Shares lie in [0, 1], but got {self}.")


def focus(parts: Iterable[Part], share: float = SHARE) -> frozenset[str]:
    """Select the groups that take at least this share of the time or of the bytes; a share of 0 keeps all.

    Raises:
        ValueError: the share lies outside [0, 1].
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"The share that a group must reach lies in [0, 1], but got {share}.")
    return frozenset(part.group for part in parts if max(part.time_share, part.bytes_share) >= share)


def reason(part: Part, share: float = SHARE) -> str:
    """Describe in words the decision to search the group or to leave it out."""
    # Three decimals close to the bound, so that a value below it does not read as equal.
    time, size = (f"{100 * x:.{1 if abs(x - share) > 5e-4 else 3}f}%" for x in (part.time_share, part.bytes_share))
    if focus([part], share):
        return f"{time} of the time and {size} of the bytes: searched"
    return f"{time} of the time and {size} of the bytes, both below {100 * share:g}%: kept at fp32, not pruned"
