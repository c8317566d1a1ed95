"""Open Inference Protocol V2 with the binary tensor extension: bytes of a request to arrays, scores to bytes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from objectives.arrays import Array
from objectives.serving.http.datatypes import DATATYPES, DTYPES
from objectives.serving.http.json_data import RequestError, flatten, read_json, read_numbers, shown

# Header with the length of the JSON in front of binary tensors, in bytes.
HEADER_LENGTH = "Inference-Header-Content-Length"
# Most dimensions of a tensor, and the size that none of them reaches.
_DIMENSIONS, _SIZE = 8, 2**31


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request as it was sent: well-formed, not yet compared with a model.

    binary: whether the scores are returned as a binary tensor
    """

    id: str | None
    inputs: Mapping[str, Array]
    binary: bool


@dataclass(frozen=True)
class Encoded:
    """Body of a response; `json_bytes` is the length of the JSON in front of binary data, None where there is none."""

    body: bytes
    json_bytes: int | None


def read_request(body: bytes, header_length: str | None, outputs: Sequence[str]) -> InferRequest:
    """Read a request.

    Args:
        header_length: value of the header `Inference-Header-Content-Length`, None where it is absent
        outputs: names of the model's outputs

    Raises:
        RequestError: the request is malformed, or asks for an unknown output.
    """
    header, binary = _split(body, header_length)
    plain = read_json(header)
    if not isinstance(plain, dict):
        _refuse("body", "be a JSON object", plain)
    sent = plain.get("id")
    if sent is not None and not isinstance(sent, str):
        _refuse("id", "be a string", sent)
    return InferRequest(sent, _read_inputs(plain.get("inputs"), binary), _wants_binary(plain, outputs))


def write_response(model: str, version: str, request: InferRequest, output: str, scores: Array) -> Encoded:
    """Write the scores as one tensor, in JSON or as the binary extension has it.

    Args:
        scores: finite, (rows, ...)
    """
    tensor: dict[str, object] = {"name": output, "shape": scores.shape, "datatype": DATATYPES[scores.dtype]}
    data = b""
    if request.binary:
        data = scores.astype(scores.dtype.newbyteorder("<"), copy=False).tobytes()
        tensor["parameters"] = {"binary_data_size": len(data)}
    else:
        tensor["data"] = scores.ravel().tolist()
    plain: dict[str, object] = {"model_name": model, "model_version": version, "outputs": [tensor]}
    if request.id is not None:
        plain["id"] = request.id
    header = json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()
    return Encoded(header + data, len(header) if request.binary else None)


def _split(body: bytes, header_length: str | None) -> tuple[bytes, memoryview]:
    """Cut a body into its JSON and its binary tensors."""
    if header_length is None:
        return body, memoryview(b"")
    # Longer numbers are no lengths, and Python refuses to convert very long ones.
    valid = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
    if not valid or int(header_length) > len(body):
        _refuse(HEADER_LENGTH, f"be a whole number from 0 to the body's {len(body)} bytes", header_length)
    length = int(header_length)
    return body[:length], memoryview(body)[length:]


def _read_inputs(plain: object, binary: memoryview) -> dict[str, Array]:
    if not isinstance(plain, list) or not plain:
        _refuse("inputs", "be a list of one tensor or more", plain)
    inputs: dict[str, Array] = {}
    for number, tensor in enumerate(plain):
        field = f"inputs[{number}]"
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            _refuse(field, "be an object with a name", tensor)
        name = tensor["name"]
        if name in inputs:
            _refuse(f"{field}.name", "be given once", name)
        inputs[name], binary = _read_tensor(f"input {shown(name)}", tensor, binary)
    if len(binary):
        _refuse("body", "end after its last binary tensor", f"{len(binary)} bytes more")
    return inputs


def _read_tensor(field: str, tensor: Mapping[str, Any], binary: memoryview) -> tuple[Array, memoryview]:
    """Read one input, and return it with the binary data that is left for the next ones."""
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        _refuse(f"{field}: datatype", f"be one of {', '.join(DTYPES)}", datatype)
    if not isinstance(shape, list) or not 1 <= len(shape) <= _DIMENSIONS or not all(map(_is_size, shape)):
        _refuse(f"{field}: shape", f"be a list of 1 to {_DIMENSIONS} whole numbers from 0 to {_SIZE - 1}", shape)
    size = _parameters(field, tensor).get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        _refuse(field, "have either data or the parameter binary_data_size", "both" if "data" in tensor else "neither")
    dtype, count = DTYPES[datatype], math.prod(shape)
    if size is None:
        values = read_numbers(f"{field}: data", flatten(f"{field}: data", tensor["data"], shape), dtype)
        return values.reshape(shape), binary
    needed = count * dtype.itemsize
    if type(size) is not int or size != needed:
        _refuse(f"{field}: binary_data_size", f"be the {needed} bytes of {datatype} in the shape {shape}", size)
    if size > len(binary):
        _refuse(f"{field}: binary_data_size", f"be at most the {len(binary)} bytes that follow", size)
    data = binary[:size]
    if datatype == "BOOL" and count and max(data) > 1:
        _refuse(field, "have bytes of 0 or 1", max(data))
    # Copied, since a tensor may begin at any byte, and an engine may read whole words.
    values = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype, copy=True)
    return values.reshape(shape), binary[size:]


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < _SIZE


def _wants_binary(plain: Mapping[str, Any], outputs: Sequence[str]) -> bool:
    """Return whether the scores are to be binary: by the output's own parameter, else by the request's."""
    wanted = _flag("parameters", _parameters("body", plain), "binary_data_output", False)
    asked = plain.get("outputs")
    if asked is None:
        return wanted
    if not isinstance(asked, list):
        _refuse("outputs", "be a list", asked)
    seen: set[str] = set()
    for number, output in enumerate(asked):
        field = f"outputs[{number}]"
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            _refuse(field, "be an object with a name", output)
        name = output["name"]
        if name not in outputs or name in seen:
            _refuse(f"{field}.name", f"be one of {', '.join(outputs)}, once", name)
        seen.add(name)
        parameters = _parameters(field, output)
        if parameters.get("classification"):
            _refuse(f"{field}.parameters", "not ask for a classification", parameters["classification"])
        wanted = _flag(field, parameters, "binary_data", wanted)
    return wanted


def _parameters(field: str, plain: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = plain.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        _refuse(f"{field}: parameters", "be an object", parameters)
    return parameters


def _flag(field: str, parameters: Mapping[str, Any], name: str, default: bool) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        _refuse(f"{field}.{name}", "be true or false", value)
    return value


def _refuse(field: str, rule: str, got: object) -> NoReturn:
    raise RequestError(f"{field}: must {rule}, but got {shown(got)}")
