"""Reactive scaling of the machines of one offer, with a stable and a panic window as in Knative's autoscaler (KPA)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from objectives.serving.control.windows import Windows
from planning.demand import Counts, Floats
from planning.fleet import Trajectory


def autoscale(
    seconds: Floats,
    end_s: float,
    needed: Callable[[int, float], int],
    start_s: float,
    windows: Windows,
    floor: Trajectory,
) -> Trajectory:
    """Return the machines that a reactive autoscaler has ready over time.

    Args:
        seconds: (n,) ascending arrival times
        end_s: end of the whole time
        needed: machines of an offer, by its number, for a rate in requests per second
        start_s: seconds from the decision to a machine that serves
        floor: machines that serve in any case, started in time; its offers are kept
    """
    ticks = np.arange(0.0, end_s, windows.tick_s)
    stable, panic = (_rates(seconds, ticks, width) for width in (windows.stable_s, windows.panic_s))
    at = np.searchsorted(floor.starts_s, ticks, side="right") - 1
    lowest, offers = floor.machines[at], floor.offers[at]

    def wanted(rates: Floats) -> Counts:
        pairs = list(zip(offers.tolist(), (rates / windows.target).tolist(), strict=True))
        known = {pair: max(1, needed(*pair)) for pair in set(pairs)}
        return np.maximum(np.array([known[pair] for pair in pairs], np.int64), lowest)

    desired = _desired(wanted(stable), wanted(panic), windows)
    delay = int(np.ceil(start_s / windows.tick_s))
    ready = _ready(desired, delay, lowest)
    return _trajectory(floor, ticks, offers, ready)


def _rates(seconds: Floats, ticks: Floats, width: float) -> Floats:
    """Return the mean rate in the seconds before each tick; before the first full width, over what there is."""
    counts = np.searchsorted(seconds, ticks) - np.searchsorted(seconds, ticks - width)
    return np.asarray(counts / np.clip(ticks, 1.0, width), np.float64)


def _desired(calm: Counts, burst: Counts, windows: Windows) -> Counts:
    """Return the desired machines of each tick from those that the two windows want."""
    hold = max(1, round(windows.stable_s / windows.tick_s))
    desired = np.empty_like(calm)
    now, panicking_until = int(calm[0]), -1
    for tick, (slow, fast) in enumerate(zip(calm.tolist(), burst.tolist(), strict=True)):
        if fast >= windows.panic * now:
            panicking_until = tick + hold
        panicking = tick <= panicking_until
        now = max(now, slow, fast) if panicking else int(calm[max(0, tick - hold) : tick + 1].max())
        desired[tick] = now
    return desired


def _ready(desired: Counts, delay: int, lowest: Counts) -> Counts:
    """Return the machines that serve: those asked for before their start took, and no more than are still wanted."""
    if delay == 0:
        return desired
    # A machine serves at a tick if it was wanted at each tick since it was ordered.
    padded = np.concatenate([np.full(delay, desired[0]), desired])
    views = np.lib.stride_tricks.sliding_window_view(padded, delay + 1)
    return np.asarray(np.maximum(views.min(axis=1), lowest), np.int64)


def _trajectory(floor: Trajectory, ticks: Floats, offers: Counts, machines: Counts) -> Trajectory:
    """Return the machines of each tick as a trajectory that also changes where the floor does."""
    starts = np.union1d(ticks, floor.starts_s)
    tick = np.searchsorted(ticks, starts, side="right") - 1
    plan = np.searchsorted(floor.starts_s, starts, side="right") - 1
    changed = floor.offers[plan] != offers[tick]  # the plan's change between two ticks
    counts = np.where(changed, floor.machines[plan], np.maximum(machines[tick], floor.machines[plan]))
    return Trajectory(starts, floor.offers[plan], counts).merged()
