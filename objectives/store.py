"""Folders named by the content of what made them: made once, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def make_once(folder: Path, make: Callable[[Path], None]) -> bool:
    """Let `make` fill the folder unless it is there already; True when it was.

    It is filled beside and then renamed, so a crash or a full disk leaves nothing that looks finished.
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
            # Another builder was first; what it made is the same by content.
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return False
