"""Bodies of requests, read within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from objectives.serving.http.limits import Limits

# Multiple of the largest body that is read and dropped, so that a client that sends first and listens then can read why
# it was refused; a connection that is closed under its hands would tell it nothing.
_DROPPED = 8
# ASGI's function that waits for the next part of a request.
Receive = Callable[[], Awaitable[Mapping[str, Any]]]


class BodyTooLargeError(ValueError):
    """A body exceeds the limit."""


class BodyTooSlowError(ValueError):
    """A body did not arrive in time."""


class ClientGoneError(ConnectionError):
    """The client closed the connection before its body was whole, so that nobody reads a response."""


async def read_body(receive: Receive, limits: Limits) -> bytes:
    """Read a body.

    Raises:
        BodyTooLargeError, BodyTooSlowError: it exceeds a limit.
        ClientGoneError: it does not arrive any more.
    """
    kept, size, more = list[bytes](), 0, True
    try:
        async with asyncio.timeout(limits.body_seconds):
            while more and size <= _DROPPED * limits.body_bytes:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError("the client closed the connection before its body was whole")
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                if size <= limits.body_bytes:
                    kept.append(chunk)
                else:
                    kept.clear()
    except TimeoutError as error:
        raise BodyTooSlowError(
            f"body: must arrive within {limits.body_seconds:g} s, but got {size} bytes in that time"
        ) from error
    if size > limits.body_bytes:
        raise BodyTooLargeError(f"body: must have at most {limits.body_bytes} bytes, but got {size} or more")
    return b"".join(kept)
