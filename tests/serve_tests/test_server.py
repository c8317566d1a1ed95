"""A server process and a real client: metadata, scores, bad requests, slow senders, metrics."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from objectives.serving.bundle import read_bundle
from tests.serve_tests import oracle
from tests.serve_tests.bundles import ITEMS, USERS, draw_request, write_toy
from tests.serve_tests.process import ServerProcess, serving

MAX_ROWS = 50
Plain = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[ServerProcess]:
    options = ("--max-rows", str(MAX_ROWS), "--max-body-mb", "1")
    with serving(bundle, bundle.with_name("log"), *options) as found:
        yield found


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with httpx.Client(timeout=20) as found:
        yield found


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
    assert found["inputs"][1]["parameters"] == {"side": "item", "vocabulary": ITEMS}
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


def good() -> Plain:
    return oracle.json_request(draw_request(3))


def with_input(number: int, **changed: Any) -> Plain:
    """Return a good request with one input changed; None removes a key."""
    plain = good()
    tensor = {**plain["inputs"][number], **changed}
    plain["inputs"][number] = {key: value for key, value in tensor.items() if value is not None}
    return plain


def with_data(number: int, value: object) -> Plain:
    plain = good()
    plain["inputs"][number]["data"][-1] = value
    return plain


def with_more(**more: Any) -> Plain:
    return {**good(), **more}


def binary(
    change: Callable[[bytes], bytes] = lambda body: body, length: str | None = None
) -> tuple[bytes, dict[str, str]]:
    body, needed = oracle.binary_request(draw_request(3))
    return change(body), {oracle.LENGTH: needed[oracle.LENGTH] if length is None else length}


def binary_header(change: Callable[[Plain], None]) -> tuple[bytes, dict[str, str]]:
    body, needed = oracle.binary_request(draw_request(3))
    length = int(needed[oracle.LENGTH])
    plain = json.loads(body[:length])
    change(plain)
    header = json.dumps(plain).encode()
    return header + body[length:], {oracle.LENGTH: str(len(header))}


def sized(number: int, size: object) -> Callable[[Plain], None]:
    return lambda plain: plain["inputs"][number]["parameters"].update(binary_data_size=size)


TOO_MANY = oracle.json_request(draw_request(MAX_ROWS + 1))
NO_ROWS = oracle.json_request({name: values[:0] for name, values in draw_request(1).items()})
NAN_BODY = oracle.binary_request(draw_request(3) | {"price": np.full((3, 2), np.nan, np.float32)})
BAD: Mapping[str, tuple[Any, int, list[str]]] = {
    "not JSON": (b"scores, please", 400, ["body", "JSON"]),
    "empty body": (b"", 400, ["body", "JSON"]),
    "not UTF-8": (b'{"inputs": "\xff"}', 400, ["UTF-8"]),
    "cut off": (json.dumps(good()).encode()[:-5], 400, ["JSON"]),
    "too deep": (b"[" * 200_000, 400, ["JSON", "levels"]),
    "number of too many digits": (b'{"inputs": ' + b"1" * 5000 + b"}", 400, ["JSON"]),
    "a list": ([], 400, ["body", "object"]),
    "no inputs": ({}, 400, ["inputs"]),
    "no input": ({"inputs": []}, 400, ["inputs"]),
    "inputs by name": ({"inputs": {"item": [1]}}, 400, ["inputs", "list"]),
    "input without a name": (with_input(0, name=None), 400, ["inputs[0]", "name"]),
    "numeric id": (with_more(id=7), 400, ["id", "7"]),
    "numeric parameters": (with_more(parameters=7), 400, ["parameters", "7"]),
    "missing input": ({"inputs": good()["inputs"][1:]}, 400, ["user"]),
    "extra input": ({"inputs": [*good()["inputs"], oracle.json_tensor("age", np.ones(3))]}, 400, ["age"]),
    "duplicated input": ({"inputs": [*good()["inputs"], good()["inputs"][1]]}, 400, ["item", "once"]),
    "unknown datatype": (with_input(1, datatype="INT65"), 400, ["item", "INT65"]),
    "texts": (with_input(1, datatype="BYTES", data=["a", "b", "c"]), 400, ["item", "BYTES"]),
    "float ids": (with_input(1, datatype="FP32"), 400, ["item", "INT64", "FP32"]),
    "integer prices": (with_input(2, datatype="INT64", data=[1] * 6), 400, ["price", "FP32", "INT64"]),
    "integer flags": (with_input(3, datatype="UINT8", data=[1, 0, 1]), 400, ["fresh", "BOOL", "UINT8"]),
    "a shape that is a number": (with_input(1, shape=3), 400, ["item", "shape"]),
    "negative shape": (with_input(1, shape=[-1]), 400, ["item", "shape", "-1"]),
    "no shape": (with_input(1, shape=None), 400, ["item", "shape"]),
    "empty shape": (with_input(1, shape=[]), 400, ["item", "shape"]),
    "one dimension more": (with_input(1, shape=[3, 1]), 400, ["item", "shape"]),
    "one dimension less": (with_input(2, shape=[6]), 400, ["price", "shape"]),
    "wrong width": (with_input(2, shape=[2, 3]), 400, ["price", "shape", "[2, 3]"]),
    "huge shape": (with_input(1, shape=[2**31 - 1]), 400, ["item", "values"]),
    "huge shapes": (with_input(1, shape=[10**4000] * 3), 400, ["item", "shape"]),
    "too many dimensions": (with_input(1, shape=[1] * 1000), 400, ["item", "shape"]),
    "levels among ids": (json.dumps(with_data(1, -7)).replace("-7", "[" * 900 + "]" * 900).encode(), 400, ["item"]),
    "levels for a name": (b'{"inputs": [' + b"[" * 900 + b"]" * 900 + b"]}", 400, ["inputs[0]"]),
    "too few values": (with_input(1, data=[1, 2]), 400, ["item", "3 values", "2"]),
    "ragged values": (with_input(2, data=[[1, 2], [3], [4, 5, 6]]), 400, ["price", "nested"]),
    "no data": (with_input(1, data=None), 400, ["item", "data"]),
    "data that is a number": (with_input(1, data=5), 400, ["item", "list"]),
    "text among ids": (with_data(1, "5"), 400, ["item", "integers", '"5"']),
    "null among ids": (with_data(1, None), 400, ["item", "null"]),
    "true among ids": (with_data(1, True), 400, ["item", "true"]),
    "fraction among ids": (with_data(1, 1.0), 400, ["item", "1.0"]),
    "1 among flags": (with_data(3, 1), 400, ["fresh", "booleans"]),
    "unknown item": (with_data(1, ITEMS), 400, ["item", f"0 to {ITEMS - 1}", str(ITEMS)]),
    "unknown user": (with_input(0, data=[USERS] * 3), 400, ["user", str(USERS)]),
    "negative id": (with_data(1, -1), 400, ["item", "-1"]),
    "huge id": (with_data(1, 2**63), 400, ["item", "INT64"]),
    "price beyond float": (with_data(2, 1e39), 400, ["price", "finite"]),
    "price beyond double": (json.dumps(with_data(2, 5)).replace("5]", "1e999]").encode(), 400, ["price", "finite"]),
    "double without an equal float": (with_input(2, datatype="FP64", data=[0.1] * 6), 400, ["price", "0.1"]),
    "NaN": (json.dumps(with_data(2, float("nan"))).encode(), 400, ["NaN"]),
    "NaN in binary": (NAN_BODY, 400, ["price", "NaN"]),
    "fewer rows in one input": (with_input(1, shape=[2], data=[1, 2]), 400, ["item", "rows", "2"]),
    "no rows": (NO_ROWS, 400, ["rows", "0"]),
    "too many rows": (TOO_MANY, 400, ["rows", str(MAX_ROWS), str(MAX_ROWS + 1)]),
    "too large body": (b" " * (3 << 19), 413, ["body", str(1 << 20)]),
    "far too large body": (b" " * (1 << 23), 413, ["body", str(1 << 20)]),
    "unknown output": (with_more(outputs=[{"name": "logits"}]), 400, ["scores", "logits"]),
    "duplicated output": (with_more(outputs=[{"name": "scores"}] * 2), 400, ["once", "scores"]),
    "outputs by name": (with_more(outputs="scores"), 400, ["outputs", "list"]),
    "classification": (
        with_more(outputs=[{"name": "scores", "parameters": {"classification": 3}}]),
        400,
        ["classification"],
    ),
    "binary_data of 1": (
        with_more(outputs=[{"name": "scores", "parameters": {"binary_data": 1}}]),
        400,
        ["binary_data"],
    ),
    "JSON length in words": (binary(length="many"), 400, [oracle.LENGTH, "many"]),
    "negative JSON length": (binary(length="-1"), 400, [oracle.LENGTH, "-1"]),
    "JSON length beyond the body": (binary(length="99999"), 400, [oracle.LENGTH, "99999"]),
    "JSON length of very many digits": (binary(length="9" * 5000), 400, [oracle.LENGTH]),
    "JSON length too short": (binary(length="10"), 400, ["JSON"]),
    "no JSON length": ((binary()[0], {}), 400, ["JSON"]),
    "binary part cut off": (binary(lambda body: body[:-1]), 400, ["fresh", "follow"]),
    "binary part too long": (binary(lambda body: body + b"\0"), 400, ["body", "1 bytes more"]),
    "wrong binary size": (binary_header(sized(1, 23)), 400, ["item", "24 bytes", "23"]),
    "negative binary size": (binary_header(sized(1, -24)), 400, ["item", "-24"]),
    "binary size of true": (binary_header(sized(1, True)), 400, ["item", "True"]),
    "binary flag of 2": (binary(lambda body: body[:-1] + b"\2"), 400, ["fresh", "0 or 1"]),
    "data and binary": (binary_header(lambda p: p["inputs"][1].update(data=[1, 2, 3])), 400, ["item", "both"]),
    "compressed": ((json.dumps(good()).encode(), {"Content-Encoding": "gzip"}), 400, ["Content-Encoding", "gzip"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_request_is_refused_with_the_reason_and_the_next_good_one_answered(
    kind: str, server: ServerProcess, client: httpx.Client
) -> None:
    sent, status, words = BAD[kind]
    content, headers = sent if isinstance(sent, tuple) else (sent, {})
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    response = client.post(f"{server.url}/infer", content=content, headers=headers)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert [word for word in words if word not in error] == [], error
    assert len(error.splitlines()) == 1 and len(error) < 500
    assert client.post(f"{server.url}/infer", json=good()).status_code == 200


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
    response = client.request(method, server.root + path, json=good() if method == "POST" else None)
    assert response.status_code == status and isinstance(response.json()["error"], str)


def test_bytes_that_are_no_http_end_their_own_connection_only(server: ServerProcess, client: httpx.Client) -> None:
    with socket.create_connection(address(server)) as raw:
        raw.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        assert b"400" in raw.recv(4096).split(b"\r\n")[0]
    assert client.post(f"{server.url}/infer", json=good()).status_code == 200


def test_a_slow_sender_keeps_nobody_waiting(server: ServerProcess, client: httpx.Client) -> None:
    """More of them than requests may be in flight, each with one byte at a time of a good request."""
    body = json.dumps(good()).encode()
    head = f"POST /v2/models/toy/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    senders = [socket.create_connection(address(server), timeout=20) for _ in range(300)]
    try:
        for part in (head, body[:1], body[1:2]):
            for sender in senders:
                sender.sendall(part)
            assert client.post(f"{server.url}/infer", json=good()).status_code == 200
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
