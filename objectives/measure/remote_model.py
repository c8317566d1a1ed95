"""A model behind a server of the Open Inference Protocol, which the load generator drives as it drives a pool."""

from __future__ import annotations

import contextlib
import http.client
import json
import queue
import re
import threading
import time
from types import TracebackType
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from objectives.arrays import Array, Arrays
from objectives.errors import InputError
from objectives.serving.http.datatypes import DATATYPES, DTYPES
from objectives.serving.http.protocol import HEADER_LENGTH
from objectives.serving.pool.pending_result import PendingResult, Scores

# Most requests that are on their way at once, a thread and an open file each; further ones wait here, which counts as
# latency. More than the server of `leanrec serve` answers at a time, so that it is the server that refuses.
CONNECTIONS = 512
_TIMEOUT_SECONDS = 60.0
_PATH = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?")
_OVERLOADED = (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE)
_SHOWN = 200


class RemoteError(RuntimeError):
    """A server's error for a request that was valid, with the status of its response."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class OverloadedError(RemoteError):
    """A server refused a request, which may be sent again."""

    # The load generator recognises a refusal by this attribute.
    refused = True


class RemoteInput(NamedTuple):
    """An input as the server describes it: its datatype in the protocol's words."""

    name: str
    datatype: str


class RemoteModel:
    """A model on a server, reached over as many connections as requests are on their way, which stay open.

    Requests are sent as binary tensors, and the scores are asked for as one.
    """

    def __init__(self, url: str, connections: int = CONNECTIONS) -> None:
        """Connect to a model.

        Args:
            url: http://HOST:PORT/v2/models/NAME, with /versions/VERSION or without
            connections: at most

        Raises:
            InputError: the URL is none of a model, or no server answers there.
        """
        try:
            found = urlsplit(url)
            host, port, path = found.hostname, found.port, found.path.rstrip("/")
        except ValueError:  # a port or an address that cannot be
            host, port, path = None, None, ""
        if host is None or found.scheme not in ("http", "https") or found.query or not _PATH.fullmatch(path):
            raise InputError(f"--url: must be http://HOST:PORT/v2/models/NAME, but got {url!r}")
        self.url, self._path = url, path
        self._secure, self._host, self._port = found.scheme == "https", host, port
        self.inputs = self._described()
        self._waiting: queue.SimpleQueue[tuple[Arrays, PendingResult] | None] = queue.SimpleQueue()
        self._connections, self._idle = connections, threading.Semaphore(0)
        self._threads: list[threading.Thread] = []

    def submit(self, request: Arrays) -> PendingResult:
        """Send a request as soon as a connection is free; an overloaded server's answer is an OverloadedError."""
        result = PendingResult()
        self._waiting.put((request, result))
        if not self._idle.acquire(blocking=False) and len(self._threads) < self._connections:
            self._threads.append(threading.Thread(target=self._run, daemon=True))
            self._threads[-1].start()
        return result

    def close(self) -> None:
        """Wait for the submitted requests, then close the connections."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _described(self) -> tuple[RemoteInput, ...]:
        with contextlib.closing(self._connection()) as connection:
            try:
                connection.request("GET", self._path)
                response = connection.getresponse()
                body = response.read()
                if response.status != http.client.OK:
                    raise ValueError(f"status {response.status}, {_text(body)}")
                return tuple(RemoteInput(one["name"], one["datatype"]) for one in json.loads(body)["inputs"])
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                raise InputError(f"--url: {self.url} must be a model that is served, but got: {error}") from error

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=_TIMEOUT_SECONDS)

    def _run(self) -> None:
        connection = self._connection()
        while (taken := self._next()) is not None:
            request, result = taken
            if not result.begin():
                continue
            try:
                scores = self._infer(connection, request)
            except (OSError, http.client.HTTPException, RemoteError, ValueError, LookupError, TypeError) as error:
                if not isinstance(error, RemoteError):
                    connection.close()  # what it still holds belongs to no request
                result.fail(error)
            else:
                result.finish(scores, time.perf_counter_ns())
        connection.close()

    def _next(self) -> tuple[Arrays, PendingResult] | None:
        """Take the next request; a thread that has to wait for one counts as idle."""
        with contextlib.suppress(queue.Empty):
            return self._waiting.get_nowait()
        self._idle.release()
        return self._waiting.get()

    def _infer(self, connection: http.client.HTTPConnection, request: Arrays) -> Scores:
        header, body = encoded(request)
        headers = {HEADER_LENGTH: str(header), "Content-Type": "application/octet-stream"}
        try:
            connection.request("POST", f"{self._path}/infer", body, headers)
            response = connection.getresponse()
        except (ConnectionResetError, BrokenPipeError):
            # A server closes connections that were idle for a while, which shows at the next request only.
            connection.close()
            connection.request("POST", f"{self._path}/infer", body, headers)
            response = connection.getresponse()
        answer = response.read()
        if response.status in _OVERLOADED:
            raise OverloadedError(_text(answer), response.status)
        if response.status != http.client.OK:
            message = f"{self.url} answered with status {response.status}: {_text(answer)}"
            raise RemoteError(message, response.status)
        return decoded(answer, response.getheader(HEADER_LENGTH))


def encoded(request: Arrays) -> tuple[int, bytes]:
    """Return the length of the JSON, and the body, of a request with binary tensors."""
    inputs, data = [], []
    for name, values in request.items():
        held = np.ascontiguousarray(values).tobytes()
        sizes = {"binary_data_size": len(held)}
        inputs.append({"name": name, "datatype": DATATYPES[values.dtype], "shape": values.shape, "parameters": sizes})
        data.append(held)
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    return len(header), b"".join((header, *data))


def decoded(body: bytes, header_length: str | None) -> Scores:
    """Return the first output of a response, in JSON or binary.

    Raises:
        ValueError, LookupError, TypeError: there is none.
    """
    length = len(body) if header_length is None else int(header_length)
    output = json.loads(body[:length])["outputs"][0]
    dtype = DTYPES[output["datatype"]]
    if "data" in output:
        values: Array = np.asarray(output["data"], dtype)
    else:
        values = np.frombuffer(body, dtype.newbyteorder("<"), offset=length, count=int(np.prod(output["shape"])))
    return np.asarray(values.reshape(output["shape"]), np.float32)


def _text(body: bytes) -> str:
    """Return a server's words for an error, in one line."""
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["error"]
    return " ".join(text.split())[:_SHOWN]
