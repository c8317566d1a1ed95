"""A torch model as one ONNX graph for any number of rows, and its parity with the model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import Tensor, nn

from objectives.compression.graph_passes.exported import name_turned, optimize, plain_products, plain_recurrent
from objectives.compression.graph_passes.tracing import BagsAsReductions, any_length
from objectives.compression.module_edit import Positional
from objectives.compression.training_data import as_they_are
from objectives.errors import located, one_line
from objectives.onnx_graph import once_inputs, open_session
from objectives.parity import ParityError, compare_scores

# Initialisers are named after the module's parameters behind this.
PREFIX = "model."
PARITY_ROWS = (1, 2, 7, 64, 257)
_SHAPES = 8

Rows = Mapping[str, NDArray[np.generic]]
Scores = Callable[[Any], Tensor]


class ExportError(RuntimeError):
    """The model cannot be one graph for any number of rows."""


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model.

    once: inputs that the model takes once a request, of which an example's first row is given
    open: of inputs whose length differs between requests, those axes
    scores: of what the model gives, (rows,) or (rows, outputs)
    """

    once: frozenset[str] = frozenset()
    open: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scores: Scores = as_they_are


def to_onnx(model: nn.Module, example: Mapping[str, Tensor], signature: Signature = Signature()) -> ir.Model:
    """Trace with an example of two rows or more; inputs keep their names, the output is `scores`.

    Parameters are not copied: the graph follows the model until it is saved.

    Raises:
        ExportError: it cannot be, with the part at fault.
    """
    return optimized(trace(model, example, signature), model)


def trace(model: nn.Module, example: Mapping[str, Tensor], signature: Signature = Signature()) -> ir.Model:
    """Trace as `to_onnx` does, without any optimization; initialisers are the model's own tensors, behind PREFIX."""
    names, once = tuple(example), signature.once
    given = tuple(values[:1] if name in once else values for name, values in example.items())
    dynamic = tuple(
        dict.fromkeys((*(() if name in once else (0,)), *signature.open.get(name, ())), torch.export.Dim.DYNAMIC)
        for name in names
    )
    # The exporter speaks to the terminal whatever is asked of it.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    silent = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(action="ignore"), silent, BagsAsReductions(), any_length():
        try:
            whole = Positional(model.eval(), names, lambda of, inputs: signature.scores(of(**inputs)))
            recurrent = any(isinstance(module, (nn.GRU, nn.LSTM)) for module in model.modules())
            program = torch.onnx.export(
                _captured(whole, given, dynamic) if recurrent else whole,
                given,
                dynamo=True,
                input_names=list(names),
                output_names=["scores"],
                dynamic_shapes={"values": dynamic},
                external_data=False,
                verbose=False,
                optimize=False,
            )
            assert program is not None
            return program.model
        except torch.onnx.OnnxExporterError as error:
            why = located(error.__cause__ or error)
            raise ExportError(f"The model must be exportable to ONNX for any number of rows, but got {why}") from error


def optimized(graph: ir.Model, model: nn.Module) -> ir.Model:
    """Optimize a traced graph of the model, in place, and name its weights after the model's parameters."""
    with warnings.catch_warnings(action="ignore"):
        optimize(graph)
    parameters = {PREFIX + name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    plain_products(graph)
    name_turned(graph, parameters)
    plain_recurrent(graph, parameters)
    RemoveUnusedNodesPass()(graph)
    ClearMetadataAndDocStringPass()(graph)
    graph.metadata_props.clear()
    return graph


def _captured(whole: nn.Module, given: tuple[Tensor, ...], dynamic: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Export as ONNX's exporter would, but for recurrent layers: its loops fail at other lengths the second time."""
    try:
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            return torch.export.export(whole, given, dynamic_shapes={"values": dynamic}, strict=False)
    except Exception as error:  # whatever the user's own forward raises
        raise torch.onnx.OnnxExporterError("The model cannot be traced.") from error


def runner(graph: ir.Model) -> Callable[[Rows], NDArray[np.float32]]:
    """Return a function from inputs to scores by ONNX Runtime's CPU provider, for checks while building.

    The scores are (rows,) or (rows, outputs). All inputs have the same number of rows; of one that the graph takes
    once a request, the first row is given.
    """
    session, once = open_session(graph), once_inputs(graph)

    def run(inputs: Rows) -> NDArray[np.float32]:
        feeds = {name: values[:1] if name in once else values for name, values in inputs.items()}
        scores: NDArray[np.float32] = session.run(None, feeds)[0]
        return scores

    return run


def check_parity(
    model: nn.Module,
    graph: ir.Model,
    rows: Mapping[str, Tensor],
    scores: Scores = as_they_are,
    requests: Sequence[Rows] = (),
) -> float:
    """Return the largest difference of scores between model and graph.

    The scores are compared over several numbers of rows, and over whole requests.

    Args:
        rows: inputs of max(PARITY_ROWS) rows or more; of one that the graph takes once a request, the last row's
            value stands in all
        requests: whole requests, whose lengths may differ

    Raises:
        ParityError: it exceeds the limit, a score is not finite, or the graph takes no such request or answers another
            number of rows.
    """
    sized = _sized_requests({name: values.numpy() for name, values in rows.items()}, graph)
    sets = (sized, requests) if requests else (sized,)
    return max(compare_scores(_scores(graph, of), _model_scores(model, of, scores)) for of in sets)


def largest_difference(graph: ir.Model, source: ir.Model, rows: Rows, limit: float | None = None) -> float:
    """Return the largest difference of scores between two graphs of one model, over several numbers of rows.

    Args:
        rows: as for `check_parity`

    Raises:
        ParityError: it exceeds the limit, a score is not finite, or a graph cannot run.
    """
    requests, sides = _sized_requests(rows, graph), ("rewritten graph", "source graph")
    return compare_scores(_scores(graph, requests), _scores(source, requests), limit, sides)


def _scores(graph: ir.Model, requests: Sequence[Rows]) -> list[NDArray[np.float32]]:
    """Run the requests in a session that ends with them, since it may hold the weights of a large graph."""
    run, computed = runner(graph), []
    for request in requests:
        try:
            computed.append(run(request))
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            shapes = {name: values.shape for name, values in request.items()}
            raise ParityError(f"A graph must run on inputs of {shapes}, but raised {one_line(error)}") from error
    return computed


def of_each_shape(requests: Sequence[Rows]) -> list[Rows]:
    """Return a few requests, no two of the same lengths."""
    by_shape = {tuple(v.shape[1:] for v in request.values()): request for request in requests}
    return list(by_shape.values())[:_SHAPES]


def _model_scores(model: nn.Module, requests: Sequence[Rows], scores: Scores) -> list[NDArray[np.float32]]:
    given = ({name: torch.from_numpy(values) for name, values in request.items()} for request in requests)
    with torch.inference_mode():
        return [scores(model.eval()(**inputs)).numpy() for inputs in given]


def _sized_requests(rows: Rows, graph: ir.Model) -> list[Rows]:
    """Requests of several numbers of rows; an input that the graph takes once a request has one value throughout."""
    once = once_inputs(graph)
    return [
        {n: values[[count - 1] * count if n in once else slice(count)] for n, values in rows.items()}
        for count in PARITY_ROWS
    ]
