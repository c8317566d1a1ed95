"""Files of the states of one model's shadowing: each server writes one of its own, and a reader takes all together."""

from __future__ import annotations

import fcntl
import itertools
import socket
from pathlib import Path
from typing import IO

from objectives.errors import InputError
from objectives.shadow.state import ShadowState, read_state


class OwnFile:
    """A file of a folder that no other server writes, from its claim until it is closed.

    Files are named by the machine and a number, the first one that no running server of this machine has: a server that
    is restarted there goes on where it, or another one, has ended. On a machine of another name, as that of a new pod,
    it begins a new one, and the old one stays.
    """

    def __init__(self, path: Path, lock: IO[str]) -> None:
        self.path, self._lock = path, lock

    @classmethod
    def claim(cls, folder: Path) -> OwnFile:
        """Claim a file; the folder is made where there is none.

        Raises:
            InputError: the folder cannot be written, or its file system has no locks.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for number in itertools.count():
                name = f"{socket.gethostname()}-{number}"
                lock = (folder / f".{name}.lock").open("w")
                try:
                    # The system takes the lock from a process that ends, however that ends.
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return cls(folder / f"{name}.json", lock)
                except BlockingIOError:
                    lock.close()
        except OSError as error:
            raise InputError(f"--shadow-state: must be a folder for files with locks, but got {error}") from error
        raise AssertionError  # the numbers do not end

    def close(self) -> None:
        """Leave the file to the next server."""
        self._lock.close()


def read_states(folder: Path) -> tuple[ShadowState, ...]:
    """Read the states of all servers, running or ended, in the order of their files' names; none without a folder.

    Raises:
        InputError: a file holds something else.
    """
    files = sorted(path for path in folder.glob("*.json") if not path.name.startswith("."))
    return tuple(state for path in files if (state := read_state(path)) is not None)
