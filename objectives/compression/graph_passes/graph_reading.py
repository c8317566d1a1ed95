"""Reading and rewriting of a graph: constants, attributes, shapes at a number of rows, and the nodes its
outputs need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

# A dimension is a number, a name, or unknown.
Shape = tuple[int | str | None, ...]


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return the attribute's value, or the default where the node does not have it."""
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def initializers(graph: onnx.ModelProto) -> dict[str, TensorProto]:
    return {tensor.name: tensor for tensor in graph.graph.initializer}


def integer_constants(graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return constants of at most one axis that hold int64: axes, shapes, starts and ends."""
    values = [node.attribute[0] for node in graph.graph.node if node.op_type == "Constant"]
    outputs = [node.output[0] for node in graph.graph.node if node.op_type == "Constant"]
    tensors = initializers(graph) | {o: a.t for o, a in zip(outputs, values, strict=True) if a.name == "value"}
    return {
        name: tuple(int(value) for value in np.atleast_1d(numpy_helper.to_array(tensor)))
        for name, tensor in tensors.items()
        if tensor.data_type == TensorProto.INT64 and len(tensor.dims) <= 1
    }


def has_control_flow(graph: onnx.ModelProto) -> bool:
    """Return whether a node contains a graph, which may read any value of the outer one."""
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(a.type in kinds for node in graph.graph.node for a in node.attribute)


def once_inputs(graph: onnx.ModelProto) -> frozenset[str]:
    """Return the inputs that are taken once a request: their first dimension is 1 where another input's is
    not fixed.
    """
    first = {i.name: i.type.tensor_type.shape.dim[:1] for i in graph.graph.input}
    fixed = {name for name, dim in first.items() if not dim or dim[0].HasField("dim_value")}
    return frozenset(
        name for name in fixed if first[name] and first[name][0].dim_value == 1 and len(fixed) < len(first)
    )


def infer(
    graph: onnx.ModelProto, rows: int | str | None = None, lengths: Mapping[str, Sequence[int]] | None = None
) -> onnx.ModelProto:
    """Copy a graph with all shapes inferred anew; `rows` replaces each input's first dimension that is not fixed, and
    `lengths` the dimensions after it, by the input's name.
    """
    bound = onnx.ModelProto()
    bound.CopyFrom(graph)
    del bound.graph.value_info[:]
    for value in bound.graph.input:
        for dim in value.type.tensor_type.shape.dim[:1]:
            if isinstance(rows, int) and not dim.HasField("dim_value"):
                dim.dim_value = rows
            elif isinstance(rows, str) and not dim.HasField("dim_value"):
                dim.dim_param = rows
        given = (lengths or {}).get(value.name, ())
        for dim, size in zip(value.type.tensor_type.shape.dim[1:], given, strict=False):
            dim.dim_value = size
    for value in bound.graph.output:
        value.type.tensor_type.ClearField("shape")
    return onnx.shape_inference.infer_shapes(bound, data_prop=True)


def shapes(inferred: onnx.ModelProto) -> dict[str, Shape]:
    """Return the shape of each value whose rank is known."""
    graph = inferred.graph
    known: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            dims = value.type.tensor_type.shape.dim
            known[value.name] = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)
    return known


def multiply_adds(graph: onnx.ModelProto, rows: int, lengths: Mapping[str, Sequence[int]] | None = None) -> int:
    """Count the multiply-adds of all matrix products and recurrent layers in a request of `rows` rows; inputs taken
    once have one row.

    Args:
        lengths: sizes after the rows of inputs whose length differs between requests

    Raises:
        ValueError: the shape of a product cannot be inferred.
    """
    known = shapes(infer(graph, rows, lengths))
    total = 0
    for node in graph.graph.node:
        if node.op_type in ("Gemm", "MatMul", "MatMulInteger"):
            left, out = known.get(node.input[0], (None,)), known.get(node.output[0], (None,))
            inner = left[0] if attribute(node, "transA", 0) else left[-1]
            total += _product(node, (*out, inner), left, out)
        elif node.op_type in ("GRU", "LSTM", "RNN"):
            read, weights = known.get(node.input[0], (None,)), known.get(node.input[1], (None,))
            again = known.get(node.input[2], (None,))
            for matrix in (weights, again):  # for each step and row, with the input and with the state
                total += _product(node, (*read[:-1], *matrix), read, matrix)
    return total


def _product(node: NodeProto, sizes: Shape, left: Shape, out: Shape) -> int:
    whole = [size for size in sizes if isinstance(size, int)]
    if len(whole) != len(sizes):
        raise ValueError(f"Products have known shapes, but got {left} -> {out} in {node.name!r}.")
    return int(np.prod(whole))


def replace(graph: onnx.ModelProto, old: NodeProto, new: Sequence[NodeProto]) -> None:
    """Replace a node at its position, so that the nodes stay in topological order."""
    nodes = list(graph.graph.node)
    at = next(i for i, node in enumerate(nodes) if node.output[0] == old.output[0])
    del graph.graph.node[:]
    graph.graph.node.extend([*nodes[:at], *new, *nodes[at + 1 :]])


def needed(nodes: Iterable[NodeProto], outputs: Iterable[str], given: frozenset[str] = frozenset()) -> list[NodeProto]:
    """Return the nodes that the outputs need, in their order, given the values in `given`."""
    wanted, kept = set(outputs) - given, []
    for node in reversed(list(nodes)):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input) - given
    return kept[::-1]


def keep_needed(graph: onnx.ModelProto) -> None:
    """Remove nodes and initialisers that no output needs."""
    nodes = needed(graph.graph.node, [value.name for value in graph.graph.output])
    used = {name for node in nodes for name in node.input}
    tensors = [tensor for tensor in graph.graph.initializer if tensor.name in used]
    del graph.graph.node[:], graph.graph.initializer[:]
    graph.graph.node.extend(nodes)
    graph.graph.initializer.extend(tensors)
