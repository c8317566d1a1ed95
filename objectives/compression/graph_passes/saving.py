"""A graph as a file; one that is large has its weights in a file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import numpy_helper

from objectives.compression.graph_passes.external_data import (
    SMALLEST,
    append_tensor,
    external_tensors,
    is_external,
    keep_new_tensors_in,
    place_of,
    set_place,
    tensor_values,
    too_large,
    total_bytes,
)
from objectives.records import WEIGHTS


def save_graph(graph: onnx.ModelProto, path: Path) -> int:
    """Bytes of the graph and its tensors. Those of a large graph lie in WEIGHTS beside it, but for small constants.

    Tensors that lie in that file already stay there, so that several graphs of a folder can share it.
    """
    weights = path.with_name(WEIGHTS).absolute()
    large = too_large(total_bytes(graph)) or any(place_of(tensor)[0] == weights for tensor in external_tensors(graph))
    saved = onnx.ModelProto()
    saved.CopyFrom(graph)
    keep_new_tensors_in(saved, None)
    beside = 0
    for tensor in saved.graph.initializer:
        held = is_external(tensor)
        if large and (held or len(tensor.raw_data) >= SMALLEST):
            if not held or place_of(tensor)[0] != weights:
                tensor.CopyFrom(append_tensor(weights, tensor_values(tensor), tensor.name))
            _, offset, length = place_of(tensor)
            set_place(tensor, WEIGHTS, offset, length)
            beside += length
        elif held:
            tensor.CopyFrom(numpy_helper.from_array(tensor_values(tensor), tensor.name))
    onnx.save(saved, str(path))
    return path.stat().st_size + beside


def load_graph(path: Path) -> onnx.ModelProto:
    """A saved graph; tensors that lie beside it are not read."""
    graph = onnx.load(str(path), load_external_data=False)
    for tensor in external_tensors(graph):
        file, offset, length = place_of(tensor)
        set_place(tensor, str((path.parent / file).absolute()), offset, length)
    return graph
