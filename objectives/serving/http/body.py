"""Bodies of requests, read within limits of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from objectives.serving.http.limits import Limits

# Multiple of the largest body that is read and dropped, so that a client that sends first and listens then can read why
# it was refused; a connection that is closed under its hands would tell it nothing.
_DROPPED = 4


class BodyTooLargeError(ValueError):
    """A body exceeds the limit."""


class BodyTooSlowError(ValueError):
    """A body did not arrive in time."""


async def read_body(chunks: AsyncIterator[bytes], limits: Limits) -> bytes:
    """Read a body.

    Raises:
        BodyTooLargeError, BodyTooSlowError: it exceeds a limit.
    """
    kept, size = bytearray(), 0
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in chunks:
                size += len(chunk)
                if size <= limits.body_bytes:
                    kept += chunk
                elif size > _DROPPED * limits.body_bytes:
                    break
                else:
                    kept.clear()
    except TimeoutError as error:
        raise BodyTooSlowError(
            f"body: must arrive within {limits.body_seconds:g} s, but got {size} bytes in that time"
        ) from error
    if size > limits.body_bytes:
        raise BodyTooLargeError(f"body: must have at most {limits.body_bytes} bytes, but got {size} or more")
    return bytes(kept)
