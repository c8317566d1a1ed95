"""Virtual environments of the servers, made by uv where it is installed, else by pip."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

_DONE = "installed"


def environment(folder: Path, packages: Sequence[str]) -> Path:
    """Return the interpreter of an environment that has these packages; it is made once.

    Raises:
        RuntimeError: a package cannot be installed.
    """
    python, done = folder / "bin" / "python", folder / _DONE
    wanted = "\n".join(packages)
    if done.exists() and done.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    if uv := shutil.which("uv"):
        _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)])
        _run([uv, "pip", "install", "--quiet", "--python", str(python), *packages])
    else:
        venv.create(folder, with_pip=True)
        _run([str(python), "-m", "pip", "install", "--quiet", "--no-input", *packages])
    done.write_text(wanted)
    return python


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stderr}")
