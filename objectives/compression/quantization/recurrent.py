"""LSTM in int8 by ONNX Runtime's own operator, which quantizes its input and its state anew in each step."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from objectives.compression.quantization.rounding import int8_codes
from objectives.compression.quantization.weights import ENGINE, WidthError
from objectives.int8_weights import Int8WeightBits
from objectives.onnx_graph import array, initializer, turn_into

_KEPT = frozenset(
    ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size", "input_forget")
)


def dynamic_lstm(graph: ir.Graph, weight: ir.Value, bits: Int8WeightBits) -> None:
    """Rewrite LSTM as DynamicQuantizeLSTM: both matrices are transposed, with a scale for each row of a gate.

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
        turn_into(layer, "DynamicQuantizeLSTM", inputs, None, kept, ENGINE)
