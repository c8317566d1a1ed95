"""Files of checkpoints: which one is taken, and when."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from search.checkpoints.checkpoint_files import hash_of, newest, settled, take
from search.errors import ConfigError


def write(path: Path, text: str, mtime: float) -> Path:
    path.write_text(text)
    os.utime(path, (mtime, mtime))
    return path


def test_the_newest_file_of_a_folder_counts(tmp_path: Path) -> None:
    assert newest(tmp_path) is None
    write(tmp_path / "b.pt", "b", 200)
    write(tmp_path / "a.pt", "a", 100)
    for name in (".hidden.pt", "c.pt.tmp", "d.partial", "e.part", "f.lock"):
        write(tmp_path / name, "x", 300)
    (tmp_path / "folder").mkdir()
    found = newest(tmp_path)
    assert found is not None and found.path.name == "b.pt"
    os.utime(tmp_path / "a.pt", (400, 400))
    found = newest(tmp_path)
    assert found is not None and found.path.name == "a.pt"


def test_a_file_counts_once_it_is_there(tmp_path: Path) -> None:
    assert newest(tmp_path / "model.pt") is None
    file = write(tmp_path / "model.pt", "a", 100)
    found = newest(file)
    assert found is not None and (found.path, found.size) == (file, 1)
    with pytest.raises(ConfigError, match="--checkpoint"):
        newest(tmp_path / "nowhere" / "model.pt")


def test_a_file_that_grows_is_not_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "model.pt", "a", 100)
    found = newest(file)
    assert found is not None and settled(found, 0.01)

    def grow(seconds: float) -> None:
        with file.open("a") as stream:
            stream.write("a")

    with monkeypatch.context() as patch:
        patch.setattr("search.checkpoints.checkpoint_files.time", SimpleNamespace(sleep=grow))
        assert not settled(found, 0.01)
    assert not settled(found, 0.01), "it is another file now"


def test_a_copy_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    file, copy = write(tmp_path / "model.pt", "abc", 100), tmp_path / "deep" / "model.pt"
    found = newest(file)
    assert found is not None and take(found, copy)
    assert copy.read_text() == "abc" and hash_of(copy) == hashlib.sha256(b"abc").hexdigest()[:20]
    write(file, "abd", 101)
    assert not take(found, copy), "it changed since it was found"
    assert not copy.exists() and list(copy.parent.iterdir()) == []
