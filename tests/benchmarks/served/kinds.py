"""Servers that are compared: their packages, how each is started on a model, and a client of it."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from objectives.measure.remote_model import RemoteModel
from tests.benchmarks.served.senders import PlainSender, json_sender, raw_sender

Client = RemoteModel | PlainSender
ROOT = Path(__file__).resolve().parents[3]
_HERE = Path(__file__).parent
_START_SECONDS, _END_SECONDS = 120.0, 30.0
_SETTINGS = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Model:
    """A model as a bundle, which has the graph's file in it; names of the graph's inputs, in order, and its output."""

    folder: Path
    names: tuple[str, ...]
    output: str

    @property
    def file(self) -> Path:
        return self.folder / "model.onnx"


@dataclass(frozen=True)
class Kind:
    """A kind of server.

    tensors: how requests and answers travel
    command: from its interpreter, the model, a free port and a scratch folder
    ready: path that is answered with 200 once the server is ready
    client: of a server at a port, for a model
    """

    packages: tuple[str, ...]
    tensors: str
    command: Callable[[Path, Model, int, Path], Sequence[str]]
    ready: str
    client: Callable[[int, Model], Client]


def _script(name: str) -> Callable[[Path, Model, int, Path], Sequence[str]]:
    return lambda python, model, port, scratch: [str(python), str(_HERE / name), str(model.file), str(port)]


def _leanrec(python: Path, model: Model, port: int, scratch: Path) -> Sequence[str]:
    return [str(python.with_name("leanrec")), "serve", str(model.folder), "--port", str(port), "--name", "ranker"]


def _mlflow(python: Path, model: Model, port: int, scratch: Path) -> Sequence[str]:
    saved = scratch / "mlflow"
    if not saved.exists():
        save = [str(python), str(_HERE / "mlflow_model.py"), str(model.file), str(saved)]
        subprocess.run(save, check=True, env=_env(python), cwd=scratch)
    command = [str(python.with_name("mlflow")), "models", "serve", "-m", str(saved), "--env-manager", "local"]
    return [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]


def _protocol(port: int, model: Model) -> Client:
    return RemoteModel(f"http://127.0.0.1:{port}/v2/models/ranker")


KINDS = {
    "leanrec serve": Kind(("--editable", f"{ROOT}[serve]"), "V2, binary", _leanrec, "/v2/health/ready", _protocol),
    "kserve": Kind(
        ("kserve", "onnxruntime"), "V2, binary", _script("kserve_server.py"), "/v2/models/ranker/ready", _protocol
    ),
    "LitServe": Kind(
        ("litserve", "onnxruntime"),
        "JSON",
        _script("litserve_server.py"),
        "/health",
        lambda port, model: json_sender(port, "/predict", lambda answer: answer["scores"]),
    ),
    "Ray Serve": Kind(
        ("ray[serve]", "onnxruntime"),
        "raw bytes",
        _script("ray_server.py"),
        "/-/healthz",
        lambda port, model: raw_sender(port, list(model.names)),
    ),
    "mlflow models serve": Kind(
        ("mlflow", "onnx", "onnxruntime"),
        "JSON",
        _mlflow,
        "/ping",
        lambda port, model: json_sender(port, "/invocations", lambda answer: answer["predictions"][model.output]),
    ),
}


@contextmanager
def serving(kind: Kind, python: Path, model: Model, scratch: Path) -> Iterator[tuple[int, Client]]:
    """Start a server, and yield its process and a client once it is ready; it ends with the block.

    Raises:
        RuntimeError: it ends before, or is not ready in time; with the last lines of its log.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command, log = kind.command(python, model, port, scratch), scratch / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, cwd=scratch, env=_env(python), stdout=stream, stderr=stream, start_new_session=True
        )
    try:
        _wait_ready(process, port, kind.ready, log)
        with kind.client(port, model) as client:
            yield process.pid, client
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it has left
        process.wait()


def _env(python: Path) -> dict[str, str]:
    """Return the environment of a server: its interpreter's programs first, and nothing of this project's path."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, **_SETTINGS, "PATH": f"{python.parent}{os.pathsep}{kept['PATH']}"}


def _wait_ready(process: subprocess.Popen[bytes], port: int, path: str, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.1)
    raise RuntimeError(f"{process.args!r} is not ready:\n{log.read_text()[-2000:]}")
