"""Folders of the cache: made once, never by half, and anew where they are damaged; a full disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from objectives.errors import FullDiskError
from objectives.store import make_once


def writes(text: str) -> Callable[[Path], None]:
    return lambda into: [(into / name).write_text(text) for name in ("a", "b")] and None


def test_a_folder_is_made_once(tmp_path: Path) -> None:
    assert not make_once(tmp_path / "x", writes("one"))
    assert make_once(tmp_path / "x", writes("two"))
    assert (tmp_path / "x/a").read_text() == "one"


@pytest.mark.parametrize("damaged", ["", "on", "one and more"])
def test_a_damaged_folder_is_made_anew(damaged: str, tmp_path: Path) -> None:
    make_once(tmp_path / "x", writes("one"))
    (tmp_path / "x/b").write_text(damaged)
    assert not make_once(tmp_path / "x", writes("two"))
    assert [(tmp_path / "x" / name).read_text() for name in ("a", "b")] == ["two", "two"]
    assert make_once(tmp_path / "x", writes("three"))


def test_a_file_may_be_deleted_and_sizes_need_not_be_known(tmp_path: Path) -> None:
    make_once(tmp_path / "x", writes("one"))
    (tmp_path / "x/b").unlink()
    assert make_once(tmp_path / "x", writes("two"))
    (tmp_path / "y").mkdir()
    assert make_once(tmp_path / "y", writes("two")) and not any((tmp_path / "y").iterdir())


def test_two_threads_that_make_a_folder_do_not_meet(tmp_path: Path) -> None:
    """While one is at work another begins and ends: neither has the other's files deleted."""

    def slow(into: Path) -> None:
        (into / "a").write_text("one")
        assert not make_once(tmp_path / "x", writes("one"))
        (into / "b").write_text("one")

    assert not make_once(tmp_path / "x", slow)
    assert sorted(file.name for file in (tmp_path / "x").iterdir()) == ["a", "b"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x", "x.sizes"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fails(into: Path) -> None:
        (into / "a").write_text("half")
        raise ValueError("no weights")

    with pytest.raises(ValueError, match="no weights"):
        make_once(tmp_path / "x", fails)
    assert [*tmp_path.iterdir()] == []


def test_an_error_that_is_caused_by_a_full_disk_is_known(tmp_path: Path) -> None:
    """The file that did not fit is gone when the error is looked at."""

    def fails(into: Path) -> None:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError:
            raise RuntimeError("weights cannot be saved") from None

    with pytest.raises(FullDiskError):
        make_once(tmp_path / "x", fails)


def test_a_full_disk_has_an_error_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library that was writing raises an error of any class."""

    def fails(into: Path) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(FullDiskError, match=str(tmp_path)):
        make_once(tmp_path / "x", fails)
    assert [*tmp_path.iterdir()] == []
