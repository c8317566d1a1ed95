"""The reactive autoscaler on rates that step, on a clock of its own."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from objectives.serving.control.windows import Windows
from planning.autoscaler import autoscale
from planning.demand import Floats
from planning.fleet import Trajectory

WINDOWS = Windows()


def needed(offer: int, rate: float) -> int:
    return max(1, math.ceil(rate / (10 if offer == 0 else 20) - 1e-9))


def flat(machines: int = 1) -> Trajectory:
    return Trajectory(np.zeros(1), np.zeros(1, int), np.array([machines]))


def steps(*parts: tuple[float, float]) -> tuple[Floats, float]:
    """Evenly spaced arrivals at rates for seconds each."""
    found, at = [], 0.0
    for rate, seconds in parts:
        found.append(at + (np.arange(int(rate * seconds)) + 0.5) / rate)
        at += seconds
    return np.concatenate(found), at


def machines_at(found: Trajectory, moment: float) -> int:
    return int(found.machines[np.searchsorted(found.starts_s, moment, side="right") - 1])


def test_a_slow_rise_is_followed_by_the_stable_window() -> None:
    seconds, end = steps((28, 300), (34, 300))
    found = autoscale(partial(np.searchsorted, seconds), end, needed, 10.0, WINDOWS, flat())
    assert machines_at(found, 299) == 3
    # The mean of 60 s is above 30 after 20 s, and a machine takes 10 s more.
    first = float(found.starts_s[np.flatnonzero(found.machines == 4)[0]])
    assert 300 + 20 + 10 <= first <= 300 + 22 + 10 + 2 * WINDOWS.tick_s


def test_a_surge_causes_panic_and_machines_stay_for_the_stable_window() -> None:
    seconds, end = steps((8, 300), (80, 30), (8, 300))
    found = autoscale(partial(np.searchsorted, seconds), end, needed, 4.0, WINDOWS, flat())
    assert machines_at(found, 300 + 6 + 4 + WINDOWS.tick_s) >= 6, "panic after 6 s of the surge, not after 60"
    assert machines_at(found, 360) == found.machines.max()
    assert machines_at(found, 330 + 2 * WINDOWS.stable_s + 80) == 1


def test_the_floor_serves_in_any_case_and_sets_the_offer() -> None:
    floor = Trajectory(np.array([0.0, 101.0, 203.0]), np.array([0, 1, 0]), np.array([3, 2, 4]))
    seconds, end = steps((8, 150), (70, 150))
    found = autoscale(partial(np.searchsorted, seconds), end, needed, 6.0, WINDOWS, floor)
    for moment in np.arange(0.5, end, 1.0):
        at = np.searchsorted(floor.starts_s, moment, side="right") - 1
        assert machines_at(found, moment) >= floor.machines[at]
        assert found.offers[np.searchsorted(found.starts_s, moment, side="right") - 1] == floor.offers[at]
    assert machines_at(found, 200) == 4, "70 requests/s need 4 machines of the offer that serves 20"
    assert machines_at(found, 290) == 7


@given(seed=st.integers(0, 1000), start_s=st.sampled_from([0.0, 2.0, 11.0]))
def test_a_steady_rate_is_served_and_no_machine_is_ready_before_it_was_ordered(seed: int, start_s: float) -> None:
    random = np.random.default_rng(seed)
    rate = float(random.uniform(5, 60))
    seconds, end = steps((rate, 400.0))
    found = autoscale(partial(np.searchsorted, seconds), end, needed, start_s, WINDOWS, flat())
    # The windows count whole requests, a few percent more or less.
    assert machines_at(found, 399) in {needed(0, rate * share) for share in (0.97, 1.0, 1.03)}
    changes = found.starts_s[1:]
    assert not len(changes) or changes[0] >= start_s


def test_what_was_wanted_of_a_slow_offer_is_not_wanted_of_a_fast_one() -> None:
    """60 requests/s need six machines of one offer and three of the other, which the plan starts in time."""
    floor = Trajectory(np.array([0.0, 150.0]), np.array([0, 1]), np.array([6, 3]))
    seconds, end = steps((60, 300))
    found = autoscale(partial(np.searchsorted, seconds), end, needed, 10.0, WINDOWS, floor)
    assert machines_at(found, 149) == 6
    assert {machines_at(found, moment) for moment in np.arange(150.5, end)} == {3}


def test_machines_of_the_plan_are_wanted_no_longer_than_it_says() -> None:
    floor = Trajectory(np.array([0.0, 150.0]), np.zeros(2, int), np.array([6, 2]))
    seconds, end = steps((18, 300))
    found = autoscale(partial(np.searchsorted, seconds), end, needed, 10.0, WINDOWS, floor)
    assert machines_at(found, 149) == 6 and machines_at(found, 151) == 2


def test_machines_of_one_offer_do_not_stand_in_for_those_of_another_that_have_not_started() -> None:
    """The plan has one fast machine where three are needed: the others serve after their start only."""
    floor = Trajectory(np.array([0.0, 150.0]), np.array([0, 1]), np.array([6, 1]))
    seconds, end = steps((58, 300))
    found = autoscale(partial(np.searchsorted, seconds), end, needed, 20.0, WINDOWS, floor)
    assert machines_at(found, 151) == 1 and machines_at(found, 168) == 1
    assert machines_at(found, 172) == 3
