"""Names for the constants of an exported graph that hold a parameter in another form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from objectives.onnx_graph import array

TURNED = ".turned"


def name_turned(model: ir.Model, parameters: Mapping[str, NDArray[np.generic]]) -> None:
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
            names = list(_parameters(array(value), parameters))
            free = [name for name in [*names, *(name + TURNED for name in names)] if name not in held]
            value.name = free[0] if free else name


def _parameters(matrix: NDArray[np.generic], parameters: Mapping[str, NDArray[np.generic]]) -> Iterator[str]:
    """Yield the names of the parameters whose values the matrix has, transposed or as they are."""
    for name, values in parameters.items():
        if any(form.shape == matrix.shape and np.array_equal(form, matrix) for form in (values.T, values)):
            yield name
