"""Transport that sends the head and the body of a response together."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Protocol


class ResponseState(Protocol):
    """State of a response, in uvicorn's record of a request."""

    response_started: bool
    response_complete: bool


class JoinedTransport:
    """Transport of one response, which holds what is written of it until it is complete.

    uvicorn writes the head and the body one after another, and uvloop sends each by a system call of its own. A client
    wakes up for the first to wait for the second, and a server that hangs or dies in between leaves a response that no
    balancer can repeat elsewhere.

    Args:
        transport: the connection's own
        state: of the response; it holds this transport
    """

    def __init__(self, transport: asyncio.Transport, state: ResponseState) -> None:
        self._transport, self._state = transport, weakref.proxy(state)
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Hold a part of the response; what comes before it, which asks for the body, is sent at once."""
        if self._state.response_started:
            self._parts.append(data)
        elif not self._transport.is_closing():
            self._transport.write(data)

    def send(self) -> None:
        """Send what was held, unless the client has gone."""
        parts, self._parts = self._parts, []
        if parts and not self._transport.is_closing():
            self._transport.write(b"".join(parts))

    def close(self) -> None:
        """Close the connection, with the response if it is complete."""
        if self._state.response_complete:
            self.send()
        self._transport.close()
