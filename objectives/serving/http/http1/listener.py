"""Listening socket and all connections that it has opened."""

from __future__ import annotations

import asyncio
import socket

from objectives.serving.http.http1.connection import Connection, Handler
from objectives.serving.http.limits import Limits

# Connections that wait to be taken while the event loop is at work.
_BACKLOG = 2048
# Seconds between two looks at whether all connections are closed.
_LOOK_SECONDS = 0.01


class Listener:
    """Listener that hands requests to a handler."""

    def __init__(self, handler: Handler, limits: Limits) -> None:
        self._handler, self._limits = handler, limits
        self._opened: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Take connections of a socket that listens."""

        def connection() -> Connection:
            return Connection(self._handler, self._limits, self._opened)

        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(connection, sock=listener, backlog=_BACKLOG)

    async def stop(self) -> None:
        """Stop listening, answer the requests that have begun for as long as the limits allow, and close all
        connections.
        """
        if self._server is not None:
            self._server.close()
        for connection in list(self._opened):
            connection.drain()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._limits.drain_seconds
        while self._opened and loop.time() < end:
            await asyncio.sleep(_LOOK_SECONDS)
        self.abort()

    def abort(self) -> None:
        """Close all connections at once."""
        for connection in list(self._opened):
            connection.abort()
