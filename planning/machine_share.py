"""Requests of one machine of a fleet, compressed in time."""

from __future__ import annotations

import numpy as np

from planning.demand import Counts, Floats


def machine_share(seconds: Floats, rows: Counts, machines: Counts, speed: float, seed: int) -> tuple[Floats, Counts]:
    """Draw the requests that one machine of a fleet gets, and play them faster.

    Each request is kept with probability 1 / (machines x speed), independently, and its time is divided by the speed,
    so that the rate stays that of one machine. Where the arrivals are bursty, thinning makes them less so. Requests of
    times at which no machine of its kind serves are left out.

    Args:
        seconds: (n,) ascending
        rows: (n,)
        machines: (n,) of its kind that serve when each request arrives, 0 or more
        speed: 1 or more

    Returns:
        Seconds and rows of the requests that are kept.
    """
    drawn = speed * machines * np.random.default_rng(seed).random(len(seconds)) < (machines > 0)
    return np.asarray(seconds[drawn] / speed, np.float64), rows[drawn]
