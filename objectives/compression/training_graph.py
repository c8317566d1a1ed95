"""Graph of a model's method that trains the model's own tensors, for any number of rows."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, fx, nn

from objectives.compression.distillation import hidden_outputs
from objectives.compression.module_edit import Positional
from objectives.errors import one_line
from objectives.model_copy import copy_model


def training_graph(model: nn.Module, method: str, example: Mapping[str, Tensor], hidden: str | None) -> fx.GraphModule:
    """Trace a method in train mode as a graph over the model's own tensors.

    Args:
        model: in train mode
        example: inputs of the method by name, (rows, ...) each, two rows or more
        hidden: dotted name of a submodule whose output follows the method's

    Raises:
        RuntimeError: the graph would train a copy of a tensor. Errors of torch.export are raised as they are.
    """

    def run(of: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = getattr(of, method)
        if hidden is None:
            return (outputs(**inputs),)
        with hidden_outputs(of, hidden) as latest:
            return outputs(**inputs), latest()

    traced, values = Positional(model, tuple(example), run), tuple(example.values())
    rows = ({0: torch.export.Dim.DYNAMIC},) * len(values)
    graph = torch.export.export(traced, values, dynamic_shapes={"values": rows}).module(check_guards=False)
    held = dict(graph.named_parameters()) | dict(graph.named_buffers())
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if held.get(f"model.{name}", tensor) is not tensor:
            raise RuntimeError(f"A traced model trains the model's own tensors, but got a copy of {name}.")
    return graph


def trouble_with_training(model: nn.Module, method: str, batches: Sequence[Mapping[str, Tensor]]) -> str | None:
    """Return why a model has no such graph, or none that takes all of these batches; None where it has one."""
    try:
        _train_on(copy_model(model).train(), method, batches)
    except Exception as error:  # anything that the user's own forward may raise
        return f"its training cannot be one graph for all batches: {one_line(error)}"
    finally:
        gc.collect()  # a graph and the copy that it trains, which may hold gigabytes, refer to each other
    return None


def _train_on(learner: nn.Module, method: str, batches: Sequence[Mapping[str, Tensor]]) -> None:
    graph = training_graph(learner, method, batches[0], None)
    for inputs in batches:
        graph(*inputs.values())
