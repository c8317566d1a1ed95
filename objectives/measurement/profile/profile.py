"""Profile of one request: its time by layer group, by operator and by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.arrays import Arrays
from objectives.int8_weights import Int8WeightBits
from objectives.measurement.profile.engine_trace import profiler_cost_ms, trace_model
from objectives.measurement.profile.layer_groups import OTHER, assign, weight_owners
from objectives.measurement.profile.operator_cost import bytes_moved, flops, stored_bytes
from objectives.records import rows_of
from spaces.model_structure import Group, Kind

if TYPE_CHECKING:
    import onnx_ir as ir

# The engine's own time outside its kernels: feeding, scheduling, returning the scores.
ENGINE = "engine"


@dataclass(frozen=True)
class NodeCost:
    """Cost of one node of the optimised graph; `bytes` are the bytes it must move."""

    name: str
    operator: str
    group: str
    ms: float
    flops: int
    bytes: int


@dataclass(frozen=True)
class GroupCost:
    """Cost of one layer group; `bytes` are moved by a request, `weight_bytes` are in the model file."""

    name: str
    kind: Kind
    ms: float
    time_share: float
    flops: int
    bytes: int
    weight_bytes: int


@dataclass(frozen=True)
class OperatorCost:
    """Cost of all nodes of one operator in one request."""

    operator: str
    calls: int
    ms: float
    time_share: float


@dataclass(frozen=True)
class Profile:
    """Profile of one request of `rows` rows.

    The groups' shares of time sum to 1. The group `other` holds the steps that belong to no single group, `engine` the
    time outside the kernels. `p50_ms` is of runs without the profiler.
    """

    rows: int
    p50_ms: float
    threads: int | None
    groups: tuple[GroupCost, ...]
    operators: tuple[OperatorCost, ...]
    nodes: tuple[NodeCost, ...]


def profile_model(
    model: Path,
    groups: Sequence[Group],
    inputs: Arrays,
    repeats: int = 100,
    threads: int | None = None,
    *,
    cpu_bits: Int8WeightBits,
) -> Profile:
    """Run an ONNX file in ONNX Runtime on the CPU with its profiler on, and then without.

    Args:
        inputs: one request, (rows, ...) by name; an input that is 1 row in the graph is given its first
        repeats: runs of each kind that count; warm-up runs come before
        cpu_bits: bits of int8 weights up to which this CPU's own kernels are exact, as in `open_exact`

    Raises:
        ProfileError: the engine ran other nodes than its optimised graph holds.
        ValueError: repeats below 4, or a group named `other` or `engine`.
    """
    from objectives.onnx_graph import load_graph, name_of

    if repeats < 4:
        raise ValueError(f"A profile needs 4 repeats or more, but got {repeats}.")
    if taken := sorted({OTHER, ENGINE} & {group.name for group in groups}):
        raise ValueError(f"The names {OTHER} and {ENGINE} are the profile's own, but got a group {taken[0]!r}.")
    trace, original = trace_model(model, inputs, repeats, threads, cpu_bits), load_graph(model).graph
    extra = profiler_cost_ms(repeats, threads)
    owners = assign(trace.graph, original, groups)
    nodes = tuple(
        NodeCost(name_of(node), node.op_type, group, max(0.0, ms - extra), flops(node), bytes_moved(node))
        for node, group, ms in zip(trace.graph, owners, trace.times_ms, strict=True)
    )
    return summarize(nodes, groups, _weight_bytes(original, groups), rows_of(inputs), trace.p50_ms, threads)


def summarize(
    nodes: Sequence[NodeCost],
    groups: Sequence[Group],
    weight_bytes: Mapping[str, int],
    rows: int,
    p50_ms: float,
    threads: int | None,
) -> Profile:
    """Sum the costs by group and by operator.

    The part of p50_ms beyond the kernels is the engine's; 0 where the kernels took longer in their own runs.
    """
    engine_ms = max(0.0, p50_ms - sum(node.ms for node in nodes))
    total = sum(node.ms for node in nodes) + engine_ms
    kinds: dict[str, Kind] = {group.name: group.kind for group in groups}
    by_group = []
    for name, kind in (kinds | {OTHER: "other"}).items():
        of = [node for node in nodes if node.group == name]
        ms, moved = sum(cost.ms for cost in of), sum(cost.bytes for cost in of)
        operations = sum(cost.flops for cost in of)
        by_group.append(GroupCost(name, kind, ms, ms / total, operations, moved, weight_bytes.get(name, 0)))
    by_group.append(GroupCost(ENGINE, "other", engine_ms, engine_ms / total, 0, 0, 0))
    times: dict[str, list[float]] = {}
    for node in nodes:
        times.setdefault(node.operator, []).append(node.ms)
    operators = [OperatorCost(operator, len(each), sum(each), sum(each) / total) for operator, each in times.items()]
    slowest_first = tuple(sorted(operators, key=lambda cost: -cost.ms))
    return Profile(rows, p50_ms, threads, tuple(by_group), slowest_first, tuple(nodes))


def median_request(requests: Sequence[Arrays]) -> Arrays:
    """Return the request whose number of rows is the (lower) median; the first of equals."""
    return sorted(requests, key=rows_of)[(len(requests) - 1) // 2]


def _weight_bytes(graph: ir.Graph, groups: Sequence[Group]) -> dict[str, int]:
    """Sum the bytes of the weights by group; weights in no group count as `other`."""
    owners = weight_owners(graph, groups)
    held = Counter[str]()
    for name, value in graph.initializers.items():
        held[owners.get(name, OTHER)] += stored_bytes(value)
    return held
