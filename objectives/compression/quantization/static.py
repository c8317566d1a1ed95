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

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from objectives.compression.quantization.calibration import Range
from objectives.compression.quantization.products import with_bias
from objectives.compression.quantization.rounding import Floats, int8_codes, uint8_range
from objectives.compression.quantization.weights import is_transposed
from objectives.int8_weights import Int8WeightBits
from objectives.onnx_graph import add_before, array, infer, initializer, name_of, operands

# Largest code of a bias, of 32 bits.
_LARGEST_BIAS = 2**30


def static_int8(model: ir.Model, ranges: Mapping[ir.Node, Range], bits: Int8WeightBits) -> None:
    """Quantize products, in place, with known ranges of their inputs.

    Weights are in int8, symmetric, with a scale for each output. Activations are in uint8 with a zero point and one
    scale for all. A constant bias is in int32 in the scale of its products.

    Args:
        ranges: the range of each product's input
        bits: bits of the weights
    """
    known = ir.convenience.create_value_mapping(infer(model).graph)
    rounded: dict[tuple[ir.Value, Range], tuple[ir.Value, np.float32]] = {}
    for product in [node for node in model.graph if node in ranges]:
        x, (low, high) = operands(product)[0], ranges[product]
        maker, shape = x.producer(), known[name_of(x)].shape
        span = (max(low, 0.0) if maker is not None and maker.op_type == "Relu" else low, high)
        if (x, span) not in rounded:
            name, (scale, zero) = f"{x.name}_rounded{len(rounded)}", uint8_range(*span)
            step = [initializer(model.graph, f"{name}_scale", scale), initializer(model.graph, f"{name}_zero", zero)]
            codes = add_before(product, "QuantizeLinear", [x, *step], f"{name}_codes", f"{name}_narrow")
            wide = add_before(product, "DequantizeLinear", [codes, *step], name, f"{name}_widen")
            rounded[x, span] = wide, scale
        flat = product.op_type == "Gemm" or (shape is not None and len(shape) == 2)
        _narrow(model.graph, product, *rounded[x, span], flat, ranges, bits)


def _narrow(
    graph: ir.Graph,
    product: ir.Node,
    x: ir.Value,
    step: np.float32,
    flat: bool,
    static: Collection[ir.Node],
    bits: Int8WeightBits,
) -> None:
    """Make a product that of a quantized input and weight, with its bias among the operands or added after it."""
    (_, weight, *bias), out, transposed = operands(product), product.outputs[0], is_transposed(product)
    weight_codes, scales = int8_codes(array(weight), 1 if transposed else 0, bits)
    scale, name = scales.ravel(), f"{out.name}_bias"
    inputs = [x, _widen(graph, product, name_of(weight), weight_codes, scale, f"{out.name}_weight", 1 - transposed)]
    fused = _is_fused(out, static)
    codes = None if fused else _bias_codes(bias, step * scale, flat)
    if codes is not None:
        inputs, bias = [*inputs, _widen(graph, product, name, codes, step * scale, name, 0)], []
    elif fused and not bias:
        zeros = np.zeros(len(scale) if flat else (1, 1, len(scale)), np.float32)
        bias = [initializer(graph, f"{out.name}_nought", zeros)]
    if not flat:
        _lift_bias(graph, out)
    form = {"transB": int(transposed)} if flat else {}
    with_bias(product, bias, "Gemm" if flat else "MatMul", inputs, f"{out.name}_product", form)


def _lift_bias(graph: ir.Graph, out: ir.Value) -> None:
    """Expand a constant that is added to the output to three axes."""
    for node in [node for node in out.consumers() if node.op_type == "Add"]:
        for place, value in enumerate(operands(node)):
            if _is_vector(value):
                node.replace_input_with(place, initializer(graph, f"{value.name}_lifted", array(value)[None, None]))


def _is_vector(value: ir.Value) -> bool:
    return value.is_initializer() and value.shape is not None and len(value.shape) == 1


def _bias_codes(bias: Sequence[ir.Value], step: Floats, flat: bool) -> NDArray[np.int32] | None:
    """Return a bias's codes; None if it is computed (a user's half) or its scale is too small, or a MatMul has none."""
    if not bias:
        return np.zeros(step.shape, np.int32) if flat else None
    if not _is_vector(bias[0]):
        return None
    codes = np.rint(array(bias[0]).astype(np.float64) / step)
    return codes.astype(np.int32) if np.abs(codes).max() <= _LARGEST_BIAS else None


def _is_fused(out: ir.Value, static: Collection[ir.Node]) -> bool:
    """Return whether the engine would fuse the output, in fp32, with a Clip, or a Relu that no narrow product reads."""
    return any(
        node.op_type == "Clip"
        or (node.op_type == "Relu" and not any(reader in static for reader in node.outputs[0].consumers()))
        for node in out.consumers()
    )


def _widen(
    graph: ir.Graph, product: ir.Node, stem: str, codes: NDArray[np.generic], scale: Floats, name: str, axis: int
) -> ir.Value:
    """Store codes with their scales and zero points, and widen them before a product."""
    parts = {"quantized": codes, "scale": scale, "zero": np.zeros(scale.shape, codes.dtype)}
    held = [initializer(graph, f"{stem}_{part}", values) for part, values in parts.items()]
    return add_before(product, "DequantizeLinear", held, name, f"{name}_widen", {"axis": axis})
