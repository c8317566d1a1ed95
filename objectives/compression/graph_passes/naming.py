"""Names for the constants of an exported graph that hold a parameter in another form."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from objectives.arrays import Arrays
from objectives.onnx_graph import array

TURNED = ".turned"


def name_turned(model: ir.Model, parameters: Arrays) -> None:
    """Name the exporter's transposed and numbered matrices after their parameters, as far as the names are free.

    A linear layer over more than two axes becomes a MatMul with the transposed weight, which the exporter folds into a
    constant `val_N`. It is recognised by its values; where the graph holds the parameter itself too, the transposed one
    is named `<parameter>.turned`.

    Args:
        parameters: values by the names that initialisers have
    """
    held = model.graph.initializers
    for name, value in list(held.items()):
        if name not in parameters and value.dtype == ir.DataType.FLOAT and value.shape and len(value.shape) == 2:
            matrix = array(value)
            names = [n for n, of in parameters.items() if np.array_equal(of.T, matrix) or np.array_equal(of, matrix)]
            free = [name for name in [*names, *(name + TURNED for name in names)] if name not in held]
            value.name = free[0] if free else name
