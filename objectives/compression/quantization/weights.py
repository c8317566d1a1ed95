"""Weights of some modules in a graph, and the nodes that read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper

from objectives.compression.export import PREFIX
from objectives.compression.graph_passes.external_data import new_tensor, tensor_values
from objectives.compression.graph_passes.graph_reading import attribute, initializers
from objectives.compression.graph_passes.recurrent import is_recurrent

# Domain of ONNX Runtime's own operators.
ENGINE = "com.microsoft"
# Operand that is the weight, for operators that look rows up and for those that multiply.
PLACES = {"Gather": 0, "Gemm": 1, "MatMul": 1}
_PLAIN = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0, "axis": 0}


class WidthError(RuntimeError):
    """A graph does not hold the requested widths."""


def prefixes(modules: Sequence[str]) -> tuple[str, ...]:
    """Return the prefixes of the names of the modules' tensors."""
    return tuple(f"{PREFIX}{module}." for module in modules)


def weights(graph: onnx.ModelProto, modules: Sequence[str]) -> list[str]:
    """Return the fp32 matrices of the modules that are looked up or multiplied: whole, as two factors, as the halves of
    the two sides, or as the parts of a compressed table; for a recurrent layer, its input weight, which represents all
    of its weights.

    Tensors that are only added, such as positions, have no width of their own.
    """
    read = {name for node in graph.graph.node if node.op_type in PLACES for name in node.input}
    stepped = {node.input[1] for node in graph.graph.node if is_recurrent(node)}
    return [
        tensor.name
        for tensor in graph.graph.initializer
        if (tensor.name in stepped or (is_matrix(tensor) and tensor.name in read))
        and tensor.name.startswith(prefixes(modules))
    ]


def is_matrix(tensor: TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2


def lookups(graph: onnx.ModelProto, weight: str) -> list[NodeProto]:
    return [node for node in _readers(graph, weight) if node.op_type == "Gather"]


def products(graph: onnx.ModelProto, weight: str) -> list[NodeProto]:
    return [node for node in _readers(graph, weight) if node.op_type != "Gather"]


def _readers(graph: onnx.ModelProto, weight: str) -> list[NodeProto]:
    """Return the plain products, the lookups, or both, that share a weight.

    Raises:
        WidthError: the weight feeds anything else, or products of other forms.
    """
    found = readers(graph, weight)
    kinds = sorted({node.op_type for node in found})
    if not set(kinds) <= set(PLACES):
        raise WidthError(f"{weight} must feed products and lookups alone to change its width, but it feeds {kinds}.")
    whole = all(n.input[PLACES[n.op_type]] == weight and list(n.input).count(weight) == 1 for n in found)
    forms = [_form(node) for node in found]
    if not whole or any(form not in ({}, {"transB": 1}) for form in forms) or _both_ways(found):
        raise WidthError(f"{weight} must be read alike, as a whole weight, but its {kinds} have {forms}.")
    return found


def readers(graph: onnx.ModelProto, value: str) -> list[NodeProto]:
    return [node for node in graph.graph.node if value in node.input]


def _form(node: NodeProto) -> dict[str, object]:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: value for name, value in given.items() if _PLAIN.get(name) != value}


def _both_ways(nodes: list[NodeProto]) -> bool:
    return len({is_transposed(node) for node in nodes if node.op_type != "Gather"}) > 1


def is_transposed(product: NodeProto) -> bool:
    """Return whether the product's weight is (outputs, inputs), as in torch, and not (inputs, outputs)."""
    return bool(attribute(product, "transB", 0))


def array(graph: onnx.ModelProto, name: str) -> NDArray[np.float32]:
    """Return the values of an initialiser."""
    values: NDArray[Any] = tensor_values(initializers(graph)[name])
    return values


def to_half(name: str, matrix: NDArray[np.float32]) -> NDArray[np.float16]:
    """Convert the matrix to fp16.

    Raises:
        WidthError: a number is too large for fp16 and would become infinite.
    """
    peak, most = float(np.abs(matrix).max(initial=0)), float(np.finfo(np.float16).max)
    if peak > most:
        raise WidthError(f"{name} must lie within {most:g} to be held in fp16, but it has {peak:g}.")
    return matrix.astype(np.float16)


def add_initializers(graph: onnx.ModelProto, arrays: Mapping[str, NDArray[np.generic] | np.generic]) -> None:
    graph.graph.initializer.extend(new_tensor(graph, np.asarray(value), name) for name, value in arrays.items())


def import_engine(graph: onnx.ModelProto) -> None:
    """Import the engine's operator domain, before nodes of its own operators are added."""
    if ENGINE not in {opset.domain for opset in graph.opset_import}:
        graph.opset_import.append(helper.make_opsetid(ENGINE, 1))
