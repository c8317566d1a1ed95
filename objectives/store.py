"""Files and folders that are written completely or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` fill the folder unless it exists, and return whether it existed.

    The folder is filled under another name and then renamed, so a crash or a full disk leaves no incomplete folder.
    """
    if folder.exists():
        return True
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        make(partial)
        try:
            partial.rename(folder)
        except OSError:
            # Another builder was first; its result is the same by content.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return False


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a file beside the path that takes its place in the end, so that a reader never finds half of it; after an
    error it is deleted instead. The folder is made where there is none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}-{os.getpid()}{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
