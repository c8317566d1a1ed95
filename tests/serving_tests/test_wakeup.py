"""Signals between threads: none is lost, and the briefest wait ends."""

from __future__ import annotations

import threading
import time

import pytest

from objectives.serving.pool.wakeup import Wakeup
from tests.serving_tests.test_pool import SOON


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 3e-7, 2e-6, -1.0])
def test_a_brief_wait_ends(seconds: float) -> None:
    """A wait of 300 ns did not end with a `queue.SimpleQueue`."""

    def wait_often() -> None:
        wakeup = Wakeup()
        for _ in range(1000):
            wakeup.give()
            wakeup.wait()
            wakeup.wait(seconds)

    thread = threading.Thread(target=wait_often, daemon=True)
    thread.start()
    thread.join(SOON)
    assert not thread.is_alive()


def test_a_wait_lasts_its_time_or_until_a_signal() -> None:
    wakeup = Wakeup()
    start = time.monotonic()
    assert not wakeup.wait(0.05)
    assert time.monotonic() - start >= 0.04
    for _ in range(2):
        wakeup.give()  # twice is once
    assert wakeup.wait() and not wakeup.wait(0.0)
    start = time.monotonic()
    threading.Timer(0.05, wakeup.give).start()
    assert wakeup.wait(SOON)
    assert time.monotonic() - start >= 0.04


def test_no_signal_is_lost_between_two_threads() -> None:
    """Each of two threads gives the other's signal a thousand times."""
    ping, pong = Wakeup(), Wakeup()

    def answer() -> None:
        for _ in range(1000):
            ping.wait()
            pong.give()

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    for _ in range(1000):
        ping.give()
        assert pong.wait(SOON)
    thread.join(SOON)
    assert not thread.is_alive()


def test_what_several_threads_give_is_seen() -> None:
    """Each of three adds its numbers to a queue and gives a signal, as callers of a replica do."""
    wakeup, numbers, lock = Wakeup(), list[int](), threading.Lock()

    def add() -> None:
        for number in range(1000):
            with lock:
                numbers.append(number)
            wakeup.give()

    threads = [threading.Thread(target=add, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    taken = 0
    while taken < 3000:
        assert wakeup.wait(SOON)
        with lock:
            taken += len(numbers)
            numbers.clear()
