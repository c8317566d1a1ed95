"""Reading of the widths in a graph, from its initialisers' types and the nodes that consume them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import NodeProto, TensorProto

from objectives.compression.graph_passes.external_data import tensor_values
from objectives.compression.graph_passes.graph_reading import attribute
from objectives.compression.graph_passes.recurrent import GATES
from objectives.compression.quantization.weights import PLACES, prefixes
from objectives.int8_weights import Int8WeightBits, largest_code
from spaces.model_structure import ModelStructure


def read_widths(graph: onnx.ModelProto, structure: ModelStructure, apart: Iterable[str] = ()) -> dict[str, str]:
    """Return the width of each group in the graph: fp32, fp16, int8, int4, int2, int8-dynamic, int8-static,
    int4-dynamic.

    Several widths give "mixed: ..."; integers in any other operator give the type and the operator's name.

    Args:
        apart: tables to be reported by themselves, and not with their group
    """
    held = _Reading(graph).widths
    widths: dict[str, str] = {}
    for part, modules in structure.stored(apart).items():
        found = sorted({width for name, width in held.items() if name.startswith(prefixes(modules))})
        if found:
            widths[part] = found[0] if len(found) == 1 else "mixed: " + ", ".join(found)
    return widths


def read_weight_bits(graph: onnx.ModelProto) -> Int8WeightBits | None:
    """Return the bits that the weights of int8 products need, by their largest code; None without such products."""
    held = {tensor.name: tensor for tensor in graph.graph.initializer if tensor.data_type == TensorProto.INT8}
    made_by = {name: node for node in graph.graph.node for name in node.output}
    codes = {node.input[1] for node in graph.graph.node if node.op_type == "MatMulInteger"}
    codes |= {name for node in graph.graph.node if node.op_type == "DynamicQuantizeLSTM" for name in node.input[1:3]}
    for node in graph.graph.node:
        if node.op_type in ("Gemm", "MatMul") and (widened := made_by.get(node.input[1])) is not None:
            codes |= {widened.input[0]} if widened.op_type == "DequantizeLinear" else set()
    largest = [int(np.abs(tensor_values(held[n]).astype(np.int16)).max(initial=0)) for n in codes if n in held]
    if not largest:
        return None
    return 7 if max(largest) <= largest_code(7) else 8


class _Reading:
    """Reading of one graph; `widths` has the width of each weight, by the name of the initialiser that holds it."""

    def __init__(self, graph: onnx.ModelProto) -> None:
        self._made_by = {name: node for node in graph.graph.node for name in node.output}
        self._readers: dict[str, list[NodeProto]] = {}
        for node in graph.graph.node:
            for name in node.input:
                self._readers.setdefault(name, []).append(node)
        names = {tensor.name for tensor in graph.graph.initializer}
        matrices = [t for t in graph.graph.initializer if len(t.dims) >= 2 and not _is_scale(t.name, names)]
        found = {tensor.name: self._width(tensor) for tensor in matrices}
        self.widths: Mapping[str, str] = {name: width for name, width in found.items() if width is not None}

    def _width(self, tensor: TensorProto) -> str | None:
        """Return the width of a tensor, None where it is no weight: no lookup or product reads it."""
        nodes = self._readers.get(tensor.name, [])
        if tensor.data_type == TensorProto.FLOAT:
            return "fp32" if any(_weighs(node, tensor.name) for node in nodes) else None
        if tensor.data_type == TensorProto.FLOAT16:
            return "fp16" if nodes else None
        if tensor.data_type not in (TensorProto.INT8, TensorProto.UINT8):
            return None
        return " and ".join(sorted({self._whole_number_width(tensor, node) for node in nodes})) or None

    def _whole_number_width(self, tensor: TensorProto, node: NodeProto) -> str:
        kind = node.op_type
        if kind in ("GatherBlockQuantized", "MatMulNBits"):
            rounded = attribute(node, "accuracy_level", 0) == 4
            return f"int{attribute(node, 'bits', 4)}{'-dynamic' if rounded else ''}"
        if tensor.data_type == TensorProto.INT8:
            if kind == "Gather":
                return "int8"
            if kind == "DynamicQuantizeLSTM":
                return "int8-lstm"
            if kind == "MatMulInteger" and self._maker(node.input[0]) == "DynamicQuantizeLinear":
                return "int8-dynamic"
            if kind == "DequantizeLinear" and self._meets_rounded(node.output[0]):
                return "int8-static"
        return f"{TensorProto.DataType.Name(tensor.data_type).lower()} in {kind}"

    def _maker(self, value: str) -> str:
        return self._made_by[value].op_type if value in self._made_by else "nothing"

    def _meets_rounded(self, weight: str) -> bool:
        """Return whether all readers multiply the weight with a quantized activation."""
        nodes = self._readers.get(weight, [])
        rounded = [
            node.op_type in ("Gemm", "MatMul")
            and self._maker(node.input[0]) == "DequantizeLinear"
            and self._maker(self._made_by[node.input[0]].input[0]) == "QuantizeLinear"
            for node in nodes
        ]
        return bool(rounded) and all(rounded)


def _weighs(node: NodeProto, name: str) -> bool:
    if node.op_type in GATES:
        return name in node.input[1:3]
    return node.op_type in PLACES and node.input[PLACES[node.op_type]] == name


def _is_scale(name: str, names: Collection[str]) -> bool:
    stem = name.removesuffix("_scale")
    return stem != name and (stem in names or f"{stem}_quantized" in names)
