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

from objectives.compression.graph_passes.exported import name_turned, optimize, plain_recurrent
from objectives.compression.graph_passes.tracing import BagsAsReductions, any_length
from objectives.errors import located
from objectives.onnx_graph import once_inputs, open_session
from objectives.parity import LIMIT, ParityError, compare_scores

# Initialisers are named after the module's parameters behind this.
PREFIX = "model."
PARITY_ROWS = (1, 2, 7, 64, 257)
_SHAPES = 8

Rows = Mapping[str, NDArray[np.generic]]
_Run = Callable[[Rows], NDArray[np.float32]]
Scores = Callable[[Any], Tensor]


class ExportError(RuntimeError):
    """The model cannot be one graph for any number of rows."""


class _Positional(nn.Module):
    """torch.export takes dynamic shapes by position where a forward takes any names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...], scores: Scores) -> None:
        super().__init__()
        self.model = model
        self.names = names
        self.scores = scores

    def forward(self, *values: Tensor) -> Tensor:
        return self.scores(self.model(**dict(zip(self.names, values, strict=True))))


def _as_given(outputs: Any) -> Tensor:
    scores: Tensor = outputs
    return scores


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model.

    once: inputs that the model takes once a request, of which an example's first row is given
    open: of inputs whose length differs between requests, those axes
    scores: of what the model gives, (rows,) or (rows, outputs)
    """

    once: frozenset[str] = frozenset()
    open: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    scores: Scores = _as_given


def to_onnx(model: nn.Module, example: Mapping[str, Tensor], signature: Signature = Signature()) -> ir.Model:
    """Trace with an example of two rows or more; inputs keep their names, the output is `scores`.

    Parameters are not copied: the graph follows the model until it is saved.

    Raises:
        ExportError: it cannot be, with the part at fault.
    """
    names, once = tuple(example), signature.once
    given = tuple(values[:1] if name in once else values for name, values in example.items())
    dynamic = tuple(
        dict.fromkeys((*(() if name in once else (0,)), *signature.open.get(name, ())), torch.export.Dim.DYNAMIC)
        for name in names
    )
    # The exporter speaks to the terminal whatever is asked of it.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    silent = contextlib.redirect_stdout(io.StringIO())
    with warnings.catch_warnings(), silent, BagsAsReductions(), any_length():
        warnings.simplefilter("ignore")
        try:
            whole = _Positional(model.eval(), names, signature.scores)
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
            optimize(program)
        except torch.onnx.OnnxExporterError as error:
            why = located(error.__cause__ or error)
            raise ExportError(f"The model must be exportable to ONNX for any number of rows, but got {why}") from error
    graph = program.model
    parameters = {PREFIX + name: value.detach().cpu().numpy() for name, value in model.state_dict().items()}
    name_turned(graph, parameters)
    plain_recurrent(graph, parameters)
    RemoveUnusedNodesPass()(graph)
    ClearMetadataAndDocStringPass()(graph)
    graph.metadata_props.clear()
    return graph


def _captured(whole: nn.Module, given: tuple[Tensor, ...], dynamic: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Export by torch.export as ONNX's exporter does, except for recurrent layers.

    It would take them for loops first, and so its second export in a process fails where lengths differ.

    Raises:
        OnnxExporterError: it cannot be traced.
    """
    try:
        with torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            return torch.export.export(whole, given, dynamic_shapes={"values": dynamic}, strict=False)
    except Exception as error:  # whatever the user's own forward raises
        raise torch.onnx.OnnxExporterError("The model cannot be traced.") from error


def run_onnx(graph: ir.Model, inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
    """Scores of (rows,) or (rows, outputs) by ONNX Runtime's CPU provider, for checks while building.

    Args:
        inputs: all of the same number of rows; of one that the graph takes once a request, the first row is given
    """
    return runner(graph)(inputs)


def runner(graph: ir.Model) -> _Run:
    """Return `run_onnx` for several runs of one graph."""
    session, once = open_session(graph), once_inputs(graph)

    def run(inputs: Mapping[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        feeds = {name: values[:1] if name in once else values for name, values in inputs.items()}
        scores: NDArray[np.float32] = session.run(None, feeds)[0]
        return scores

    return run


def check_parity(model: nn.Module, graph: ir.Model, rows: Mapping[str, Tensor], scores: Scores = _as_given) -> float:
    """Return the largest difference of scores between model and graph, over several numbers of rows.

    Args:
        rows: inputs of max(PARITY_ROWS) rows or more; of one that the graph takes once a request, the last row's
            value stands in all

    Raises:
        ParityError: it exceeds the limit, a score is not finite, or the graph answers another number of rows.
    """
    arrays = {name: values.numpy() for name, values in rows.items()}
    return _compare(runner(graph), _model_runner(model, scores), _sized_requests(arrays, graph))


def check_requests(model: nn.Module, graph: ir.Model, requests: Sequence[Rows], signature: Signature) -> float:
    """Return the largest difference of scores between model and graph over whole requests, whose lengths may differ.

    Raises:
        ParityError: it exceeds the limit, a score is not finite, or the graph takes no such request.
    """
    run = runner(graph)

    def run_or_explain(request: Rows) -> NDArray[np.float32]:
        try:
            return run(request)
        except Exception as error:  # ONNX Runtime's errors have no base of their own
            shapes = {name: values.shape for name, values in request.items()}
            line = str(error).strip().splitlines()[0]
            raise ParityError(f"The graph must take requests of every length, but not of {shapes}: {line}") from error

    return _compare(run_or_explain, _model_runner(model, signature.scores), requests)


def largest_difference(graph: ir.Model, source: ir.Model, rows: Rows, limit: float | None = None) -> float:
    """Return the largest difference of scores between two graphs of one model, over several numbers of rows.

    Args:
        rows: inputs of max(PARITY_ROWS) rows or more; of one that `graph` takes once a request, the last row's value
            stands in all

    Raises:
        ParityError: it exceeds the limit, or a score is not finite.
    """
    requests, sides = _sized_requests(rows, graph), ("rewritten graph", "source graph")
    return compare_scores(_scores(graph, requests), _scores(source, requests), limit, sides)


def _scores(graph: ir.Model, requests: Sequence[Rows]) -> list[NDArray[np.float32]]:
    """Run the requests in a session that ends with them, since it may hold the weights of a large graph."""
    return list(map(runner(graph), requests))


def of_each_shape(requests: Sequence[Rows]) -> list[Rows]:
    """Return a few requests, no two of the same lengths."""
    by_shape = {tuple(v.shape[1:] for v in request.values()): request for request in requests}
    return list(by_shape.values())[:_SHAPES]


def _compare(computed: _Run, expected: _Run, requests: Sequence[Rows]) -> float:
    """Run the same requests on both sides and compare the scores, as `compare_scores` does."""
    return compare_scores(list(map(computed, requests)), list(map(expected, requests)), LIMIT, ("graph", "model"))


def _model_runner(model: nn.Module, scores: Scores) -> _Run:
    def run(request: Rows) -> NDArray[np.float32]:
        with torch.inference_mode():
            found: NDArray[np.float32] = scores(
                model.eval()(**{name: torch.from_numpy(values) for name, values in request.items()})
            ).numpy()
        return found

    return run


def _sized_requests(rows: Rows, graph: ir.Model) -> list[Rows]:
    """Requests of several numbers of rows; an input that the graph takes once a request has one value throughout."""
    once = once_inputs(graph)
    return [
        {n: values[[count - 1] * count if n in once else slice(count)] for n, values in rows.items()}
        for count in PARITY_ROWS
    ]
