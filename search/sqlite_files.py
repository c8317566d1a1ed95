"""SQLite files behind Optuna and MLflow."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

_PREFIX = "sqlite:///"


def sqlite_file(url: str) -> Path | None:
    """Return the file of a database URL; None where it is no file of SQLite."""
    return Path(url.removeprefix(_PREFIX)) if url.startswith(_PREFIX) and url != _PREFIX else None


def is_missing(url: str) -> bool:
    """Return whether a database is a file of SQLite that does not exist, so that opening it would make it."""
    file = sqlite_file(url)
    return file is not None and not file.exists()


def write_ahead(url: str) -> None:
    """Let a database append its commits to a log (sqlite.org/wal.html), which stays so; others are left alone.

    A commit is as durable as with a rollback journal, which takes several syncs (19 ms and 0.5 ms on one disk), and
    neither a reader, such as MLflow's UI, waits for a writer nor a writer for a reader. A file system without shared
    memory keeps the journal; where the file cannot be written at all, whoever uses it says so.
    """
    if (file := sqlite_file(url)) is not None:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA journal_mode=WAL")
