"""Quick benchmarks of arms of known speed, on a clock of the test's own; with a real machine's noise, whether the
margin is wide enough, and no wider than necessary.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from objectives.measure.benchmark import compare_quickly
from objectives.measurement import load_generator as traffic
from objectives.measurement.load_target import LiveTarget
from objectives.records import QuickBenchmark
from search.explore.screening import dominated

REQUESTS = [{"item": np.zeros(rows, dtype=np.int64)} for rows in np.random.default_rng(0).integers(50, 400, 60)]
RUNS = 60


class Machine:
    """A clock that arms share, and what a request costs at the moment.

    Noise is what these machines show: a spread of 20% from request to request, one in 300 stalled by a few
    milliseconds, and a speed that wanders by some 30% within seconds, for both arms alike.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, noise: float = 0.0, seed: int = 0) -> None:
        self.now, self._noise, self._random = 0, noise, np.random.default_rng(seed)
        self._phase = self._random.uniform(0, 2 * np.pi)
        monkeypatch.setattr(traffic, "time", SimpleNamespace(perf_counter_ns=lambda: self.now))
        monkeypatch.setattr(LiveTarget, "settle", lambda target: None)

    def _ns(self, us: float) -> int:
        if not self._noise:
            return round(1000 * us)
        wander = np.exp(self._noise * 0.3 * np.sin(self._phase + 2 * np.pi * self.now / 1.7e9))
        stalled = self._random.exponential(3000.0) if self._random.random() < self._noise / 300 else 0.0
        return round(1000 * (us * wander * self._random.lognormal(0, 0.2 * self._noise) + stalled))

    def deployment(self, us_a_row: float, replicas: int) -> LiveTarget:
        free = [0] * replicas

        def submit(request: Any) -> Any:
            replica = int(np.argmin(free))
            end = max(self.now, free[replica]) + self._ns(us_a_row * len(request["item"]))
            free[replica] = end

            def result() -> None:
                self.now = max(self.now, end)

            return SimpleNamespace(finished_ns=end, result=result)

        return LiveTarget(submit, replicas, 2 * replicas)


def looks(monkeypatch: pytest.MonkeyPatch, us_a_row: float, noise: float = 1.0) -> list[QuickBenchmark]:
    """Quick benchmarks of an arm beside one of 4 us, on machines of different luck."""
    found = []
    for seed in range(RUNS):
        machine = Machine(monkeypatch, noise, seed)
        found.append(compare_quickly(machine.deployment(us_a_row, 1), machine.deployment(4.0, 1), REQUESTS))
    return found


def stopped(found: QuickBenchmark) -> bool:
    return dominated(found, 0.0, {}, 0.0) is not None


def test_the_ratios_are_those_of_the_arms(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row takes one arm 8 us and the other 2; the first answers two requests at once."""
    machine = Machine(monkeypatch)
    found = compare_quickly(machine.deployment(8.0, 2), machine.deployment(2.0, 1), REQUESTS)
    assert found.service_ratio == pytest.approx(4.0, rel=0.01)
    assert found.saturated_ratio == pytest.approx(2 * 2 / 8, rel=0.1)


def test_under_noise_a_glance_is_right_in_the_middle_and_within_its_margin_nearly_always(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = looks(monkeypatch, 2.0)
    service, most = (np.array([getattr(g, name) for g in found]) for name in ("service_ratio", "saturated_ratio"))
    assert np.median(service) == pytest.approx(0.5, rel=0.05) and np.median(most) == pytest.approx(2.0, rel=0.05)
    for ratios, truth in ((service, 0.5), (most, 2.0)):
        assert np.mean(np.abs(np.log(ratios / truth)) < np.log(1.25)) >= 0.95
        assert np.std(np.log(ratios)) > 0.01, "there is noise to be withstood"


def test_what_is_as_fast_is_not_stopped_and_what_is_half_as_slow_again_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """An equal must not be lost to noise; a margin so wide that nothing is stopped would spare no time."""
    assert sum(map(stopped, looks(monkeypatch, 4.0))) == 0
    assert sum(map(stopped, looks(monkeypatch, 3.6))) == 0
    assert sum(map(stopped, looks(monkeypatch, 6.0))) >= 0.9 * RUNS


def test_without_a_margin_noise_alone_would_stop_an_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("search.explore.screening._MARGIN", 1.0)
    assert sum(map(stopped, looks(monkeypatch, 4.0))) >= 0.1 * RUNS
