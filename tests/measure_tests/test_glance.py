"""A glance at arms of known speed, on a clock of the test's own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives import glance
from objectives.measurement import traffic
from objectives.measurement.load_target import LiveTarget


def test_the_ratios_are_those_of_the_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes one arm 8 us and the other 2; the first answers two requests at once."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(traffic, "time", SimpleNamespace(perf_counter_ns=lambda: clock.now))
    monkeypatch.setattr(LiveTarget, "settle", lambda self: None)

    def arm(us_a_row: float, replicas: int) -> Any:
        free = [0] * replicas

        def submit(request: Any) -> Any:
            replica = int(np.argmin(free))
            end = max(clock.now, free[replica]) + round(1000 * us_a_row * len(request["item"]))
            free[replica] = end

            def result() -> None:
                clock.now = max(clock.now, end)

            return SimpleNamespace(finished_ns=end, result=result)

        return LiveTarget(submit, replicas, 2 * replicas)

    requests = [{"item": np.zeros(rows, dtype=np.int64)} for rows in np.random.default_rng(0).integers(50, 400, 60)]
    found = glance.look(arm(8.0, 2), arm(2.0, 1), requests)
    assert found.service_ratio == pytest.approx(4.0, rel=0.01)
    assert found.saturated_ratio == pytest.approx(2 * 2 / 8, rel=0.1)
