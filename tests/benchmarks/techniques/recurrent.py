"""Recurrent layers in int8, each measured alone against fp32: the evidence for or against a knob.

LSTM: ONNX Runtime's DynamicQuantizeLSTM, the width int8-lstm. GRU: the engine has no such operator, so
the cell is written as products: those of the inputs at once, those of the state step by step in a Scan, all of them in
dynamic int8.

python tests/benchmarks/techniques/recurrent.py [--steps 20] [--repeats 60]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper, parser
from torch import nn

from objectives.compression.quantization.rounding import int8_codes
from tests.protos import dynamic_lstm, run_onnx, to_onnx

Floats = NDArray[np.float32]


class Alone(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], inputs: int, hidden: int) -> None:
        super().__init__()
        self.layer = kind(inputs, hidden, batch_first=True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layer(values)[0][:, -1]  # type: ignore[no-any-return]


def lstm_in_int8(graph: onnx.ModelProto) -> onnx.ModelProto:
    (layer,) = (node for node in graph.graph.node if node.op_type == "LSTM")
    return dynamic_lstm(graph, layer.input[1], 8)  # type: ignore[no-any-return]


_CELL = """
<ir_version: 10, opset_import: ["": 20]>
cell (float[N, H] h, float[N, G] x_t) => (float[N, H] next, float[N, H] given)
{
    h_codes, h_scale, h_zero = DynamicQuantizeLinear(h)
    h_whole = MatMulInteger(h_codes, r, h_zero)
    h_wide = Cast<to = 1>(h_whole)
    h_step = Mul(h_scale, r_scale)
    h_unbiased = Mul(h_wide, h_step)
    again = Add(h_unbiased, r_bias)
    xz, xr, xn = Split<axis = 1, num_outputs = 3>(x_t)
    hz, hr, hn = Split<axis = 1, num_outputs = 3>(again)
    az = Add(xz, hz)
    z = Sigmoid(az)
    ar = Add(xr, hr)
    reset = Sigmoid(ar)
    kept = Mul(reset, hn)
    an = Add(xn, kept)
    n = Tanh(an)
    d = Sub(h, n)
    zd = Mul(z, d)
    next = Add(n, zd)
    given = Identity(next)
}
"""


def gru_as_products(graph: onnx.ModelProto) -> onnx.ModelProto:
    (layer,) = (node for node in graph.graph.node if node.op_type == "GRU")
    held = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    w, r, b = (held[name] for name in layer.input[1:4])
    hidden = r.shape[2]
    body = parser.parse_model(_CELL).graph
    constants: dict[str, Any] = {"r_bias": b[0, 3 * hidden :], "w_bias": b[0, : 3 * hidden]}
    for name, matrix in (("w", w[0]), ("r", r[0])):
        codes, scale = int8_codes(np.ascontiguousarray(matrix.T), axis=0)
        constants |= {name: codes, f"{name}_scale": scale[0]}
    made = parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["": 20]>
        gru (float[rows, steps, {w.shape[2]}] values) => (float[rows, {hidden}] scores)
        {{
            turned = Transpose<perm = [1, 0, 2]>(values)
            codes, scale, zero = DynamicQuantizeLinear(turned)
            whole = MatMulInteger(codes, w, zero)
            wide = Cast<to = 1>(whole)
            step = Mul(scale, w_scale)
            unbiased = Mul(wide, step)
            x = Add(unbiased, w_bias)
            sizes = Shape<start = 0, end = 1>(values)
            shape = Concat<axis = 0>(sizes, hidden)
            begun = Expand(nought, shape)
        }}
        """
    )
    made.graph.node.append(helper.make_node("Scan", ["begun", "x"], ["scores", "states"], num_scan_inputs=1, body=body))
    constants |= {"hidden": np.array([hidden]), "nought": np.zeros(1, np.float32)}
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    return made


def median_us(graphs: dict[str, onnx.ModelProto], values: Floats, repeats: int) -> dict[str, float]:
    """Median microseconds, measured in turns, in one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    sessions = {
        name: onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for name, graph in graphs.items()
    }
    times: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(repeats):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {"values": values})
            times[name].append(1e6 * (time.perf_counter() - start))
    return {name: statistics.median(of[repeats // 10 :]) for name, of in times.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--repeats", type=int, default=60)
    given = options.parse_args()
    print("layer  hidden  rows   fp32 us   int8 us   ratio   error / spread")
    forms: tuple[tuple[type[nn.LSTM] | type[nn.GRU], Callable[[onnx.ModelProto], onnx.ModelProto]], ...] = (
        (nn.LSTM, lstm_in_int8),
        (nn.GRU, gru_as_products),
    )
    for kind, rewritten in forms:
        for hidden in (64, 128, 256):
            torch.manual_seed(0)
            graph = to_onnx(Alone(kind, hidden // 2, hidden), {"values": torch.randn(3, given.steps, hidden // 2)})
            narrow = rewritten(copy.deepcopy(graph))
            for rows in (1, 20, 200):
                values = np.random.default_rng(0).normal(size=(rows, given.steps, hidden // 2)).astype(np.float32)
                whole, rounded = (run_onnx(g, {"values": values}) for g in (graph, narrow))
                error = float(np.abs(whole - rounded).max() / whole.std())
                us = median_us({"fp32": graph, "int8": narrow}, values, given.repeats)
                print(
                    f"{kind.__name__:<6} {hidden:>6} {rows:>5} {us['fp32']:>9.0f} {us['int8']:>9.0f} "
                    f"{us['int8'] / us['fp32']:>7.2f} {error:>10.3f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
