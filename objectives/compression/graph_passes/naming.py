"""Names for the constants of an exported graph that hold a parameter in another form."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from objectives.compression.graph_passes.external_data import tensor_values

TURNED = ".turned"


def name_turned(graph: onnx.ModelProto, parameters: Mapping[str, NDArray[np.generic]]) -> None:
    """Name the exporter's transposed and numbered matrices after their parameters, as far as the names are free.

    A linear layer over more than two axes becomes a MatMul with the transposed weight, which the exporter folds into a
    constant `val_N`. It is recognised by its values; where the graph holds the parameter itself too, the transposed one
    is named `<parameter>.turned`.

    Args:
        parameters: values by the names that initialisers have
    """
    taken = {tensor.name for tensor in graph.graph.initializer}
    renamed: dict[str, str] = {}
    for tensor in graph.graph.initializer:
        if tensor.name in parameters or tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2:
            continue
        name = _parameter(tensor_values(tensor), parameters, taken)
        if name is not None:
            taken.add(name)
            renamed[tensor.name] = name
            tensor.name = name
    for node in graph.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    for value in graph.graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _parameter(
    matrix: NDArray[np.generic], parameters: Mapping[str, NDArray[np.generic]], taken: set[str]
) -> str | None:
    """Return the first free name of the parameters whose values the matrix has, transposed or as they are."""
    names = [name for name, values in parameters.items() if _holds(matrix, values)]
    return next((name for name in [*names, *(name + TURNED for name in names)] if name not in taken), None)


def _holds(matrix: NDArray[np.generic], values: NDArray[np.generic]) -> bool:
    return any(form.shape == matrix.shape and np.array_equal(form, matrix) for form in (values.T, values))
