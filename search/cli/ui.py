"""MLflow's own UI on the study home, and Optuna's dashboard on the same studies."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from objectives.errors import ExplainedError
from search.errors import ConfigError
from search.home import Home, is_missing
from search.locking import stoppable
from search.run_pages import MLFLOW_PORT, is_server

OPTUNA_PORT = 8080
Say = Callable[[str], None]
# The dashboard has no module that runs by `python -m`.
_DASHBOARD = "import sys; from optuna_dashboard._cli import main; sys.exit(main())"


def open_ui(home: Home, host: str, port: int | None, say: Say) -> int:
    """Serve MLflow's UI until Ctrl-C; the server's exit status.

    Raises:
        ConfigError: the port is taken or not a port. MLflow itself would end with status 0.
    """
    port = _free_port(host, MLFLOW_PORT if port is None else port)
    uri = home.tracking_uri(None)
    if is_server(uri):
        say(f"the ledger is kept at {uri}: open that address")
        return 0
    command = [
        "-m", "mlflow", "server", "--backend-store-uri", uri,
        "--default-artifact-root", home.artifacts.as_uri(), "--host", host, "--port", str(port), "--workers", "1",
    ]  # fmt: skip
    say(f"MLflow's UI: http://{host}:{port}/#/experiments?workflowType=machine_learning (Ctrl-C ends it)")
    return _serve(command)


def open_dashboard(home: Home, host: str, port: int | None, say: Say) -> int:
    """Serve Optuna's dashboard on the home's studies until Ctrl-C; the server's exit status.

    Raises:
        ConfigError: nothing was run in the home, or the port is taken or not a port.
        ExplainedError: the dashboard is not installed.
    """
    port = _free_port(host, OPTUNA_PORT if port is None else port)
    if not _is_installed("optuna_dashboard"):
        raise ExplainedError("ui --optuna needs optuna-dashboard: pip install 'leanrec[dashboard]'")
    storage = home.storage(None)
    if is_missing(storage):
        raise ConfigError(f"--home: must have a study for --optuna, but {storage} does not exist; leanrec run makes it")
    say(f"Optuna's dashboard: http://{host}:{port}/dashboard (Ctrl-C ends it)")
    return _serve(["-c", _DASHBOARD, storage, "--host", host, "--port", str(port)])


def _is_installed(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _free_port(host: str, port: int) -> int:
    if not 0 < port < 65536:
        raise ConfigError(f"--port: must be from 1 to 65535, but got {port}")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(f"--port: {host}:{port} cannot be had ({error.strerror}); give another") from error
    return port


def _serve(command: Sequence[str]) -> int:
    environment = {**os.environ, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    with stoppable():
        server = subprocess.Popen([sys.executable, *command], env=environment)
        try:
            return server.wait()
        except KeyboardInterrupt:
            server.terminate()
            server.wait()
            return 0
