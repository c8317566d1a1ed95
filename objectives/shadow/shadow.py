"""The server's side of shadowing: it picks requests and hands them to the challenger's process."""

from __future__ import annotations

import math
import queue
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from objectives.arrays import Array, Arrays
from objectives.errors import one_line
from objectives.serving.http.model import Model
from objectives.shadow.child import Child, ChildError, StarvedError, StoppedError
from objectives.shadow.process import Setup, Shadowed
from objectives.shadow.state import Counts
from objectives.shadow.state_files import OwnFile
from objectives.shadow.summary import ShadowSummary
from objectives.shadow.tally import Tally
from spaces.serialization import to_plain

# Requests that may wait for the challenger; each holds its arrays.
_WAITING = 16
# Seconds after which an answer counts as failed, and within which a process has to open its models.
_PATIENCE_SECONDS = 10.0
_OPENING_SECONDS = 120.0
# Seconds of a wait for a request; of the first pause before a new process, doubled each time, and of the longest; and
# of the thread's end.
_LOOK_SECONDS = 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_ENDING_SECONDS = 6.0


@dataclass(frozen=True)
class _Item:
    version: str
    request: Arrays
    scores: Array


@dataclass(frozen=True)
class _Rivals:
    """The two that are to be compared, and the champion's version."""

    champion: Path
    version: str
    challenger: Path


class Shadow:
    """A share of the requests, given to a challenger too; implements the server's `Mirror`.

    `offer` runs on the event loop and does no more than put the request into a bounded queue. One thread takes it from
    there and waits for the challenger's process; whatever the challenger does, nothing else waits.
    """

    def __init__(
        self,
        find: Callable[[], Path | None],
        share: float,
        states: Callable[[str], Path],
        follow_seconds: float,
        window_seconds: float,
        say: Callable[[str], None],
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """Prepare.

        Args:
            find: returns the challenger's folder, None while there is none
            share: of the requests that are picked, from 0 to 1
            states: returns the folder of the states of all servers, by the champion's name
            follow_seconds: time between two calls of `find`
            window_seconds: shortest window of the comparison of latency
            say: called with each line of progress
            patience_seconds: time in which a request has to be compared
        """
        self._find, self._share, self._states, self._say = find, share, states, say
        self._follow_seconds, self._window_seconds = follow_seconds, window_seconds
        self._patience_seconds = patience_seconds
        self._queue: queue.Queue[_Item] = queue.Queue(_WAITING)
        self._stopping, self._refreshing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="shadow", daemon=True)
        self._active = False
        self._tally = Tally()
        self._summary: ShadowSummary | None = None
        self._child: Child | None = None
        self._rivals: _Rivals | None = None
        self._challenger: Path | None = None
        self._look_at = self._open_at = 0.0
        self._pause = _FIRST_PAUSE
        self._said: str | None = None

    def start(self, model: Callable[[], Model]) -> None:
        self._model = model
        self._own = OwnFile.claim(self._states(model().bundle.name))
        self._thread.start()

    def offer(self, model: Model, request: Arrays, scores: Array, queued: int) -> None:
        if not self._active or random.random() >= self._share:
            return
        if queued > model.bundle.candidate.placement.replicas:
            self._tally.add(Counts(refused=1))
            return
        try:
            self._queue.put_nowait(_Item(model.version, request, scores))
        except queue.Full:
            self._tally.add(Counts(dropped=1))

    def refresh(self) -> None:
        self._refreshing.set()

    def document(self) -> Mapping[str, object] | None:
        if (summary := self._summary) is None:
            return None
        plain: dict[str, object] = to_plain(summary)
        return plain | {"counts": to_plain(self._tally.total), "active": self._active, "share": self._share}

    def close(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(_ENDING_SECONDS)
        if (child := self._child) is not None:
            # The thread hangs with it, and the interpreter would wait for it in the end.
            child.kill()
        self._own.close()

    def _keep(self, summary: ShadowSummary) -> None:
        self._summary = summary

    # The thread.

    def _supervise(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
                self._feed()
            except StoppedError:
                break
            except StarvedError as error:
                self._tally.add(Counts(starved=1))
                self._tell(f"the challenger is not compared: {error}")
                self._end_child()
            except Exception as error:
                # Whatever it is, the champion serves on, and the challenger is tried again later.
                reason = str(error) if isinstance(error, ChildError) else one_line(error)
                self._tally.add(Counts(failed=1), reason)
                self._tell(f"the challenger failed: {reason}")
                self._end_child()
        self._end_child()

    def _follow(self) -> None:
        """Open what is to be compared now, where it is not what is open."""
        refreshed = self._refreshing.is_set()
        if refreshed or time.monotonic() >= self._look_at:
            self._refreshing.clear()
            self._challenger = self._found()
            self._look_at = time.monotonic() + self._follow_seconds
        model, challenger = self._model(), self._challenger
        rivals = None if challenger is None else _Rivals(model.bundle.folder, model.version, challenger)
        if refreshed or rivals != self._rivals:
            self._end_child()
            if rivals is not None and rivals != self._rivals:
                self._tally.forget()
            self._rivals, self._open_at, self._pause = rivals, 0.0, _FIRST_PAUSE
        if self._child is None and rivals is not None and time.monotonic() >= self._open_at:
            self._open_at, self._pause = time.monotonic() + self._pause, min(2 * self._pause, _LONGEST_PAUSE)
            self._open(rivals)

    def _found(self) -> Path | None:
        """Look the challenger up; where that fails, it stays the one that was found before."""
        try:
            return self._find()
        except Exception as error:
            self._tell(f"the challenger stays what it is: {one_line(error)}")
            return self._challenger

    def _open(self, rivals: _Rivals) -> None:
        lost = self._tally.hand_over()
        setup = Setup(rivals.champion, rivals.challenger, self._own.path, lost, self._window_seconds)
        self._child = Child(setup, self._keep, lambda: not self._stopping.is_set())
        opened = self._child.opened(_OPENING_SECONDS)
        if opened.champion:
            self._tally.confirm(opened.counts)
        if opened.trouble is None and opened.champion == rivals.version:
            self._active = True
            self._tell(f"{100 * self._share:.3g}% of the requests go to the challenger {rivals.challenger} too")
            return
        self._end_child()
        if opened.trouble is not None and opened.final:
            self._open_at = math.inf
        self._tell(f"the challenger gets no requests: {opened.trouble or 'the champion was replaced meanwhile'}")

    def _feed(self) -> None:
        """Hand over one request, if there is one soon."""
        try:
            item = self._queue.get(timeout=_LOOK_SECONDS)
        except queue.Empty:
            if self._child is not None:
                self._child.receive()
            return
        if self._child is None or self._rivals is None or item.version != self._rivals.version:
            self._tally.add(Counts(dropped=1))
            return
        shadowed = Shadowed(item.request, item.scores, self._tally.hand_over())
        self._tally.confirm(self._child.compare(shadowed, self._patience_seconds).counts)
        self._pause = _FIRST_PAUSE

    def _end_child(self) -> None:
        self._active = False
        if self._child is not None:
            self._child.close()
            self._child = None
            self._tally.take_back()

    def _tell(self, line: str) -> None:
        """Say a line, once."""
        if line != self._said:
            self._said = line
            self._say(line)
