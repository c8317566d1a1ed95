"""Connections of a client beside servers that answer in odd ways, or not."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from objectives.measure.connections import Connections, HttpResponse

SOON = 20.0
MESSAGE = b"GET / HTTP/1.1\r\nHost: here\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Server:
    """A server that calls a function with each connection; `accepted` counts them."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self._serve, self.accepted = serve, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.accepted += 1
            threading.Thread(target=self._run, args=(connection, self.accepted), daemon=True).start()

    def _run(self, connection: socket.socket, number: int) -> None:
        with connection, suppress(ConnectionError):  # of a client that did not wait
            self._serve(connection, number)


@contextmanager
def connected(
    serve: Callable[[socket.socket, int], None], most: int = 8, seconds: float = SOON
) -> Iterator[tuple[Server, Connections]]:
    server = Server(serve)
    connections = Connections("127.0.0.1", server.listener.getsockname()[1], False, most, seconds)
    try:
        yield server, connections
    finally:
        connections.close()
        server.listener.close()


def send(connections: Connections, message: bytes | None = MESSAGE) -> Future[HttpResponse | Exception]:
    found: Future[HttpResponse | Exception] = Future()
    connections.send(lambda: message, found.set_result)
    return found


def answering(*parts: bytes) -> Callable[[socket.socket, int], None]:
    """A server that answers each request in these parts."""

    def serve(connection: socket.socket, number: int) -> None:
        while connection.recv(4096):
            for part in parts:
                connection.sendall(part)

    return serve


@pytest.mark.parametrize(
    "parts",
    [
        (OK,),
        (OK[:7], OK[7:30], OK[30:]),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\no\r\n1\r\nk\r\n0\r\n\r\n"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK,),
        (b"HTTP/1.1 100 Continue\r\n\r\n", OK),
    ],
)
def test_a_response_is_read_however_it_comes(parts: tuple[bytes, ...]) -> None:
    with connected(answering(*parts)) as (server, connections):
        for _ in range(3):
            found = send(connections).result(SOON)
            assert isinstance(found, HttpResponse) and (found.status, found.body) == (200, b"ok")
        assert server.accepted == 1, "the connection stays open"


def test_a_connection_that_closes_after_each_response_is_replaced() -> None:
    with connected(answering(OK.replace(b"OK\r\n", b"OK\r\nConnection: close\r\n"))) as (server, connections):
        for _ in range(3):
            found = send(connections).result(SOON)
            assert isinstance(found, HttpResponse) and found.body == b"ok"
        assert server.accepted == 3


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("body", [b"ok", b""])
def test_a_response_without_a_length_ends_with_its_connection(version: bytes, body: bytes) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(b"HTTP/" + version + b" 200 OK\r\nContent-Type: text/plain\r\n\r\n")
        connection.sendall(body)

    with connected(serve, most=1) as (server, connections):
        for _ in range(3):
            found = send(connections).result(SOON)
            assert isinstance(found, HttpResponse) and (found.status, found.body) == (200, body)
        assert server.accepted == 3


