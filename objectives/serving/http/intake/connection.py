"""Connection of a client: uvicorn's, with limits on the time and the size of a request's headers, and a door."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import unquote

from httptools import parse_url
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from objectives.serving.http.intake.joined import JoinedTransport
from objectives.serving.http.limits import RETRY_AFTER, Limits


def _response(status: int, reason: str, more: str = "") -> bytes:
    body = json.dumps({"error": reason}).encode()
    head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


# Key of the gate's receipt in the state of a request's scope.
RECEIPT = "leanrec.receipt"
_BUSY = _response(503, "too many requests wait", f"Retry-After: {RETRY_AFTER}\r\n")


class Gate(Protocol):
    """Decides which requests are refused by their headers, and notes those that are whole."""

    def turns_away(self, path: str, length: int) -> bool:
        """Refuse a POST request to infer, given the length of its body, and return whether it was."""
        ...

    def received(self, path: str) -> object:
        """Note that a POST request is whole, and return its receipt, if it gets one."""
        ...


class Connection(HttpToolsProtocol):
    """Connection whose client is told in JSON what was wrong before there was a request to answer.

    A new one that stays silent for as long as headers may take is closed without a word.

    Args:
        gate: the client of a request that it turns away is told at once, and what it still sends of the body is
            dropped; None to handle all requests
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        gate: Gate | None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits, self._gate = limits, gate
        # Whether a message has ever begun; one is under way, its headers are, it is being answered already, it has been
        # before its body was whole, its body is dropped; and whether the connection is about to be closed, or the
        # server.
        self._begun = self._in_message = self._in_headers = self._handed_on = self._early = self._dropping = False
        self._refused = self._ending = False
        # Messages that began in this read, and bytes of headers that are not complete.
        self._began = self._header_bytes = 0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        between, self._began = not self._in_message, 0
        super().data_received(data)
        if self._refused or self._dropping or not self._begun:
            return
        if not self._in_headers:
            if not self._early:
                self._stop_timer()
            return
        # Seldom: nearly all headers arrive at once.
        if self._began:
            self._start_timer(self._limits.header_seconds)
        if not self._began or (between and self._began == 1):  # else a part of it belongs to other messages
            self._header_bytes += len(data)
        self._check_header_bytes(self._header_bytes)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun = self._in_message = self._in_headers = True
        self._began, self._header_bytes = self._began + 1, 0

    def on_headers_complete(self) -> None:
        self._in_headers = False
        if self._refused:  # what follows in the same read
            return
        self._unset_keepalive_if_required()
        if not self._check_header_bytes(len(self.url) + sum(len(name) + len(value) for name, value in self.headers)):
            return
        if self.parser.should_upgrade() and self._has_body():
            # The parser ends such a request at its headers, and its body would be read as the next one.
            self._refuse(400, "Upgrade: must not come with a body, since requests are of HTTP/1.1 alone")
            return
        length = self._length_to_infer()
        if length is not None and self._gate is not None and self._gate.turns_away(self._path, length):
            self._dropping = True
            self._start_timer(self._limits.body_seconds)
            self.transport.write(_BUSY)
        else:
            super().on_headers_complete()
            self._join_response()
            self._handed_on = True

    def on_body(self, body: bytes) -> None:
        if not self._dropping and not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_message = self._handed_on = False
        if self._refused:
            return
        if self._dropping or self._early:
            self._dropping = self._early = False
            self._stop_timer()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            # One that comes before the answer to the last is noted when its turn comes.
            posted = self.scope["method"] == "POST"
            if self._gate is not None and posted and not self.pipeline and self._answering:
                self.scope["state"][RECEIPT] = self._gate.received(self.scope["path"])
            super().on_message_complete()

    def shutdown(self) -> None:
        self._ending = True
        if self._refused and not self._answering:
            self.transport.close()
        else:
            super().shutdown()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "request: must be of HTTP/1.1, but cannot be read as such")

    def _join_response(self) -> None:
        """Send the response to the request whose headers are complete in one write; none of it has been written yet."""
        cycle = self.cycle
        response = JoinedTransport(self.transport, cycle)

        def complete() -> None:
            response.send()
            self.on_response_complete()
            if self.cycle is cycle and self._in_message and not self._in_headers:
                # What follows of the body is read in vain, and no longer than a body may take.
                self._early = True
                self._start_timer(self._limits.body_seconds)

        cycle.transport = response  # type: ignore[assignment]
        cycle.on_response = complete

    @property
    def _path(self) -> str:
        """Path of the request, as the application gets it."""
        return unquote(parse_url(self.url).path.decode("ascii"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.disconnected

    def _has_body(self) -> bool:
        told = dict(self.headers)
        return b"transfer-encoding" in told or told.get(b"content-length", b"0").strip(b"0") != b""

    def _length_to_infer(self) -> int | None:
        """Return the length of the body of a request that can be answered before its body is read, else None.

        None for a request that is no POST of HTTP/1.1, tells no length, comes before the answer to the last, or ends
        the connection. None also where the client waits to be asked for its body or does not read answers, and where
        the body is too large.
        """
        if self._answering or self.flow.write_paused or self.parser.get_method() != b"POST":
            return None
        if self.expect_100_continue or not self.parser.should_keep_alive() or self.parser.get_http_version() != "1.1":
            return None
        text = next((value for name, value in self.headers if name == b"content-length"), b"")
        length = int(text) if text.isdigit() else None
        return None if length is None or length > self._limits.body_bytes else length

    def _check_header_bytes(self, got: int) -> bool:
        most = self._limits.header_bytes
        if got > most:
            self._refuse(431, f"headers: must have at most {most} bytes, but got {got} or more")
        return got <= most

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._end_waiting)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_waiting(self) -> None:
        seconds = self._limits.header_seconds
        if self._answering:
            # The request before it is still being answered, on the same connection.
            self._start_timer(seconds)
        elif self._refused or self._dropping:
            self.transport.close()
        elif self._in_headers:
            self._refuse(
                408, f"headers: must arrive within {seconds:g} s, but got {self._header_bytes} bytes in that time"
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, reason: str) -> None:
        """Tell the client why, and close the connection once the client has.

        What the client still sends is dropped, so that it can read the reason. Where the request before is still being
        answered, that answer is the last word.
        """
        if self._refused:
            return
        self._refused = True
        self._start_timer(self._limits.header_seconds)
        if self.pipeline or (self._answering and not self._handed_on):
            self.cycle.keep_alive = False
            return
        if self._answering:
            # Nothing more is read or written of the request, as if its client had gone.
            self.cycle.disconnected, self.cycle.waiting_for_100_continue = True, False
            self.cycle.message_event.set()
        self.flow.resume_reading()  # of what is dropped
        self.transport.write(_response(status, reason, "Connection: close\r\n"))
        self.transport.write_eof()
        if self._ending:
            self.transport.close()
