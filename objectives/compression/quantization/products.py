"""Quantized matrix products, each rewritten separately: dynamic int8, and weights that are widened in their product."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from objectives.compression.graph_passes.graph_reading import replace
from objectives.compression.quantization.rounding import Floats, block_codes, block_size, int8_codes, packed
from objectives.compression.quantization.weights import (
    ENGINE,
    add_initializers,
    array,
    import_engine,
    is_transposed,
    products,
    to_half,
)
from objectives.int8_weights import Int8WeightBits

# Accuracy level of MatMulNBits at which it quantizes its activations.
_IN_INT8 = 4


def dynamic_int8(graph: onnx.ModelProto, weight: str, bits: Int8WeightBits) -> None:
    """Rewrite x W + b as DynamicQuantizeLinear, MatMulInteger, scale, add; the engine fuses them into one kernel.

    W has a scale for each output, x one for the whole request, from its current values.
    """
    nodes = products(graph, weight)
    if not nodes:
        return
    codes, scale = int8_codes(_matrix(graph, nodes[0]), 0, bits)
    add_initializers(graph, {f"{weight}_quantized": np.ascontiguousarray(codes), f"{weight}_scale": scale[0]})
    for product in nodes:
        replace(graph, product, _dynamic_nodes(product, weight))


def _dynamic_nodes(product: NodeProto, weight: str) -> list[NodeProto]:
    x, out = product.input[0], product.output[0]
    rounded, scale, zero = f"{out}_x", f"{out}_x_scale", f"{out}_x_zero"
    add, sum_of = _bias(product)
    return [
        helper.make_node("DynamicQuantizeLinear", [x], [rounded, scale, zero], f"{out}_quantise"),
        helper.make_node("MatMulInteger", [rounded, f"{weight}_quantized", zero], [f"{out}_int32"], f"{out}_product"),
        helper.make_node("Cast", [f"{out}_int32"], [f"{out}_float"], f"{out}_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [scale, f"{weight}_scale"], [f"{out}_scale"], f"{out}_scales"),
        helper.make_node("Mul", [f"{out}_float", f"{out}_scale"], [sum_of], f"{out}_rescale"),
        *add,
    ]


def block_product(graph: onnx.ModelProto, weight: str, bits: int, rounded: bool = False) -> None:
    """Rewrite x W + b as MatMulNBits, add: only the weight is narrow, in blocks along the inputs that share a scale.

    Products are computed in fp32 from the widened weights (the operator's accuracy level 0).

    Args:
        rounded: compute in int8 instead (level 4): each row of x has a scale for each block, from its own values
    """
    nodes = products(graph, weight)
    if not nodes:
        return
    matrix = _matrix(graph, nodes[0])
    codes, scales = block_codes(np.ascontiguousarray(matrix.T), bits)
    add_initializers(graph, {f"{weight}_quantized": packed(codes, bits), f"{weight}_scale": scales})
    import_engine(graph)
    inputs, outputs = matrix.shape
    for product in nodes:
        add, sum_of = _bias(product)
        narrow = helper.make_node(
            "MatMulNBits",
            [product.input[0], f"{weight}_quantized", f"{weight}_scale"],
            [sum_of],
            f"{product.output[0]}_product",
            domain=ENGINE,
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=block_size(inputs),
            accuracy_level=_IN_INT8 if rounded else 0,
        )
        replace(graph, product, [narrow, *add])


def half_product(graph: onnx.ModelProto, weight: str) -> None:
    """Store the weight in fp16; the engine widens it once, when it loads the graph."""
    nodes = products(graph, weight)
    if not nodes:
        return
    half, wide = f"{weight}_quantized", f"{weight}_wide"
    add_initializers(graph, {half: to_half(weight, array(graph, weight))})
    for product in nodes:
        product.input[1] = wide
    graph.graph.node.insert(0, helper.make_node("Cast", [half], [wide], wide, to=TensorProto.FLOAT))


def _matrix(graph: onnx.ModelProto, product: NodeProto) -> Floats:
    """Return the product's weight as (inputs, outputs)."""
    held = array(graph, product.input[1])
    return held.T if is_transposed(product) else held


def _bias(product: NodeProto) -> tuple[list[NodeProto], str]:
    """Return the node that adds the product's bias, if it has one, and the name of the product's own output."""
    out, bias = product.output[0], list(product.input[2:])
    if not bias:
        return [], out
    alone = f"{out}_unbiased"
    return [helper.make_node("Add", [alone, *bias], [out], f"{out}_bias")], alone
