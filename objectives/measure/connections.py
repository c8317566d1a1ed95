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

    data: its bytes
    receive: called once, on the event loop's thread, with the response or with the reason why there is none
    resent: whether it was sent a second time, after its connection was closed
    """

    data: bytes
    receive: Callable[[HttpResponse | Exception], None]
    resent: bool = False


@dataclass(frozen=True)
class _Waiting:
    """A request whose turn has not come; fields as the arguments of `Connections.send`."""

    message: Callable[[], bytes | None]
    receive: Callable[[HttpResponse | Exception], None]


class Connections:
    """Pool of connections that stay open: as many as requests are on their way, up to a limit."""

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
        self._waiting: deque[_Waiting] = deque()
        self._all: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.loop = uvloop.new_event_loop()
        self._done = asyncio.Event()
        self._thread = threading.Thread(target=self.loop.run_forever, name="connections", daemon=True)
        self._thread.start()

    def send(self, message: Callable[[], bytes | None], receive: Callable[[HttpResponse | Exception], None]) -> None:
        """Send a request as soon as a connection is free; both functions are called on the thread of the loop.

        Args:
            message: called when it is the request's turn; returns its bytes, or None where it is not to be sent any
                more, and nobody waits for what became of it
            receive: takes the response, or an OSError or ValueError where there is none
        """
        self.loop.call_soon_threadsafe(self._begin, _Waiting(message, receive))

    def close(self) -> None:
        """Wait for the responses of what was sent, then close the connections."""
        asyncio.run_coroutine_threadsafe(self._drained(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    # The thread.

    def _begin(self, request: _Waiting) -> None:
        self._under_way += 1
        self._waiting.append(request)
        self._assign()

    def _assign(self) -> None:
        """Give requests that wait to connections that are idle, or that may be opened."""
        while self._waiting and (self._idle or self._open < self._most):
            request = self._waiting.popleft()
            if (data := request.message()) is None:
                self._count_off()
            elif self._idle:
                self._idle.pop().send(_Exchange(data, request.receive))
            else:
                self._begin_connection(_Exchange(data, request.receive))

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
        if connection in self._all:
            connection.send(exchange)
        else:  # closed before its first request, and its place is another's already
            self.end(exchange, ConnectionResetError(_CLOSED))

    def opened(self, connection: _Connection) -> None:
        self._all.add(connection)

    def end(self, exchange: _Exchange, found: HttpResponse | Exception) -> None:
        """Hand over what became of a request."""
        self._count_off()
        exchange.receive(found)

    def _count_off(self) -> None:
        """Count a request that is not under way any more."""
        self._under_way -= 1
        if not self._under_way:
            self._done.set()

    def release(self, connection: _Connection) -> None:
        """Take a connection that is free for the next request."""
        self._idle.append(connection)
        self._assign()

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
        self._assign()

    async def _drained(self) -> None:
        self._done.clear()
        if self._under_way:
            await self._done.wait()
        for connection in list(self._all):
            connection.close()
        while self._all:
            await asyncio.sleep(_CLOSING_SECONDS)


class _Connection(asyncio.Protocol):
    """Connection of the pool, with a request at a time."""

    _transport: asyncio.Transport

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._exchange: _Exchange | None = None
        self._answered = 0
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._heard = False
        self._begin_response()

    def _begin_response(self) -> None:
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        self._ends_with_connection = False

    def send(self, exchange: _Exchange) -> None:
        self._exchange = exchange
        self._timer = self._connections.loop.call_later(self._connections.seconds, self._late)
        self._transport.write(exchange.data)

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

    def eof_received(self) -> None:
        if self._ends_with_connection:
            self.on_message_complete()

    def connection_lost(self, error: Exception | None) -> None:
        exchange = self._taken()
        self._connections.lost(self, exchange, again=self._answered > 0 and not self._heard)

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        # HTTP/1.0 has no other way where the length is not known beforehand, and HTTP/1.1 has this one too.
        self._ends_with_connection = self._headers.keys().isdisjoint(("content-length", "transfer-encoding"))

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() < http.client.OK:  # a final response follows
            self._begin_response()
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
