"""Open Inference Protocol V2 with the binary tensor extension: bytes of a request to arrays, scores to bytes."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import numpy as np

from objectives.arrays import Array
from objectives.serving.http.datatypes import DATATYPES, DTYPES
from objectives.serving.http.json_data import RequestError, flatten, read_json, read_numbers, shown

# Header with the length of the JSON in front of binary tensors, in bytes.
HEADER_LENGTH = "Inference-Header-Content-Length"
# Most dimensions of a tensor, and the size that none of them reaches. NumPy counts the bytes of an array in 63 bits,
# with each 0 of its shape as 1.
_DIMENSIONS, _SIZE, _BYTES = 8, 2**31, 2**63
# Bytes of the longest JSON in front of binary tensors that is kept with what it says.
_KEPT_BYTES = 1 << 12


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


def read_request(body: bytes, header_length: str | None, outputs: tuple[str, ...]) -> InferRequest:
    """Read a request.

    Args:
        header_length: value of the header `Inference-Header-Content-Length`, None where it is absent
        outputs: names of the model's outputs

    Raises:
        RequestError: the request is malformed, or asks for an unknown output.
    """
    text, binary = _split(body, header_length)
    read = _known_header if header_length is not None and len(text) <= _KEPT_BYTES else _read_header
    header = read(text, outputs)
    return InferRequest(header.id, _arrays(header.tensors, binary), header.binary)


def write_response(model: str, version: str, request: InferRequest, output: str, scores: Array) -> Encoded:
    """Write the scores as one tensor, in JSON or as the binary extension has it.

    Args:
        scores: finite, (rows, ...)
    """
    if not request.binary:
        plain = _response(model, version, request.id, output, scores.shape, scores.dtype)
        plain["outputs"][0]["data"] = scores.ravel().tolist()
        return Encoded(_json(plain), None)
    write = _known_binary_header if request.id is None else _binary_header
    header = write(model, version, request.id, output, scores.shape, scores.dtype)
    data = scores.astype(scores.dtype.newbyteorder("<"), copy=False).tobytes()
    return Encoded(header + data, len(header))


def _binary_header(
    model: str, version: str, sent: str | None, output: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> bytes:
    """Return the JSON in front of binary scores."""
    plain = _response(model, version, sent, output, shape, dtype)
    plain["outputs"][0]["parameters"] = {"binary_data_size": math.prod(shape) * dtype.itemsize}
    return _json(plain)


# It is the same for all requests of so many rows without an id.
_known_binary_header = functools.lru_cache(maxsize=1024)(_binary_header)


def _response(
    model: str, version: str, sent: str | None, output: str, shape: tuple[int, ...], dtype: np.dtype[np.generic]
) -> dict[str, Any]:
    tensor = {"name": output, "shape": shape, "datatype": DATATYPES[dtype]}
    plain = {"model_name": model, "model_version": version, "outputs": [tensor]}
    return plain if sent is None else {**plain, "id": sent}


def _json(plain: Mapping[str, Any]) -> bytes:
    return json.dumps(plain, separators=(",", ":"), allow_nan=False).encode()


def _split(body: bytes, header_length: str | None) -> tuple[bytes, bytes]:
    """Cut a body into its JSON and its binary tensors."""
    if header_length is None:
        return body, b""
    # Longer numbers are no lengths, and Python refuses to convert very long ones.
    valid = header_length.isascii() and header_length.isdecimal() and len(header_length) < 20
    if not valid or int(header_length) > len(body):
        _refuse(HEADER_LENGTH, f"be a whole number from 0 to the body's {len(body)} bytes", header_length)
    length = int(header_length)
    return body[:length], body[length:]


class _Tensor(NamedTuple):
    """An input as the JSON describes it.

    values: as the JSON holds them; None where they are `size` bytes behind the JSON, `elements` values of `dtype`
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    elements: int
    size: int
    values: Array | None


