"""Answers that Triton's own HTTP client gets from a server, as JSON: run by the interpreter that has it, not by pytest.

`python triton_script.py HOST:PORT MODEL VERSION REQUEST.npz`: the request's arrays by input name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype


def main(address: str, model: str, version: str, file: str) -> None:
    with np.load(file) as arrays:
        request = dict(arrays)
    with triton.InferenceServerClient(address, concurrency=2) as client:
        found = {**health(client, model, version), **inference(client, model, version, request)}
        found["errors"] = errors(client, model, request)
    print(json.dumps(found))


def health(client: Any, model: str, version: str) -> dict[str, Any]:
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "model_ready": [client.is_model_ready(model), client.is_model_ready(model, version)],
        "other_ready": client.is_model_ready("other"),
        "server": client.get_server_metadata(),
        "model": client.get_model_metadata(model),
    }


def tensors(request: dict[str, Any], binary: dict[str, bool]) -> list[Any]:
    found = []
    for name, values in request.items():
        tensor = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
        found.append(tensor.set_data_from_numpy(values, binary_data=binary[name]))
    return found


def inference(client: Any, model: str, version: str, request: dict[str, Any]) -> dict[str, Any]:
    """Scores of the same request on every path that the client has."""

    def infer(binary: dict[str, bool], binary_output: bool | None, **options: Any) -> Any:
        asked = None if binary_output is None else [triton.InferRequestedOutput("scores", binary_data=binary_output)]
        return client.infer(model, tensors(request, binary), outputs=asked, **options)

    all_binary, none_binary = dict.fromkeys(request, True), dict.fromkeys(request, False)
    some = {name: place % 2 == 0 for place, name in enumerate(request)}
    named = infer(all_binary, True, model_version=version, request_id="seven")
    pending = [client.async_infer(model, tensors(request, all_binary)) for _ in range(4)]
    results = {
        "binary": named,
        "json": infer(none_binary, False),
        "binary in, json out": infer(all_binary, False),
        "json in, binary out": infer(none_binary, True),
        "mixed": infer(some, True),
        "default output": infer(all_binary, None),
        **{f"asynchronous {place}": one.get_result() for place, one in enumerate(pending)},
    }
    return {
        "scores": {name: one.as_numpy("scores").tolist() for name, one in results.items()},
        "response": {key: named.get_response()[key] for key in ("id", "model_name", "model_version")},
        "statistics": client.get_inference_statistics(model),
    }


def errors(client: Any, model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Status and message of requests that must be refused, and whether the next good one is answered."""
    binary = dict.fromkeys(request, True)
    (first, *_), good = request, tensors(request, binary)
    long = {**request, first: np.concatenate([request[first]] * 2)}
    float_ids = {**request, first: request[first].astype(np.float32)}
    cases: dict[str, Callable[[], object]] = {
        "unknown model": lambda: client.infer("other", good),
        "unknown version": lambda: client.infer(model, good, model_version="9"),
        "missing input": lambda: client.infer(model, good[1:]),
        "other rows": lambda: client.infer(model, tensors(long, binary)),
        "other datatype": lambda: client.infer(model, tensors(float_ids, binary)),
        "unknown output": lambda: client.infer(model, good, outputs=[triton.InferRequestedOutput("other")]),
        "no such metadata": lambda: client.get_model_metadata("other"),
        "no configuration": lambda: client.get_model_config(model),
    }
    found: dict[str, Any] = {}
    for name, call in cases.items():
        try:
            call()
            found[name] = None
        except InferenceServerException as error:
            found[name] = [error.status(), error.message()]
    client.infer(model, good)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
