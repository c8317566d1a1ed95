"""A server process and a real client: metadata, scores, paths, slow senders, metrics."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import httpx
import pytest

from objectives.serving.bundle import read_bundle
from tests.serve_tests import oracle
from tests.serve_tests.bundles import ITEMS, MAX_ROWS, draw_request
from tests.serve_tests.process import ServerProcess


def test_health_and_metadata(server: ServerProcess, client: httpx.Client) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready"):
        assert client.get(server.root + path).status_code == 200
    known = client.get(f"{server.root}/v2").json()
    assert known["name"] == "leanrec" and {"binary_tensor_data", "statistics"} == set(known["extensions"])
    found = client.get(server.url).json()
    assert (found["name"], found["versions"]) == ("toy", [server.version])
    assert [(i["name"], i["datatype"], i["shape"]) for i in found["inputs"]] == [
        ("user", "INT64", [-1]),
        ("item", "INT64", [-1]),
        ("price", "FP32", [-1, 2]),
        ("fresh", "BOOL", [-1]),
    ]
    assert found["inputs"][1]["parameters"] == {"side": "item", "vocabulary": ITEMS, "unseen": None}
    assert found["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1]}]
    assert client.get(f"{server.url}/versions/{server.version}").json() == found


@pytest.mark.parametrize("rows", [1, 7, MAX_ROWS])
def test_json_binary_and_the_pool_give_the_same_scores(
    rows: int, bundle: Path, server: ServerProcess, client: httpx.Client
) -> None:
    request = draw_request(rows, rows)
    with read_bundle(bundle).open() as pool:
        expected = pool.submit(request).result(timeout=20)
    plain = client.post(f"{server.url}/infer", json=oracle.json_request(request, id="a"))
    body, headers = oracle.binary_request(request, id="b", parameters={"binary_data_output": True})
    binary = client.post(f"{server.url}/versions/{server.version}/infer", content=body, headers=headers)
    assert [plain.status_code, binary.status_code] == [200, 200]
    for response, sent in ((plain, "a"), (binary, "b")):
        found, scores = oracle.read_scores(response.content, response.headers.get(oracle.LENGTH))
        assert (found["id"], found["model_version"]) == (sent, server.version)
        assert scores.tobytes() == expected.tobytes()
    assert binary.headers["Content-Type"] == "application/octet-stream"


def test_tensors_of_one_request_may_be_json_and_binary(
    bundle: Path, server: ServerProcess, client: httpx.Client
) -> None:
    request = draw_request(3)
    price = request["price"].astype("<f4").tobytes()
    plain = oracle.json_request(request)
    del plain["inputs"][2]["data"]
    plain["inputs"][2]["parameters"] = {"binary_data_size": len(price)}
    header = json.dumps(plain).encode()
    response = client.post(f"{server.url}/infer", content=header + price, headers={oracle.LENGTH: str(len(header))})
    with read_bundle(bundle).open() as pool:
        expected = pool.submit(request).result(timeout=20)
    assert oracle.read_scores(response.content, None)[1].tobytes() == expected.tobytes()


GOOD = oracle.json_request(draw_request(3))


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/toy/infer", 405),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/toy/versions/1/infer", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/toy/versions/1", 404),
        ("GET", "/v2/models/toy/versions/1/stats", 404),
        ("GET", "/v1/models", 404),
    ],
)
def test_other_paths_are_refused_as_the_protocol_has_it(
    method: str, path: str, status: int, server: ServerProcess, client: httpx.Client
) -> None:
    response = client.request(method, server.root + path, json=GOOD if method == "POST" else None)
    assert response.status_code == status and isinstance(response.json()["error"], str)


def test_bytes_that_are_no_http_end_their_own_connection_only(server: ServerProcess, client: httpx.Client) -> None:
    with socket.create_connection(address(server)) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in raw.recv(4096).split(b"\r\n")[0]
    assert client.post(f"{server.url}/infer", json=GOOD).status_code == 200


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("connection", ["keep-alive", "close"])
def test_a_response_arrives_as_a_whole(method: str, connection: str, server: ServerProcess) -> None:
    """A client that waits for the first byte has all of it: a server that hangs leaves no half behind."""
    url, body = httpx.URL(server.url), json.dumps(GOOD) if method == "POST" else ""
    head = f"{method} {url.path}{'/infer' if body else ''} HTTP/1.1\r\nHost: x\r\nConnection: {connection}\r\n"
    for _ in range(20):
        with socket.create_connection((url.host, url.port), timeout=20) as peer:
            peer.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            headers, _, said = peer.recv(1 << 16).lower().partition(b"\r\n\r\n")
        length = int(headers.partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert headers.startswith(b"http/1.1 200") and len(said) == length


def test_a_slow_sender_keeps_nobody_waiting(server: ServerProcess, client: httpx.Client) -> None:
    """More senders come than requests may be in flight, each with one byte at a time of a good request."""
    body = json.dumps(GOOD).encode()
    head = f"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    senders = [socket.create_connection(address(server), timeout=20) for _ in range(300)]
    try:
        for part in (head, body[:1], body[1:2]):
            for sender in senders:
                sender.sendall(part)
            assert client.post(f"{server.url}/infer", json=GOOD).status_code == 200
        assert server.metric("leanrec_in_flight") == 0
        senders[0].sendall(body[2:])
        assert senders[0].recv(4096).startswith(b"HTTP/1.1 200")
    finally:
        for sender in senders:
            sender.close()


def test_metrics_and_statistics_count_what_was_sent(server: ServerProcess, client: httpx.Client) -> None:
    counted = ("leanrec_request_seconds_count", "leanrec_request_rows_sum", "leanrec_requests_total")

    def read() -> list[float]:
        failed = server.metric("leanrec_requests_total", status="400")
        return [*(server.metric(name) for name in counted), failed, *statistics().values()]

    def statistics() -> dict[str, int]:
        (found,) = client.get(f"{server.url}/stats").json()["model_stats"]
        stats = found["inference_stats"]
        assert (found["name"], found["version"]) == ("toy", server.version)
        counts = {key: stats[key]["count"] for key in ("success", "fail", "compute_input", "compute_output")}
        return counts | {"rows": found["inference_count"]}

    before = read()
    for rows in (1, 4, 20):
        client.post(f"{server.url}/infer", json=oracle.json_request(draw_request(rows)))
    client.post(f"{server.url}/infer", json={})
    found = [after - was for after, was in zip(read(), before, strict=True)]
    assert found == [3, 25, 4, 1, 3, 1, 3, 3, 25]
    assert server.metric("process_cpu_seconds_total") > 0
    assert server.metric("leanrec_model", name="toy", version=server.version) == 1
    assert server.metric("leanrec_in_flight") == server.metric("leanrec_queue_length") == 0
    assert server.metric("leanrec_request_seconds_bucket", le="+Inf") == server.metric(counted[0])


def address(server: ServerProcess) -> tuple[str, int]:
    host, port = server.root.removeprefix("http://").rsplit(":", 1)
    return host, int(port)
