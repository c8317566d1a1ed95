"""A model file as steps and values: the inputs and outputs of each node, with their sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# The characters of a string are stored elsewhere.
_WIDTHS = {"float": 4.0, "double": 8.0, "bool": 1.0, "string": 0.0}


@dataclass(frozen=True)
class Value:
    """Shape of a value, and the bytes of one of its numbers (half a byte for four bits)."""

    shape: tuple[int, ...]
    width: float

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return math.ceil(self.count * self.width)


@dataclass(frozen=True)
class Step:
    """One node: its operator, the names of its input and output values, its integer attributes."""

    name: str
    operator: str
    reads: tuple[str, ...]
    puts: tuple[str, ...]
    attributes: Mapping[str, int]


@dataclass(frozen=True)
class Graph:
    """Steps in the order in which they run, and the stored weights by name."""

    steps: tuple[Step, ...]
    weights: Mapping[str, Value]


def read_graph(path: Path) -> Graph:
    """Read names, shapes and types of an ONNX file; weights in a separate file are not read."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name: _stored(tensor) for tensor in graph.initializer}
    return Graph(tuple(_step(node) for node in graph.node), weights)


def width_of(kind: str) -> float:
    """Return the bytes of one number of a type, spelled as in ONNX or ONNX Runtime: float, float16, INT8, uint4.

    Raises:
        ValueError: the type has no known width.
    """
    kind = kind.lower()
    if kind in _WIDTHS:
        return _WIDTHS[kind]
    bits = re.search(r"\d+", kind)
    if bits is None:
        raise ValueError(f"A type is one of {sorted(_WIDTHS)} or names its bits, but got {kind!r}.")
    return int(bits.group()) / 8


def _stored(tensor: onnx.TensorProto) -> Value:
    from onnx import TensorProto

    return Value(tuple(tensor.dims), width_of(TensorProto.DataType.Name(tensor.data_type)))


def _step(node: onnx.NodeProto) -> Step:
    from onnx import AttributeProto

    whole = {a.name: int(a.i) for a in node.attribute if a.type == AttributeProto.INT}
    # Optional values that are left out have empty names.
    reads, puts = tuple(filter(None, node.input)), tuple(filter(None, node.output))
    return Step(node.name, node.op_type, reads, puts, whole)
