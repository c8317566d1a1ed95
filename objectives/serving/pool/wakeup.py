"""Signal by which a replica is woken."""

from __future__ import annotations

import threading
from contextlib import suppress


class Wakeup:
    """Signal that any thread gives and one waits for; one that was given while nobody waited ends the next wait.

    A `queue.SimpleQueue` waits for ever instead of for some hundred nanoseconds where its lock is free and the time has
    passed when it looks again (Python 3.11 and 3.12), and batching waits as briefly as that.
    """

    def __init__(self) -> None:
        # Held unless a signal was given.
        self._none = threading.Lock()
        self._none.acquire()

    def give(self) -> None:
        with suppress(RuntimeError):  # one was given already
            self._none.release()

    def wait(self, seconds: float | None = None) -> None:
        """Wait for a signal, or for so many seconds at most."""
        self._none.acquire(timeout=-1 if seconds is None else max(seconds, 0.0))
