"""Graphs that were traced, reused for models of the same program: those that differ in sizes and values alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from objectives.compression.export import PREFIX, Rows, Signature, check_parity, optimized, trace
from objectives.compression.module_edit import tensors
from objectives.compression.program_key import ProgramKey, program_key
from objectives.onnx_graph import infer


@dataclass(frozen=True, eq=False)
class _Traced:
    """A graph without weights, not optimized, and the shapes that the weights had."""

    graph: ir.Model
    shapes: Mapping[str, torch.Size]

    def alike(self, shapes: Mapping[str, torch.Size]) -> int:
        """Return the number of tensors of the same shape."""
        return sum(self.shapes.get(name) == shape for name, shape in shapes.items())


class TracedGraphs:
    """Exports of one recommender's models, most of which are not traced.

    Tracing takes seconds and gives the same nodes for each width of a layer. A model of a program that was traced takes
    a copy of the nodes, from the one of the most equal shapes, with its own weights; the copy is optimized, and counts
    if its scores agree with the model's. They do not where a node holds a size, as a Reshape may: then the model is
    traced too.
    """

    def __init__(self) -> None:
        self._known: dict[ProgramKey, list[_Traced]] = defaultdict(list)

    def clear(self) -> None:
        self._known.clear()

    def export(
        self, model: nn.Module, rows: Mapping[str, Tensor], signature: Signature, requests: Sequence[Rows] = ()
    ) -> tuple[ir.Model, float]:
        """Return the graph of a model and the largest difference of their scores.

        Arguments and errors are those of `to_onnx` and `check_parity`. The signature and the inputs' names are the same
        in all calls.
        """
        program, shapes = program_key(model.eval()), {name: held.shape for name, held in tensors(model).items()}
        if program is not None and (known := self._known[program]):
            nearest = max(known, key=lambda traced: traced.alike(shapes))
            try:
                graph = optimized(_with_weights(nearest.graph, model), model)
                return graph, check_parity(model, graph, rows, signature.scores, requests)
            except Exception:  # nodes of other sizes fail in any way; a fault of the model itself is raised below
                pass
        graph = trace(model, rows, signature)
        traced = _Traced(_without_weights(graph, model), shapes)
        parity = check_parity(model, optimized(graph, model), rows, signature.scores, requests)
        if program is not None:
            self._known[program].append(traced)
        return graph, parity


def _without_weights(traced: ir.Model, model: nn.Module) -> ir.Model:
    graph = traced.clone()
    for name in _held(graph, model):
        held = graph.graph.initializers[name]
        held.const_value = held.shape = None
    return graph


def _with_weights(bare: ir.Model, model: nn.Module) -> ir.Model:
    graph = bare.clone()
    for name, tensor in _held(graph, model).items():
        values, held = np.require(tensor.detach().cpu().numpy(), requirements="C"), graph.graph.initializers[name]
        held.const_value, held.shape = ir.tensor(values, name=name), ir.Shape(values.shape)
    return infer(graph)


def _held(graph: ir.Model, model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the model that the graph holds, by the names of their initialisers."""
    named = {PREFIX + name: tensor for name, tensor in tensors(model).items()}
    return {name: named[name] for name in graph.graph.initializers if name in named}
