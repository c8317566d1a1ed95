"""Files of checkpoints: the newest one, whether it is still being written, and a copy that nobody changes."""

from __future__ import annotations

import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from objectives.store import written_whole
from search.errors import ConfigError

_CHUNK = 1 << 20
# Endings of files that other programs are still writing.
_UNFINISHED = (".tmp", ".part", ".partial", ".lock")


@dataclass(frozen=True)
class CheckpointFile:
    """A file as it was found."""

    path: Path
    size: int
    mtime_ns: int


def newest(where: Path) -> CheckpointFile | None:
    """Return the file, or the newest one of a folder; None where there is none, as before the first checkpoint.

    Hidden files, and those with an ending of unfinished ones, are none.

    Raises:
        ConfigError: the folder of the file does not exist.
    """
    if not where.parent.is_dir():
        raise ConfigError(f"--checkpoint: must be a file or a folder, but {where.parent} does not exist")
    found = [one for path in (where.iterdir() if where.is_dir() else [where]) if (one := _found(path)) is not None]
    return max(found, key=lambda one: (one.mtime_ns, one.path.name), default=None)


def settled(found: CheckpointFile, seconds: float) -> bool:
    """Return whether a file stays as it is for some seconds, and so is no longer being written."""
    time.sleep(seconds)
    return _found(found.path) == found


def take(found: CheckpointFile, copy: Path) -> bool:
    """Copy a file, and return whether it stayed the same meanwhile; else there is no copy."""
    with written_whole(copy) as partial:
        shutil.copyfile(found.path, partial)
        checksum = hash_of(partial)
    if _found(found.path) == found and hash_of(found.path) == checksum:
        return True
    copy.unlink()
    return False


def hash_of(path: Path) -> str:
    """Return a hash of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()[:20]


def _found(path: Path) -> CheckpointFile | None:
    if path.name.startswith(".") or path.name.endswith(_UNFINISHED) or not path.is_file():
        return None
    try:
        stat = path.stat()
    except FileNotFoundError:  # deleted meanwhile, as by a training that keeps its last ones
        return None
    return CheckpointFile(path, stat.st_size, stat.st_mtime_ns)
