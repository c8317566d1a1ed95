"""Protection of small addends, of a divisor or of a logarithm's argument, from the exporter's optimizer.

Its rule that x + 0 is x treats every constant below 1e-8 as 0 (onnxscript 0.7.2, as its patterns compare with
math.isclose): x / (n + 1e-12) becomes x / n, and NaN where x and n are 0.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import fold_constants_ir

# Placeholders that the rule does not match; both broadcast like the originals.
_STAND_INS = {"Add": "Sum", "Sub": "Mean"}
_LARGEST = 1e-8
_STANDS_FOR = "stands for"


def optimize(program: torch.onnx.ONNXProgram) -> None:
    """Run the exporter's own optimization, in place, on a program that was exported without it."""
    fold_constants_ir(program.model)
    for node in program.model.graph:
        if node.op_type in _STAND_INS and not node.domain and any(map(_is_small, node.inputs)):
            node.metadata_props[_STANDS_FOR] = node.op_type
            node.op_type = _STAND_INS[node.op_type]
    program.optimize()
    for node in program.model.graph:
        node.op_type = node.metadata_props.pop(_STANDS_FOR, node.op_type)


def _is_small(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        return False
    values: NDArray[np.generic] = tensor.numpy()
    return values.dtype.kind == "f" and values.size == 1 and 0 < abs(float(values.item())) <= _LARGEST
