"""Cores that are busy together, in imitated times and on this machine."""

from __future__ import annotations

import os

import numpy as np
import pytest

from objectives.measurement.profile import shared_cores
from objectives.measurement.profile.shared_cores import MOST_CORES, slowdown_together
from objectives.measurement.statistics import Floats


def test_windows_in_which_cores_share_one_take_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work takes 1 ms on one core and 3 ms on the other, and twice as long in the last five of ten windows."""

    def times(core: int, begin_s: float, seconds: float) -> Floats:
        starts, together = np.arange(0.0, seconds, 0.003), seconds > 0.5
        shared = together & (starts >= seconds / 2)
        return np.stack([starts, (0.001 if core == 4 else 0.003) * np.where(shared, 2.0, 1.0)], axis=1)

    monkeypatch.setattr(shared_cores, "_times", times)
    assert slowdown_together((4, 5), windows=10) == pytest.approx([1.0] * 5 + [2.0] * 5)


def test_no_more_cores_are_measured_than_the_interpreter_keeps_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = set[int]()

    def times(core: int, begin_s: float, seconds: float) -> Floats:
        asked.add(core)
        return np.array([[0.0, 0.001]])

    monkeypatch.setattr(shared_cores, "_times", times)
    slowdown_together(range(100), windows=1)
    assert asked == set(range(MOST_CORES))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="threads cannot be kept on cores")
def test_the_cores_of_this_machine_are_kept_busy() -> None:
    before = os.sched_getaffinity(0)
    found = slowdown_together(sorted(before), windows=3)
    assert found.shape == (3,) and (found[np.isfinite(found)] > 0).all() and np.isfinite(found).any()
    assert os.sched_getaffinity(0) == before
