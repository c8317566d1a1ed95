"""Requests and responses of HTTP/1.1 as a handler has them, and the bytes of a response."""

from __future__ import annotations

import functools
import http
import time
from collections.abc import Mapping
from email.utils import formatdate
from typing import NamedTuple

_STATUS_LINES = {int(one): f"HTTP/1.1 {one.value} {one.phrase}\r\n" for one in http.HTTPStatus}


class Request(NamedTuple):
    """A whole request.

    path: without the query, percent-decoded
    headers: by names in lower case; of a header that is repeated, the last
    keep_alive: whether the client sends further requests over the connection
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


class Refusal(NamedTuple):
    """A request that is refused before it is whole, and the last of its connection."""

    status: int
    reason: str


class Response(NamedTuple):
    """A response; `closing` ends the connection with it."""

    status: int
    body: bytes
    headers: Mapping[str, str]
    closing: bool = False


def encode(response: Response, closing: bool, body: bool) -> bytes:
    """Return a response as it is sent.

    Args:
        closing: whether the connection ends with it
        body: whether the body is sent, which the answer to HEAD leaves out
    """
    lines = "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
    end = "Connection: close\r\n\r\n" if closing else "\r\n"
    date = _date(int(time.time()))
    head = f"{_STATUS_LINES[response.status]}{date}Content-Length: {len(response.body)}\r\n{lines}{end}"
    return head.encode("latin-1") + (response.body if body else b"")


@functools.lru_cache(maxsize=1)
def _date(second: int) -> str:
    return f"Date: {formatdate(second, usegmt=True)}\r\n"
