"""The trials' database, whose commits go to a log."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from search.errors import ConfigError
from search.home import Home, is_missing, sqlite_file, write_ahead

_WRITER = """
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
for number in range(10**6):
    with database:
        database.execute("INSERT INTO kept VALUES (?)", (number,))
    print(number, flush=True)
"""


def mode(file: Path) -> str:
    with contextlib.closing(sqlite3.connect(file)) as database:
        return str(database.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("sqlite:////a/b.db", Path("/a/b.db")),
        ("sqlite:///b.db", Path("b.db")),
        ("sqlite:////a/b.db?timeout=30", Path("/a/b.db")),
        ("sqlite+pysqlite:///b.db", Path("b.db")),
        ("sqlite:///", None),
        ("sqlite:///:memory:", None),
        ("sqlite:///file:b.db?mode=ro&uri=true", None),
        ("sqlite:///file:b.db?uri=false", Path("file:b.db")),
        ("sqlite://host/b.db", None),
        ("no address", None),
        ("postgresql://host/b.db", None),
        ("http://host:5000", None),
        ("http://host:port", None),
    ],
)
def test_only_a_file_of_sqlite_is_one(url: str, file: Path | None, tmp_path: Path) -> None:
    assert sqlite_file(url) == file
    assert is_missing(url) == (file is not None)
    assert not is_missing(f"sqlite:///{tmp_path}")


def test_a_reader_does_not_stop_a_writer(tmp_path: Path) -> None:
    """As Optuna's dashboard reads while a search writes: with a rollback journal the commit waits for the reader."""
    file = tmp_path / "optuna.db"
    url = f"sqlite:///{file}"
    write_ahead(url)
    optuna.create_study(storage=url, study_name="s").enqueue_trial({"x": 1})
    assert mode(file) == "wal"
    with contextlib.closing(sqlite3.connect(file)) as reader, contextlib.closing(sqlite3.connect(file, 0)) as writer:
        reader.execute("BEGIN")
        assert len(reader.execute("SELECT * FROM trials").fetchall()) == 1
        with writer:
            writer.execute("UPDATE studies SET study_name = 't'")
        assert writer.execute("SELECT study_name FROM studies").fetchone() == ("t",)


def test_a_writer_that_is_killed_loses_no_commit(tmp_path: Path) -> None:
    file = tmp_path / "kept.db"
    write_ahead(f"sqlite:///{file}")
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE kept (number INTEGER)")
    assert mode(file) == "wal"
    with subprocess.Popen([sys.executable, "-c", _WRITER, file], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(50)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout if line.endswith("\n")]
    with contextlib.closing(sqlite3.connect(file)) as database:
        kept = [number for (number,) in database.execute("SELECT number FROM kept ORDER BY number")]
    assert kept[: len(told)] == told and len(kept) <= len(told) + 1


def test_what_is_no_database_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "notes.db"
    file.write_text("not a database " * 100)
    write_ahead(f"sqlite:///{file}")
    write_ahead("http://host:5000")
    write_ahead(f"sqlite:///{tmp_path}/nowhere/optuna.db")
    assert file.read_text() == "not a database " * 100 and [*tmp_path.iterdir()] == [file]


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_home_whose_databases_would_lie_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--home: must be a path .* without \? and %, but got .*a"):
        Home(tmp_path / name).claim()
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["a b", "a#b", "ä"])
def test_a_home_holds_its_databases(name: str, tmp_path: Path) -> None:
    home = Home(tmp_path / name)
    home.claim()
    optuna.create_study(storage=home.storage(None), study_name="s")
    assert (tmp_path / name / "mlruns" / "optuna.db").is_file() and len([*tmp_path.iterdir()]) == 1
