"""Door of the server: requests that would be refused are refused by their headers, before their bodies are read.

Under overload most requests are refused. Reading one takes longer than refusing it, so that an event loop that reads
all of them falls behind, and even those that it accepts are answered late.
"""

from __future__ import annotations

from typing import NamedTuple

from objectives.serving.pool.scheduler import GroupLoad

# Nanoseconds for which a refusal says what would be refused again: the estimate of the service time may change.
_VALID_NS = 20_000_000
# Times waited are compared in whole milliseconds.
_MS = 1_000_000


class _Refused(NamedTuple):
    """A refusal at a time: the bytes of the body, how long the event loop had taken, and the load of the replicas."""

    reason: str
    at_ns: int
    length: int
    loop_ms: int
    load: GroupLoad


class Door:
    """Door that is shut for a moment after a refusal, to what would be refused as well.

    What admission refused, it refuses again while as much or more is outstanding, and larger requests all the more. Of
    requests that are encoded alike, the longer body has more rows. How long the refused request itself had waited for
    the event loop is left out, so that after a long turn some are refused, for that moment, which would have had time.
    """

    def __init__(self) -> None:
        self._refused: _Refused | None = None

    def refused(self, load: GroupLoad | None, reason: str, now_ns: int, length: int, loop_ns: int) -> None:
        """Note that admission refused a request.

        Where a replica is idle nothing is noted: what it refuses must reach admission, which learns from that.

        Args:
            load: of the replicas before, None where admission decides by more than that
            length: bytes of the body
            loop_ns: nanoseconds that the event loop takes of a request's time
        """
        idle = load is None or load.least_rows == 0
        self._refused = None if load is None or idle else _Refused(reason, now_ns, length, loop_ns // _MS, load)

    def shut(self, load: GroupLoad | None, now_ns: int, length: int, loop_ns: int) -> str | None:
        """Return the reason why a request would be refused, or None where admission has to be asked.

        Arguments are as for `refused`.
        """
        known = self._refused
        if known is None or load is None or now_ns > known.at_ns + _VALID_NS:
            return None
        if length < known.length or loop_ns // _MS < known.loop_ms:
            return None
        return known.reason if load.queued >= known.load.queued and load.least_rows >= known.load.least_rows else None
