"""Static int8: activations quantized to known ranges, so that products are computed in integers.

QuantizeLinear and DequantizeLinear are put around each product here, not by onnxruntime's quantize_static: where all
ranges were learned no calibration pass is needed, only the products read the quantized values (the library gives them
to every reader), and operands of more than two axes are treated like those of two. This module also keeps in one place
what ONNX Runtime 1.32 needs to compute in int8 and not silently in fp32: zero points of weights and biases, which are
optional in the standard; for operands of two axes a Gemm, with a bias even if it is zero, or it would fuse a MatMul
with an Add, a Gemm with a Transpose or a Sum; for more axes a bias of three; an Add between a product and a Clip, or a
Relu that no narrow product reads; zero as the low end of a Relu's output.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper

from objectives.compression.graph_passes.graph_reading import infer, initializers, replace, shapes
from objectives.compression.quantization.calibration import Range
from objectives.compression.quantization.rounding import Floats, int8_codes, uint8_range
from objectives.compression.quantization.weights import add_initializers, array, is_transposed, products, readers
from objectives.int8_weights import Int8WeightBits

# Largest code of a bias, of 32 bits.
_LARGEST_BIAS = 2**30


@dataclass(frozen=True)
class _Rounded:
    """An activation after its two nodes, and its scale."""

    name: str
    scale: np.float32


def static_products(graph: onnx.ModelProto, weights: Sequence[str]) -> list[NodeProto]:
    """Return the products with these weights, in the order of the graph."""
    found = {node.output[0] for weight in weights for node in products(graph, weight)}
    return [node for node in graph.graph.node if node.output[0] in found]


def static_int8(graph: onnx.ModelProto, ranges: Mapping[str, Range], bits: Int8WeightBits) -> None:
    """Quantize products: weights in int8, symmetric, a scale for each output; activations in uint8 with a zero point,
    one scale for all; a constant bias in int32 in the scale of its products.

    Args:
        ranges: the range of each product's input, by the product's output
        bits: bits of the weights
    """
    known = shapes(infer(graph))
    rectified = {node.output[0] for node in graph.graph.node if node.op_type == "Relu"}
    rounded: dict[tuple[str, Range], _Rounded] = {}
    for product in [node for node in graph.graph.node if node.output[0] in ranges]:
        x, (low, high) = product.input[0], ranges[product.output[0]]
        span = (max(low, 0.0) if x in rectified else low, high)
        made: list[NodeProto] = []
        if (x, span) not in rounded:
            made, rounded[x, span] = _round(graph, x, span, f"{x}_rounded{len(rounded)}")
        flat = product.op_type == "Gemm" or len(known.get(x, ())) == 2
        made += _narrow(graph, product, rounded[x, span], flat, ranges, bits)
        replace(graph, product, made)


def _round(graph: onnx.ModelProto, x: str, span: Range, name: str) -> tuple[list[NodeProto], _Rounded]:
    scale, zero = uint8_range(*span)
    add_initializers(graph, {f"{name}_scale": scale, f"{name}_zero": zero})
    step = [f"{name}_scale", f"{name}_zero"]
    narrow = helper.make_node("QuantizeLinear", [x, *step], [f"{name}_codes"], f"{name}_narrow")
    widen = helper.make_node("DequantizeLinear", [f"{name}_codes", *step], [name], f"{name}_widen")
    return [narrow, widen], _Rounded(name, scale)


def _narrow(
    graph: onnx.ModelProto,
    product: NodeProto,
    x: _Rounded,
    flat: bool,
    static: Collection[str],
    bits: Int8WeightBits,
) -> list[NodeProto]:
    """Return the nodes of the product of a quantized input and weight, with its bias among the operands or added after
    it.
    """
    out, bias, transposed = product.output[0], list(product.input[2:]), is_transposed(product)
    scale = _hold_weight(graph, product, bits)
    made = [_widen(f"{product.input[1]}_quantized", f"{product.input[1]}_scale", f"{out}_weight", 1 - transposed)]
    operands, alone = [x.name, f"{out}_weight"], out
    fused = _is_fused(graph, out, static)
    codes = None if fused else _bias_codes(graph, bias, x.scale * scale, flat)
    if codes is not None:
        _hold(graph, f"{out}_bias", codes, x.scale * scale)
        made.append(_widen(f"{out}_bias_quantized", f"{out}_bias_scale", f"{out}_bias", 0))
        operands.append(f"{out}_bias")
    elif bias or fused:
        alone = f"{out}_unbiased"
    made.append(helper.make_node("Gemm" if flat else "MatMul", operands, [alone], f"{out}_product"))
    if flat:
        made[-1].attribute.append(helper.make_attribute("transB", int(transposed)))
    else:
        _lift_bias(graph, out)
    if alone != out and not bias:
        bias = [f"{out}_nought"]
        add_initializers(graph, {bias[0]: np.zeros(len(scale) if flat else (1, 1, len(scale)), np.float32)})
    return made if alone == out else [*made, helper.make_node("Add", [alone, *bias], [out], f"{out}_add")]


def _lift_bias(graph: onnx.ModelProto, out: str) -> None:
    """Expand a constant that is added to the output to three axes."""
    held = initializers(graph)
    for node in [node for node in readers(graph, out) if node.op_type == "Add"]:
        for i, name in enumerate(node.input):
            if name in held and len(held[name].dims) == 1:
                node.input[i] = f"{name}_lifted"
                if f"{name}_lifted" not in held:
                    add_initializers(graph, {f"{name}_lifted": array(graph, name)[None, None]})


def _hold_weight(graph: onnx.ModelProto, product: NodeProto, bits: Int8WeightBits) -> Floats:
    """Store a product's weight, once for all products that share it, and return its scales, (outputs,)."""
    weight = product.input[1]
    codes, scale = int8_codes(array(graph, weight), 1 if is_transposed(product) else 0, bits)
    if f"{weight}_quantized" not in initializers(graph):
        _hold(graph, weight, codes, scale.ravel())
    return scale.ravel()


