"""Queue of writes to the ledger, on a thread of its own."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_LOGGER = logging.getLogger("leanrec.ledger")


class Writer:
    """Thread that does what it is given, in order, so that the caller need not wait.

    What is given is expected to raise nothing; an error is logged, and the rest is done all the same. A process that
    ends meanwhile leaves the rest undone.
    """

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, work: Callable[[], object]) -> None:
        """Do the work later, after what was given before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
            self._thread.start()
        self._waiting.put(work)

    def drain(self) -> None:
        """Wait until everything that was given is done."""
        if self._thread is not None:
            done = threading.Event()
            self._waiting.put(done.set)
            done.wait()

    def _run(self) -> None:
        while True:
            work = self._waiting.get()
            try:
                work()
            except Exception:
                _LOGGER.exception("a write to the ledger failed")
