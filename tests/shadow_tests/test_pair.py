"""Requests that are compared, and those of them that are timed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from objectives.serving.pool import Refusal, RefusedError
from objectives.shadow import pair as pair_module
from objectives.shadow.pair import Pair
from objectives.shadow.state import Counts, ShadowState
from tests.serve_tests.process import ROOT

REQUEST = {"item": np.arange(3)}
SERVED = np.zeros(3, np.float32)


class Scorer:
    """Gives the same scores to every request, or an error."""

    def __init__(self, given: Any, order: list[Any] | None = None) -> None:
        self.given, self.order = given, order

    def score(self, request: object) -> Any:
        if self.order is not None:
            self.order.append(self)
        if isinstance(self.given, Exception):
            raise self.given
        return self.given


def compared(champion: Scorer, challenger: Scorer, requests: int = 1) -> ShadowState:
    pair, state = Pair(champion, challenger, 1.0), ShadowState("a", "b")  # type: ignore[arg-type]
    for _ in range(requests):
        state = pair.compare(state, REQUEST, SERVED)
    return state


def test_both_run_each_request_in_an_order_that_no_traffic_follows() -> None:
    """Every second request of clients that send by turns finds warm caches: the order is independent of that."""
    order: list[Any] = []
    champion, challenger = Scorer(SERVED, order), Scorer(SERVED + 1, order)
    state = compared(champion, challenger, 800)
    assert state.counts == Counts(shadowed=800)
    firsts = order[::2]
    assert all({first, second} == {champion, challenger} for first, second in zip(firsts, order[1::2], strict=True))
    for every in (1, 2, 3):
        for start in range(every):
            some = firsts[start::every]
            # A binomial lies within five standard deviations.
            assert abs(some.count(champion) - len(some) / 2) < 5 * len(some) ** 0.5 / 2


@pytest.mark.parametrize(
    ("champion", "challenger", "counts", "reason"),
    [
        (SERVED, IndexError("no such item"), Counts(failed=1), "IndexError: no such item"),
        (SERVED, np.array([0, np.nan, 0]), Counts(not_finite=1), "1 of the challenger's 3 scores are NaN or infinite."),
        (SERVED, np.zeros(4), Counts(failed=1), "shape"),
        (SERVED, RefusedError(Refusal.DEADLINE, "late"), Counts(dropped=1), None),
        (RuntimeError("the champion"), SERVED, Counts(dropped=1), None),
    ],
)
def test_what_goes_wrong_is_counted_by_whose_it_is(
    champion: Any, challenger: Any, counts: Counts, reason: str | None
) -> None:
    state = compared(Scorer(champion), Scorer(challenger), 1)
    assert state.counts == counts and (state.last_failure is None if reason is None else reason in state.last_failure)
    many = compared(Scorer(champion), Scorer(challenger), 16).counts
    assert many == sum([counts] * 16, Counts()), "in either order"


def test_requests_that_others_disturb_are_compared_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second request's threads wait an hour for a core."""
    delays = iter([0.0, 0.0, 0.0, 3.6e6] * 100)
    monkeypatch.setattr(pair_module, "run_delay_ms", lambda: next(delays))
    state = compared(Scorer(SERVED), Scorer(SERVED), 60)
    assert state.counts.shadowed == 60 and len(state.champion_ms) == len(state.challenger_ms) == (60 - 20) // 2


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count")
def test_a_core_that_is_shared_shows_as_a_delay() -> None:
    """Two processes on one core wait half of the time each."""
    code = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from objectives.shadow.run_delay import run_delay_ms
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
time.sleep(0.2)
before, start = run_delay_ms(), time.monotonic()
while run_delay_ms() - before < 20 and time.monotonic() - start < 30:
    pass
print(run_delay_ms() - before, 1e3 * (time.monotonic() - start))
other.kill()
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    delay_ms, elapsed_ms = map(float, out.split())
    assert 20 <= delay_ms <= elapsed_ms
