"""Requests of one machine of a fleet, compressed in time."""

from __future__ import annotations

import numpy as np

from planning.demand import Counts, Floats


def machine_share(seconds: Floats, rows: Counts, machines: Counts, speed: float, seed: int) -> tuple[Floats, Counts]:
    """Return the requests that one machine of a fleet gets, played faster.

    Each request is kept with probability 1 / speed, independently, and its time is divided by the speed, so that the
    rate of the fleet stays; where the arrivals are bursty, that makes them less so. What is kept is dealt to the
    machines in turn. Requests of times at which no machine of its kind serves are left out.

    Args:
        seconds: (n,) ascending
        rows: (n,)
        machines: (n,) of its kind that serve when each request arrives, 0 or more
        speed: 1 or more

    Returns:
        Seconds and rows of the requests that the machine gets.
    """
    random = np.random.default_rng(seed)
    first = random.random()
    kept = (speed * random.random(len(seconds)) < 1) & (machines > 0)
    # Rounds of dealing after each request: the machine gets the request that completes a round.
    turns = np.where(kept, 1 / np.maximum(machines, 1), 0.0).cumsum() + first
    own = kept & (np.floor(turns) > np.floor(np.concatenate(([first], turns[:-1]))))
    return np.asarray(seconds[own] / speed, np.float64), rows[own]
