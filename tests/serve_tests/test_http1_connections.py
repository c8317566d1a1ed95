"""Connections of HTTP/1.1: raw sockets, whose answers h11 reads."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import h11
import pytest

from objectives.serving.http.http1 import connection as http1
from objectives.serving.http.http1.listener import Listener
from objectives.serving.http.http1.messages import Refusal, Request, Response
from objectives.serving.http.limits import Limits

BODY_BYTES = 1000


class Echo:
    """Handler that answers with what it was sent; `hold` keeps it waiting."""

    def __init__(self) -> None:
        self.hold: asyncio.Event | None = None
        self.begun = 0
        self.padding = 0

    async def answer(self, request: Request) -> Response:
        self.begun += 1
        if self.hold is not None:
            await self.hold.wait()
        said = f"{request.method} {request.path} ".encode() + request.body + b"." * self.padding
        return Response(200, said, {"Content-Type": "text/plain"}, request.path == "/last")

    def refuse(self, refusal: Refusal) -> Response:
        return Response(refusal.status, refusal.reason.encode(), {})


class Running:
    """A listener in a thread."""

    def __init__(self, **limits: Any) -> None:
        self.handler = Echo()
        self._limits = Limits(**{"body_bytes": BODY_BYTES, **limits})
        self._ready = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *error: object) -> None:
        self.loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)
        assert not self._thread.is_alive() and not self.listener._opened

    async def _serve(self) -> None:
        self.listener = Listener(self.handler, self._limits)
        self.loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        await self.listener.start(self._socket)
        self._ready.set()
        await self._end.wait()
        await self.listener.stop()

    def connect(self) -> socket.socket:
        return socket.create_connection(self._socket.getsockname(), timeout=10)

    def call(self, function: Callable[[], object]) -> None:
        """Run a function on the loop's thread, and return when it has."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(lambda: (function(), done.set()))
        assert done.wait(10)

    def hold(self) -> None:
        self.call(lambda: setattr(self.handler, "hold", asyncio.Event()))

    def release(self) -> None:
        assert self.handler.hold is not None
        self.call(self.handler.hold.set)


@pytest.fixture
def running() -> Iterator[Running]:
    with Running() as found:
        yield found


