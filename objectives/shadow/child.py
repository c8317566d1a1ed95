"""Handle of the challenger's process, for the one thread that waits for it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable

from objectives.shadow.process import Compared, Opened, Reply, Setup, Shadowed, shadow_process
from objectives.shadow.run_delay import run_delay_ms
from objectives.shadow.summary import ShadowSummary

# Seconds between questions whether to go on, and after which a process that should have ended is killed.
_LOOK_SECONDS = 0.2
_ENDING_SECONDS = 3.0
# Multiple of the time in which the process has to answer, after which it is ended though it had no core.
_MOST_PATIENCE = 6


class ChildError(RuntimeError):
    """The process died, or does not answer."""


class StarvedError(RuntimeError):
    """The process did not answer, and had no core for most of the time: that says nothing of the challenger."""


class StoppedError(Exception):
    """The wait was given up."""


class Child:
    """A process that compares requests, from its start to its end."""

    def __init__(self, setup: Setup, keep: Callable[[ShadowSummary], None], goes_on: Callable[[], bool]) -> None:
        """Start the process.

        Args:
            keep: called with each summary
            goes_on: asked while an answer is waited for; StoppedError is raised where it is false
        """
        # A fork would copy the threads' locks of a server at work.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=shadow_process, args=(theirs, setup), name="challenger", daemon=True)
        self._keep, self._goes_on = keep, goes_on
        self._process.start()
        theirs.close()

    def opened(self, seconds: float) -> Opened:
        """Wait until both models are open.

        Raises:
            ChildError: the process ended, or takes longer.
            StarvedError: it takes much longer, and waited for a core meanwhile.
        """
        reply = self._wait(seconds)
        assert isinstance(reply, Opened)
        return reply

    def compare(self, shadowed: Shadowed, seconds: float) -> Compared:
        """Have a request compared.

        Raises:
            ChildError, StarvedError: as for `opened`.
        """
        try:
            self._connection.send(shadowed)
        except OSError as error:
            raise self._ended() from error
        reply = self._wait(seconds)
        assert isinstance(reply, Compared)
        return reply

    def receive(self) -> None:
        """Take the summaries that have come; ChildError where the process ended."""
        while self._connection.poll():
            self._receive()

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        """Let the process write its state and end; kill it where it does not."""
        self._connection.close()
        self._process.join(_ENDING_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _wait(self, seconds: float) -> Opened | Compared:
        """Wait for a reply; the time in which the process had no core is not counted."""
        start, delayed_ms = time.monotonic(), self._run_delay_ms()
        while True:
            if not self._goes_on():
                raise StoppedError
            if self._connection.poll(_LOOK_SECONDS) and not isinstance(reply := self._receive(), ShadowSummary):
                return reply
            waited = time.monotonic() - start
            if waited < seconds:
                continue
            if waited - (self._run_delay_ms() - delayed_ms) / 1000 >= seconds:
                self._process.kill()
                raise ChildError(f"it did not answer within {seconds:g} s")
            if waited >= _MOST_PATIENCE * seconds:
                self._process.kill()
                raise StarvedError(f"it did not answer within {waited:.0f} s, of which it had no core for most")

    def _run_delay_ms(self) -> float:
        return run_delay_ms(self._process.pid or "self")

    def _receive(self) -> Reply:
        try:
            reply: Reply = self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(reply, ShadowSummary):
            self._keep(reply)
        return reply

    def _ended(self) -> ChildError:
        self._process.join(_ENDING_SECONDS)
        return ChildError(f"its process ended with status {self._process.exitcode}")
