"""Reactive scaling of the machines of one offer, with a stable and a panic window as in Knative's autoscaler (KPA)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from scipy.ndimage import maximum_filter1d

from objectives.serving.control.windows import Windows
from planning.demand import Counts, Floats
from planning.fleet import Trajectory

# Takes times in seconds, (n,), and returns the number of requests that arrived before each.
Arrived = Callable[[Floats], Floats]


def autoscale(
    arrived: Arrived,
    end_s: float,
    needed: Callable[[int, float], int],
    start_s: float,
    windows: Windows,
    floor: Trajectory,
) -> Trajectory:
    """Return the machines that a reactive autoscaler has ready over time.

    Args:
        end_s: end of the whole time
        needed: machines of an offer, by its number, for a rate in requests per second
        start_s: seconds from the decision to a machine that serves
        floor: machines that serve in any case, started in time; its offers are kept
    """
    ticks = np.arange(0.0, end_s, windows.tick_s)
    stable, panic = (_rates(arrived, ticks, width) for width in (windows.stable_s, windows.panic_s))
    at = np.searchsorted(floor.starts_s, ticks, side="right") - 1
    lowest, offers = floor.machines[at], floor.offers[at]

    @functools.cache
    def machines(offer: int, rate_rps: float) -> int:
        return max(1, needed(offer, rate_rps / windows.target))

    desired = _desired(stable, panic, offers, lowest, machines, windows)
    ready = _ready(desired, math.ceil(start_s / windows.tick_s), offers, lowest)
    return _trajectory(floor, ticks, offers, ready)


def _rates(arrived: Arrived, ticks: Floats, width: float) -> Floats:
    """Return the mean rate in the seconds before each tick; before the first full width, over what there is."""
    counts = arrived(ticks) - arrived(ticks - width)
    return np.asarray(counts / np.clip(ticks, 1.0, width), np.float64)


def _desired(
    stable: Floats,
    panic: Floats,
    offers: Counts,
    lowest: Counts,
    machines: Callable[[int, float], int],
    windows: Windows,
) -> Counts:
    """Return the desired machines of each tick, of the offer that serves then.

    Rates are remembered and not machines, since the machines of another offer do not tell how many of this one are
    needed, and those of the plan are wanted no longer than it says.
    """
    hold = max(1, round(windows.stable_s / windows.tick_s))
    held = maximum_filter1d(stable, hold + 1, origin=hold // 2, mode="nearest")  # of this tick and `hold` before
    desired = np.empty_like(lowest)
    rate, panicking_until = float(stable[0]), -1
    for tick, (offer, least, fast) in enumerate(zip(offers.tolist(), lowest.tolist(), panic.tolist(), strict=True)):
        if machines(offer, fast) >= windows.panic * max(machines(offer, rate), least):
            panicking_until = tick + hold
        rate = max(rate, float(stable[tick]), fast) if tick <= panicking_until else float(held[tick])
        desired[tick] = max(machines(offer, rate), least)
    return desired


def _ready(desired: Counts, delay: int, offers: Counts, lowest: Counts) -> Counts:
    """Return the machines that serve: those that were ordered before their start took, and are still wanted."""
    if delay == 0:
        return desired
    # A machine serves at a tick if it was wanted at each tick since it was ordered, all of them of one offer.
    fewest = _with_previous(desired, delay).min(axis=1)
    same = (_with_previous(offers, delay) == offers[:, None]).all(axis=1)
    return np.asarray(np.where(same, np.maximum(fewest, lowest), lowest), np.int64)


def _with_previous(values: Counts, before: int) -> Counts:
    """Return each value with so many before it, (n, before + 1); before the first they are like it."""
    padded = np.concatenate([np.full(before, values[0]), values])
    return np.lib.stride_tricks.sliding_window_view(padded, before + 1)


def _trajectory(floor: Trajectory, ticks: Floats, offers: Counts, machines: Counts) -> Trajectory:
    """Return the machines of each tick as a trajectory that also changes where the floor does."""
    starts = np.union1d(ticks, floor.starts_s)
    tick = np.searchsorted(ticks, starts, side="right") - 1
    plan = np.searchsorted(floor.starts_s, starts, side="right") - 1
    changed = floor.offers[plan] != offers[tick]  # the plan's change between two ticks
    counts = np.where(changed, floor.machines[plan], np.maximum(machines[tick], floor.machines[plan]))
    return Trajectory(starts, floor.offers[plan], counts).merged()
