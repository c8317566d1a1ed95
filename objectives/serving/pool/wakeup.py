"""Signal by which a replica is woken."""

from __future__ import annotations

import threading
from contextlib import suppress


class Wakeup:
    """Signal that any thread gives and one waits for; one that was given while nobody waited ends the next wait.

    A `queue.SimpleQueue` computes a negative timeout, which means no limit, if the time expires before its second check
    (Python 3.11 and 3.12), and batching waits for as little as some hundred nanoseconds.
    """

    def __init__(self) -> None:
        # Held unless a signal was given.
        self._unset = threading.Lock()
        self._unset.acquire()

    def give(self) -> None:
        with suppress(RuntimeError):  # one was given already
            self._unset.release()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for a signal, or for so many seconds at most, and return whether there was one."""
        return self._unset.acquire(timeout=-1 if seconds is None else max(seconds, 0.0))
