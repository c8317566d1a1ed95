"""Roofline of this machine: the time that a perfect kernel would need (Williams, Waterman and Patterson, CACM 2009)."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.profile.profile import Profile

if TYPE_CHECKING:
    import onnxruntime

# A product large enough to be bound by arithmetic, small enough to stay in the cache.
_PRODUCT = (1024, 512, 512)
_SECONDS = 0.4
_TRIES = 5
# Below, the call itself would be measured; above, memory gets no slower.
_LEAST_BYTES, _MOST_BYTES = 4_000_000, 128_000_000


@dataclass(frozen=True)
class Roofline:
    """Single-precision peaks of arithmetic and memory traffic on these threads (None: the engine's default)."""

    gflops: float
    gbytes_per_s: float
    threads: int | None

    def __post_init__(self) -> None:
        for peak in (self.gflops, self.gbytes_per_s):
            if not (math.isfinite(peak) and peak > 0):
                raise ValueError(f"Peaks are finite and above 0, but got {self}.")

    def perfect_ms(self, flops: float, bytes_moved: float) -> float:
        """Return the milliseconds of a perfect kernel, whose arithmetic and traffic overlap: the longer of the two."""
        return 1000 * max(flops / (1e9 * self.gflops), bytes_moved / (1e9 * self.gbytes_per_s))


@dataclass(frozen=True)
class Roof:
    """Perfect time of a group in milliseconds, and its share of the time taken (None where none was).

    Above 1 where int8 products beat the single-precision peak, or small values never leave the nearest cache.
    """

    perfect_ms: float
    efficiency: float | None


def measure_roofline(threads: int | None = None, working_set: int = _MOST_BYTES) -> Roofline:
    """Measure the peaks in about a second: the best of several large products and sums in ONNX Runtime itself.

    Args:
        working_set: bytes that the model holds, limited to 4 MB to 128 MB; they decide which cache serves the traffic
    """
    return Roofline(_gflops(threads), _gbytes_per_s(threads, working_set), threads)


def group_roofs(profile: Profile, roofline: Roofline) -> dict[str, Roof]:
    """Return the perfect time of each group: kernels run one after another, so the sum over its nodes."""
    roofs = {}
    for group in profile.groups:
        nodes = [node for node in profile.nodes if node.group == group.name]
        perfect = sum(roofline.perfect_ms(node.flops, node.bytes) for node in nodes)
        roofs[group.name] = Roof(perfect, perfect / group.ms if nodes and group.ms > 0 else None)
    return roofs


def _gflops(threads: int | None) -> float:
    m, k, n = _PRODUCT
    # Ones, since denormal numbers would be slow. A stored right factor is packed beforehand, as a layer's is.
    seconds = _best_seconds("MatMul", {"x": np.ones((m, k), np.float32)}, np.ones((k, n), np.float32), (m, n), threads)
    return 2 * m * k * n / seconds / 1e9


def _gbytes_per_s(threads: int | None, working_set: int) -> float:
    """Measure the bandwidth of z = x + y over thirds of the working set (McCalpin's STREAM, 1995: ADD)."""
    count = min(max(working_set, _LEAST_BYTES), _MOST_BYTES) // 12
    parts = {name: np.ones(count, np.float32) for name in ("x", "y")}
    return 12 * count / _best_seconds("Add", parts, None, (count,), threads) / 1e9


def _best_seconds(
    operator: str,
    inputs: Mapping[str, NDArray[np.float32]],
    stored: NDArray[np.float32] | None,
    shape: tuple[int, ...],
    threads: int | None,
) -> float:
    """Measure the fastest of several runs of one operator, with no copy of inputs or output."""
    import onnxruntime

    session = _session(operator, inputs, stored, threads)
    binding = session.io_binding()
    for name, array in inputs.items():
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
    binding.bind_ortvalue_output("out", onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32)))
    best, tries, end = math.inf, 0, time.perf_counter() + _SECONDS
    while tries < _TRIES or time.perf_counter() < end:
        start = time.perf_counter()
        session.run_with_iobinding(binding)
        best, tries = min(best, time.perf_counter() - start), tries + 1
    return best


def _session(
    operator: str, inputs: Mapping[str, NDArray[np.float32]], stored: NDArray[np.float32] | None, threads: int | None
) -> onnxruntime.InferenceSession:
    import onnx_ir as ir

    from objectives.onnx_graph import open_session

    typed = [ir.val(name, ir.DataType.FLOAT, array.shape) for name, array in inputs.items()]
    weights = [] if stored is None else [ir.val("stored", const_value=ir.tensor(stored, name="stored"))]
    node = ir.node(operator, [*typed, *weights], outputs=[ir.val("out", ir.DataType.FLOAT)])
    graph = ir.Graph(typed, node.outputs, nodes=[node], initializers=weights, opset_imports={"": 17}, name=operator)
    return open_session(ir.Model(graph, ir_version=8), threads)