@pytest.mark.parametrize(
    "part",
    [b"", b"HTTP/1.0 200 OK\r\nContent-Type: te", b"HTTP/1.1 100 Continue\r\n\r\n", OK[:-1],
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n"],
)  # fmt: skip
def test_half_a_response_is_none(part: bytes) -> None:
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(4096)
        connection.sendall(part)

    with connected(serve) as (_, connections):
        assert isinstance(send(connections).result(SOON), ConnectionResetError)


def test_a_request_is_sent_again_only_where_an_idle_connection_was_closed() -> None:
    """A request that the server lost is not sent twice.

    That is the first request of a connection that is closed in place of an answer, or one of which half an answer came.
    """

    def closing(connection: socket.socket, number: int) -> None:
        connection.recv(4096)

    with connected(closing) as (server, connections):
        assert isinstance(send(connections).result(SOON), ConnectionResetError)
        assert server.accepted == 1

    def second(connection: socket.socket, number: int) -> None:
        """Answers once, then closes when the next request comes."""
        connection.recv(4096)
        connection.sendall(OK)
        connection.recv(4096)

    with connected(second) as (server, connections):
        for _ in range(3):
            assert isinstance(send(connections).result(SOON), HttpResponse)
        assert server.accepted == 3

    def half(connection: socket.socket, number: int) -> None:
        connection.recv(4096)
        connection.sendall(OK)
        connection.recv(4096)
        connection.sendall(OK[:-1])

    with connected(half) as (server, connections):
        assert isinstance(send(connections).result(SOON), HttpResponse)
        assert isinstance(send(connections).result(SOON), ConnectionResetError)
        assert server.accepted == 1


def test_a_connection_that_is_closed_before_its_first_request_fails_that_one_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with connected(answering(OK), most=1) as (server, connections):
        connect = connections.loop.create_connection

        async def closed(*arguments: Any, **named: Any) -> Any:
            monkeypatch.undo()
            transport, connection = await connect(*arguments, **named)
            transport.abort()
            while connection in connections._all:
                await asyncio.sleep(0)
            return transport, connection

        monkeypatch.setattr(connections.loop, "create_connection", closed)
        first, second = send(connections), send(connections)
        assert isinstance(first.result(SOON), ConnectionResetError)
        assert isinstance(second.result(SOON), HttpResponse) and server.accepted == 2


def test_a_server_that_is_late_fails_one_request_alone() -> None:
    """The limit is short for the first request alone, so that a machine that is slow for a moment fails no other."""
    late: Future[HttpResponse | Exception] = Future()

    def serve(connection: socket.socket, number: int) -> None:
        while connection.recv(4096):
            if late.done():
                connection.sendall(OK)

    with connected(serve, most=1, seconds=0.2) as (_, connections):

        def receive(found: HttpResponse | Exception) -> None:
            connections.seconds = SOON
            late.set_result(found)

        connections.send(lambda: MESSAGE, receive)
        others = [send(connections) for _ in range(2)]
        assert isinstance(late.result(SOON), TimeoutError)
        assert all(isinstance(one.result(SOON), HttpResponse) for one in others), "on a new connection"


def test_a_server_of_another_protocol_fails_the_request() -> None:
    with connected(answering(b"220 smtp.example.org\r\n")) as (_, connections):
        assert isinstance(send(connections).result(SOON), ValueError)


def test_no_more_connections_are_opened_than_there_may_be_and_all_are_closed() -> None:
    together, ended = threading.Barrier(3), threading.Semaphore(0)

    def serve(connection: socket.socket, number: int) -> None:
        while connection.recv(4096):
            together.wait(SOON)
            connection.sendall(OK)
        ended.release()

    with connected(serve, most=3) as (server, connections):
        found = [send(connections) for _ in range(9)]
        assert all(isinstance(one.result(SOON), HttpResponse) for one in found)
        assert server.accepted == 3
    assert all(ended.acquire(timeout=SOON) for _ in range(3))


def test_requests_that_nobody_waits_for_are_not_sent_and_hinder_no_other() -> None:
    """Requests that nobody waits for are many, before and between others, which wait for the only connection."""
    received: list[bytes] = []

    def serve(connection: socket.socket, number: int) -> None:
        while data := connection.recv(4096):
            received.append(data)
            connection.sendall(OK)

    with connected(serve, most=1) as (server, connections):
        nobodys = [send(connections, None) for _ in range(10)]
        found = []
        for _ in range(2):
            found.append(send(connections))
            nobodys += [send(connections, None) for _ in range(3000)]
        found.append(send(connections))
        assert all(isinstance(one.result(SOON), HttpResponse) for one in found)
    assert received == [MESSAGE] * 3 and server.accepted == 1
    assert not any(one.done() for one in nobodys)


def test_nobody_who_listens_fails_each_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    connections = Connections("127.0.0.1", port, False, 2, SOON)
    for _ in range(3):
        nobodys = send(connections, None)
        assert isinstance(send(connections).result(SOON), ConnectionRefusedError)
        assert not nobodys.done()
    connections.close()
