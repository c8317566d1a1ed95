"""Locks between processes, and the interruption of a command."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from search.errors import ConfigError
from search.home import Home


class StudyRunningError(ConfigError):
    """The study is being run by another process."""


@contextmanager
def locked(home: Home, study: str) -> Iterator[None]:
    """One coordinator for a study at a time; StudyRunningError where there is another."""
    path = home.mlruns / f"{study}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StudyRunningError(
                f"the study {study!r} is being run by another process; wait for it or stop it"
            ) from error
        yield


@contextmanager
def opening(home: Home) -> Iterator[None]:
    """One process at a time: neither Optuna nor MLflow makes a new database where another is making it."""
    with (home.mlruns / ".opening").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and raise KeyboardInterrupt for either, whatever a library made of it.

    A signal may arrive anywhere, also in a library that turns an interrupted call into an error of its own.
    """
    stopped = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Exception as error:
        if stopped:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