class _Header(NamedTuple):
    """The JSON of a request."""

    id: str | None
    tensors: tuple[_Tensor, ...]
    binary: bool


def _read_header(text: bytes, outputs: tuple[str, ...]) -> _Header:
    plain = read_json(text)
    if not isinstance(plain, dict):
        _refuse("body", "be a JSON object", plain)
    sent, inputs = plain.get("id"), plain.get("inputs")
    if sent is not None and not isinstance(sent, str):
        _refuse("id", "be a string", sent)
    if not isinstance(inputs, list) or not inputs:
        _refuse("inputs", "be a list of one tensor or more", inputs)
    tensors: dict[str, _Tensor] = {}
    for number, tensor in enumerate(inputs):
        if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
            _refuse(f"inputs[{number}]", "be an object with a name", tensor)
        name = tensor["name"]
        if name in tensors:
            _refuse(f"inputs[{number}].name", "be given once", name)
        tensors[name] = _read_tensor(name, tensor)
    return _Header(sent, tuple(tensors.values()), _wants_binary(plain, outputs))


# So is the JSON in front of a client's binary tensors.
_known_header = functools.lru_cache(maxsize=1024)(_read_header)


def _read_tensor(name: str, tensor: Mapping[str, Any]) -> _Tensor:
    """Read the description of one input, and its values where the JSON has them."""
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        _refuse(f"{_field(name)}: datatype", f"be one of {', '.join(DTYPES)}", datatype)
    if not isinstance(shape, list) or not 1 <= len(shape) <= _DIMENSIONS or not all(map(_is_size, shape)):
        rule = f"be a list of 1 to {_DIMENSIONS} whole numbers from 0 to {_SIZE - 1}"
        _refuse(f"{_field(name)}: shape", rule, shape)
    dtype, count = DTYPES[datatype], math.prod(shape)
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= _BYTES:
        _refuse(f"{_field(name)}: shape", f"be of fewer than {_BYTES} bytes, with each 0 as 1", shape)
    size = _parameters(_field(name), tensor).get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        got = "both" if "data" in tensor else "neither"
        _refuse(_field(name), "have either data or the parameter binary_data_size", got)
    if size is None:
        field = f"{_field(name)}: data"
        values = read_numbers(field, flatten(field, tensor["data"], shape), dtype).reshape(shape)
        values.flags.writeable = False  # it may be kept for further requests
        return _Tensor(name, dtype, tuple(shape), count, 0, values)
    needed = count * dtype.itemsize
    if type(size) is not int or size != needed:
        rule = f"be the {needed} bytes of {datatype} in the shape {shape}"
        _refuse(f"{_field(name)}: binary_data_size", rule, size)
    return _Tensor(name, dtype.newbyteorder("<"), tuple(shape), count, size, None)


def _arrays(tensors: Sequence[_Tensor], binary: bytes) -> dict[str, Array]:
    """Return the inputs; binary ones are read-only views where they are aligned, which engines need."""
    inputs: dict[str, Array] = {}
    used = 0
    for name, dtype, shape, elements, size, values in tensors:
        if values is not None:
            inputs[name] = values
            continue
        if size > len(binary) - used:
            left = len(binary) - used
            _refuse(f"{_field(name)}: binary_data_size", f"be at most the {left} bytes that follow", size)
        array = np.frombuffer(binary, dtype, elements, used) if elements else np.empty(0, dtype)
        if dtype.kind == "b" and elements and (most := array.view(np.uint8).max()) > 1:
            _refuse(_field(name), "have bytes of 0 or 1", int(most))
        if not array.flags.aligned or not dtype.isnative:
            array = array.astype(dtype.newbyteorder("="))
        inputs[name] = array.reshape(shape)
        used += size
    if used < len(binary):
        _refuse("body", "end after its last binary tensor", f"{len(binary) - used} bytes more")
    return inputs


def _field(name: str) -> str:
    return f"input {shown(name)}"


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
