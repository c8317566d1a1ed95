"""HTTP of a real server at its limits: bodies, methods, connections that break off, over raw sockets."""

from __future__ import annotations

import asyncio
import fcntl
import http.client
import json
import re
import select
import socket
import termios
import threading
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from numpy.typing import NDArray

from objectives.serving.http import app
from objectives.serving.http.app import Endpoints
from objectives.serving.http.inference import Inference
from objectives.serving.http.intake.body import BodyTooLargeError, BodyTooSlowError, ClientGoneError, read_body
from objectives.serving.http.intake.loop_load import LoopLoad
from objectives.serving.http.limits import Limits
from objectives.serving.http.model import Model
from objectives.serving.http.model_slot import ModelSlot
from objectives.serving.http.server import http_config
from objectives.serving.pool import Pool, scheduler
from objectives.serving.pool.balancing import round_robin
from spaces.techniques.placement import Admission, InstanceGroup, Placement
from tests.serve_tests import oracle
from tests.serve_tests.bundles import draw_request, end_waiting, waiting, write_toy
from tests.serve_tests.process import SOON, wait_until

BODY_BYTES = 4000
GOOD = json.dumps(oracle.json_request(draw_request(3))).encode()
INFER = "/v2/models/toy/infer"
Answer = tuple[int, bytes, dict[str, str]]


class Running:
    """A server in a thread, with the settings of `leanrec serve`."""

    def __init__(self, model: Model, **limits: Any) -> None:
        bounds = Limits(**{"body_bytes": BODY_BYTES, **limits})
        self.inference = Inference("toy", ModelSlot(model), bounds)
        endpoints = Endpoints(self.inference, "1")
        self.server = uvicorn.Server(http_config(endpoints, bounds, endpoints))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.thread = threading.Thread(target=lambda: self.server.run(sockets=[self._socket]))
        self._address = self._socket.getsockname()

    def connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=SOON)

    def ended(self, status: int) -> float:
        """Return the number of requests that were counted with a status."""
        found = self.inference.metrics.registry.get_sample_value("leanrec_requests_total", {"status": str(status)})
        return found or 0.0

    def is_well(self) -> bool:
        """Return whether a good request on a new connection is answered."""
        with self.connect() as peer:
            peer.sendall(post(GOOD))
            return answer(peer)[0] == 200


@contextmanager
def running(bundle: Path, **limits: Any) -> Iterator[Running]:
    model = Model.open(bundle)
    found = Running(model, **limits)
    found.thread.start()
    try:
        yield found
    finally:
        found.server.should_exit = True
        found.thread.join(SOON)
        model.close()
    assert not found.thread.is_alive() and not found.server.server_state.connections


@pytest.fixture(scope="module")
def http_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(write_toy(tmp_path_factory.mktemp("toy") / "bundle")) as found:
        yield found


