"""Connection of a client: uvicorn's, with limits on the time and the size of a request's headers, and a door."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from objectives.serving.http.limits import RETRY_AFTER, Limits


def _response(status: int, reason: str, more: str = "") -> bytes:
    body = json.dumps({"error": reason}).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


_BUSY = _response(503, "too many requests wait", f"Retry-After: {RETRY_AFTER}\r\n")


class Connection(HttpToolsProtocol):
    """Connection whose client is told in JSON what was wrong before there was a request to answer.

    A new one that stays silent for as long as headers may take is closed without a word.

    Args:
        turns_away: refuses a request to infer by the length of its body, and returns whether it did; its client is told
            at once, and what it still sends of the body is dropped
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        turns_away: Callable[[int], bool],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits, self._turns_away = limits, turns_away
        self._in_headers, self._header_bytes, self._refused, self._dropping = False, 0, False, False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self._refused:
            return
        if not self._in_headers:
            self._stop_timer()
            return
        # Seldom: nearly all headers arrive at once.
        if self._header_bytes == 0:
            self._stop_timer()
            self._start_timer()
        self._header_bytes += len(data)
        if self._header_bytes > self._limits.header_bytes:
            most = self._limits.header_bytes
            self._refuse(431, f"headers: must have at most {most} bytes, but got {self._header_bytes} or more")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers, self._header_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._in_headers = False
        length = self._length_to_infer()
        if length is not None and self._turns_away(length):
            self._dropping = True
            self.transport.write(_BUSY)
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._dropping:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self._dropping:
            self._dropping = False
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            super().on_message_complete()

    def _length_to_infer(self) -> int | None:
        """Return the length of the body of a request to infer; None for any other, for one that comes before the answer
        to the last, and for one whose client waits to be asked for its body.
        """
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or not self.url.endswith(b"/infer") or self.parser.get_method() != b"POST":
            return None
        if self.expect_100_continue or not self.parser.should_keep_alive():
            return None
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        return int(length) if length.isdigit() else None

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "request: must be of HTTP/1.1, but cannot be read as such")

    def _start_timer(self) -> None:
        self._timer = self.loop.call_later(self._limits.header_seconds, self._end_waiting)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            # The request before it is still being answered, on the same connection.
            self._start_timer()
        elif self._in_headers and not self._refused:
            seconds = self._limits.header_seconds
            self._refuse(
                408, f"headers: must arrive within {seconds:g} s, but got {self._header_bytes} bytes in that time"
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        """Say why, and close once the client has; what it still sends is dropped, so that it can read the reason."""
        self._refused = True
        self._stop_timer()
        self._start_timer()
        self.transport.write(_response(status, reason, "Connection: close\r\n"))
        self.transport.write_eof()
