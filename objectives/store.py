"""Content-addressed folders, each created once, completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
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