def answers(peer: socket.socket, *methods: str) -> list[tuple[int, bytes, dict[str, str]]]:
    """Return status, body and headers of the answers to requests of these methods, as h11 reads them."""
    found, left = [], b""
    for method in methods:
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        reader.send(h11.EndOfMessage())
        reader.receive_data(left) if left else None
        body, response = b"", None
        while not isinstance(event := reader.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                reader.receive_data(peer.recv(65536))
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
        assert response is not None
        left = reader.trailing_data[0]
        found.append((response.status_code, body, {k.decode(): v.decode() for k, v in response.headers}))
    assert left == b""
    return found


def post(path: str, body: bytes, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body


def ended(peer: socket.socket) -> bool:
    """Return whether the server closes the connection with nothing more to read."""
    return peer.recv(1) == b""


def test_requests_are_answered_in_their_order_however_they_arrive(running: Running) -> None:
    data = b"".join(post(f"/{n}", b"x" * n) for n in range(20))
    with running.connect() as peer:
        for byte in data[:300]:
            peer.sendall(bytes([byte]))
        peer.sendall(data[300:])
        found = answers(peer, *["POST"] * 20)
    assert [body for _, body, _ in found] == [b"POST /%d " % n + b"x" * n for n in range(20)]
    assert all(headers["content-type"] == "text/plain" and "date" in headers for *_, headers in found)


def test_a_client_that_does_not_wait_for_answers_is_not_read_without_end(running: Running) -> None:
    running.hold()
    with running.connect() as peer:
        peer.setblocking(False)
        request, sent = post("/", b"a" * 900), 0
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with contextlib.suppress(BlockingIOError):
                sent += peer.send(request * 100)
        (opened,) = running.listener._opened
        assert running.handler.begun == 1 and len(opened._due) < 1000 < sent / len(request)
        running.release()


def test_a_client_that_does_not_read_its_answers_fills_no_memory(running: Running) -> None:
    running.handler.padding = 100_000
    with running.connect() as peer:
        peer.sendall(post("/", b"") * 500)
        time.sleep(0.3)
        begun = running.handler.begun
        assert 0 < begun < 200
        found = answers(peer, *["POST"] * 500)
    assert len(found) == 500 == running.handler.begun


@pytest.mark.parametrize(
    ("data", "method", "keeps"),
    [
        (b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n", "GET", True),
        (b"HEAD /a HTTP/1.1\r\nHost: x\r\n\r\n", "HEAD", True),
        (b"GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "GET", False),
        (b"GET /a HTTP/1.0\r\n\r\n", "GET", False),
        (b"GET http://x/a HTTP/1.1\r\nHost: x\r\n\r\n", "GET", True),
        (b"GET /last HTTP/1.1\r\nHost: x\r\n\r\n", "GET", False),
    ],
)
def test_connections_stay_open_where_both_sides_want_it(
    data: bytes, method: str, keeps: bool, running: Running
) -> None:
    with running.connect() as peer:
        peer.sendall(data)
        ((status, body, headers),) = answers(peer, method)
        path = b"/last" if b"/last" in data else b"/a"
        assert (status, body) == (200, b"" if method == "HEAD" else b"GET " + path + b" ")
        assert headers["content-length"] == str(len(path) + len(method) + 2)
        assert ("connection" in headers) == (not keeps)
        if keeps:
            peer.sendall(data)
            assert answers(peer, method)[0][0] == 200
        else:
            assert ended(peer)


def test_a_client_that_asks_first_is_told_to_send_its_body(running: Running) -> None:
    with running.connect() as peer:
        request = post("/", b"abc", "Expect: 100-continue")
        peer.sendall(request[:-3])
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(request[-3:])
        assert answers(peer, "POST")[0][1] == b"POST / abc"
        peer.sendall(post("/", b"a" * 1001, "Expect: 100-continue")[:-1001])
        assert answers(peer, "POST")[0][0] == 413


def test_a_client_that_sends_a_large_body_first_can_read_why_it_is_refused(running: Running) -> None:
    with running.connect() as peer:
        peer.sendall(post("/", b"a" * 20_000_000))
        ((status, body, headers),) = answers(peer, "POST")
        assert status == 413 and b"20000000" in body and headers["connection"] == "close"
        assert ended(peer)


def test_a_client_that_ends_its_side_is_answered(running: Running) -> None:
    with running.connect() as peer:
        peer.sendall(post("/a", b"1") + post("/b", b"2")[:-1])
        peer.shutdown(socket.SHUT_WR)
        assert answers(peer, "POST")[0][1] == b"POST /a 1" and ended(peer)


def test_a_slow_request_is_refused_in_its_turn() -> None:
    with Running(body_seconds=0.1) as running, running.connect() as peer:
        running.hold()
        peer.sendall(post("/a", b"1") + post("/b", b"2")[:-1])
        time.sleep(0.3)
        running.release()
        found = answers(peer, "POST", "POST")
        assert [status for status, *_ in found] == [200, 408] and b"0.1 s" in found[1][1]
    with Running(body_seconds=0.1) as running, running.connect() as peer:
        peer.sendall(b"POST / HT")
        assert answers(peer, "POST")[0][0] == 408


def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_KEEP_ALIVE_SECONDS", 0.2)
    with Running() as running, running.connect() as peer, running.connect() as silent:
        peer.sendall(post("/a", b"1"))
        assert answers(peer, "POST")[0][0] == 200
        assert ended(silent) and ended(peer)


def test_the_end_waits_for_what_has_begun_and_for_nothing_else() -> None:
    with Running(drain_seconds=20) as running:
        running.hold()
        busy, idle, half = running.connect(), running.connect(), running.connect()
        busy.sendall(post("/a", b"1") + post("/b", b"2"))
        half.sendall(post("/c", b"3")[:-1])
        while running.handler.begun < 1 or len(running.listener._opened) < 3:
            time.sleep(0.01)
        time.sleep(0.05)
        running.call(lambda: running._end.set())
        assert ended(idle)
        half.sendall(b"3")
        running.release()
        assert [body for _, body, _ in answers(busy, "POST", "POST")] == [b"POST /a 1", b"POST /b 2"]
        assert answers(half, "POST")[0][1] == b"POST /c 3"
        assert ended(busy) and ended(half)
        for peer in (busy, idle, half):
            peer.close()


def test_an_answer_to_a_client_that_has_gone_is_dropped(running: Running) -> None:
    running.hold()
    with running.connect() as peer:
        peer.sendall(post("/a", b"1") * 3)
        while running.handler.begun < 1:
            time.sleep(0.01)
    while running.listener._opened:
        time.sleep(0.01)
        running.release()
    with running.connect() as peer:
        peer.sendall(post("/b", b"2"))
        assert answers(peer, "POST")[0][1] == b"POST /b 2"
