"""Graph that takes a model's inputs and computes nothing, by which the time of everything but the model is measured."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from objectives.onnx_graph import finish, initializer, name_of, once_inputs, shape_of


def empty_graph(model: ir.Model) -> ir.Model:
    """Return a graph with the inputs of another one, whose scores are zeros in the same shape."""
    once, scores = once_inputs(model), model.graph.outputs[0]
    inputs = [ir.val(name_of(value), value.dtype, value.shape) for value in model.graph.inputs]
    graph = ir.Graph(inputs, [], nodes=[], opset_imports={"": model.graph.opset_imports[""]}, name="empty")
    of_rows = next(value for value in inputs if value.name not in once and value.shape)
    nodes = [ir.node("Shape", [of_rows], {"start": 0, "end": 1})]
    if columns := list(shape_of(scores))[1:]:
        sizes = initializer(graph, "columns", np.array(columns, np.int64))
        nodes.append(ir.node("Concat", [*nodes[-1].outputs, sizes], {"axis": 0}))
    zeros = ir.val(name_of(scores), scores.dtype, scores.shape)
    nodes.append(ir.node("ConstantOfShape", nodes[-1].outputs, outputs=[zeros]))
    graph.extend(nodes)
    graph.outputs.append(zeros)
    return finish(ir.Model(graph, ir_version=model.ir_version))
