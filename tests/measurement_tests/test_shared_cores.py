"""Cores that are busy together, in imitated times and on this machine."""

from __future__ import annotations

import os

import numpy as np
import pytest

from objectives.measurement.profile import shared_cores
from objectives.measurement.profile.shared_cores import slowdown_together, some_of
from objectives.measurement.statistics import Floats


def test_windows_in_which_cores_share_one_take_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work takes 1 ms on one core and 3 ms on the other, and twice as long in the last five of ten windows."""

    def times(core: int, begin_s: float, seconds: float) -> Floats:
        starts, together = np.arange(0.0, seconds, 0.003), seconds > 0.5
        shared = together & (starts >= seconds / 2)
        return np.stack([starts, (0.001 if core == 4 else 0.003) * np.where(shared, 2.0, 1.0)], axis=1)

    monkeypatch.setattr(shared_cores, "_times", times)
    assert slowdown_together((4, 5), windows=10) == pytest.approx([1.0] * 5 + [2.0] * 5)


def test_the_slowest_core_counts_and_windows_without_work_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four cores two share one; nothing ends in the third window."""

    def times(core: int, begin_s: float, seconds: float) -> Floats:
        starts = np.array([0.0, 0.1, 0.35])
        together = seconds == pytest.approx(0.4)
        return np.stack([starts, np.full(3, 0.001 * (2.0 if together and core < 2 else 1.0))], axis=1)

    monkeypatch.setattr(shared_cores, "_times", times)
    assert slowdown_together(range(4), windows=4) == pytest.approx([2.0] * 3)


def test_of_many_cores_some_are_taken_among_which_siblings_are() -> None:
    """Siblings are neighbours, as on virtual machines, or half of the list apart, as on many others."""
    assert some_of(range(4), 8) == (0, 1, 2, 3)
    assert some_of(range(64), 8) == (0, 1, 2, 3, 32, 33, 34, 35)
    assert some_of(range(64), 3) == (0, 1, 32)
    assert some_of((5,), 8) == (5,)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept on cores")
def test_the_cores_of_this_machine_are_kept_busy() -> None:
    before = os.sched_getaffinity(0)
    found = slowdown_together(some_of(sorted(before), 2), windows=3)
    assert found.shape == (3,) and np.isfinite(found).all() and (found > 0).all()
    assert os.sched_getaffinity(0) == before
