"""Quantized products and LSTMs, each rewritten separately: dynamic int8, or weights that are widened in a product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from objectives.compression.quantization.rounding import Floats, block_codes, block_size, int8_codes, packed
from objectives.compression.quantization.weights import WidthError, is_transposed, products, to_half
from objectives.int8_weights import Int8WeightBits
from objectives.onnx_graph import Attributes, Inputs, add_before, array, initializer, name_of, operands, turn_into

# Accuracy level of MatMulNBits at which it quantizes its activations.
_IN_INT8 = 4
# Attributes that DynamicQuantizeLSTM shares with LSTM.
_KEPT = frozenset(
    ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")
)


def dynamic_int8(graph: ir.Graph, weight: ir.Value, bits: Int8WeightBits) -> None:
    """Rewrite x W + b as DynamicQuantizeLinear, MatMulInteger, scale, add; the engine fuses them into one kernel.

    W has a scale for each output, x one for the whole request, from its current values.
    """
    if not (nodes := products(weight)):
        return
    codes, scales = int8_codes(_matrix(nodes[0]), 0, bits)
    narrow = initializer(graph, f"{weight.name}_quantized", codes)
    scale = initializer(graph, f"{weight.name}_scale", scales[0])
    for product in nodes:
        (x, _, *bias), out = operands(product), product.outputs[0].name
        made = [ir.val(f"{out}_x{part}") for part in ("", "_scale", "_zero")]
        product.prepend(ir.node("DynamicQuantizeLinear", [x], outputs=made, name=f"{out}_quantise"))
        rounded, step, zero = made
        whole = add_before(product, "MatMulInteger", [rounded, narrow, zero], f"{out}_int32", f"{out}_product")
        wide = add_before(product, "Cast", [whole], f"{out}_float", f"{out}_cast", {"to": ir.DataType.FLOAT})
        both = add_before(product, "Mul", [step, scale], f"{out}_scale", f"{out}_scales")
        with_bias(product, bias, "Mul", [wide, both], f"{out}_rescale")


def with_bias(
    product: ir.Node, bias: Inputs, kind: str, inputs: Inputs, name: str, attributes: Attributes = None
) -> None:
    """Make a product a node of this kind, and the addition of the bias if there is one."""
    out = product.outputs[0].name
    if bias:
        alone = add_before(product, kind, inputs, f"{out}_unbiased", name, attributes)
        turn_into(product, "Add", [alone, *bias], f"{out}_bias")
    else:
        turn_into(product, kind, inputs, name, attributes)


def block_product(graph: ir.Graph, weight: ir.Value, bits: int, rounded: bool = False) -> None:
    """Rewrite x W + b as MatMulNBits, add: only the weight is narrow, in blocks along the inputs that share a scale.

    Products are computed in fp32 from the widened weights (the operator's accuracy level 0).

    Args:
        rounded: compute in int8 instead (level 4): each row of x has a scale for each block, from its own values
    """
    if not (nodes := products(weight)):
        return
    matrix = _matrix(nodes[0])
    codes, scales = block_codes(np.ascontiguousarray(matrix.T), bits)
    narrow = initializer(graph, f"{weight.name}_quantized", packed(codes, bits))
    scale = initializer(graph, f"{weight.name}_scale", scales)
    inputs, outputs = matrix.shape
    form = {"K": inputs, "N": outputs, "bits": bits, "block_size": block_size(inputs)}
    form["accuracy_level"] = _IN_INT8 if rounded else 0
    for product in nodes:
        x, _, *bias = operands(product)
        name = f"{product.outputs[0].name}_product"
        with_bias(product, bias, "MatMulNBits", [x, narrow, scale], name, form)


def half_product(graph: ir.Graph, weight: ir.Value) -> None:
    """Store the weight in fp16; the engine widens it once, when it loads the graph."""
    if not (nodes := products(weight)):
        return
    half = initializer(graph, f"{weight.name}_quantized", to_half(name_of(weight), array(weight)))
    name = f"{weight.name}_wide"
    wide = add_before(graph[0], "Cast", [half], name, name, {"to": ir.DataType.FLOAT})
    for product in nodes:
        product.replace_input_with(1, wide)


def dynamic_lstm(graph: ir.Graph, weight: ir.Value, bits: Int8WeightBits) -> None:
    """Rewrite LSTM as DynamicQuantizeLSTM, which quantizes its input and state anew in each step.

    Both matrices are transposed, with a scale for each row of a gate.

    Args:
        weight: the layer's input weight; its recurrent weight is quantized with it

    Raises:
        WidthError: something other than an LSTM reads it.
    """
    for layer, place in weight.uses():
        if layer.op_type != "LSTM" or place != 1:
            raise WidthError(f"{weight.name} must be an LSTM's to be in int8, but {layer.op_type} reads it.")
        steps: list[ir.Value] = []
        matrices: list[ir.Value] = []
        for matrix in layer.inputs[1:3]:
            codes, scale = int8_codes(array(matrix), 2, bits)
            name = f"{matrix and matrix.name}"
            matrices.append(initializer(graph, f"{name}_quantized", codes.transpose(0, 2, 1)))
            steps.append(initializer(graph, f"{name}_scale", scale[..., 0]))
            steps.append(initializer(graph, f"{name}_zero", np.zeros(scale.shape[:2], np.int8)))
        rest = layer.inputs[3:8]
        inputs = [layer.inputs[0], *matrices, *rest, *[None] * (5 - len(rest)), *steps]
        kept = {name: of for name, of in layer.attributes.items() if name in _KEPT}
        turn_into(layer, "DynamicQuantizeLSTM", inputs, None, kept)


def _matrix(product: ir.Node) -> Floats:
    """Return the product's weight as (inputs, outputs)."""
    held: Floats = array(product.inputs[1])
    return held.T if is_transposed(product) else held
