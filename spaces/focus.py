"""Select the layer groups worth compressing."""

from __future__ import annotations

SHARE = 0.05


def in_focus(time_share: float, bytes_share: float, share: float = SHARE) -> bool:
    """Return whether a group takes at least `share` of a request's time or of the weights' bytes.

    All shares lie in [0, 1]. A share of 0 keeps every group.

    Raises:
        ValueError: a share lies outside [0, 1].
    """
    for value in (time_share, bytes_share, share):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"A share of the time or of the bytes lies in [0, 1], but got {value}.")
    return max(time_share, bytes_share) >= share


def reason(time_share: float, bytes_share: float, share: float = SHARE) -> str:
    """Describe in words the decision to search the group or to leave it out."""
    # Three decimals close to the bound, so that a value below it does not read as equal.
    time, size = (f"{100 * x:.{1 if abs(x - share) > 5e-4 else 3}f}%" for x in (time_share, bytes_share))
    if in_focus(time_share, bytes_share, share):
        return f"{time} of the time and {size} of the bytes: searched"
    return f"{time} of the time and {size} of the bytes, both below {100 * share:g}%: kept at fp32, not pruned"
