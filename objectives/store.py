"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from objectives.errors import FullDiskError

# Bytes that are left on a disk that is full.
_FULL_BYTES = 1 << 16


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` fill the folder unless it exists, and return whether it existed.

    The folder is filled under another name and then renamed, so a crash or a full disk leaves no incomplete folder. One
    with a file of another size than it had, as after a power failure, is made anew.

    Raises:
        FullDiskError: `make` failed while the disk was full.
    """
    # No other thread's, nor that of a process of the same number in another container.
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    if folder.exists():
        if _is_whole(folder):
            return True
        with contextlib.suppress(FileNotFoundError):  # another builder has found it too
            folder.rename(partial)
            shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        try:
            make(partial)
        except Exception as error:
            if _is_full(error, partial):
                raise FullDiskError(f"The disk is full: {folder.parent} must have room for more files.") from error
            raise
        try:
            _sizes(folder).unlink(missing_ok=True)
            partial.rename(folder)
        except OSError:
            # Another builder was first; its result is the same by content, but for seconds that it took.
            if not folder.exists():
                raise
        sizes = {str(file.relative_to(folder)): file.stat().st_size for file in folder.rglob("*") if file.is_file()}
        with contextlib.suppress(OSError), written_whole(_sizes(folder)) as file:
            file.write_text(json.dumps(sizes))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return False


def _sizes(folder: Path) -> Path:
    """Return the file beside a folder that holds the bytes of each of its files."""
    return folder.with_name(f"{folder.name}.sizes")


def _is_whole(folder: Path) -> bool:
    """Return whether the files of a folder have the sizes that they had when it was made, as far as that is known.

    A file that is missing does not count, since some are deleted once nobody needs them.
    """
    try:
        sizes = json.loads(_sizes(folder).read_text())
    except (OSError, ValueError):
        return True
    for name, size in sizes.items():
        with contextlib.suppress(FileNotFoundError):
            if (folder / name).stat().st_size != size:
                return False
    return True


def _is_full(error: BaseException | None, folder: Path) -> bool:
    """Return whether an error was raised because the disk is full.

    The number of the error or of one of its causes tells it, or else the space left on the disk, since libraries raise
    errors of many classes.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return shutil.disk_usage(folder).free < _FULL_BYTES


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file that replaces the file at `path` at the end of the block.

    A reader thus never finds half a file. After an error the temporary file is deleted instead. The folder is made
    where there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
