"""Connections of an HTTP client to one server, on an event loop in a thread of its own.

The thread does all the work of all requests: threads of their own would compete for the interpreter, and hundreds of
them answer in any order.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, cast

import httptools
import uvloop

# Between two looks whether all connections are closed.
_CLOSING_SECONDS = 0.001
_CLOSED = "the server closed the connection before it answered"


class HttpResponse(NamedTuple):
    """A response; names of headers in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(eq=False)
class _Exchange:
    """A request on its way.

    message: returns its bytes once it is its turn; None where nobody waits for it any more
    receive: called once, on the event loop's thread, with the response or with the reason why there is none
    resent: whether it was sent a second time, after its connection was closed
    """

    message: Callable[[], bytes | None]
    receive: Callable[[HttpResponse | Exception], None]
    data: bytes = b""
    resent: bool = False


class Connections:
    """As many connections as requests are on their way, up to a limit, which stay open."""

    def __init__(self, host: str, port: int | None, secure: bool, most: int, seconds: float) -> None:
        """Start the thread.

        Args:
            most: connections; further requests wait for one
            seconds: in which a request has to be answered
        """
        self._place = (host, port or (443 if secure else 80))
        self._tls = ssl.create_default_context() if secure else None
        self._most, self.seconds = most, seconds
        self._open = self._under_way = 0
        self._idle: list[_Connection] = []
        self._waiting: deque[_Exchange] = deque()
        self._all: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop = uvloop.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self.loop.run_forever, name="connections", daemon=True)
        self._thread.start()

    def send(self, message: Callable[[], bytes | None], receive: Callable[[HttpResponse | Exception], None]) -> None:
        """Send a request as soon as a connection is free; both functions are called on the thread of the loop.

        Args:
            message: returns the request's bytes; None where it is not to be sent any more
            receive: takes the response, or an OSError or ValueError where there is none
        """
        self.loop.call_soon_threadsafe(self._begin, _Exchange(message, receive))

    def close(self) -> None:
        """Wait for the responses of what was sent, then close the connections."""
        asyncio.run_coroutine_threadsafe(self._drained(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    # The thread.

    def _begin(self, exchange: _Exchange) -> None:
        self._under_way += 1
        self._assign(exchange)

    def _assign(self, exchange: _Exchange) -> None:
        """Give a request to a connection, or let it wait for one."""
        if self._idle:
            self._idle.pop().send(exchange)
        elif self._open < self._most:
            self._begin_connection(exchange)
        else:
            self._waiting.append(exchange)

    def _begin_connection(self, exchange: _Exchange) -> None:
        self._open += 1
        task = self.loop.create_task(self._connect(exchange))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, exchange: _Exchange) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                _, connection = await self.loop.create_connection(
                    lambda: _Connection(self), *self._place, ssl=self._tls
                )
        except OSError as error:
            self.end(exchange, error)
            self._vacate()
            return
        connection.send(exchange)

    def opened(self, connection: _Connection) -> None:
        self._all.add(connection)

    def end(self, exchange: _Exchange, found: HttpResponse | Exception | None) -> None:
        """Hand over what became of a request; None where nobody waits for it."""
        self._under_way -= 1
        if found is not None:
            exchange.receive(found)
        if not self._under_way:
            self._done.set()

    def release(self, connection: _Connection) -> None:
        """Take a connection that is free for the next request."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)

    def lost(self, connection: _Connection, exchange: _Exchange | None, again: bool) -> None:
        """Forget a connection that was closed, and what it was sent.

        Args:
            again: whether the request is sent on a new connection: a server closes connections that were idle for a
                while, which may show at the next request only
        """
        self._all.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if exchange is not None and again and not exchange.resent:
            exchange.resent = True
            self._open -= 1
            self._begin_connection(exchange)
            return
        if exchange is not None:
            self.end(exchange, ConnectionResetError(_CLOSED))
        self._vacate()

    def _vacate(self) -> None:
        """Let the next request that waits have the place of a connection that is no more."""
        self._open -= 1
        if self._waiting:
            self._assign(self._waiting.popleft())

    async def _drained(self) -> None:
        self._done.clear()
        if self._under_way:
            await self._done.wait()
        for connection in list(self._all):
            connection.close()
        while self._all:
            await asyncio.sleep(_CLOSING_SECONDS)


class _Connection(asyncio.Protocol):
    """One connection, with one request at a time."""

    _transport: asyncio.Transport

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._exchange: _Exchange | None = None
        self._answered = 0
        self._lost = False
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._heard = False

    def send(self, exchange: _Exchange) -> None:
        data = exchange.data or exchange.message()
        if data is None:
            self._connections.end(exchange, None)
            self._connections.release(self)
            return
        if self._lost:
            self._connections.end(exchange, ConnectionResetError(_CLOSED))
            return
        exchange.data, self._exchange = data, exchange
        self._timer = self._connections.loop.call_later(self._connections.seconds, self._late)
        self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have no class in common with asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._connections.opened(self)

    def data_received(self, data: bytes) -> None:
        self._heard = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ValueError(f"the server's response is no HTTP: {error}"))

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        exchange = self._taken()
        self._connections.lost(self, exchange, again=self._answered > 0 and not self._heard)

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < http.client.OK:  # a final response follows
            self._headers, self._body = {}, bytearray()
            return
        if (exchange := self._taken()) is None:
            return
        response = HttpResponse(self._parser.get_status_code(), self._headers, bytes(self._body))
        stays = self._parser.should_keep_alive()
        self._answered += 1
        # After the parser has returned: it may not be replaced within its own call.
        self._connections.loop.call_soon(self._go_on, stays)
        self._connections.end(exchange, response)

    def _go_on(self, stays: bool) -> None:
        self._begin()
        if stays and not self._transport.is_closing():
            self._connections.release(self)
        else:
            self._transport.close()

    def _late(self) -> None:
        self._fail(TimeoutError(f"the server did not answer within {self._connections.seconds:g} s"))

    def _fail(self, error: Exception) -> None:
        if (exchange := self._taken()) is not None:
            self._connections.end(exchange, error)
        self._transport.abort()

    def _taken(self) -> _Exchange | None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._timer.cancel()
        return exchange
