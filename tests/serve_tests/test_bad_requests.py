"""Bad requests of every kind to a real server: a reason in one line, and the next good request is answered."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import numpy as np
import pytest

from tests.serve_tests import oracle
from tests.serve_tests.bundles import ITEMS, MAX_ROWS, USERS, draw_request
from tests.serve_tests.process import ServerProcess

Plain = dict[str, Any]


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
