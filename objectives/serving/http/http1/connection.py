"""One connection: requests are answered in the order in which they came, and none may take too long to arrive."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from objectives.serving.http.http1.messages import Refusal, Request, Response, encode
from objectives.serving.http.http1.parser import RequestParser
from objectives.serving.http.limits import Limits

# Above the 60 s after which load balancers close an idle connection: the side that sends requests closes it first.
_KEEP_ALIVE_SECONDS = 75.0
# Time in which what a client still sends after a refusal is read and dropped, so that it can read why it was refused; a
# connection that is closed under its hands would tell it nothing.
_LINGER_SECONDS = 10.0
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Handler(Protocol):
    """Handler of requests; nothing that it does raises."""

    async def answer(self, request: Request) -> Response: ...

    def refuse(self, refusal: Refusal) -> Response: ...


class Connection(asyncio.Protocol):
    """Connection of a client. All methods are called on the event loop's thread."""

    _transport: asyncio.Transport

    def __init__(self, handler: Handler, limits: Limits, opened: set[Connection]) -> None:
        """Make a connection that is one of `opened` while it is open."""
        self._handler, self._limits, self._opened = handler, limits, opened
        self._loop = asyncio.get_running_loop()
        self._parser = RequestParser(limits.body_bytes)
        self._due: deque[Request | Refusal] = deque()
        self._answering: asyncio.Task[None] | None = None
        self._draining = self._paused = False
        self._quiet_since = self._loop.time()
        self._idle_timer = self._loop.call_later(_KEEP_ALIVE_SECONDS, self._check_idle)
        # Of a request that is being received, then of what is dropped after a refusal.
        self._deadline: asyncio.TimerHandle | None = None
        self._room: asyncio.Future[None] | None = None

    def drain(self) -> None:
        """Close the connection once the requests that have begun are answered."""
        self._draining = True
        if not self._busy and not (self._parser.receiving and not self._parser.ended):
            self._transport.abort() if self._parser.receiving else self._transport.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._transport.abort()

    # -- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._opened.add(self)

    def data_received(self, data: bytes) -> None:
        if self._parser.ended:
            return
        self._due.extend(self._parser.feed(data))
        self._go_on()
        if len(self._due) > 1 and not self._paused:
            # A client that sends without waiting for answers fills the network's buffers, and not this memory.
            self._paused = True
            self._transport.pause_reading()
        self._watch()

    def eof_received(self) -> bool:
        """Return whether the connection stays open, for what is still to be answered."""
        self._parser.ended = self._draining = True
        self._parser.receiving = False
        return self._busy

    def pause_writing(self) -> None:
        self._room = self._loop.create_future()

    def resume_writing(self) -> None:
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._opened.discard(self)
        self._due.clear()
        self._parser.ended, self._parser.expects = True, False
        self._idle_timer.cancel()
        if self._deadline is not None:
            self._deadline.cancel()
        self.resume_writing()

    # -- requests and their answers

    @property
    def _busy(self) -> bool:
        return self._answering is not None or bool(self._due)

    def _go_on(self) -> None:
        """Answer what is due; else let a client send on that asks whether it may."""
        if self._due:
            if self._answering is None:
                self._answering = self._loop.create_task(self._answer_due())
        elif self._parser.expects and self._answering is None:
            self._parser.expects = False
            self._transport.write(_CONTINUE)

    async def _answer_due(self) -> None:
        while self._due:
            found = self._due.popleft()
            if isinstance(found, Request):
                self._write(await self._handler.answer(found), found.keep_alive, found.method != "HEAD")
            else:
                self._write(self._handler.refuse(found), False, True)
            if self._room is not None:
                await self._room
        self._answering = None
        if self._paused and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
        self._go_on()
        self._watch()

    def _write(self, response: Response, keep_alive: bool, body: bool) -> None:
        if self._transport.is_closing():
            return
        last = not keep_alive or ((response.closing or self._draining) and not self._due)
        self._transport.write(encode(response, last, body))
        self._quiet_since = self._loop.time()
        if last:
            self._end()

    def _end(self) -> None:
        """Close the connection once the answers are sent, and a client that still sends has been told so."""
        self._parser.ended = True
        if not self._parser.receiving:
            self._transport.close()
            return
        self._transport.write_eof()
        self._watch_for(_LINGER_SECONDS, self._transport.abort)

    # -- time

    def _watch(self) -> None:
        """Give the request that is being received, if there is one, its time to arrive."""
        if self._parser.ended:
            return
        if not self._parser.receiving or self._paused:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._watch_for(self._limits.body_seconds, self._refuse_slow)

    def _watch_for(self, seconds: float, then: Callable[[], None]) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(seconds, then)

    def _refuse_slow(self) -> None:
        self._parser.ended = True
        seconds, got = self._limits.body_seconds, self._parser.received
        self._due.append(Refusal(408, f"body: must arrive within {seconds:g} s, but got {got} bytes in that time"))
        self._go_on()

    def _check_idle(self) -> None:
        """Close a connection over which nothing came for a while, or whose client does not read its answers."""
        quiet = self._loop.time() - self._quiet_since
        waiting = self._parser.receiving or (self._busy and self._room is None)
        if quiet >= _KEEP_ALIVE_SECONDS and not waiting:
            self._transport.abort()
        else:
            wait = max(_KEEP_ALIVE_SECONDS - quiet, 1.0)
            self._idle_timer = self._loop.call_later(wait, self._check_idle)