def _bias_codes(graph: onnx.ModelProto, bias: Sequence[str], step: Floats, flat: bool) -> NDArray[np.int32] | None:
    """Return the codes of a bias; None where it is computed (as the user's half of a product is to the item's), where
    its scale is too small for them, and where a MatMul has none.
    """
    if not bias:
        return np.zeros(step.shape, np.int32) if flat else None
    held = initializers(graph)
    if bias[0] not in held or len(held[bias[0]].dims) != 1:
        return None
    codes = np.rint(array(graph, bias[0]).astype(np.float64) / step)
    return codes.astype(np.int32) if np.abs(codes).max() <= _LARGEST_BIAS else None


def _is_fused(graph: onnx.ModelProto, out: str, static: Collection[str]) -> bool:
    """Return whether the engine would fuse the output with its reader, in fp32: a Clip, or a Relu that no narrow
    product reads.
    """
    clipped = [node for node in readers(graph, out) if node.op_type in ("Clip", "Relu")]
    return any(
        node.op_type == "Clip" or not any(reader.output[0] in static for reader in readers(graph, node.output[0]))
        for node in clipped
    )


def _hold(graph: onnx.ModelProto, name: str, codes: NDArray[np.generic], scale: Floats) -> None:
    zero = np.zeros(scale.shape, codes.dtype)
    add_initializers(graph, {f"{name}_quantized": codes, f"{name}_scale": scale, f"{name}_zero": zero})


def _widen(codes: str, scale: str, name: str, axis: int) -> NodeProto:
    zero = scale.removesuffix("_scale") + "_zero"
    return helper.make_node("DequantizeLinear", [codes, scale, zero], [name], f"{name}_widen", axis=axis)