def post(body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a request to infer; `length` is that of the header, where it is not the body's."""
    return head("POST", INFER, f"Content-Length: {len(body) if length is None else length}", *headers) + body


def head(method: str, path: str, *headers: str) -> bytes:
    lines = "".join(f"{header}\r\n" for header in ("Host: x", *headers))
    return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()


def chunked(body: bytes, size: int) -> bytes:
    """Return a request to infer in chunks of so many bytes."""
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    encoded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    return head("POST", INFER, "Transfer-Encoding: chunked") + encoded + b"0\r\n\r\n"


def answer(peer: socket.socket, method: str = "POST") -> Answer:
    """Return status, body and headers of the next response."""
    response = http.client.HTTPResponse(peer, method=method)
    response.begin()
    body = response.read()
    return response.status, body, {name.lower(): value for name, value in response.getheaders()}


def is_closed(peer: socket.socket) -> bool:
    """Return whether the server closes the connection with nothing more to read."""
    with suppress(ConnectionResetError):
        return peer.recv(1) == b""
    return True


@pytest.mark.parametrize("request_", [post(GOOD), chunked(GOOD, 1), chunked(GOOD, 100)])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_a_body_is_whole_however_it_arrives(request_: bytes, step: int, http_server: Running) -> None:
    with http_server.connect() as peer:
        for start in range(0, len(request_), step):
            peer.sendall(request_[start : start + step])
        status, body, headers = answer(peer)
        assert (status, headers["content-type"]) == (200, "application/json")
        assert len(oracle.read_scores(body, None)[1]) == 3
        peer.sendall(post(GOOD))
        assert answer(peer)[:2] == (200, body), "the connection stays open"


@pytest.mark.parametrize(
    ("body", "status"),
    [(GOOD.ljust(BODY_BYTES), 200), (GOOD.ljust(BODY_BYTES + 1), 413), (GOOD.ljust(3 * BODY_BYTES), 413)],
)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_a_body_is_limited_and_the_client_told(body: bytes, status: int, in_chunks: bool, http_server: Running) -> None:
    """The client sends all of it before it listens."""
    before = http_server.ended(status)
    with http_server.connect() as peer:
        peer.sendall(chunked(body, 1000) if in_chunks else post(body))
        found, said, headers = answer(peer)
        assert found == status
        if status == 413:
            assert json.loads(said)["error"].startswith(f"body: must have at most {BODY_BYTES} bytes, but got ")
            assert headers["connection"] == "close" and is_closed(peer)
    assert http_server.ended(status) == before + 1


def test_a_body_that_does_not_arrive_is_refused(tmp_path: Path) -> None:
    """A body stops within its first half; one that has not begun is refused alike."""
    with running(write_toy(tmp_path / "bundle"), body_seconds=0.1) as server:
        for sent in (GOOD[:50], b""):
            with server.connect() as peer:
                peer.sendall(post(sent, length=len(GOOD)))
                status, said, headers = answer(peer)
                error = json.loads(said)["error"]
                assert (
                    status == 408 and error == f"body: must arrive within 0.1 s, but got {len(sent)} bytes in that time"
                )
                assert headers["connection"] == "close" and is_closed(peer)
        assert server.ended(408) == 2 and server.is_well()


def test_headers_that_do_not_arrive_are_refused(tmp_path: Path) -> None:
    """Headers stop after their first byte, in the first line, and after a header; then they come byte by byte."""
    request = post(GOOD, "X-Some: header")
    with running(write_toy(tmp_path / "bundle"), header_seconds=1.0) as server:
        for length in (1, 10, request.index(b"X-Some") + 3):
            with server.connect() as peer:
                peer.sendall(request[:length])
                status, said, headers = answer(peer)
                wanted = f"headers: must arrive within 1 s, but got {length} bytes in that time"
                assert (status, json.loads(said)) == (408, {"error": wanted})
                assert headers["connection"] == "close" and is_closed(peer)
        with server.connect() as peer:
            for sent in range(1, len(request)):
                peer.sendall(request[sent - 1 : sent])
                if select.select([peer], [], [], 0.1)[0]:
                    break
            assert answer(peer)[0] == 408 and sent < request.index(b"\r\n\r\n")
        assert server.is_well()


def test_headers_that_arrive_in_two_parts_are_in_time_and_a_silent_connection_is_closed(tmp_path: Path) -> None:
    request, bundle = post(GOOD), write_toy(tmp_path / "bundle")
    with running(bundle) as server, server.connect() as peer:
        for _ in range(3):
            for part in (request[:20], request[20:]):
                peer.sendall(part)
                time.sleep(0.02)
            assert answer(peer)[0] == 200
    with running(bundle, header_seconds=1.0) as server:
        with server.connect() as peer:
            peer.sendall(request)
            assert answer(peer)[0] == 200
            time.sleep(1.5)
            peer.sendall(request)
            assert answer(peer)[0] == 200, "between two requests, a connection may be silent for longer"
        with server.connect() as peer:
            assert is_closed(peer)


def test_the_second_request_of_a_connection_does_not_end_the_answer_to_the_first(tmp_path: Path) -> None:
    with running(write_toy(tmp_path / "bundle", waiting(1.5)), header_seconds=1.0) as server, server.connect() as peer:
        peer.sendall(post(GOOD) + post(GOOD)[:30])
        assert answer(peer)[0] == 200
        assert answer(peer)[0] == 408


def test_large_headers_are_refused_when_they_come_whole_and_bodies_are_no_headers(http_server: Running) -> None:
    with http_server.connect() as peer:
        peer.sendall(head("GET", "/v2", f"X-Long: {'a' * 70_000}"))
        assert answer(peer, "GET")[0] == 431 and is_closed(peer)
    large = GOOD.ljust(BODY_BYTES)
    with http_server.connect() as peer:
        for _ in range(20):  # in all more than the limit of headers, each packet with the start of the next
            peer.sendall(post(large) + post(large)[:10])
            assert answer(peer)[0] == 200
            peer.sendall(post(large)[10:])
            assert answer(peer)[0] == 200


@pytest.mark.parametrize("data", [b"no HTTP at all\r\n\r\n", head("GET", "/v2", f"X-Long: {'a' * 70_000}")])
def test_what_is_refused_ends_a_connection_after_the_answer_before_it(data: bytes, tmp_path: Path) -> None:
    with running(write_toy(tmp_path / "bundle", waiting(30))) as server, server.connect() as peer:
        peer.sendall(post(GOOD))
        wait_until(lambda: server.inference.in_flight == 1)
        (connection,) = server.server.server_state.connections
        peer.sendall(data)
        wait_until(lambda: connection._refused)
        end_waiting(server.inference.slot.model.pool, 3)
        status, said, _ = answer(peer)
        assert status == 200 and len(oracle.read_scores(said, None)[1]) == 3 and is_closed(peer)


def test_line_ends_are_no_request(tmp_path: Path) -> None:
    with running(write_toy(tmp_path / "bundle"), header_seconds=0.3) as server, server.connect() as peer:
        peer.sendall(b"\r\n")
        assert is_closed(peer)


@pytest.mark.parametrize("step", [1000, 70_000])
def test_headers_are_limited_and_the_client_told(step: int, http_server: Running) -> None:
    endless = b"GET /v2 HTTP/1.1\r\nX-Long: " + b"a" * (1 << 17)
    with http_server.connect() as peer:
        with suppress(ConnectionError):  # it stops reading
            for start in range(0, len(endless), step):
                peer.sendall(endless[start : start + step])
        status, said, _ = answer(peer)
        assert status == 431 and json.loads(said)["error"].startswith("headers: must have at most 65536 bytes, but got")
    assert http_server.is_well()


def test_what_would_be_refused_is_refused_by_its_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that would be refused is told so by its headers.

    One request waits for its batch, and one behind it. The third is read; the fourth is told at once, and the body that
    it sends all the same is dropped.
    """
    request = post(GOOD)
    monkeypatch.setattr("objectives.serving.http.intake.door._VALID_NS", 10**10)
    # A busy machine's loop may take longer for the one that is noted than for those behind it.
    monkeypatch.setattr(LoopLoad, "turns_ns", lambda load, now: 0)
    with running(write_toy(tmp_path / "bundle", waiting(3, queue=1))) as server:
        first, second, third, fourth = (server.connect() for _ in range(4))
        first.sendall(request)
        second.sendall(request)
        wait_until(lambda: server.inference.in_flight == 2)
        third.sendall(request)
        status, said, _ = answer(third)
        assert status == 503 and "queue full" in json.loads(said)["error"]
        for _ in range(2):
            fourth.sendall(request[: -len(GOOD)])
            status, said, headers = answer(fourth)
            assert status == 503 and json.loads(said) == {"error": "too many requests wait"}
            assert headers["retry-after"] == "1" and headers["content-type"] == "application/json"
            fourth.sendall(GOOD)
        fourth.sendall(head("GET", "/v2/health/live"))
        assert answer(fourth, "GET")[0] == 200, "the connection is as before"
        fourth.sendall(post(GOOD[:-1], length=len(GOOD) - 1))
        assert json.loads(answer(fourth)[1])["error"] != "too many requests wait", "a shorter one is read"
        read = server.inference.metrics.registry.get_sample_value
        assert read("leanrec_refusals_total", {"reason": "queue full"}) == 3 == server.ended(503)
        assert server.inference.arrived == 2 + 3, "one that cannot be read is no load"
        assert [answer(peer)[0] for peer in (first, second)] == [200, 200]
        third.sendall(request)
        assert answer(third)[0] == 200, "there is room again"
        assert server.inference.lateness.counts(time.perf_counter_ns()) == (6, 3)
        for peer in (first, second, third, fourth):
            peer.close()


def test_refused_requests_may_be_pipelined_and_others_are_not_answered_early(tmp_path: Path) -> None:
    """Two such requests and one for health come in one packet; then such a request for a model that is not there."""
    with running(write_toy(tmp_path / "bundle", waiting(3)), in_flight=1) as server, server.connect() as first:
        first.sendall(post(GOOD))
        wait_until(lambda: server.inference.in_flight == 1)
        with server.connect() as peer:
            peer.sendall(2 * post(GOOD) + head("GET", "/v2/health/live"))
            said = b""
            while said.count(b"HTTP/1.1 ") < 3 or not said.endswith(b"}"):
                said += peer.recv(1 << 16)
            assert re.findall(rb"HTTP/1.1 (\d+)", said) == [b"503", b"503", b"200"]
            peer.sendall(post(GOOD).replace(b"toy", b"boy"))
            assert answer(peer)[0] == 404
            peer.sendall(post(GOOD, "Connection: close"))
            assert answer(peer)[0] == 503 and is_closed(peer)
        assert answer(first)[0] == 200
        assert server.ended(503) == 3 and server.inference.arrived == 4


def test_a_body_that_is_dropped_has_a_limit_too(tmp_path: Path) -> None:
    limits = {"in_flight": 1, "body_seconds": 0.3}
    with running(write_toy(tmp_path / "bundle", waiting(3)), **limits) as server, server.connect() as first:
        first.sendall(post(GOOD))
        wait_until(lambda: server.inference.in_flight == 1)
        with server.connect() as peer:
            peer.sendall(post(GOOD)[:-1])
            assert answer(peer)[0] == 503 and is_closed(peer)
        with server.connect() as peer:
            peer.sendall(post(b"", length=server.inference.limits.body_bytes + 1))
            assert answer(peer)[0] in (408, 413), "what is too large is not dropped but told"
        assert answer(first)[0] == 200


def test_a_body_that_comes_after_its_answer_has_a_limit_too(tmp_path: Path) -> None:
    """A model of another name is told at once; a client that goes on byte by byte is left, another one is served."""
    with running(write_toy(tmp_path / "bundle"), body_seconds=1.0) as server:
        other = post(GOOD).replace(b"toy", b"boy")
        with server.connect() as peer:
            peer.sendall(other[:-9])
            assert answer(peer)[0] == 404
            with suppress(ConnectionError):  # it may be left before the last byte
                for _ in range(6):
                    time.sleep(0.05)
                    peer.sendall(b" ")
            assert is_closed(peer)
        with server.connect() as peer:
            peer.sendall(other[:-9])
            assert answer(peer)[0] == 404
            peer.sendall(other[-9:] + post(GOOD))
            assert answer(peer)[0] == 200
            time.sleep(1.5)
            peer.sendall(post(GOOD))
            assert answer(peer)[0] == 200, "the time of the body is over, and no connection's"


def test_requests_beyond_those_in_flight_are_refused_by_their_headers(tmp_path: Path) -> None:
    with running(write_toy(tmp_path / "bundle", waiting(3)), in_flight=1) as server:
        with server.connect() as first, server.connect() as second:
            first.sendall(post(GOOD))
            wait_until(lambda: server.inference.in_flight == 1)
            second.sendall(post(GOOD)[: -len(GOOD)])
            assert answer(second)[0] == 503
            assert answer(first)[0] == 200
        assert server.ended(503) == 1 and server.is_well()


def test_a_body_of_100_mb_is_refused_once_it_is_sent(tmp_path: Path) -> None:
    """The default limit is of 16 MiB."""
    body = bytes(100_000_000)
    with running(write_toy(tmp_path / "bundle"), body_bytes=Limits().body_bytes) as server:
        with server.connect() as peer:
            peer.sendall(post(body))
            status, said, _ = answer(peer)
            assert status == 413 and str(16 << 20) in json.loads(said)["error"] and is_closed(peer)
        assert server.is_well()


GOOD_POST = post(GOOD)
# How a request ends whose deadline a busy machine may miss.
IN_TIME_OR_LATE = (200, 503)


class Held:
    """Inline model whose runs hold the event loop until each has a step, and for so long in addition."""

    def __init__(self, server: Running, seconds: float = 0.0) -> None:
        self.steps, self._inside, self.seconds = threading.Semaphore(0), threading.Semaphore(0), seconds
        model = server.inference.slot.model
        assert model.rows_on_loop > 0
        self._submit = model.submit
        model.submit = self._held  # type: ignore[method-assign]

    def wait_inside(self) -> None:
        """Wait for the next run to hold the event loop."""
        assert self._inside.acquire(timeout=SOON)

    def _held(self, *arguments: Any) -> Any:
        self._inside.release()
        assert self.steps.acquire(timeout=SOON)
        time.sleep(self.seconds)
        return self._submit(*arguments)


@contextmanager
def connected(server: Running, count: int) -> Iterator[list[socket.socket]]:
    """Open connections that the event loop has accepted."""
    with ExitStack() as stack:
        peers = [stack.enter_context(server.connect()) for _ in range(count)]
        for peer in peers:
            peer.sendall(head("GET", "/v2/health/live"))
            assert answer(peer, "GET")[0] == 200
        yield peers


def delivered(peers: Sequence[socket.socket]) -> None:
    """Wait until the server's sockets hold what was sent, which a busy kernel puts off."""
    queued = array("i", [0])

    def left(peer: socket.socket) -> int:
        fcntl.ioctl(peer, termios.TIOCOUTQ, queued)
        return queued[0]

    wait_until(lambda: not any(map(left, peers)))


@contextmanager
def sent_together(
    server: Running, held: Held, requests: int, request_: bytes = GOOD_POST, ends: Sequence[int] = (200,)
) -> Iterator[list[socket.socket]]:
    """Send requests that the event loop will read in one turn.

    Another request holds the loop meanwhile, and is answered in the end, with one of the statuses `ends`.
    """
    with connected(server, 1 + requests) as (first, *peers):
        first.sendall(GOOD_POST)
        held.wait_inside()
        for peer in peers:
            peer.sendall(request_)
        delivered(peers)
        yield peers
        held.steps.release(1000)
        assert answer(first)[0] in ends


def sample(server: Running, name: str, **labels: str) -> float:
    return server.inference.metrics.registry.get_sample_value(f"leanrec_{name}", labels) or 0.0


@pytest.mark.parametrize(
    "request_",
    [
        post(GOOD),
        post(GOOD, "Connection: close"),
        chunked(GOOD, 1000),
        GOOD_POST.replace(b"/toy/", b"/to%79/"),
        GOOD_POST.replace(b"/infer ", b"/infer?x=1 "),
    ],
)
@pytest.mark.parametrize(
    ("admission", "limits", "reason"),
    [(Admission(), {"in_flight": 3}, "in flight"), (Admission(queue=2), {}, "queue full")],
)
def test_limits_hold_for_what_waits_for_the_event_loop(
    admission: Admission, limits: dict[str, Any], reason: str, request_: bytes, tmp_path: Path
) -> None:
    """Twenty requests are read together: one runs and two wait for it; not all can be refused by headers."""
    bundle = write_toy(tmp_path / "bundle", Placement(inline=True, admission=admission))
    with running(bundle, **limits) as server:
        held = Held(server)
        with sent_together(server, held, 20, request_) as peers:
            held.steps.release()
            held.wait_inside()
            assert (sample(server, "queue_length"), sample(server, "in_flight")) == (2, 3)
            held.steps.release(1000)
            assert sorted(answer(peer)[0] for peer in peers) == [200] * 3 + [503] * 17
        assert sample(server, "refusals_total", reason=reason) == 17
        assert server.inference.waiting == server.inference.in_flight == 0 and server.is_well()


def test_the_time_that_a_request_waits_for_the_event_loop_counts(tmp_path: Path) -> None:
    """Six requests that are read together take 20 ms each: the last one 120 ms."""
    with running(write_toy(tmp_path / "bundle", Placement(inline=True))) as server:
        server.inference.lateness.slo_ms = 70
        held = Held(server, 0.02)
        with sent_together(server, held, 6) as peers:
            held.steps.release(1000)
            assert [answer(peer)[0] for peer in peers] == [200] * 6
        wait_until(lambda: sample(server, "request_seconds_count") == 7)
        assert sample(server, "request_seconds_sum") >= 0.02 * sum(range(1, 7))
        ended, late = server.inference.lateness.counts(time.perf_counter_ns())
        # The one that held the event loop may be late too.
        assert ended == 7 and late >= 3


def test_bodies_that_come_after_their_headers_wait_too(tmp_path: Path) -> None:
    """Ten headers are read first: then of their bodies, which come together, three find room."""
    with running(write_toy(tmp_path / "bundle", Placement(inline=True)), in_flight=3) as server:
        held = Held(server)
        with connected(server, 10) as peers:
            for peer in peers:
                peer.sendall(GOOD_POST[: -len(GOOD)])
            wait_until(lambda: len(server.server.server_state.tasks) == 10)
            with sent_together(server, held, 0):
                for peer in peers:
                    peer.sendall(GOOD)
                delivered(peers)
            assert sorted(answer(peer)[0] for peer in peers) == [200] * 3 + [503] * 7
        assert server.inference.waiting == 0 and server.is_well()


def test_a_metrics_request_sees_what_waits(tmp_path: Path) -> None:
    """The request for metrics is read with one that holds the event loop, until five others have come."""
    with running(write_toy(tmp_path / "bundle", Placement(inline=True))) as server:
        held = Held(server)
        with connected(server, 6) as (reader, *peers):
            with sent_together(server, held, 1):
                reader.sendall(head("GET", "/metrics"))
                delivered([reader])
                held.steps.release()
                held.wait_inside()
                for peer in peers:
                    peer.sendall(GOOD_POST)
                delivered(peers)
                held.steps.release(1000)
                assert "\nleanrec_queue_length 5.0\n" in answer(reader, "GET")[1].decode()
            assert [answer(peer)[0] for peer in peers] == [200] * 5


class Gated:
    """Engine whose runs wait at a gate."""

    once: frozenset[str] = frozenset()

    def __init__(self) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.gate.wait(SOON)
        return np.zeros(max(len(values) for values in inputs.values()), np.float32)


def test_a_server_whose_replicas_hang_is_neither_ready_nor_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's health is bad as soon as all replicas hang, and good when one has ended."""
    monkeypatch.setattr(scheduler, "HANGS_NS", 50_000_000)
    monkeypatch.setattr(scheduler, "_LOOK_NS", 0)
    engines = [Gated(), Gated()]
    opened = iter(engines)
    bundle = write_toy(tmp_path / "bundle")
    with running(bundle) as server, Pool(Placement(InstanceGroup(replicas=2)), lambda group: next(opened)) as pool:
        monkeypatch.setattr(server.inference.slot.model, "pool", pool)

        def health(path: str) -> tuple[int, dict[str, Any]]:
            with server.connect() as peer:
                peer.sendall(head("GET", path))
                status, body, _ = answer(peer, "GET")
                return status, json.loads(body)

        with connected(server, 2) as peers:
            for hanging, (peer, engine) in enumerate(zip(peers, engines, strict=True)):
                wait_until(lambda many=hanging: sample(server, "hanging_replicas") == many)
                assert health("/v2/health/live") == (200, {"live": True})
                assert health("/v2/health/ready") == (200, {"ready": True})
                peer.sendall(GOOD_POST)
                assert engine.entered.wait(SOON)
            wait_until(lambda: sample(server, "hanging_replicas") == 2)
            hangs = "every replica of an instance group hangs"
            assert health("/v2/health/live") == (200, {"live": True}), "not for a minute yet"
            monkeypatch.setattr(app, "_DEAD_NS", 50_000_000)
            assert health("/v2/health/live") == (503, {"error": hangs, "live": False})
            for path in ("/v2/health/ready", "/v2/models/toy/ready"):
                assert health(path) == (503, {"error": hangs, "ready": False})
            engines[0].gate.set()
            wait_until(lambda: sample(server, "hanging_replicas") == 1)
            assert health("/v2/models/toy/ready") == (200, {"name": "toy", "ready": True})
            engines[1].gate.set()
            assert [answer(peer)[0] for peer in peers] == [200, 200]


def test_a_model_that_was_replaced_answers_what_waits_for_a_replica_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request comes to the old model any more: the event loop looks for what hangs."""
    monkeypatch.setattr(scheduler, "HANGS_NS", 50_000_000)
    monkeypatch.setattr(scheduler, "_LOOK_NS", 0)
    first, second = engines = Gated(), Gated()
    second.gate.set()
    opened = iter(engines)
    placement = Placement(InstanceGroup(replicas=2))

    async def replace(old: Model, new: Model) -> None:
        slot = ModelSlot(old)
        relieving = asyncio.create_task(slot.relieve(0.01))
        with slot.use() as used:
            hung, answered, stranded = (used.submit(draw_request(3), 3) for _ in range(3))
            await asyncio.wait_for(asyncio.wrap_future(answered), SOON)
            swapping = asyncio.create_task(slot.swap(new, SOON))
            await asyncio.wait_for(asyncio.wrap_future(stranded), SOON)
            assert slot.model is new and slot.hanging == 1 and not hung.done()
            first.gate.set()
        await swapping
        relieving.cancel()
        assert slot.hanging == 0 and hung.done()

    model = Model.open(write_toy(tmp_path / "bundle"))
    try:
        pool = Pool(placement, lambda group: next(opened), None, [round_robin])
        asyncio.run(replace(Model(model.bundle, pool), model))
    finally:
        model.close()


def test_a_client_that_goes_away_does_not_wait_for_ever(tmp_path: Path) -> None:
    with running(write_toy(tmp_path / "bundle", Placement(inline=True))) as server:
        held = Held(server)
        with sent_together(server, held, 10) as peers:
            for peer in peers:
                peer.close()
        wait_until(lambda: not server.server.server_state.tasks)
        assert server.inference.waiting == server.inference.in_flight == 0 and server.is_well()


def test_an_end_of_a_body_that_comes_while_the_answer_is_not_read_waits_for_nothing(tmp_path: Path) -> None:
    """The last byte of a body comes while the client reads no answer.

    The server has stopped writing to the client, and has told it 400 by its headers.
    """
    with running(write_toy(tmp_path / "bundle", Placement(inline=True))) as server, connected(server, 1) as (peer,):
        state = server.server.server_state
        (connection,) = state.connections
        connection.loop.call_soon_threadsafe(connection.pause_writing)
        wait_until(lambda: connection.flow.write_paused)
        peer.sendall(head("POST", INFER, "Content-Encoding: gzip", "Content-Length: 1"))
        wait_until(lambda: server.ended(400) == 1)
        assert len(state.tasks) == 1, "the answer waits for the client"
        peer.sendall(b"x")
        wait_until(lambda: server.inference.waiting == 1)
        peer.close()
        wait_until(lambda: not state.tasks)
        assert server.inference.waiting == 0 and sample(server, "in_flight") == 0 and server.is_well()


def test_what_is_only_asked_of_a_model_takes_no_room(tmp_path: Path) -> None:
    """Twenty GETs of the path to infer are read with one request, where there is room for two."""
    with running(write_toy(tmp_path / "bundle", Placement(inline=True)), in_flight=2) as server:
        held = Held(server)
        with connected(server, 1) as (last,):
            with sent_together(server, held, 20, head("GET", INFER)) as peers:
                last.sendall(GOOD_POST)
                delivered([last])
                held.steps.release(1000)
                assert [answer(peer)[0] for peer in peers] == [405] * 20
            assert answer(last)[0] == 200


def test_the_time_that_was_waited_counts_for_the_deadline(tmp_path: Path) -> None:
    """Ten requests of 10 ms each that are read together, where 45 ms are allowed and nothing is known of the loop."""
    bundle = write_toy(tmp_path / "bundle", Placement(inline=True, admission=Admission(deadline_ms=45)))
    with running(bundle) as server:
        held = Held(server)
        with sent_together(server, held, 10, ends=IN_TIME_OR_LATE) as peers:
            held.seconds, server.inference._loop_load = 0.01, LoopLoad()
            held.steps.release(1000)
            assert [answer(peer)[0] for peer in peers].count(503) >= 5
        assert sample(server, "refusals_total", reason="deadline") >= 5


def test_an_event_loop_without_time_refuses_and_recovers(tmp_path: Path) -> None:
    """A turn of 100 ms or more, where 20 are allowed."""
    bundle = write_toy(tmp_path / "bundle", Placement(inline=True, admission=Admission(deadline_ms=20)))
    with running(bundle) as server:
        held = Held(server, 0.1)
        with sent_together(server, held, 5, ends=IN_TIME_OR_LATE) as peers:
            held.steps.release()
            assert [answer(peer)[0] for peer in peers] == [503] * 5
        assert sample(server, "refusals_total", reason="event loop") == 5
        wait_until(server.is_well)
        assert server.inference.waiting == 0


def test_a_client_that_asks_first_is_told_to_send_its_body_where_it_is_wanted(http_server: Running) -> None:
    request = post(GOOD, "Expect: 100-continue")
    with http_server.connect() as peer:
        peer.sendall(request[: -len(GOOD)])
        assert peer.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        peer.sendall(GOOD)
        assert answer(peer)[0] == 200
    with http_server.connect() as peer:
        peer.sendall(request[: -len(GOOD)].replace(b"toy", b"boy"))
        assert answer(peer)[0] == 404


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01 hello\r\n\r\n",
        head("POST", INFER, "Content-Length: 1", "Content-Length: 1") + b"a",
        head("POST", INFER, "Content-Length: 1", "Transfer-Encoding: chunked") + b"1\r\na\r\n0\r\n\r\n",
        head("POST", INFER, "Content-Length: -1"),
        head("POST", INFER, "Transfer-Encoding: chunked") + b"many\r\n",
        head("CONNECT", "x:1"),
        "GET /v2/größe HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
    ],
)
def test_what_is_no_http_ends_its_own_connection(data: bytes, http_server: Running) -> None:
    with http_server.connect() as peer:
        peer.sendall(data)
        status, said, _ = answer(peer)
        assert status == 400 and is_closed(peer)
        assert json.loads(said) == {"error": "request: must be of HTTP/1.1, but cannot be read as such"}
    assert http_server.is_well()


def test_the_answer_to_head_has_no_body(http_server: Running) -> None:
    paths = ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/toy", "/v2/models/toy/ready"]
    with http_server.connect() as peer:
        for path in paths:
            found = []
            for method in ("GET", "HEAD"):
                peer.sendall(head(method, path))
                found.append(answer(peer, method))
            (status, body, headers), (head_status, nothing, head_headers) = found
            assert status == head_status == 200 and nothing == b""
            assert headers["content-length"] == head_headers["content-length"] == str(len(body))


@pytest.mark.parametrize(
    ("method", "path", "status", "allowed"),
    [
        ("GET", INFER, 405, "POST"),
        ("HEAD", INFER, 405, "POST"),
        ("OPTIONS", INFER, 405, "POST"),
        ("POST", "/v2", 405, "GET, HEAD"),
        ("DELETE", "/v2/models/toy", 405, "GET, HEAD"),
        ("PUT", "/metrics", 405, "GET, HEAD"),
        ("GET", "/", 404, None),
        ("GET", "/v2/models", 404, None),
        ("GET", "/v2/models/toy/infer/more", 404, None),
        ("GET", "/v2/models/to%79", 200, None),
        ("GET", "/v2/models/to%2Fy", 404, None),
        ("GET", "/v2/models/toy%0A", 404, None),
        ("GET", "/v2/models/%ff%00", 404, None),
        ("GET", "/v2/health/live?a=b", 200, None),
        ("GET", "http://x/v2/health/live", 200, None),
    ],
)
def test_paths_and_their_methods(
    method: str, path: str, status: int, allowed: str | None, http_server: Running
) -> None:
    with http_server.connect() as peer:
        peer.sendall(head(method, path))
        found, body, headers = answer(peer, method)
        assert (found, headers.get("allow")) == (status, allowed)
        assert headers["content-type"] == "application/json"
        if method != "HEAD":
            assert ("error" in json.loads(body)) == (status != 200)
        peer.sendall(post(GOOD))
        assert answer(peer)[0] == 200, "the connection stays open"


def test_another_protocol_is_offered_in_vain(http_server: Running) -> None:
    for protocol in ("websocket", "h2c"):
        with http_server.connect() as peer:
            peer.sendall(head("GET", "/v2/health/live", "Connection: Upgrade", f"Upgrade: {protocol}"))
            assert answer(peer)[0] == 200


@pytest.mark.parametrize("length", ["Content-Length: {}", "Transfer-Encoding: chunked"])
def test_a_body_after_the_offer_of_another_protocol_is_not_read_as_a_request(length: str, http_server: Running) -> None:
    """The parser ends such a request at its headers."""
    body = head("GET", "/v2/health/ready")
    with http_server.connect() as peer:
        headers = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", length.format(len(body)))
        peer.sendall(head("POST", INFER, *headers) + body)
        status, said, _ = answer(peer)
        assert status == 400 and json.loads(said)["error"].startswith("Upgrade: must not come with a body")
        peer.sendall(body)
        assert is_closed(peer)
    assert http_server.is_well()


def test_a_client_that_goes_before_its_body_is_whole_is_not_counted(http_server: Running) -> None:
    before = [http_server.ended(status) for status in (200, 400, 408, 500)]
    arrived = http_server.inference.arrived
    with http_server.connect() as peer:
        peer.sendall(post(GOOD[:50], length=len(GOOD)))
        wait_until(lambda: len(http_server.server.server_state.tasks) == 1)
    wait_until(lambda: not http_server.server.server_state.tasks)
    assert [http_server.ended(status) for status in (200, 400, 408, 500)] == before
    assert http_server.inference.arrived == arrived and http_server.is_well()


def test_an_answer_to_a_client_that_has_gone_is_dropped(tmp_path: Path) -> None:
    with running(write_toy(tmp_path / "bundle", waiting(1))) as server:
        with server.connect() as peer:
            peer.sendall(post(GOOD))
            wait_until(lambda: server.inference.in_flight == 1)
        wait_until(lambda: not server.server.server_state.tasks)
        assert (server.inference.answered, server.inference.in_flight) == (1, 0)
        assert server.is_well()


def body_of(*messages: dict[str, Any], **limits: Any) -> bytes:
    """Return the body that ASGI's messages make; nothing comes after them."""
    left = list(messages)

    async def receive() -> dict[str, Any]:
        if not left:
            await asyncio.sleep(60)
        return left.pop(0)

    return asyncio.run(read_body(receive, Limits(**{"body_bytes": 4, "body_seconds": 0.01, **limits})))


def parts(*chunks: bytes, more: bool = False) -> Sequence[dict[str, Any]]:
    sent = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    sent[-1]["more_body"] = more
    return sent


def test_a_body_is_read_within_its_limits() -> None:
    assert body_of(*parts(b"ab", b"", b"cd")) == b"abcd"
    assert body_of({"type": "http.request"}) == b""
    with pytest.raises(BodyTooLargeError, match=r"4 bytes.*got 5"):
        body_of(*parts(b"abcd", b"e"))
    with pytest.raises(BodyTooLargeError, match="got 36"):
        body_of(*parts(*[b"abcd"] * 9, more=True))
    with pytest.raises(BodyTooSlowError, match=r"0\.01 s, but got 2"):
        body_of(*parts(b"ab", more=True))
    with pytest.raises(ClientGoneError):
        body_of(*parts(b"ab", more=True), {"type": "http.disconnect"})
