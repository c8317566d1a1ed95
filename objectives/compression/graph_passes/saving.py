"""Saving of a graph as a file, with the weights of a large one in a file next to it."""

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
    """Save a graph. The tensors of a large one go to the file WEIGHTS next to it, except for small constants.

    Tensors that are already in that file stay there, so that several graphs of a folder can share it.

    Returns:
        The bytes of the graph and its tensors.
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
    """Load a saved graph; tensors in the file next to it are not read."""
    graph = onnx.load(str(path), load_external_data=False)
    for tensor in external_tensors(graph):
        file, offset, length = place_of(tensor)
        set_place(tensor, str((path.parent / file).absolute()), offset, length)
    return graph
