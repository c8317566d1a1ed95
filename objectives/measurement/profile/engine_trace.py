"""Node-by-node trace of one request in ONNX Runtime: the optimised graph, and the time and size of each node."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from objectives.arrays import Arrays
from objectives.measurement.profile.model_steps import Graph, Step, Value, read_graph, width_of

if TYPE_CHECKING:
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
    """The optimised graph, the milliseconds of each of its steps with the profiler on, every value by name, and the p50
    of whole runs with the profiler off.
    """

    graph: Graph
    times_ms: tuple[float, ...]
    values: Mapping[str, Value]
    p50_ms: float


def trace_model(model: Path, inputs: Arrays, repeats: int, threads: int | None) -> Trace:
    """Trace a model: warm-up runs, `repeats` runs with the profiler, and as many without.

    Args:
        inputs: (rows, ...) by name; an input whose first dimension is 1 in the graph is given its first row

    Raises:
        ProfileError: the engine ran other nodes than its optimised graph holds.
    """
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "optimised.onnx"
        session = _session(model, written, Path(folder) / "events", threads)
        feeds = {i.name: inputs[i.name][:1] if i.shape[:1] == [1] else inputs[i.name] for i in session.get_inputs()}
        for _ in range(WARM_UP + repeats):
            session.run(None, feeds)
        # The same session continues without its profiler, with nothing else changed.
        events = json.loads(Path(session.end_profiling()).read_text())
        seconds = list(_timed(session, feeds, repeats))
        graph = read_graph(written)
    runs = [match_events(graph.steps, run) for run in list(_runs(events))[-repeats:]]
    times = typical([[event["dur"] / 1000 for event in run] for run in runs])
    given = {name: Value(array.shape, float(array.itemsize)) for name, array in feeds.items()}
    values = {**graph.weights, **given, **_put_out(graph.steps, runs[-1])}
    return Trace(graph, tuple(times), values, 1000 * float(np.median(seconds)))


def profiler_cost_ms(repeats: int, threads: int | None) -> float:
    """Measure the milliseconds that the profiler adds to each node, 1 to 3 us, on a chain of tiny nodes: the sum of the
    nodes' times with it, less the time of a whole run without it.
    """
    with tempfile.TemporaryDirectory() as folder:
        chain = Path(folder) / "chain.onnx"
        _write_chain(chain)
        trace = trace_model(chain, {"v0": np.ones((1, 8), np.float32)}, repeats, threads)
    return max(0.0, (sum(trace.times_ms) - trace.p50_ms) / _CHAIN)


def typical(times: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each node's middle half of runs: as robust to disturbed runs as the median, but finer than the
    profiler's resolution of whole microseconds.

    Args:
        times: (runs, nodes)
    """
    ordered = np.sort(np.asarray(times, np.float64), axis=0)
    quarter = len(ordered) // 4
    return [float(each) for each in ordered[quarter : len(ordered) - quarter].mean(axis=0)]


def match_events(steps: Sequence[Step], events: Iterable[Event]) -> list[Event]:
    """Match each step with its event, both in the order of execution. Nodes inside a loop or a branch have no step of
    their own: their time is part of the outer node's.

    Raises:
        ProfileError: a step has no event.
    """
    found: list[Event] = []
    for event in events:
        step = steps[len(found)] if len(found) < len(steps) else None
        named = step is not None and event["name"].removesuffix(_KERNEL) == step.name
        if step is not None and event["args"]["op_name"] == step.operator and (named or not step.name):
            found.append(event)
    if len(found) < len(steps):
        raise ProfileError(
            f"The engine must have run the {len(steps)} nodes of its graph in order, "
            f"but there is no run of {steps[len(found)].name or steps[len(found)].operator!r}."
        )
    return found


def _session(model: Path, written: Path, events: Path, threads: int | None) -> onnxruntime.InferenceSession:
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
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def _timed(session: onnxruntime.InferenceSession, feeds: Arrays, repeats: int) -> Iterator[float]:
    for _ in range(repeats):
        start = time.perf_counter()
        session.run(None, feeds)
        yield time.perf_counter() - start


def _runs(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Split events into the kernel events of each run; the event of the whole run ends it."""
    kernels: list[Event] = []
    for event in events:
        if event["name"] == "model_run":
            yield kernels
            kernels = []
        elif event["name"].endswith(_KERNEL):
            kernels.append(event)


def _put_out(steps: Sequence[Step], run: Sequence[Event]) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for step, event in zip(steps, run, strict=True):
        # Optional outputs that are not requested are in neither.
        for name, typed in zip(step.puts, event["args"]["output_type_shape"], strict=False):
            ((kind, shape),) = typed.items()
            values[name] = Value(tuple(shape), width_of(kind))
    return values


def _write_chain(path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Mul", [f"v{i}", f"v{i}"], [f"v{i + 1}"], f"square{i}") for i in range(_CHAIN)]
    first, last = (helper.make_tensor_value_info(f"v{i}", TensorProto.FLOAT, [1, 8]) for i in (0, _CHAIN))
    graph = helper.make_graph(nodes, "chain", [first], [last])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
