"""The process of a challenger: it compares one request after another, keeps the state, and ends with the server.

It has the lowest priority, so that its work takes no time from the server's, and a challenger that crashes or hangs
takes nothing with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

from objectives.arrays import Array, Arrays
from objectives.errors import InputError, one_line
from objectives.serving.bundle import read_version
from objectives.serving.bundle_files import BundleError
from objectives.serving.ranker import Ranker
from objectives.shadow.pair import Pair
from objectives.shadow.state import Counts, Lost, ShadowState, read_state, write_state
from objectives.shadow.summary import ShadowSummary, summarize

_LOWEST_PRIORITY = 19
# Fewest seconds between two writes of the state, each with a summary, and the largest share of the time that they take.
_PUBLISH_SECONDS, _PUBLISH_SHARE = 1.0, 0.05
# Seconds of a wait for a request, and between looks at the parent.
_LOOK_SECONDS = 0.3


@dataclass(frozen=True)
class Setup:
    """All that the process needs to begin.

    champion, challenger: folders of the bundles
    state: file of the state
    lost: what happened before the process began
    window_seconds: the shortest window in which latencies are compared
    """

    champion: Path
    challenger: Path
    state: Path
    lost: Lost
    window_seconds: float


@dataclass(frozen=True)
class Shadowed:
    """A request that was answered, the scores that the client got, and what happened since the last message."""

    request: Arrays
    served: Array
    lost: Lost


@dataclass(frozen=True)
class Opened:
    """The first reply.

    champion: the champion's version
    counts: all counts so far
    trouble: the reason why there is nothing to compare, if any
    final: whether another attempt on the same files would end as this one
    """

    champion: str
    counts: Counts
    trouble: str | None = None
    final: bool = True


@dataclass(frozen=True)
class Compared:
    """Reply to a request, with all counts so far; a summary follows from time to time."""

    counts: Counts


Reply = Opened | Compared | ShadowSummary


def shadow_process(connection: Connection, setup: Setup) -> None:
    """Compare the requests that come over the connection until it is closed."""
    _step_back()
    # The server's end is this process's, also where a signal is sent to both.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    with contextlib.suppress(EOFError, ConnectionError):
        _Shadowing(connection, setup).run()


class _SameBundleError(Exception):
    """Champion and challenger are the same bundle."""


class _Shadowing:
    """One champion and one challenger, from the opening to the end of the connection."""

    def __init__(self, connection: Connection, setup: Setup) -> None:
        self._connection, self._setup = connection, setup
        self._state = ShadowState("", "")
        self._publish_at = 0.0
        self._changed = self._written = False

    def run(self) -> None:
        try:
            champion = Ranker(self._setup.champion)
        except Exception as error:
            trouble = f"the champion cannot be opened beside the server: {one_line(error)}"
            self._connection.send(Opened("", self._state.counts, trouble, final=False))
            return
        version = champion.bundle.version
        try:
            pair = self._begin(champion)
        except BundleError as error:
            self._state = replace(self._state, unusable=str(error))
            self._publish()
            self._connection.send(Opened(version, self._state.counts, str(error)))
            return
        except _SameBundleError as error:
            self._connection.send(Opened(version, self._state.counts, str(error)))
            return
        except Exception as error:  # a busy machine or a full memory says nothing of the challenger
            written = version if self._written else ""  # what was not written is to be handed over again
            self._connection.send(Opened(written, self._state.counts, one_line(error), final=False))
            return
        self._publish()
        self._connection.send(Opened(version, self._state.counts))
        try:
            self._compare(pair)
        finally:
            self._publish()

    def _begin(self, champion: Ranker) -> Pair:
        """Continue the state of the same two, and open the challenger.

        Raises:
            BundleError: the challenger cannot be used.
            _SameBundleError: both are the same.
        """
        challenger = _named(self._setup.challenger)
        if challenger == champion.bundle.version:
            raise _SameBundleError("it is the champion already")
        before = _earlier(self._setup.state)
        if before is None or (before.champion, before.challenger) != (champion.bundle.version, challenger):
            before = ShadowState(champion.bundle.version, challenger)
        self._state = replace(before, unusable=None)
        self._count(self._setup.lost)
        # Written before the engine opens the challenger: should that end the process, the next one knows.
        write_state(self._state, self._setup.state)
        self._written = True
        return Pair.open(champion, self._setup.challenger, self._setup.window_seconds)

    def _compare(self, pair: Pair) -> None:
        last = time.monotonic()
        while True:
            if self._connection.poll(_LOOK_SECONDS):
                message: Shadowed = self._connection.recv()
                now = time.monotonic()
                self._state = replace(self._state, seconds=self._state.seconds + now - last)
                last = now
                self._count(message.lost)
                self._state = pair.compare(self._state, message.request, message.served)
                self._changed = True
                self._connection.send(Compared(self._state.counts))
            if self._changed and time.monotonic() >= self._publish_at:
                self._publish()

    def _count(self, lost: Lost) -> None:
        self._state = self._state.counted(lost.counts, lost.failure)

    def _publish(self) -> None:
        """Write the state, and send its summary if the server is there."""
        start = time.monotonic()
        write_state(self._state, self._setup.state)
        with contextlib.suppress(ConnectionError):
            self._connection.send(summarize(self._state))
        end = time.monotonic()
        self._publish_at, self._changed = end + max(_PUBLISH_SECONDS, (end - start) / _PUBLISH_SHARE), False


def _named(challenger: Path) -> str:
    """Return the name of a challenger in its state, whether or not it can be used."""
    try:
        return read_version(challenger)
    except BundleError:
        return str(challenger)


def _earlier(path: Path) -> ShadowState | None:
    """Return the state in a file; None where it holds none that can be read."""
    try:
        return read_state(path)
    except InputError:
        return None


def _step_back() -> None:
    """Leave the processor to the server, and be the first to go where memory runs out."""
    os.nice(_LOWEST_PRIORITY)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def _end_with_parent(parent: int) -> None:
    """End the process once its parent has, however that ended, even while an engine hangs."""
    while os.getppid() == parent:
        time.sleep(_LOOK_SECONDS)
    os._exit(1)
