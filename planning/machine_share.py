"""Requests of one machine of a fleet, compressed in time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planning.demand import Counts, Floats


def machine_share(
    seconds: Floats, rows: Counts, machines: Sequence[int], phase_s: float, speed: float, seed: int
) -> tuple[Floats, Counts]:
    """Draw the requests that one machine of a fleet gets, and play them faster.

    Each request of a phase is kept with probability 1 / (machines x speed), independently, and its time is divided by
    the speed, so that the rate stays that of one machine. Where the arrivals are bursty, thinning makes them less so.

    Args:
        seconds: (n,) ascending, from the start of the first phase on; later requests than the last phase are left out
        rows: (n,)
        machines: of each phase, 1 or more
        speed: 1 or more

    Returns:
        Seconds and rows of the requests that are kept.
    """
    within = (seconds >= 0) & (seconds < len(machines) * phase_s)
    kept_s, kept_rows = seconds[within], rows[within]
    share = 1 / (speed * np.asarray(machines, np.float64)[(kept_s / phase_s).astype(np.int64)])
    drawn = np.random.default_rng(seed).random(len(kept_s)) < share
    return np.asarray(kept_s[drawn] / speed, np.float64), kept_rows[drawn]
