"""LSTM in int8 by ONNX Runtime's own operator, which quantizes its input and its state anew in each step."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from objectives.compression.graph_passes.graph_reading import replace
from objectives.compression.quantization.rounding import int8_codes
from objectives.compression.quantization.weights import (
    ENGINE,
    WidthError,
    add_initializers,
    array,
    import_engine,
    readers,
)
from objectives.int8_weights import Int8WeightBits


def dynamic_lstm(graph: onnx.ModelProto, weight: str, bits: Int8WeightBits) -> None:
    """Rewrite LSTM as DynamicQuantizeLSTM: both matrices are transposed, with a scale for each row of a gate.

    Args:
        weight: the layer's input weight; its recurrent weight is quantized with it

    Raises:
        WidthError: something other than an LSTM reads it.
    """
    for layer in readers(graph, weight):
        if layer.op_type != "LSTM" or layer.input[1] != weight:
            raise WidthError(f"{weight} must be an LSTM's to be in int8, but {layer.op_type} reads it.")
        steps: list[str] = []
        matrices: list[str] = []
        for name in layer.input[1:3]:
            codes, scale = int8_codes(array(graph, name), 2, bits)
            held = f"{name}_quantized"
            if held not in {tensor.name for tensor in graph.graph.initializer}:
                zero = np.zeros(scale.shape[:2], np.int8)
                turned = np.ascontiguousarray(codes.transpose(0, 2, 1))
                add_initializers(graph, {held: turned, f"{name}_scale": scale[..., 0], f"{name}_zero": zero})
            matrices.append(held)
            steps += [f"{name}_scale", f"{name}_zero"]
        rest = list(layer.input[3:8])
        inputs = [layer.input[0], *matrices, *rest, *[""] * (5 - len(rest)), *steps]
        narrow = helper.make_node("DynamicQuantizeLSTM", inputs, list(layer.output), layer.name, domain=ENGINE)
        known = ("activation_alpha", "activation_beta", "activations", "clip", "direction", "hidden_size")
        narrow.attribute.extend(a for a in layer.attribute if a.name in (*known, "input_forget"))
        import_engine(graph)
        replace(graph, layer, [narrow])
