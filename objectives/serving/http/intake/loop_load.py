"""Time that requests wait for the event loop itself, where more come than it can read."""

from __future__ import annotations

import asyncio
import math
import time

# Weight of the newest turn in the mean time of a request.
_NEWEST = 0.1
# Times of the mean that a single one counts for at most.
_MOST_TIMES = 5.0
# Time constant of the mean length of a turn: overload lasts, and a single long turn is none.
_SECONDS = 0.05


def _kept(elapsed_ns: int) -> float:
    """Return the weight of a mean after some time."""
    return math.exp(-elapsed_ns / (1e9 * _SECONDS))


async def reading_done() -> None:
    """Return between the event loop's next reading and the handling of what it has read, all of which waits then.

    That is so for uvloop, which the server runs on; asyncio's own loop returns before its next reading.
    """
    await asyncio.sleep(0)


class LoopLoad:
    """Estimate of how long a request waits for the event loop.

    The loop works in turns: it reads from all connections that have sent something, then handles the requests that it
    has read. So a request waits for one turn until it is read, then for those that were read before it in that turn.
    Where a replica's thread computes its scores, these wait for one more turn until they are sent.
    """

    def __init__(self) -> None:
        self._first, self._read, self._handled = True, 0, 0
        # Starts of this reading, None where the loop had nothing to do since, and of the handling of the one before.
        self._reading_ns: int | None = None
        self._handling_ns = self._updated_ns = 0
        self._mean_ns = self._turn_ns = 0.0
        # Whether requests arrived since the start of this reading.
        self._any_arrived = False

    def turns_ns(self, now_ns: int) -> int:
        """Return the nanoseconds that a request waits to be read, and its answer to be sent: two mean turns."""
        return round(2 * self._turn_ns * _kept(now_ns - self._updated_ns))

    def arrives(self, now_ns: int) -> float:
        """Return the milliseconds that the loop will have taken when a request that is read now is answered."""
        if self._first:
            self._begin_reading(now_ns)
        self._any_arrived = True
        return (2 * self._turn_ns + (self._read + 1) * self._mean_ns) / 1e6

    def stays(self) -> None:
        """Count a request that will be handled."""
        self._read += 1

    def _begin_reading(self, now_ns: int) -> None:
        elapsed_ns = now_ns - self._updated_ns
        kept = _kept(elapsed_ns)
        if self._handled:
            taken_ns = (now_ns - self._handling_ns) / self._handled
            # One pause of the process is no slow request.
            most_ns = _MOST_TIMES * self._mean_ns if self._mean_ns else taken_ns
            self._mean_ns += _NEWEST * (min(taken_ns, most_ns) - self._mean_ns)
        elif self._any_arrived:
            # All were refused: what is expected of the next has to become less, until one is handled again.
            self._mean_ns *= kept
        turn_ns = 0 if self._reading_ns is None else now_ns - self._reading_ns
        self._turn_ns = kept * self._turn_ns + (1 - kept) * turn_ns
        self._any_arrived = False
        self._first, self._reading_ns, self._updated_ns = False, now_ns, now_ns
        asyncio.get_running_loop().call_soon(self._begin_handling)

    def _begin_handling(self) -> None:
        """Runs before the tasks of what was read."""
        self._first, self._handling_ns = True, time.perf_counter_ns()
        self._handled, self._read = self._read, 0
        asyncio.get_running_loop().call_soon(self._rest)

    def _rest(self) -> None:
        """Runs after the next reading."""
        if self._first:
            self._reading_ns, self._handled = None, 0
