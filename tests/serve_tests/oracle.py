"""A client's side of Open Inference Protocol V2, written from its text without the server's code."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

LENGTH = "Inference-Header-Content-Length"
# Datatype: NumPy's name, and the format of one little-endian element in the struct module.
TYPES = {
    "BOOL": ("bool", "?"),
    "INT8": ("int8", "b"),
    "INT16": ("int16", "h"),
    "INT32": ("int32", "i"),
    "INT64": ("int64", "q"),
    "UINT8": ("uint8", "B"),
    "UINT16": ("uint16", "H"),
    "UINT32": ("uint32", "I"),
    "UINT64": ("uint64", "Q"),
    "FP16": ("float16", "e"),
    "FP32": ("float32", "f"),
    "FP64": ("float64", "d"),
}
_NAMES = {dtype: name for name, (dtype, _) in TYPES.items()}


def json_tensor(name: str, values: np.ndarray, nested: bool = False) -> dict[str, Any]:
    data = values.tolist() if nested else [value.item() for value in values.flat]
    return {"name": name, "shape": list(values.shape), "datatype": _NAMES[values.dtype.name], "data": data}


def json_request(arrays: Mapping[str, np.ndarray], **more: Any) -> dict[str, Any]:
    return {"inputs": [json_tensor(name, values) for name, values in arrays.items()], **more}


def binary_request(arrays: Mapping[str, np.ndarray], **more: Any) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request whose tensors are all binary."""
    inputs, data = [], b""
    for name, values in arrays.items():
        datatype = _NAMES[values.dtype.name]
        part = b"".join(struct.pack("<" + TYPES[datatype][1], value.item()) for value in values.flat)
        inputs.append(
            {
                "name": name,
                "shape": list(values.shape),
                "datatype": datatype,
                "parameters": {"binary_data_size": len(part)},
            }
        )
        data += part
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + data, {LENGTH: str(len(header))}


def read_scores(body: bytes, length: str | None) -> tuple[dict[str, Any], np.ndarray]:
    """Return a response's JSON and its only output."""
    header = body if length is None else body[: int(length)]
    plain = json.loads(header)
    (output,) = plain["outputs"]
    dtype, code = TYPES[output["datatype"]]
    if length is None:
        values = output["data"]
    else:
        data = body[int(length) :]
        assert output["parameters"]["binary_data_size"] == len(data)
        values = [value for (value,) in struct.iter_unpack("<" + code, data)]
    return plain, np.array(values, dtype).reshape(output["shape"])
