"""Load of the event loop, by hand: turns of known lengths, on a loop that runs what it is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from objectives.serving.http.intake import loop_load
from objectives.serving.http.intake.loop_load import LoopLoad

MS = 1_000_000


class Turns:
    """An event loop whose turns are called one by one, and its clock."""

    def __init__(self) -> None:
        self.now_ns = 10**12
        self._soon: list[Callable[[], None]] = []

    def call_soon(self, called: Callable[[], None]) -> None:
        self._soon.append(called)

    def perf_counter_ns(self) -> int:
        return self.now_ns

    def turn(self) -> None:
        """Call what was asked for before this turn."""
        soon, self._soon = self._soon, []
        for called in soon:
            called()

    def play(self, load: LoopLoad, requests: int, read_ms: float, handled_ms: float, stay: bool = True) -> float:
        """Read so many requests, and handle those that stay; return what the last of them was told."""
        told = 0.0
        for _ in range(requests):
            told = load.arrives(self.now_ns)
            self.now_ns += round(read_ms * MS)
            if stay:
                load.stays()
        self.turn()
        self.now_ns += round(requests * handled_ms * MS) if stay else 0
        return told


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    found = Turns()
    monkeypatch.setattr(loop_load.asyncio, "get_running_loop", lambda: found)
    monkeypatch.setattr(loop_load.time, "perf_counter_ns", found.perf_counter_ns)
    return found


def test_a_steady_load_is_told_its_turns_and_its_time(turns: Turns) -> None:
    """Ten requests a turn, 0.1 ms to read and 0.3 ms to handle each, without a rest."""
    load = LoopLoad()
    for _ in range(400):
        told = turns.play(load, 10, 0.1, 0.3)
    assert load.turns_ns(load._updated_ns) == pytest.approx(2 * 4 * MS, rel=0.01)
    assert told == pytest.approx(2 * 4 + 10 * 0.3, rel=0.01)


def test_one_long_turn_is_no_overload_and_a_long_rest_forgets(turns: Turns) -> None:
    load = LoopLoad()
    for _ in range(400):
        turns.play(load, 1, 0.05, 0.3)
        turns.turn()  # nothing was read meanwhile
        turns.now_ns += 5 * MS
    assert load.turns_ns(turns.now_ns) == 0
    turns.play(load, 1, 0.05, 10.0)
    turns.play(load, 1, 0.05, 0.3)
    assert 0 < load.turns_ns(turns.now_ns) < 2 * 3 * MS, "a turn of 10 ms, in a mean of 50"
    turns.turn()
    turns.now_ns += 1000 * MS
    turns.play(load, 1, 0.05, 0.3)
    assert load.turns_ns(turns.now_ns) < 10


def test_a_pause_ends_by_itself_where_all_are_refused(turns: Turns) -> None:
    """A pause of a second, after which each request is refused that is told more than 20 ms."""
    load = LoopLoad()
    for _ in range(100):
        turns.play(load, 2, 0.05, 0.3)
    turns.play(load, 1, 0.05, 1000.0)
    refused = 0
    while turns.play(load, 1, 0.05, 0.3, stay=False) > 20:
        turns.turn()
        turns.now_ns += 5 * MS
        refused += 1
        assert refused < 200, "within a second"
    assert turns.play(load, 2, 0.05, 0.3) < 20
