"""The client side of the load generator, beside a real server, and a server of another kind."""

from __future__ import annotations

import http.server
import json
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from objectives.errors import InputError
from objectives.measure.remote_model import OverloadedError, RemoteError, RemoteModel, decoded, encoded
from objectives.serving.bundle import read_bundle
from search.bench.bench import Plan, bench
from search.cli.console import Console
from search.errors import ConfigError
from search.report.bench import headline
from tests.serve_tests.bundles import draw_request, waiting, write_toy
from tests.serve_tests.process import SOON, ServerProcess, serving

QUIET = Console(quiet=True, as_json=True)
DELAY_SECONDS = 0.02


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    with serving(bundle, bundle.parent / "server.log") as process:
        yield process


class Slow(http.server.BaseHTTPRequestHandler):
    """A server of one input and a fixed delay, which answers in JSON."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._say(200, {"name": "slow", "inputs": [{"name": "item", "datatype": "INT64", "shape": [-1]}]})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        length = int(self.headers["Inference-Header-Content-Length"])
        items = np.frombuffer(body, "<i8", offset=length)
        assert json.loads(body[:length])["inputs"][0]["shape"] == [len(items)]
        time.sleep(DELAY_SECONDS)
        if (items < 0).any():
            return self._say(429, {"error": "too  much\nat once"})
        data = (2.0 * items).tolist()
        return self._say(200, {"outputs": [{"name": "s", "datatype": "FP64", "shape": [len(items)], "data": data}]})

    def _say(self, status: int, answer: object) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def slow() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v2/models/slow"
        server.shutdown()


def test_scores_are_those_of_the_bundle_itself(bundle: Path, server: ServerProcess) -> None:
    """There are more requests than connections, so that some wait here."""
    requests = [draw_request(rows, seed=rows) for rows in (1, 3, 20, 50)] * 8
    with RemoteModel(server.url, connections=3) as remote, read_bundle(bundle).open() as pool:
        assert dict(remote.inputs) == {"user": "INT64", "item": "INT64", "price": "FP32", "fresh": "BOOL"}
        pending = [(remote.submit(request), pool.submit(request)) for request in requests]
        for ours, theirs in pending:
            np.testing.assert_array_equal(ours.result(), theirs.result())
            assert ours.finished_ns > 0


def test_a_message_may_be_sent_many_times(bundle: Path, server: ServerProcess) -> None:
    """Requests of the same shapes, whose header is written once, and of others."""
    requests = [draw_request(rows, seed) for rows in (3, 20) for seed in range(3)]
    with RemoteModel(server.url, connections=2) as remote, read_bundle(bundle).open() as pool:
        messages = [remote.message(request) for request in requests]
        assert len(set(messages)) == len(requests)
        pending = [remote.send(message) for _ in range(3) for message in messages]
        for ours, request in zip(pending, 3 * requests, strict=True):
            np.testing.assert_array_equal(ours.result(SOON), pool.submit(request).result(SOON))


def test_each_shape_and_type_has_a_header_of_its_own() -> None:
    """The headers are read by the json module, not by ours."""
    for _ in range(2):
        for values in (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), np.zeros((2, 3), np.int64)):
            length, body = encoded({"x": values})
            (described,) = json.loads(body[:length])["inputs"]
            assert described["shape"] == list(values.shape) and body[length:] == values.tobytes()
            assert described["datatype"] == {"f": "FP32", "i": "INT64"}[values.dtype.kind]
            assert described["parameters"]["binary_data_size"] == values.nbytes


def test_the_latency_of_a_slow_server_contains_its_delay(slow: str) -> None:
    with RemoteModel(slow, connections=2) as remote:
        start = time.perf_counter_ns()
        pending = [remote.submit({"item": np.arange(rows)}) for rows in range(1, 7)]
        for rows, one in enumerate(pending, 1):
            np.testing.assert_array_equal(one.result(), 2.0 * np.arange(rows))
        last = max(one.finished_ns for one in pending)
    assert (last - start) / 1e9 >= 3 * DELAY_SECONDS, "six requests over two connections"


def test_an_overloaded_server_refuses_and_others_fail_in_one_line(slow: str, server: ServerProcess) -> None:
    with RemoteModel(slow) as remote:
        with pytest.raises(OverloadedError, match=r"^too much at once$"):
            remote.submit({"item": np.array([-1])}).result()
        assert remote.submit({"item": np.array([4])}).result().tolist() == [8.0], "the connection serves the next one"
    with RemoteModel(server.url) as remote, pytest.raises(RemoteError, match=r"status 400: .*item"):
        remote.submit({"user": np.array([1])}).result()


class Odd(Slow):
    """A server whose errors are in no words of the protocol; `path` of the metadata says which."""

    def do_GET(self) -> None:
        if (status := int(self.path.rpartition("/")[2])) == 200:
            return super().do_GET()
        return self._say(status, {"error": {"message": "no such  model"}})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self._say(500, self.answers.pop(0))

    answers: ClassVar[list[object]] = []


@pytest.fixture
def odd() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v2/models/odd/versions"
        server.shutdown()


def test_a_servers_error_is_told_however_it_is_written(odd: str) -> None:
    cases: list[tuple[object, str]] = [
        ({"error": {"message": "no  room"}}, '{"error": {"message": "no room"}}'),
        ({"error": None}, '{"error": null}'),
        ({"error": 5}, '{"error": 5}'),
        ({"error": "plain"}, "plain"),
        (["error"], '["error"]'),
        (100_000 * b"[", "[[["),
    ]
    Odd.answers[:] = [answer for answer, _ in cases]
    with RemoteModel(f"{odd}/200") as remote:
        for _, words in cases:
            error = remote.submit({"item": np.array([1])}).exception(SOON)
            assert isinstance(error, RemoteError) and error.status == 500 and f"500: {words}" in str(error)
    with pytest.raises(InputError, match=r'status 404, \{"error": \{"message": "no such model"\}\}$'):
        RemoteModel(f"{odd}/404")


def test_a_request_that_cannot_be_written_fails_alone_and_one_that_is_cancelled_hinders_no_other(slow: str) -> None:
    odd: Any = {"item": [1, 2]}
    with RemoteModel(slow, connections=1) as remote:
        first, cancelled, wrong = remote.submit({"item": np.array([4])}), *(remote.submit(odd) for _ in range(2))
        cancelled.cancel()
        assert isinstance(wrong.exception(SOON), AttributeError)
        assert first.result(SOON).tolist() == remote.submit({"item": np.array([4])}).result(SOON).tolist() == [8.0]


class Together(Slow):
    """A server that answers once so many requests have arrived."""

    most = 40
    barrier = threading.Barrier(most)

    def do_POST(self) -> None:
        self.barrier.wait(SOON)
        super().do_POST()


class Queue(http.server.ThreadingHTTPServer):
    request_queue_size = Together.most


def test_as_many_requests_are_on_their_way_as_were_submitted() -> None:
    """All requests are sent twice, the second time over the same connections."""
    with Queue(("127.0.0.1", 0), Together) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with RemoteModel(f"http://127.0.0.1:{server.server_address[1]}/v2/models/slow") as remote:
            for _ in range(2):
                pending = [remote.submit({"item": np.array([item])}) for item in range(Together.most)]
                assert [one.result(SOON).tolist() for one in pending] == [[2.0 * i] for i in range(Together.most)]
        server.shutdown()


class Impatient(Slow):
    """A server that closes each connection once it has answered, without saying so; every second time by a reset."""

    answered = 0

    def do_POST(self) -> None:
        super().do_POST()
        self.close_connection = True
        type(self).answered += 1
        if type(self).answered % 2:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.request.close()


def test_a_connection_that_was_closed_while_it_was_idle_costs_no_request() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Impatient) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v2/models/slow"
        with RemoteModel(url, connections=1) as remote:
            for _ in range(6):
                assert remote.submit({"item": np.array([4])}).result().tolist() == [8.0]
                time.sleep(0.05)
        server.shutdown()


def test_a_server_that_is_gone_fails_each_request(bundle: Path, tmp_path: Path) -> None:
    with serving(bundle, tmp_path / "log") as process, RemoteModel(process.url, connections=2) as remote:
        assert remote.submit(draw_request(2)).result().shape == (2,)
        process.process.kill()
        process.process.wait()
        for _ in range(3):
            with pytest.raises(OSError):
                remote.submit(draw_request(2)).result()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://host/v2/models/m", "http://HOST:PORT/v2/models/NAME"),
        ("http://host:99999/v2/models/m", "http://HOST:PORT/v2/models/NAME"),
        ("http://[host/v2/models/m", "http://HOST:PORT/v2/models/NAME"),
        ("http://host/v2/models/m?x=1", "http://HOST:PORT/v2/models/NAME"),
        ("http://127.0.0.1:1/v2/models/m/infer", "http://HOST:PORT/v2/models/NAME"),
        ("http://127.0.0.1:1/v2/models/m", "must be a model that is served"),
    ],
)
def test_a_url_of_no_model_is_bad_input(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        RemoteModel(url)


def test_an_unknown_model_is_bad_input(server: ServerProcess) -> None:
    with pytest.raises(InputError, match="status 404"):
        RemoteModel(f"{server.root}/v2/models/other")


def test_answers_without_an_output_are_errors() -> None:
    for body in (b"{}", b"[]", b'{"outputs": [{"datatype": "FP32", "shape": [2]}]}', b"no json"):
        with pytest.raises((ValueError, LookupError, TypeError)):
            decoded(body, None)


def test_a_benchmark_through_a_server_counts_what_the_server_counts(
    bundle: Path, server: ServerProcess, tmp_path: Path
) -> None:
    before = server.metric("leanrec_request_seconds_count")
    plan = Plan(rate_rps=150.0, seconds=1.0, url=server.url)
    found = bench(read_bundle(bundle), plan, tmp_path, QUIET)
    assert found.url == server.url and found.requests >= 100 and found.refused == 0
    assert found.latency_ms["p50"] is not None and found.latency_ms["p50"].value > 0
    assert headline(found).startswith(f"Through {server.url}, under Poisson arrivals at")
    assert server.metric("leanrec_request_seconds_count") - before > found.requests
    assert json.loads((tmp_path / "bench.json").read_text())["url"] == server.url


def test_refusals_of_a_server_are_counted(tmp_path: Path) -> None:
    """Requests wait for a batch that never fills, behind a queue of one."""
    folder = write_toy(tmp_path / "bundle", waiting(2, queue=1))
    with serving(folder, tmp_path / "log") as process, RemoteModel(process.url) as remote:
        pending = [remote.submit(draw_request(2, seed)) for seed in range(6)]
        refused = [isinstance(one.exception(), OverloadedError) for one in pending]
    assert any(refused) and not all(refused)


def test_a_model_with_other_inputs_is_refused(slow: str, bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--url: must serve a model with the bundle's inputs"):
        bench(read_bundle(bundle), Plan(url=slow), tmp_path, QUIET)
    assert not list(tmp_path.iterdir())
