"""A model file as steps and values: what each node reads and puts out, and how large that is."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

# A string's characters lie elsewhere.
_WIDTHS = {"float": 4.0, "double": 8.0, "bool": 1.0, "string": 0.0}


@dataclass(frozen=True)
class Value:
    """Shape, and bytes of one number (half a byte where it has four bits)."""

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
    """One node: its operator, the names of the values that it reads and puts out, its whole-number attributes."""

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
    """Names, shapes and types of an ONNX file; weights that lie beside it are not read."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    weights = {tensor.name: _stored(tensor) for tensor in graph.initializer}
    return Graph(tuple(_step(node) for node in graph.node), weights)


def width_of(kind: str) -> float:
    """Bytes of one number of a type that is spelt ONNX's or ONNX Runtime's way: float, float16, INT8, uint4.

    Raises:
        ValueError: the type says no width.
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
