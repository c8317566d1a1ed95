"""Corrections of an exported graph: small addends stay, weights have names, products and recurrent layers are plain."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnxscript.optimizer import fold_constants_ir, optimize_ir

from objectives.arrays import Array, Arrays
from objectives.onnx_graph import array, initializer, operands, turn_into

# Placeholders that the rule does not match; both broadcast like the originals.
_STAND_INS = {"Add": "Sum", "Sub": "Mean"}
_LARGEST = 1e-8
_STANDS_FOR = "stands for"
TURNED = ".turned"
# Order of torch's blocks of rows in ONNX: update before reset; input, output, forget, cell.
GATES: Mapping[str, tuple[int, ...]] = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN": (0,)}
# Suffix of a layer's weight for all directions, gates in ONNX's order: `<parameter of the first>.gates`.
ORDERED = ".gates"
# Operators that move values and keep zeros zero.
_MOVERS = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_PROBE = (5, 3)


def optimize(model: ir.Model) -> None:
    """Run the exporter's own optimization, in place, on a graph that was exported without it.

    Small addends, of a divisor or of a logarithm's argument, are protected from it: its rule that x + 0 is x treats
    every constant below 1e-8 as 0 (onnxscript 0.7.2, as its patterns compare with math.isclose): x / (n + 1e-12)
    becomes x / n, and NaN where x and n are 0.
    """
    fold_constants_ir(model)
    for node in model.graph:
        if node.op_type in _STAND_INS and not node.domain and any(map(_is_small, node.inputs)):
            node.metadata_props[_STANDS_FOR] = node.op_type
            node.op_type = _STAND_INS[node.op_type]
    optimize_ir(model)
    for node in model.graph:
        node.op_type = node.metadata_props.pop(_STANDS_FOR, node.op_type)


def _is_small(value: ir.Value | None) -> bool:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None:
        return False
    values: Array = tensor.numpy()
    return values.dtype.kind == "f" and values.size == 1 and 0 < abs(float(values.item())) <= _LARGEST


def plain_products(model: ir.Model) -> None:
    """Replace products of rows with a transposed matrix by ones that transpose it as they read it (Gemm).

    The exporter folds such a transposition into a constant, unless a large matrix has another reader. Where these are
    products too, the others get that constant. A table that is also looked up stays as it is, once in the file.
    """
    for turned in [node.outputs[0] for node in model.graph if node.op_type == "Transpose"]:
        if (matrix := _turned(turned)) is None:
            continue
        for product in _multiplied_by(turned):
            rows = product.inputs[0]
            if rows is not None and rows.shape is not None and len(rows.shape) == 2:
                turn_into(product, "Gemm", [rows, matrix], None, {"transB": 1})
        if all(node.op_type != "Gather" for node in matrix.consumers()):
            hold_turned(model.graph, matrix)


def hold_turned(graph: ir.Graph, matrix: ir.Value) -> None:
    """Let products read a constant in place of a matrix that is transposed in every request.

    A width needs that; in fp32 an engine makes the constant itself, and the file has the matrix once.
    """
    for node in [node for node in matrix.consumers() if _turned(node.outputs[0]) is matrix]:
        for product in _multiplied_by(node.outputs[0]):
            product.replace_input_with(1, initializer(graph, f"{matrix.name}{TURNED}", array(matrix).T))
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)


def _turned(value: ir.Value) -> ir.Value | None:
    """Return the constant matrix that a Transpose makes a value of, None where it does not."""
    node = value.producer()
    matrix = None if node is None else node.inputs[0]
    if node is None or node.op_type != "Transpose" or node.domain:
        return None
    if matrix is None or not matrix.is_initializer() or len(matrix.shape or ()) != 2:
        return None
    return matrix if tuple(node.attributes.get_ints("perm", (1, 0))) == (1, 0) else None


def _multiplied_by(value: ir.Value) -> list[ir.Node]:
    """Return the products whose second factor is a value."""
    return [node for node, place in value.uses() if node.op_type == "MatMul" and place == 1]


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


def plain_recurrent(model: ir.Model, parameters: Arrays) -> None:
    """Bring every recurrent layer of a graph into the canonical form.

    In this form, weights are constants named after the module's parameters, and shapes are known before anything runs.

    The exporter reorders the gates for ONNX with nodes that run in every request where a weight is large, passes zeros
    as the first state, which equals none, and computes the shape of a layer's output to join its directions.

    Args:
        parameters: values by the names that initialisers have
    """
    for layer in [node for node in model.graph if is_recurrent(node)]:
        _hold_weights(model.graph, layer, parameters)
        _drop_zero_states(layer)
        _join_directions(model.graph, layer)


def is_recurrent(node: ir.Node) -> bool:
    return node.op_type in GATES and not node.domain


def _hold_weights(graph: ir.Graph, layer: ir.Node, parameters: Arrays) -> None:
    """Replace values computed from constants by constants."""
    given = {place: value for place, value in enumerate(layer.inputs[1:4], 1) if value is not None}
    values = _evaluated(graph, list(given.values()), {})
    if values is None:
        return
    stem = _parameter(layer, values[0], parameters)
    for place, value in zip(given, values, strict=True):
        kind = ("weight_ih", "weight_hh", "bias")[place - 1]
        name = str(given[place].name) if stem is None else stem.replace("weight_ih", kind) + ORDERED
        layer.replace_input_with(place, initializer(graph, name, value))


def _parameter(layer: ir.Node, weight: Array, parameters: Arrays) -> str | None:
    """Return the parameter that equals the first direction's input weight, with its gates in torch's order."""
    order = GATES[layer.op_type]
    for name, values in parameters.items():
        if ".weight_ih_l" in name and values.shape == weight.shape[1:]:
            blocks = np.split(values, len(order))
            if np.array_equal(np.concatenate([blocks[block] for block in order]), weight[0]):
                return name
    return None


def _drop_zero_states(layer: ir.Node) -> None:
    for state in layer.inputs[5:7]:
        while state is not None and (node := state.producer()) is not None and node.op_type in _MOVERS:
            state = node.inputs[0]
        if state is not None and (not state.is_initializer() or array(state).any()):
            return
    layer.resize_inputs(5)


def _join_directions(graph: ir.Graph, layer: ir.Node) -> None:
    """Replace (steps, directions, rows, hidden) by (steps, rows, directions * hidden), with constant sizes."""
    hidden = layer.attributes.get_int("hidden_size", 0)
    directions = 2 if layer.attributes.get_string("direction", "forward") == "bidirectional" else 1
    for turned in layer.outputs[0].consumers():
        if turned.op_type != "Transpose" or turned.attributes.get_ints("perm", ()) != (0, 2, 1, 3):
            continue
        for joined in [node for node in turned.outputs[0].consumers() if node.op_type == "Reshape"]:
            probe = np.zeros((*_PROBE, directions, hidden), np.float32)
            shape = _evaluated(graph, operands(joined)[1:], {turned.outputs[0]: probe})
            if shape is None or shape[0].tolist() != [*_PROBE, directions * hidden]:
                continue
            values, kind, sizes = turned.outputs[0], "Reshape", [0, 0, directions * hidden]
            if directions == 1:
                values, kind, sizes = layer.outputs[0], "Squeeze", [1]
            turn_into(joined, kind, [values, initializer(graph, f"{joined.outputs[0].name}.sizes", np.array(sizes))])


def _evaluated(graph: ir.Graph, values: list[ir.Value], given: Mapping[ir.Value, Array]) -> list[Array] | None:
    """Evaluate nodes on constants and on the given values; None where they read anything else."""
    try:
        part = ir.convenience.extract(graph, list(given), values)
    except ValueError:
        return None
    evaluator = ReferenceEvaluator(ir.to_proto(ir.Model(part, ir_version=10)))
    return [np.asarray(found) for found in evaluator.run(None, {str(v.name): values for v, values in given.items()})]
