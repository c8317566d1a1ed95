"""The life of a server process: overload, swaps under load, the end under load, and a start that fails."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from objectives.serving.bundle import read_bundle, read_version
from tests.serve_tests import oracle
from tests.serve_tests.bundles import draw_request, waiting, write_toy
from tests.serve_tests.clients import Clients
from tests.serve_tests.process import ROOT, SOON, serving, wait_until

REQUEST = draw_request(3)
PLAIN = oracle.json_request(REQUEST)
# Packages of the extra `study`, which a server does without.
STUDY = ("torch", "onnx", "onnx_ir", "optuna", "mlflow", "plotly", "pydantic", "rich", "scipy", "sklearn", "pandas")


def post(url: str) -> httpx.Response:
    return httpx.post(f"{url}/infer", json=PLAIN, timeout=SOON, verify=False)


@pytest.mark.parametrize("options", [("--max-in-flight", "3"), ()])
def test_overload_is_refused_with_a_time_to_come_back(options: tuple[str, ...], tmp_path: Path) -> None:
    """The server's own limit refuses, or the placement's queue."""
    bundle = write_toy(tmp_path / "bundle", waiting(2, None if options else 2))
    with serving(bundle, tmp_path / "log", *options) as server, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(post, [server.url] * 8))
        refused = [response for response in found if response.status_code != 200]
        assert 1 <= len(refused) < 8
        for response in refused:
            assert response.status_code in (429, 503) and int(response.headers["Retry-After"]) > 0
            assert "error" in response.json()
        reason = "in flight" if options else "queue full"
        assert server.metric("leanrec_queue_length") == 0
        assert server.metric("leanrec_refusals_total", reason=reason) == len(refused)
        assert post(server.url).status_code == 200


def test_a_deadline_of_the_server_holds_for_any_bundle_and_over_a_swap(tmp_path: Path) -> None:
    """The bundle's requests wait 0.3 s for a batch to fill, of which it knows no deadline."""
    bundle = write_toy(tmp_path / "bundle", waiting(0.3))
    with serving(bundle, tmp_path / "log", "--deadline-ms", "50") as server:
        assert post(server.url).status_code == 503
        write_toy(bundle, waiting(0.3), seed=1)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: server.metric("leanrec_swaps_total", result="done") == 1)
        assert post(server.url).status_code == 503
        assert server.metric("leanrec_refusals_total", reason="deadline") == 2


