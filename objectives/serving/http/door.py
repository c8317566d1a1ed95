"""Door of the server: requests that would be refused are refused by their headers, before their bodies are read.

Under overload most requests are refused. Reading one takes longer than refusing it, so that an event loop that reads
all of them falls behind, and even those that it accepts are answered late.
"""

from __future__ import annotations

from typing import NamedTuple

from objectives.serving.pool import Pool

# Times waited are compared in whole milliseconds.
_MS = 1_000_000


class _Refused(NamedTuple):
    """A refusal: of a body of so many bytes that waits for so long besides, while so many requests were queued, and so
    many rows outstanding at the idlest replica.
    """

    reason: str
    length: int
    waited_ms: int
    queued: int
    rows: int


class Door:
    """Door that is shut while what was refused last would be refused again.

    Admission is monotone: what it refused, it refuses while as much or more is outstanding, and of larger requests all
    the more. Of requests that are encoded alike, the longer body has more rows.
    """

    def __init__(self) -> None:
        self._refused: _Refused | None = None

    def refused(self, pool: Pool, reason: str, length: int, waited_ns: int) -> None:
        """Note that a pool refused a request with a body of so many bytes, which waits for so long besides.

        Where a replica is idle nothing is noted: what it refuses must reach the pool, which learns from that.
        """
        load = pool.load
        self._refused = None if load is None or load.rows == 0 else _Refused(reason, length, waited_ns // _MS, *load)

    def shut(self, pool: Pool, length: int, waited_ns: int) -> str | None:
        """Return the reason why the pool would refuse a body of so many bytes; None where it has to be asked."""
        known = self._refused
        if known is None or length < known.length or waited_ns // _MS < known.waited_ms:
            return None
        if (load := pool.load) is None:
            return None
        return known.reason if load.queued >= known.queued and load.rows >= known.rows else None
