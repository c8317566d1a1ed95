"""Hours of the week, numbered from Monday 0:00 on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOUR_SECONDS = 3600.0
HOURS = 7 * 24
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# Seconds of the week at the epoch, a Thursday.
EPOCH_SECONDS = 3 * 24 * HOUR_SECONDS
# Most stretches of hours that a sentence names.
_NAMED = 4


def hour_of_week(seconds: NDArray[np.floating[Any]]) -> NDArray[np.int64]:
    """Return the hour of the week of moments in seconds since a Monday 0:00, of any week."""
    return (seconds // HOUR_SECONDS).astype(np.int64) % HOURS


def named_hours(hours: Iterable[int]) -> str:
    """Return hours of the week in words, consecutive ones as a stretch: Monday 8:00 to 11:00, Sunday 23:00 to 24:00."""
    stretches: list[list[int]] = []
    for hour in sorted(hours):
        if stretches and stretches[-1][1] == hour:
            stretches[-1][1] = hour + 1
        else:
            stretches.append([hour, hour + 1])
    words = [_stretch(*each) for each in stretches]
    more = len(words) - _NAMED
    return ", ".join(words[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _stretch(start: int, end: int) -> str:
    day, last = start // 24, (end - 1) // 24
    until = f"{end - 24 * last}:00"
    return f"{WEEKDAYS[day]} {start % 24}:00 to " + (until if day == last else f"{WEEKDAYS[last]} {until}")
