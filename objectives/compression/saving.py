"""A graph as a file; one that is large has its weights in a file beside it."""

from __future__ import annotations

import copy
from pathlib import Path

import onnx

from objectives.record import WEIGHTS

# An ONNX file cannot be larger than 2 GB, and what reads one holds it twice.
LARGEST = 1_500_000_000
_SMALL = 1024


def save_graph(graph: onnx.ModelProto, path: Path) -> int:
    """Bytes in all. A graph above LARGEST keeps its small constants; its tensors go to WEIGHTS beside it."""
    if graph.ByteSize() <= LARGEST:
        onnx.save(graph, str(path))
        return path.stat().st_size
    # It is taken apart while it is saved.
    onnx.save_model(
        copy.deepcopy(graph),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
        size_threshold=_SMALL,
    )
    return path.stat().st_size + path.with_name(WEIGHTS).stat().st_size
