"""Responses of a connection, each of which is one write, over a transport that records them."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from uvicorn.server import ServerState

from objectives.serving.http.intake.connection import Connection
from objectives.serving.http.intake.joined import JoinedTransport
from objectives.serving.http.limits import Limits
from objectives.serving.http.server import http_config

Send = Callable[[dict[str, Any]], Awaitable[None]]


class Recorded(asyncio.Transport):
    """Transport that keeps what is written, and what came too late."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.late: list[bytes] = []
        self.closed = self.ended = self.paused = False

    def write(self, data: Any) -> None:
        (self.late if self.closed or self.ended else self.writes).append(bytes(data))

    def write_eof(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False


async def application(scope: Any, receive: Any, send: Send) -> None:
    """Answer with the path, in two parts with a pause before each.

    The path /fails fails after the head instead. The body of a POST is read first, and there is no answer once the
    client has gone.
    """
    if scope["method"] == "POST":
        message = {"more_body": True}
        while message.get("more_body", False):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
    body = scope["path"].encode()
    length = str(len(body)).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
    await asyncio.sleep(0.001)
    if scope["path"] == "/fails":
        raise ValueError
    await send({"type": "http.response.body", "body": body[:2], "more_body": True})
    await asyncio.sleep(0.001)
    await send({"type": "http.response.body", "body": body[2:]})


def answers(*parts: bytes, end: int | None = None, leaves: bool = False) -> Recorded:
    """Return the transport after a connection has got each part of its requests.

    Each part comes some time after the one before. The server ends after `end` parts. A client that leaves does so
    before its requests are answered.
    """
    transport = Recorded()

    async def connect() -> None:
        config = http_config(application, Limits())  # type: ignore[arg-type]
        config.load()
        connection = Connection(config, ServerState(), {}, limits=Limits(), gate=None)
        connection.connection_made(transport)
        for number, part in enumerate(parts):
            if number == end:
                connection.shutdown()
            connection.data_received(part)
            await asyncio.sleep(0.0005)
        if leaves:
            transport.close()
            connection.connection_lost(None)
        await asyncio.sleep(0.2)
        if leaves:
            return
        if len(parts) == end:
            connection.shutdown()
        closed = transport.closed
        connection.connection_lost(None)
        transport.closed = closed

    asyncio.run(connect())
    assert transport.late == []
    return transport


def request(path: str, method: str = "GET", *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in ("Host: x", *headers))
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


def bodies(writes: Sequence[bytes]) -> list[bytes]:
    assert all(write.startswith(b"HTTP/1.1 200 OK\r\n") for write in writes)
    return [write.partition(b"\r\n\r\n")[2] for write in writes]


@pytest.mark.parametrize("apart", [False, True])
def test_each_response_is_one_write_in_the_order_of_the_requests(apart: bool) -> None:
    """The second request comes while the first is being answered, and so on; or all come at once."""
    requests = [request(f"/path{number}") for number in range(3)]
    found = answers(*requests) if apart else answers(b"".join(requests))
    assert bodies(found.writes) == [b"/path0", b"/path1", b"/path2"]


def test_nothing_is_written_to_a_client_that_left(caplog: pytest.LogCaptureFixture) -> None:
    """Of several requests on their way, uvicorn notes that for the last one alone."""
    found = answers(b"".join(request(f"/path{number}") for number in range(3)), leaves=True)
    assert found.writes == [] and not caplog.records


def test_what_was_sent_is_freed_without_a_garbage_collection() -> None:
    gc.collect()
    gc.disable()
    try:
        answers(*(request("/path") for _ in range(5)))
        assert not [one for one in gc.get_objects() if type(one) is JoinedTransport]
    finally:
        gc.enable()


def test_one_without_a_body_is_one_write() -> None:
    assert bodies(answers(request("/path", "HEAD")).writes) == [b""]


def test_a_last_response_is_written_before_the_end() -> None:
    found = answers(request("/path", "GET", "Connection: close"))
    assert bodies(found.writes) == [b"/path"] and found.closed


def test_a_client_is_asked_for_its_body_at_once() -> None:
    found = answers(request("/path", "POST", "Expect: 100-continue", "Content-Length: 2"), b"{}")
    asked, *responses = found.writes
    assert asked == b"HTTP/1.1 100 Continue\r\n\r\n" and bodies(responses) == [b"/path"]


def test_nothing_is_written_of_a_response_that_fails() -> None:
    """The client of the response, or a balancer in between, may send the request again."""
    found = answers(request("/fails"))
    assert found.writes == [] and found.closed


CHUNKED = request("/path", "POST", "Transfer-Encoding: chunked")
LARGE = request("/path", "GET", f"X-Long: {'a' * 70_000}")


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        pytest.param([CHUNKED + b"ZZZ\r\n"], 400, id="malformed body at once"),
        pytest.param([CHUNKED, b"ZZZ\r\n"], 400, id="malformed body later"),
        pytest.param(
            [CHUNKED + b"%x\r\n%b\r\n" % (100_000, b"a" * 100_000) + b"ZZZ\r\n"], 400, id="after a large chunk"
        ),
        pytest.param([CHUNKED[:-2] + b"Expect: 100-continue\r\n\r\nZZZ\r\n"], 400, id="that was to be asked for"),
        pytest.param([LARGE + request("/path")], 431, id="large headers and another request"),
        pytest.param([LARGE + b"no HTTP at all\r\n\r\n"], 431, id="large headers and no request"),
        pytest.param([LARGE + CHUNKED + b"ZZZ\r\n"], 431, id="large headers and a malformed body"),
    ],
)
@pytest.mark.parametrize("ends", [False, True])
def test_a_refusal_is_the_last_word(
    parts: list[bytes], status: int, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What follows a refusal is read and dropped, and the end of the server closes the connection."""
    found = answers(*parts, end=len(parts) if ends else None)
    refusal = found.writes[-1]
    assert refusal.startswith(f"HTTP/1.1 {status} ".encode()) and found.ended
    assert all(write.startswith(b"HTTP/1.1 100 ") for write in found.writes[:-1])
    assert not found.paused and found.closed == ends and not caplog.records


def test_a_refusal_while_the_server_ends_closes_the_connection() -> None:
    found = answers(CHUNKED, b"ZZZ\r\n", end=1)
    (refusal,) = found.writes
    assert refusal.startswith(b"HTTP/1.1 400 ") and found.closed
