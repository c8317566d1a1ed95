"""Recurrent layers of an exported graph in one canonical form.

The exporter reorders the gates for ONNX with nodes that run in every request where a weight is large, passes zeros as
the first state, which equals none, and computes the shape of a layer's output to join its directions. In the canonical
form weights are constants named after the module's parameters, and shapes are known before anything runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from objectives.compression.graph_passes.graph_reading import attribute, initializers, keep_needed, needed, replace

# Order of torch's blocks of rows in ONNX: update before reset; input, output, forget, cell.
GATES: Mapping[str, tuple[int, ...]] = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2), "RNN": (0,)}
# Suffix of a layer's weight for all directions, gates in ONNX's order: `<parameter of the first>.gates`.
ORDERED = ".gates"
_WEIGHTS = slice(1, 4)
_STATES = slice(5, 7)
# Operators that move values and keep zeros zero.
_MOVERS = ("Expand", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")
_PROBE = (5, 3)


def plain_recurrent(graph: onnx.ModelProto, parameters: Mapping[str, NDArray[np.generic]]) -> None:
    """Bring every recurrent layer of a graph into the canonical form.

    Args:
        parameters: values by the names that initialisers have
    """
    layers = [list(node.output) for node in graph.graph.node if is_recurrent(node)]
    for outputs in layers:
        layer = next(node for node in graph.graph.node if list(node.output) == outputs)
        _hold_weights(graph, layer, parameters)
        _drop_zero_states(graph, layer)
        _join_directions(graph, layer)
    if layers:
        keep_needed(graph)


def is_recurrent(node: NodeProto) -> bool:
    return node.op_type in GATES and not node.domain


def _hold_weights(graph: onnx.ModelProto, layer: NodeProto, parameters: Mapping[str, NDArray[np.generic]]) -> None:
    """Replace values computed from constants by constants."""
    given = [name for name in layer.input[_WEIGHTS] if name]
    values = _evaluated(graph, given, {})
    if values is None:
        return
    stem = _parameter(layer, values[0], parameters)
    for i, (name, value) in enumerate(zip(layer.input[_WEIGHTS], _filled(layer.input[_WEIGHTS], values), strict=False)):
        if value is None:
            continue
        held = name if stem is None else stem.replace("weight_ih", ("weight_ih", "weight_hh", "bias")[i]) + ORDERED
        if held not in initializers(graph):
            graph.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value), held))
        layer.input[1 + i] = held


def _filled(names: Iterable[str], values: Sequence[NDArray[np.generic]]) -> list[NDArray[np.generic] | None]:
    left = iter(values)
    return [next(left) if name else None for name in names]


def _parameter(
    layer: NodeProto, weight: NDArray[np.generic], parameters: Mapping[str, NDArray[np.generic]]
) -> str | None:
    """Return the parameter that equals the first direction's input weight, with its gates in torch's order."""
    order = GATES[layer.op_type]
    for name, values in parameters.items():
        if ".weight_ih_l" in name and values.shape == weight.shape[1:]:
            blocks = np.split(values, len(order))
            if np.array_equal(np.concatenate([blocks[block] for block in order]), weight[0]):
                return name
    return None


def _drop_zero_states(graph: onnx.ModelProto, layer: NodeProto) -> None:
    made_by = {name: node for node in graph.graph.node for name in node.output}
    held = initializers(graph)
    states = list(layer.input[_STATES])
    for state in filter(None, states):
        source = state
        while source in made_by and made_by[source].op_type in _MOVERS:
            source = made_by[source].input[0]
        if source not in held or numpy_helper.to_array(held[source]).any():
            return
    del layer.input[5:]
    while layer.input and not layer.input[-1]:
        layer.input.pop()


def _join_directions(graph: onnx.ModelProto, layer: NodeProto) -> None:
    """Replace (steps, directions, rows, hidden) by (steps, rows, directions * hidden), with constant sizes."""
    hidden = int(attribute(layer, "hidden_size", 0))
    directions = 2 if attribute(layer, "direction", b"forward") == b"bidirectional" else 1
    nodes = list(graph.graph.node)
    for turned in [n for n in nodes if n.op_type == "Transpose" and n.input[0] == layer.output[0]]:
        if list(attribute(turned, "perm", ())) != [0, 2, 1, 3]:
            continue
        for joined in [n for n in nodes if n.op_type == "Reshape" and n.input[0] == turned.output[0]]:
            probe = np.zeros((*_PROBE, directions, hidden), np.float32)
            shape = _evaluated(graph, [joined.input[1]], {turned.output[0]: probe})
            if shape is None or shape[0].tolist() != [*_PROBE, directions * hidden]:
                continue
            name = f"{joined.output[0]}.sizes"
            if directions == 1:
                graph.graph.initializer.append(numpy_helper.from_array(np.array([1]), name))
                plain = helper.make_node("Squeeze", [layer.output[0], name], joined.output, joined.name)
            else:
                sizes = np.array([0, 0, directions * hidden])
                graph.graph.initializer.append(numpy_helper.from_array(sizes, name))
                plain = helper.make_node("Reshape", [turned.output[0], name], joined.output, joined.name)
            replace(graph, joined, [plain])


def _evaluated(
    graph: onnx.ModelProto, values: Sequence[str], given: Mapping[str, NDArray[np.generic]]
) -> list[NDArray[np.generic]] | None:
    """Evaluate nodes on constants and on the given values; None where they read anything else."""
    held = initializers(graph)
    nodes = needed(graph.graph.node, values, frozenset(given))
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input if name} | set(values)
    if not read <= made | set(held) | set(given):
        return None
    found = {name: numpy_helper.to_array(held[name]) for name in read & set(held)} | dict(given)
    for node in nodes:
        evaluator = ReferenceEvaluator(node, opsets={o.domain: o.version for o in graph.opset_import})
        outputs = evaluator.run(None, {name: found[name] for name in node.input if name})
        found |= dict(zip(node.output, outputs, strict=True))
    return [np.asarray(found[name]) for name in values]
