"""Servers that `server_cost.py` compares, each in a process of its own: run as a script with its kind."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvicorn
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from objectives.serving.bundle import read_bundle
from objectives.serving.http import server
from objectives.serving.http.app import Scope, Send
from objectives.serving.http.intake.body import Receive, read_body
from objectives.serving.http.limits import Limits
from objectives.serving.http.model import Model
from objectives.serving.http.protocol import HEADER_LENGTH
from objectives.serving.http.server import Started, http_config
from objectives.serving.http.server import serve as serve_bundle
from objectives.serving.pool.pending_result import PendingResult


def serve(folder: str, switch_seconds: str) -> None:
    """Serve a bundle as `leanrec serve` does, with a switch interval of the interpreter."""

    def started(found: Started) -> None:
        print(f"{found.url}/v2/models/{found.name}", flush=True)

    server.SWITCH_SECONDS = float(switch_seconds)
    serve_bundle(lambda: Path(folder), "127.0.0.1", 0, None, Limits(), lambda line: None, started)


class PoolElsewhere:
    """A pool in a child process, with the methods that the server calls: arrays there and scores back through pipes."""

    queued, load = 0, None

    def __init__(self, folder: Path) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._connection, self._pending = ours, dict[int, PendingResult]()
        self._lock, self._number = threading.Lock(), 0
        multiprocessing.get_context("spawn").Process(target=run_pool, args=(folder, theirs), daemon=True).start()
        assert ours.recv() == "open"
        threading.Thread(target=self._receive, daemon=True).start()

    def submit(self, request: dict[str, NDArray[Any]], here: bool = False, waited_ns: int = 0) -> PendingResult:
        result = PendingResult()
        with self._lock:
            self._number += 1
            self._pending[self._number] = result
            self._connection.send((self._number, request))
        return result

    def close(self) -> None:
        self._connection.close()

    def _receive(self) -> None:
        with contextlib.suppress(EOFError, OSError):  # closed
            while True:
                number, scores = self._connection.recv()
                self._pending.pop(number).finish(scores, time.perf_counter_ns())


def run_pool(folder: Path, connection: Connection) -> None:
    with read_bundle(folder).open() as pool:
        lock = threading.Lock()
        connection.send("open")
        while True:
            number, request = connection.recv()

            def answered(result: Future[Any], number: int = number) -> None:
                with lock:
                    connection.send((number, result.result()))

            pool.submit(request).add_done_callback(answered)


def worker(folder: str, switch_seconds: str) -> None:
    """Serve a bundle whose pool runs in another process."""

    def opened(where: Path, placed: object = None) -> Model:
        pool: Any = PoolElsewhere(where)
        return Model(read_bundle(where), pool)

    Model.open = opened  # type: ignore[method-assign, assignment]
    serve(folder, switch_seconds)


class Fixed:
    """ASGI application that describes one input, and gives the same scores to each request."""

    def __init__(self, rows: int) -> None:
        inputs = [{"name": "item", "datatype": "INT64", "shape": [-1]}]
        tensor = {"name": "scores", "shape": [rows], "datatype": "FP32", "parameters": {"binary_data_size": 4 * rows}}
        header = json.dumps({"model_name": "m", "model_version": "1", "outputs": [tensor]}).encode()
        self._described = json.dumps({"inputs": inputs}).encode()
        self._scores, self._json_bytes = header + bytes(4 * rows), len(header)
        self._limits = Limits()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await read_body(receive, self._limits)
        infer = scope["path"].endswith("/infer")
        body = self._scores if infer else self._described
        sizes = {"Content-Length": len(body)} | ({HEADER_LENGTH: self._json_bytes} if infer else {})
        headers = [(name.lower().encode(), str(size).encode()) for name, size in sizes.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def static(folder: str, rows: str) -> None:
    """Serve a fixed answer by the same HTTP server and settings."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}/v2/models/m", flush=True)
        uvicorn.Server(http_config(Fixed(int(rows)), Limits())).run(sockets=[listener])


@contextmanager
def running(kind: str, folder: Path, argument: str) -> Iterator[tuple[int, str]]:
    """A server of one of these kinds: its process and the URL of its model."""
    command = [sys.executable, __file__, kind, str(folder), argument]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    {"serve": serve, "worker": worker, "static": static}[sys.argv[1]](*sys.argv[2:])
