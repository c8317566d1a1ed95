"""The functions of graphs over ONNX's own protobufs, by which tests make graphs and read what would be in the file."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import wraps
from typing import Any

import onnx
import onnx_ir as ir

from objectives import onnx_graph
from objectives.compression import export, quantization
from objectives.compression.graph_passes import exported, user_once
from objectives.compression.graph_passes import score_catalogue as catalogue
from objectives.compression.graph_passes import split_embeddings as splitting
from objectives.compression.quantization import calibration, products


def _over_protos(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return _proto(function(*map(_model, args), **{name: _model(value) for name, value in kwargs.items()}))

    return wrapped


def _model(value: Any) -> Any:
    return ir.from_proto(copy.deepcopy(value)) if isinstance(value, onnx.ModelProto) else value


def _proto(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_proto, value))
    return ir.to_proto(value) if isinstance(value, ir.Model) else value


to_onnx = _over_protos(export.to_onnx)
check_parity = _over_protos(export.check_parity)
largest_difference = _over_protos(export.largest_difference)
once_inputs = _over_protos(onnx_graph.once_inputs)
multiply_adds = _over_protos(onnx_graph.multiply_adds)
infer = _over_protos(onnx_graph.infer)
compute_once = _over_protos(user_once.compute_once)
score_catalogue = _over_protos(catalogue.score_catalogue)
split_embeddings = _over_protos(splitting.split_embeddings)
quantize = _over_protos(quantization.quantize)
read_widths = _over_protos(quantization.read_widths)
read_weight_bits = _over_protos(quantization.read_weight_bits)
value_ranges = _over_protos(calibration.value_ranges)


@_over_protos
def run_onnx(graph: ir.Model, inputs: Any) -> Any:
    return export.runner(graph)(inputs)


@_over_protos
def name_turned(graph: ir.Model, parameters: Any) -> ir.Model:
    exported.name_turned(graph, parameters)
    return graph


@_over_protos
def dynamic_int8(graph: ir.Model, weight: str, bits: Any) -> ir.Model:
    products.dynamic_int8(graph.graph, graph.graph.initializers[weight], bits)
    return onnx_graph.finish(graph)


@_over_protos
def dynamic_lstm(graph: ir.Model, weight: str, bits: Any) -> ir.Model:
    products.dynamic_lstm(graph.graph, graph.graph.initializers[weight], bits)
    return onnx_graph.finish(graph)
