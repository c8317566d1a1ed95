"""New environments with a protocol's own client, whose pins are not ours, and what its script prints there."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.serve_tests.process import ServerProcess

_INSTALL = ("-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check", "--retries", "1")


def environment(folder: Path, package: str) -> Path:
    """Return the interpreter of a new environment with a package; skips the test where that cannot be had."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    done = subprocess.run([str(python), *_INSTALL, "--timeout", "20", package], capture_output=True, text=True)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        pytest.skip(f"{package} cannot be installed here: {lines[-1]}")
    return python


def told(
    python: Path, script: Path, server: ServerProcess, request: dict[str, np.ndarray], folder: Path
) -> dict[str, Any]:
    """Return what a client's script prints of a server and a request."""
    file = folder / "request.npz"
    np.savez(file, **request)
    arguments = [urlsplit(server.root).netloc, server.name, server.version, str(file)]
    command = [str(python), "-P", str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    plain: dict[str, Any] = json.loads(done.stdout)
    return plain
