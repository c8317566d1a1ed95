"""Tensors of a graph stored in a file, since a graph in memory cannot exceed 2 GB.

Such a tensor has the absolute path of its file, its offset and its length, as ONNX's external data; it is never changed
in place, so graphs may share it. A graph that is too large names the file for its new tensors.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from objectives.int8_weights import EXACT_SUMS

# An ONNX file cannot exceed 2 GB, and code that reads or rewrites one holds it several times.
LARGEST = 500_000_000
# Tensors of fewer bytes stay in the graph.
SMALLEST = 1024
# Files are mapped at page boundaries.
_ALIGNMENT = 4096
_CHUNK = 1 << 26
_FILE = "leanrec.weights"


def too_large(size: int) -> bool:
    """Return whether a graph with its tensors, in bytes, is too large for one file."""
    return size > LARGEST


def is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def place_of(tensor: TensorProto) -> tuple[Path, int, int]:
    """Return file, offset and length in bytes of an external tensor."""
    place = {entry.key: entry.value for entry in tensor.external_data}
    length = place.get("length") or _item_type(tensor).itemsize * int(np.prod(tensor.dims))
    return Path(place["location"]), int(place.get("offset") or 0), int(length)


def tensor_values(tensor: TensorProto) -> NDArray[np.generic]:
    """Return the values of a tensor; those of an external one are memory-mapped, and read only where they are used."""
    if not is_external(tensor):
        values: NDArray[np.generic] = numpy_helper.to_array(tensor)
        return values
    file, offset, _ = place_of(tensor)
    return np.asarray(np.memmap(file, _item_type(tensor), "r", offset, tuple(tensor.dims)))


def new_tensor(graph: onnx.ModelProto, values: NDArray[np.generic], name: str) -> TensorProto:
    """Create a tensor of a graph: in the file that the graph names for large ones, or in the graph itself."""
    file = next((entry.value for entry in graph.metadata_props if entry.key == _FILE), None)
    if file is None or values.nbytes < SMALLEST:
        made: TensorProto = numpy_helper.from_array(values, name)
        return made
    return append_tensor(Path(file), values, name)


def keep_new_tensors_in(graph: onnx.ModelProto, file: Path | None) -> None:
    """Set the file for the graph's new large tensors; None for the graph itself."""
    kept = {entry.key: entry.value for entry in graph.metadata_props if entry.key != _FILE}
    helper.set_model_props(graph, kept if file is None else {**kept, _FILE: str(file.absolute())})


def append_tensor(file: Path, values: NDArray[np.generic], name: str) -> TensorProto:
    """Append values to a file, and return the tensor that refers to them."""
    with file.open("ab") as stream:
        stream.seek(0, os.SEEK_END)
        stream.write(b"\0" * (-stream.tell() % _ALIGNMENT))
        offset, flat = stream.tell(), np.ascontiguousarray(values).reshape(-1)
        step = max(1, _CHUNK // flat.itemsize)
        for start in range(0, len(flat), step):
            stream.write(flat[start : start + step].tobytes())
    kind = helper.np_dtype_to_tensor_dtype(values.dtype)
    made = TensorProto(name=name, data_type=kind, dims=values.shape)
    set_place(made, str(file.absolute()), offset, values.nbytes)
    return made


def set_place(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def external_tensors(graph: onnx.ModelProto) -> list[TensorProto]:
    return [tensor for tensor in graph.graph.initializer if is_external(tensor)]


def total_bytes(graph: onnx.ModelProto) -> int:
    """Return the bytes of a graph with all of its tensors."""
    return int(graph.ByteSize()) + sum(place_of(tensor)[2] for tensor in external_tensors(graph))


def check_graph(graph: onnx.ModelProto) -> None:
    """Run ONNX's full check, with a graph's external tensors as inputs of their types and shapes.

    Raises:
        onnx.checker.ValidationError, onnx.shape_inference.InferenceError: the graph is not valid.
    """
    outside = external_tensors(graph)
    if not outside:
        onnx.checker.check_model(graph, full_check=True)
        return
    plain = onnx.ModelProto()
    plain.CopyFrom(graph)
    inside = [tensor for tensor in graph.graph.initializer if not is_external(tensor)]
    del plain.graph.initializer[:]
    plain.graph.initializer.extend(inside)
    plain.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in outside)
    onnx.checker.check_model(plain, full_check=True)


def open_session(graph: onnx.ModelProto) -> Any:
    """Open ONNX Runtime's CPU provider on a graph in memory, for checks while building."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry(*EXACT_SUMS)
    outside = {tensor.name: tensor_values(tensor) for tensor in external_tensors(graph)}
    held = [onnxruntime.OrtValue.ortvalue_from_numpy(values) for values in outside.values()]
    options.add_external_initializers(list(outside), held)
    return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _item_type(tensor: TensorProto) -> np.dtype[np.generic]:
    return np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
