"""MLflow's own UI on the study home."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

from search.errors import ConfigError
from search.home import Home


def open_ui(home: Home, host: str, port: int, say: Callable[[str], None]) -> int:
    """Serve until Ctrl-C; the server's exit status.

    Raises:
        ConfigError: the port is taken or not a port. MLflow itself would end with status 0.
    """
    if not 0 < port < 65536:
        raise ConfigError(f"--port: must be from 1 to 65535, but got {port}")
    uri = home.tracking_uri(None)
    if uri.startswith("http"):
        say(f"the ledger is kept at {uri}: open that address")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--port: {host}:{port} cannot be had ({error.strerror}); give another") from error
    say(f"MLflow's UI: http://{host}:{port} (Ctrl-C ends it)")
    command = [
        sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri,
        "--default-artifact-root", home.artifacts.as_uri(), "--host", host, "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    server = subprocess.Popen(command, env={**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"})
    try:
        return server.wait()
    except KeyboardInterrupt:
        server.terminate()
        server.wait()
        return 0
