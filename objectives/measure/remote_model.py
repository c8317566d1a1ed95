"""A model behind a server of the Open Inference Protocol, which the load generator drives as it drives a pool."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import re
import time
from collections.abc import Callable
from functools import lru_cache, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from objectives.arrays import Array, Arrays
from objectives.errors import ExplainedError, InputError
from objectives.serving.http.datatypes import DATATYPES, DTYPES
from objectives.serving.http.protocol import HEADER_LENGTH
from objectives.serving.pool.pending_result import PendingResult, Scores

if TYPE_CHECKING:
    from objectives.measure.connections import HttpResponse

# Most requests that are on their way at once, an open file each; further ones wait here, which counts as latency. More
# than the server of `leanrec serve` answers at a time, so that it is the server that refuses.
CONNECTIONS = 512
_TIMEOUT_SECONDS = 60.0
_PATH = re.compile(r"/v2/models/[^/]+(/versions/[^/]+)?")
_OVERLOADED = (http.client.TOO_MANY_REQUESTS, http.client.SERVICE_UNAVAILABLE)
_SHOWN = 200
# Headers of requests that are kept, one for each number of rows.
_HEADERS = 4096


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
            ExplainedError: a package is missing.
        """
        try:
            from objectives.measure.connections import Connections
        except ModuleNotFoundError as error:
            raise ExplainedError(f"a client needs {error.name}: pip install 'leanrec[serve]'") from error
        try:
            found = urlsplit(url)
            host, port, path = found.hostname, found.port, found.path.rstrip("/")
        except ValueError:  # a port or an address that cannot be
            host, port, path = None, None, ""
        if host is None or found.scheme not in ("http", "https") or found.query or not _PATH.fullmatch(path):
            raise InputError(f"--url: must be http://HOST:PORT/v2/models/NAME, but got {url!r}")
        self.url, self._path, self._host = url, path, found.netloc.rpartition("@")[2]
        secure = found.scheme == "https"
        self.inputs = self._described(secure, host, port)
        self._connections = Connections(host, port, secure, connections, _TIMEOUT_SECONDS)

    def submit(self, request: Arrays) -> PendingResult:
        """Send a request as soon as a connection is free; an overloaded server's answer is an OverloadedError."""
        return self._send(partial(self.message, request))

    def send(self, message: bytes) -> PendingResult:
        """Send what `message` returned for a request, as `submit` does."""
        return self._send(lambda: message)

    def message(self, request: Arrays) -> bytes:
        """Return the bytes of a request, for a caller that sends it many times."""
        header, body = encoded(request)
        head = (
            f"POST {self._path}/infer HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/octet-stream\r\n"
            f"{HEADER_LENGTH}: {header}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body

    def close(self) -> None:
        """Wait for the submitted requests, then close the connections."""
        self._connections.close()

    def __enter__(self) -> RemoteModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _described(self, secure: bool, host: str, port: int | None) -> tuple[RemoteInput, ...]:
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        with contextlib.closing(kind(host, port, timeout=_TIMEOUT_SECONDS)) as connection:
            try:
                connection.request("GET", self._path)
                response = connection.getresponse()
                body = response.read()
                if response.status != http.client.OK:
                    raise ValueError(f"status {response.status}, {_text(body)}")
                return tuple(RemoteInput(one["name"], one["datatype"]) for one in json.loads(body)["inputs"])
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, RecursionError) as error:
                raise InputError(f"--url: {self.url} must be a model that is served, but got: {error}") from error

    def _send(self, message: Callable[[], bytes]) -> PendingResult:
        result = PendingResult()
        self._connections.send(partial(_in_turn, message, result), partial(self._receive, result))
        return result

    def _receive(self, result: PendingResult, found: HttpResponse | Exception) -> None:
        """Give a request its scores, or the reason why there are none."""
        try:
            result.finish(self._scores(found), time.perf_counter_ns())
        except Exception as error:  # whatever it is, the caller waits for it
            result.fail(error)

    def _scores(self, found: HttpResponse | Exception) -> Scores:
        if isinstance(found, Exception):
            raise found
        if found.status in _OVERLOADED:
            raise OverloadedError(_text(found.body), found.status)
        if found.status != http.client.OK:
            raise RemoteError(f"{self.url} answered with status {found.status}: {_text(found.body)}", found.status)
        return decoded(found.body, found.headers.get(HEADER_LENGTH.lower()))


def _in_turn(message: Callable[[], bytes], result: PendingResult) -> bytes | None:
    """Return the bytes of a request whose turn has come; None where it cannot be sent, or nobody waits for it."""
    if not result.begin():
        return None
    try:
        return message()
    except Exception as error:  # whatever it is, the caller waits for it
        result.fail(error)
        return None


def encoded(request: Arrays) -> tuple[int, bytes]:
    """Return the length of the JSON, and the body, of a request with binary tensors."""
    header = _header(tuple((name, values.dtype, values.shape) for name, values in request.items()))
    return len(header), b"".join((header, *(np.ascontiguousarray(values).tobytes() for values in request.values())))


@lru_cache(_HEADERS)
def _header(inputs: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]) -> bytes:
    """Return the JSON of a request with inputs of these names, types and shapes."""
    described = []
    for name, dtype, shape in inputs:
        sizes = {"binary_data_size": math.prod(shape) * dtype.itemsize}
        described.append({"name": name, "datatype": DATATYPES[dtype], "shape": shape, "parameters": sizes})
    return json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()


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
    """Return a server's error message in one line, of 200 characters at most.

    Where the response has no message in the place that the protocol gives it, the whole response is taken.
    """
    text = body.decode(errors="replace")
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        error = json.loads(text)["error"]
        text = error if isinstance(error, str) else text
    return " ".join(text.split())[:_SHOWN]
