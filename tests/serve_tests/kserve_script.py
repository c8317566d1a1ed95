"""Answers that KServe's own REST client gets from a server, as JSON: run by the interpreter that has it, not by pytest.

`python kserve_script.py HOST:PORT MODEL VERSION REQUEST.npz`: the request's arrays by input name.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

DATATYPES = {"int64": "INT64", "float32": "FP32", "bool": "BOOL"}


async def main(address: str, model: str, file: str) -> None:
    with np.load(file) as arrays:
        request = dict(arrays)
    client, url = InferenceRESTClient(RESTConfig(protocol="v2")), f"http://{address}"
    scores = {}
    for name, binary, binary_output in (("json", False, False), ("binary", True, True), ("mixed", True, False)):
        sent = infer_request(model, request, binary, binary_output)
        answer = await client.infer(url, sent, model_name=model)
        scores[name] = answer.outputs[0].as_numpy().tolist()
    found = {
        "live": await client.is_server_live(url),
        "ready": await client.is_server_ready(url),
        "model_ready": await client.is_model_ready(url, model),
        "scores": scores,
        "errors": {
            "unknown model": await refused(client, url, "other", infer_request("other", request, True, True)),
            "missing input": await refused(client, url, model, infer_request(model, dict([*request.items()][1:]))),
        },
    }
    print(json.dumps(found))


def infer_request(model: str, request: dict[str, Any], binary: bool = True, binary_output: bool = True) -> InferRequest:
    tensors = []
    for name, values in request.items():
        tensor = InferInput(name, list(values.shape), DATATYPES[values.dtype.name])
        tensor.set_data_from_numpy(values, binary_data=binary)
        tensors.append(tensor)
    output = RequestedOutput("scores", parameters={"binary_data": binary_output})
    return InferRequest(model, tensors, request_outputs=[output])


async def refused(client: InferenceRESTClient, url: str, model: str, request: InferRequest) -> Any:
    try:
        await client.infer(url, request, model_name=model)
    except httpx.HTTPStatusError as error:
        return [error.response.status_code, str(error)]
    return None


if __name__ == "__main__":
    address, model, _, file = sys.argv[1:]
    asyncio.run(main(address, model, file))
