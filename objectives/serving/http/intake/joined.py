"""Transport that sends the head and the body of a response together."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class JoinedTransport:
    """Transport of a connection which holds what is written of a response until the response is complete.

    uvicorn writes the head and the body one after another, and uvloop sends each by a system call of its own. A client
    wakes up for the first to wait for the second, and a server that hangs or dies in between leaves a response that no
    balancer can repeat elsewhere.

    Args:
        transport: the connection's own
        under_way: returns whether a part of a response is being written
    """

    def __init__(self, transport: asyncio.Transport, under_way: Callable[[], bool]) -> None:
        self._transport, self._under_way = transport, under_way
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._under_way():
            self._parts.append(data)
        else:
            self._transport.write(data)

    def send(self) -> None:
        """Send what was held."""
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self.send()
        self._transport.close()
