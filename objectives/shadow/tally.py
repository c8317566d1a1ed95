"""Counts of picked requests, shared by the threads of the server and confirmed by the challenger's process."""

from __future__ import annotations

import threading

from objectives.shadow.state import Counts, Lost


class Tally:
    """Counts that the process told last, those that it was told since, and those that it is yet to be told.

    Their sum never falls while the process lives, as a counter's must not.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._confirmed = Counts()
        self._handed = self._waiting = Lost()

    @property
    def total(self) -> Counts:
        with self._lock:
            return self._confirmed + (self._handed + self._waiting).counts

    def add(self, counts: Counts, failure: str | None = None) -> None:
        """Count what only the server knows."""
        with self._lock:
            self._waiting += Lost(counts, failure)

    def hand_over(self) -> Lost:
        """Return what the process is to be told."""
        with self._lock:
            self._handed, self._waiting = self._waiting, Lost()
            return self._handed

    def confirm(self, counts: Counts) -> None:
        """Keep the counts of the process, which include what it was told."""
        with self._lock:
            self._confirmed, self._handed = counts, Lost()

    def take_back(self) -> None:
        """Take back what a process that ended was told and did not confirm."""
        with self._lock:
            self._handed, self._waiting = Lost(), self._handed + self._waiting

    def forget(self) -> None:
        """Begin anew, for another challenger."""
        with self._lock:
            self._confirmed = Counts()
            self._handed = self._waiting = Lost()