def test_a_swap_under_load_fails_no_request_and_a_corrupt_bundle_is_not_taken(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    versions = set()
    with serving(bundle, tmp_path / "log") as server:
        load = Clients(server.url, PLAIN)
        with load.running(3):
            for seed in (0, 1, 2):
                if seed:
                    write_toy(bundle, seed=seed)
                    server.process.send_signal(signal.SIGHUP)
                    wait_until(lambda seed=seed: server.metric("leanrec_swaps_total", result="done") == seed)
                version = httpx.get(server.url).json()["versions"][0]
                with read_bundle(bundle).open() as pool:
                    versions.add((version, pool.submit(REQUEST).result(SOON).tobytes()))
                wait_until(lambda: versions == load.seen)
            data = (bundle / "model.onnx").read_bytes()
            (bundle / "model.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            server.process.send_signal(signal.SIGHUP)
            wait_until(lambda: server.metric("leanrec_swaps_total", result="refused") == 1)
            assert httpx.get(server.url).json()["versions"] == [version]
            assert post(server.url).status_code == 200
        assert set(load.ended) == {200} and len(versions) == 3 and load.seen == versions
        assert "model.onnx was changed" in server.log.read_text()


def test_a_log_that_cannot_be_written_holds_up_neither_a_swap_nor_the_end(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    with serving(bundle, Path("/dev/full")) as server:
        version = read_version(write_toy(bundle, seed=1))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: httpx.get(server.url).json()["versions"] == [version])
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SOON) == 0


def test_accepted_requests_are_answered_before_the_end(tmp_path: Path) -> None:
    """The server listens for 3 s more, in which a client that is held up finds it too; the answers come later."""
    bundle = write_toy(tmp_path / "bundle", waiting(6))
    lines = (
        "import sys, leanrec",
        "from objectives.serving.http import server",
        "server._NOTICE_SECONDS = 3",
        "sys.exit(leanrec.main())",
    )
    with (
        serving(bundle, tmp_path / "log", program=("-c", "\n".join(lines))) as server,
        ThreadPoolExecutor(6) as threads,
        httpx.Client(base_url=server.root, verify=False) as client,
    ):
        sent = [threads.submit(post, server.url) for _ in range(6)]
        wait_until(lambda: server.metric("leanrec_in_flight") == 6)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/v2/health/ready").status_code == 503)
        assert client.get("/v2/health/live").status_code == 200
        assert [response.result(SOON).status_code for response in sent] == [200] * 6
        assert server.process.wait(SOON) == 0
        assert "6 requests were answered, 0 were not" in server.log.read_text()


@pytest.mark.parametrize("path", ["/nope", "/v2/models/toy/infer"])
def test_a_client_that_was_refused_delays_no_end(path: str, tmp_path: Path) -> None:
    """A client's body turned out to be malformed while its request was being answered, and it keeps the connection."""
    with serving(write_toy(tmp_path / "bundle"), tmp_path / "log") as server:
        url = httpx.URL(server.root)
        with socket.create_connection((url.host, url.port), timeout=SOON) as peer:
            peer.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n".encode())
            assert peer.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
            assert post(server.url).status_code == 200
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(SOON) == 0
    assert "Traceback" not in server.log.read_text()


def test_the_end_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    """The responses that arrived are as many as the server answered; the other requests found nobody who listens."""
    bundle = write_toy(tmp_path / "bundle")
    with serving(bundle, tmp_path / "log") as server:
        load = Clients(server.url, PLAIN)
        with load.running(4):
            wait_until(lambda: load.ended[200] > 50)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(SOON) == 0
        answered = load.ended.pop(200)
        assert f"{answered} requests were answered, 0 were not" in server.log.read_text()
        assert set(load.ended) <= {"ConnectError", "ReadError", "RemoteProtocolError"}


def test_requests_beyond_the_limit_of_draining_end_with_status_1(tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle", waiting(20))
    with serving(bundle, tmp_path / "log", "--drain-seconds", "1") as server, ThreadPoolExecutor(1) as threads:
        sent = threads.submit(post, server.url)
        wait_until(lambda: server.metric("leanrec_in_flight") == 1)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SOON) == 1
        assert "1 were not" in server.log.read_text()
        assert sent.exception(SOON) is not None or sent.result().status_code == 500


def test_a_light_install_serves(tmp_path: Path) -> None:
    """Nothing of the extra `study` can be imported."""
    command = ["leanrec", "serve", str(write_toy(tmp_path / "bundle")), "--port", "0", "--json"]
    code = f"""
import sys
class Light:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {STUDY!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Light())
sys.argv = {command!r}
import leanrec
sys.exit(leanrec.main())
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        assert post(f"{started['url']}/v2/models/toy").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(SOON) == 0


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ("corrupt", 2, "model.onnx was changed"),
        ("link", 2, "but is a symbolic link"),
        ("port", 2, "--port"),
        ("name", 2, "--name"),
    ],
)
def test_a_start_that_fails_says_why_in_one_line(change: str, status: int, words: str, tmp_path: Path) -> None:
    bundle = write_toy(tmp_path / "bundle")
    if change == "corrupt":
        (bundle / "model.onnx").write_bytes(b"")
    if change == "link":
        (bundle / "model.onnx").rename(tmp_path / "model.onnx")
        (bundle / "model.onnx").symlink_to(tmp_path / "model.onnx")
    free = ["--port", "0"]
    options = {"corrupt": free, "link": free, "port": ["--port", "99999"], "name": ["--name", "a/b"]}[change]
    command = [sys.executable, str(ROOT / "leanrec.py"), "serve", str(bundle), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SOON)
    assert (done.returncode, done.stdout) == (status, "")
    assert words in done.stderr and len(done.stderr.splitlines()) == 1
