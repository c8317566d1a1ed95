"""Clients of servers that do not speak the Open Inference Protocol: the same connections and threads, other bytes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from objectives.arrays import Arrays
from objectives.measure.connections import Connections, HttpResponse
from objectives.measure.remote_model import CONNECTIONS
from objectives.serving.pool.pending_result import PendingResult, Scores

_HOST, _TIMEOUT_SECONDS = "127.0.0.1", 60.0
Encode = Callable[[Arrays], bytes]
Decode = Callable[[bytes], Scores]


class PlainSender:
    """Sender of bodies to one path. A request is encoded once, however often it is sent."""

    def __init__(self, port: int, path: str, kind: str, encode: Encode, decode: Decode) -> None:
        """Connect to a path.

        Args:
            kind: the media type of requests
            encode: makes the body of a request
            decode: reads the scores of an answer
        """
        self._path, self._kind, self._encode, self._decode = path, kind, encode, decode
        self._messages: dict[int, tuple[Arrays, bytes]] = {}
        self._connections = Connections(_HOST, port, False, CONNECTIONS, _TIMEOUT_SECONDS)

    def submit(self, request: Arrays) -> PendingResult:
        """Send a request as soon as a connection is free."""
        message, result = self._message(request), PendingResult()
        self._connections.send(lambda: message if result.begin() else None, partial(self._receive, result))
        return result

    def __enter__(self) -> PlainSender:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connections.close()

    def _message(self, request: Arrays) -> bytes:
        # The request is kept with its bytes, so that no other one has its identity.
        known = self._messages.get(id(request))
        if known is None:
            known = self._messages[id(request)] = request, self._whole(request)
        return known[1]

    def _whole(self, request: Arrays) -> bytes:
        body = self._encode(request)
        lines = f"Host: {_HOST}\r\nContent-Type: {self._kind}\r\nContent-Length: {len(body)}\r\n"
        return f"POST {self._path} HTTP/1.1\r\n{lines}\r\n".encode() + body

    def _receive(self, result: PendingResult, found: HttpResponse | Exception) -> None:
        if isinstance(found, Exception):
            result.fail(found)
        elif found.status != 200:
            result.fail(RuntimeError(f"status {found.status}: {found.body[:300]!r}"))
        else:
            try:
                result.finish(self._decode(found.body), time.perf_counter_ns())
            except (ValueError, LookupError, TypeError) as error:
                result.fail(error)


def raw_sender(port: int, names: list[str]) -> PlainSender:
    """Return a sender of the arrays in the order of `names`, as bytes."""

    def encode(request: Arrays) -> bytes:
        return b"".join(np.ascontiguousarray(request[name]).tobytes() for name in names)

    return PlainSender(port, "/", "application/octet-stream", encode, lambda body: np.frombuffer(body, np.float32))


def json_sender(port: int, path: str, scores: Callable[[Any], Any]) -> PlainSender:
    """Return a sender of the arrays by name in JSON; `scores` finds the list of scores in an answer."""

    def encode(request: Arrays) -> bytes:
        return json.dumps({"inputs": {name: values.tolist() for name, values in request.items()}}).encode()

    def decode(body: bytes) -> Scores:
        return np.asarray(scores(json.loads(body)), np.float32)

    return PlainSender(port, path, "application/json", encode, decode)
