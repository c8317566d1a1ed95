"""Home of leanrec's files: one folder with `mlruns/` and `reports/`."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from objectives.store import written_whole as written_whole  # for those who write files of the home
from search.errors import ConfigError
from spaces.serialization import to_plain

_MARK = ".leanrec"


def write_json(record: object, path: Path) -> None:
    """Write a record into a file, whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(json.dumps(to_plain(record), indent=1, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Home:
    """Paths under the home; nothing is made before `claim`."""

    root: Path

    @classmethod
    def find(cls, given: str | None) -> Home:
        """`--home`, else LEANREC_HOME, else the working directory."""
        return cls(Path(given or os.environ.get("LEANREC_HOME") or ".").resolve())

    @property
    def mlruns(self) -> Path:
        return self.root / "mlruns"

    @property
    def data_sets(self) -> Path:
        return self.mlruns / "data"

    @property
    def artifacts(self) -> Path:
        return self.mlruns / "artifacts"

    def service_curves(self, study: str) -> Path:
        """The file of a study's service curves, one JSON line each."""
        return self.mlruns / "timings" / study / "service_curves.jsonl"

    def shadow_states(self, name: str) -> Path:
        """The folder of a served model's shadowing, with a file for each server."""
        return self.mlruns / "shadow" / name

    def watch(self, name: str) -> Path:
        """The folder of a watch over a registered model's checkpoints."""
        return self.mlruns / "watch" / name

    def reports(self, study: str) -> Path:
        return self.root / "reports" / study

    def logs(self, study: str) -> Path:
        return self.mlruns / "logs" / study

    def storage(self, configured: str | None) -> str:
        """Optuna's database."""
        return configured or f"sqlite:///{self.mlruns / 'optuna.db'}"

    def tracking_uri(self, configured: str | None) -> str:
        """MLflow's store: the study's, else MLFLOW_TRACKING_URI, else a database here."""
        return configured or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.mlruns / 'mlflow.db'}"

    def claim(self) -> None:
        """Make the folders.

        Raises:
            ConfigError: somebody else's `mlruns/` lies there, the home cannot be written, or addresses of databases
                read its path otherwise, so that these would lie elsewhere.
        """
        if {"?", "%"} & set(str(self.root)):
            raise ConfigError(
                f"--home: must be a path that the address of a database can hold, without ? and %, but got {self.root}"
            )
        mark = self.mlruns / _MARK
        if not mark.exists():
            held = [p.name for p in self.mlruns.iterdir()] if self.mlruns.exists() else []
            strange = [name for name in held if name != "README.md"]
            if strange and _MARK not in held:  # another process may have made it by now
                raise ConfigError(
                    f"--home: {self.mlruns} was not made by leanrec (it holds {sorted(strange)[0]}); "
                    "give another folder with --home"
                )
        try:
            self.mlruns.mkdir(parents=True, exist_ok=True)
            mark.touch()  # also where it is, to see whether the home can still be written
            for folder in (self.data_sets, self.artifacts, self.root / "reports"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--home: {self.root} must be a folder that can be written, but {error}") from error


def out_folder(given: str | None, default: Path) -> Path:
    """Return the folder of an option `--out`, or the default, where it can be written.

    Raises:
        ConfigError: it is a file, or cannot be written.
    """
    folder = Path(given).resolve() if given else default
    try:
        nearest = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise ConfigError(f"--out: must be a folder that can be written, but got {given or folder}")
    return folder


def sqlite_file(url: str) -> Path | None:
    """Return the file of a database URL, with a driver or a query or without; None where it is no file of SQLite.

    Names that SQLite reads as URIs (`uri=true`) are none.
    """
    from sqlalchemy.engine import make_url  # not in a light install, which opens no database
    from sqlalchemy.exc import ArgumentError

    try:
        parts = make_url(url)
    except (ArgumentError, ValueError):  # whoever opens it says so
        return None
    name, is_uri = parts.database or ":memory:", parts.query.get("uri") in ("true", "1", "yes", "on")
    if parts.get_backend_name() != "sqlite" or parts.host or name == ":memory:" or is_uri:
        return None
    return Path(name)


def is_missing(url: str) -> bool:
    """Return whether a database is a file of SQLite that does not exist, so that opening it would make it."""
    file = sqlite_file(url)
    return file is not None and not file.exists()


def write_ahead(url: str) -> None:
    """Let a database append its commits to a log (sqlite.org/wal.html), from now on; other databases are left alone.

    A commit takes one sync where a rollback journal takes several (0.5 and 19 ms on one disk), and neither a reader,
    such as Optuna's dashboard, waits for a writer nor a writer for a reader. Whoever reads such a database must be able
    to write beside it, on the same machine. Where the file cannot be written at all, whoever uses it says so.
    """
    if (file := sqlite_file(url)) is not None:
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(file)) as database:
            database.execute("PRAGMA journal_mode=WAL")
