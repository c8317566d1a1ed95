"""Node-by-node trace of one request in ONNX Runtime: the optimised graph, and the time and size of each node."""

from __future__ import annotations

import itertools
import json
import tempfile
import timeit
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from objectives.arrays import Arrays
from objectives.int8_weights import Int8WeightBits, open_exact

if TYPE_CHECKING:
    import onnx_ir as ir
    import onnxruntime

WARM_UP = 10
_KERNEL = "_kernel_time"
_CHAIN = 64


class EventArguments(TypedDict):
    """Arguments of a kernel's event; an output's type and shape are {"float": [2, 3]}."""

    op_name: str
    output_type_shape: list[dict[str, list[int]]]


class Event(TypedDict):
    """One event of ONNX Runtime's profiler, `dur` in microseconds; events other than kernels have other arguments."""

    name: str
    dur: float
    args: EventArguments


class ProfileError(RuntimeError):
    """The engine's events do not match the graph that it wrote."""


@dataclass(frozen=True)
class Trace:
    """The optimised graph and its times for one request.

    graph: with the shape and type of every value in the request
    times_ms: of each node, with the profiler on
    p50_ms: of whole runs, with the profiler off
    """

    graph: ir.Graph
    times_ms: tuple[float, ...]
    p50_ms: float


def trace_model(model: Path, inputs: Arrays, repeats: int, threads: int | None, cpu_bits: Int8WeightBits) -> Trace:
    """Trace a model: warm-up runs, `repeats` runs with the profiler, and as many without.

    Args:
        inputs: (rows, ...) by name; an input whose first dimension is 1 in the graph is given its first row
        cpu_bits: as in `open_exact`

    Raises:
        ProfileError: the engine ran other nodes than its optimised graph holds.
    """
    from objectives.onnx_graph import load_graph

    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        session = _session(model, written, Path(folder) / "events", threads, cpu_bits)
        feeds = {i.name: inputs[i.name][:1] if i.shape[:1] == [1] else inputs[i.name] for i in session.get_inputs()}
        for _ in range(WARM_UP + repeats):
            session.run(None, feeds)
        # The same session continues without its profiler, with nothing else changed.
        events = json.loads(Path(session.end_profiling()).read_text())
        seconds = timeit.repeat(partial(session.run, None, feeds), number=1, repeat=repeats)
        graph = load_graph(written).graph
    runs = [match_events(tuple(graph), run) for run in list(_runs(events))[-repeats:]]
    times = typical([[event["dur"] / 1000 for event in run] for run in runs])
    _set_shapes(graph, feeds, runs[-1])
    return Trace(graph, tuple(times), 1000 * float(np.median(seconds)))


def profiler_cost_ms(repeats: int, threads: int | None) -> float:
    """Measure the milliseconds that the profiler adds to each node, 1 to 3 us, on a chain of tiny nodes.

    This is the sum of the nodes' times with the profiler, less the time of a whole run without it, over their number.
    """
    with tempfile.TemporaryDirectory() as folder:
        chain = Path(folder) / "chain.onnx"
        _write_chain(chain)
        trace = trace_model(chain, {"v0": np.ones((1, 8), np.float32)}, repeats, threads, 8)
    return max(0.0, (sum(trace.times_ms) - trace.p50_ms) / _CHAIN)


def typical(times: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each node's middle half of runs.

    It is as robust to disturbed runs as the median, but finer than the profiler's resolution of whole microseconds.

    Args:
        times: (runs, nodes)
    """
    ordered = np.sort(np.asarray(times, np.float64), axis=0)
    quarter = len(ordered) // 4
    return [float(each) for each in ordered[quarter : len(ordered) - quarter].mean(axis=0)]


def match_events(nodes: Sequence[ir.Node], events: Iterable[Event]) -> list[Event]:
    """Match each node with its event, both in the order of execution.

    Events of nodes inside a loop or a branch match none, since their time is part of the outer node's.

    Raises:
        ProfileError: a node has no event.
    """
    found: list[Event] = []
    for event in events:
        node = nodes[len(found)] if len(found) < len(nodes) else None
        named = node is not None and event["name"].removesuffix(_KERNEL) == node.name
        if node is not None and event["args"]["op_name"] == node.op_type and (named or not node.name):
            found.append(event)
    if len(found) < len(nodes):
        raise ProfileError(
            f"The engine must have run the {len(nodes)} nodes of its graph in order, "
            f"but there is no run of {nodes[len(found)].name or nodes[len(found)].op_type!r}."
        )
    return found


def _session(
    model: Path, written: Path, events: Path, threads: int | None, cpu_bits: Int8WeightBits
) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.enable_profiling = True
    options.profile_file_prefix = str(events)
    options.optimized_model_filepath = str(written)
    # Only names and shapes are read back, so the weights go to a separate file.
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    if threads is not None:
        options.intra_op_num_threads = threads
    return open_exact(model, options, [("CPUExecutionProvider", {})], cpu_bits)


def _runs(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Split events into the kernel events of each run; the event of the whole run ends it."""
    kernels: list[Event] = []
    for event in events:
        if event["name"] == "model_run":
            yield kernels
            kernels = []
        elif event["name"].endswith(_KERNEL):
            kernels.append(event)


def _set_shapes(graph: ir.Graph, feeds: Arrays, run: Sequence[Event]) -> None:
    """Set the shapes and types of a request's inputs, and of the values that a run computed."""
    import onnx_ir as ir

    for value in graph.inputs:
        value.shape = ir.Shape(feeds[value.name or ""].shape)
    for node, event in zip(graph, run, strict=True):
        requested = [value for value in node.outputs if value.name]
        for value, typed in zip(requested, event["args"]["output_type_shape"], strict=False):
            ((kind, shape),) = typed.items()
            value.type, value.shape = ir.TensorType(ir.DataType[kind.upper()]), ir.Shape(shape)


def _write_chain(path: Path) -> None:
    import onnx_ir as ir

    squares = [ir.val(f"v{place}", ir.DataType.FLOAT, (1, 8)) for place in range(_CHAIN + 1)]
    nodes = [
        ir.node("Mul", [value, value], outputs=[square], name=f"square{place}")
        for place, (value, square) in enumerate(itertools.pairwise(squares))
    ]
    graph = ir.Graph(squares[:1], squares[-1:], nodes=nodes, opset_imports={"": 17}, name="chain")
    ir.save(ir.Model(graph, ir_version=8), path)
