"""Calibration of static int8: the range of a value over some rows, all of it or as much as a rule keeps.

Values are processed batch by batch and not stored: a first pass finds the extremes, and a rule that keeps less counts
in a second one. Each range covers all elements of a value.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from objectives.compression.graph_passes.external_data import open_session
from objectives.compression.graph_passes.graph_reading import keep_needed, once_inputs
from spaces.techniques.quantization import Calibration

Range = tuple[float, float]
Rows = Mapping[str, NDArray[np.generic]]
Floats = NDArray[np.float32]
_BATCH = 256
# Per cent of the values within the range (Wu et al., "Integer quantization for deep learning inference", 2020, section
# 5: 99.99 and more do well).
_PERCENTILE = 99.99
# Bins of the histogram, each a candidate for the range's end, and levels of the quantized one, as published.
_BINS, _LEVELS = 2048, 128


def value_ranges(graph: onnx.ModelProto, values: Sequence[str], rows: Rows, rule: Calibration) -> dict[str, Range]:
    """Return the range (low, high) of each named value of an fp32 graph.

    Args:
        rows: inputs; where the graph takes the user's inputs once, the rows of one user are run together

    Raises:
        ValueError: a value is not finite on some row.
    """
    stream = _stream(graph, list(dict.fromkeys(values)), rows)
    extremes = {name: _Extremes(name) for name in values}
    _see(extremes, stream)
    if rule == "minmax":
        return {name: seen.range() for name, seen in extremes.items()}
    kept = {name: _RULES[rule](seen) for name, seen in extremes.items()}
    _see(kept, stream)
    return {name: seen.range() for name, seen in kept.items()}


class _Seen(Protocol):
    """Statistics of a value, updated batch by batch, and the range that follows from them."""

    def see(self, values: Floats) -> None: ...

    def range(self) -> Range: ...


def _see(seen: Mapping[str, _Seen], stream: Callable[[], Iterator[tuple[str, Floats]]]) -> None:
    for name, values in stream():
        seen[name].see(values)


def _stream(graph: onnx.ModelProto, values: Sequence[str], rows: Rows) -> Callable[[], Iterator[tuple[str, Floats]]]:
    """Return a function that yields all values by name, flat, one batch at a time, each time it is called."""
    given = [name for name in values if name in rows]
    computed = [name for name in values if name not in rows]
    run = _probe(graph, computed) if computed else None

    def stream() -> Iterator[tuple[str, Floats]]:
        for name in given:
            for start in range(0, len(rows[name]), _BATCH):
                yield name, _flat(rows[name][start : start + _BATCH])
        if run is not None:
            for batch in _batches(rows, once_inputs(graph)):
                for name, found in zip(computed, run(batch), strict=True):
                    yield name, _flat(found)

    return stream


def _flat(values: NDArray[np.generic]) -> Floats:
    return values.ravel().astype(np.float32, copy=False)


def _probe(graph: onnx.ModelProto, values: Sequence[str]) -> Callable[[Rows], Sequence[NDArray[np.generic]]]:
    """Return a function that computes these values for a batch."""
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values)
    keep_needed(probe)
    session = open_session(probe)
    return lambda batch: session.run(values, batch)


def _batches(rows: Rows, once: frozenset[str]) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Iterate over rows in their order; the rows of one user together, with inputs taken once from the
    first of them.
    """
    count = len(next(iter(rows.values())))
    order = [np.arange(count)]
    if once:
        keys = [np.ascontiguousarray(rows[name]).reshape(count, -1).view(np.uint8) for name in sorted(once)]
        _, user = np.unique(np.concatenate(keys, axis=1), axis=0, return_inverse=True)
        by_user = np.argsort(user, kind="stable")
        order = np.split(by_user, np.flatnonzero(np.diff(user[by_user])) + 1)
    for chosen in order:
        for start in range(0, len(chosen), _BATCH):
            batch = chosen[start : start + _BATCH]
            yield {name: values[batch[:1] if name in once else batch] for name, values in rows.items()}


@dataclass
class _Extremes:
    """Extremes of a value, and the number of its elements."""

    name: str
    low: float = math.inf
    high: float = -math.inf
    count: int = 0

    def see(self, values: Floats) -> None:
        if not np.isfinite(values).all():
            raise ValueError(f"Calibration rows give finite values, but {self.name!r} got others.")
        if values.size:
            self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        self.count += values.size

    def range(self) -> Range:
        return self.low, self.high


class _Percentile:
    """Percentile range, with half of the excluded values below and half above.

    It is computed from the values themselves, of which the outermost are kept: the library reads it from a histogram,
    whose bins an outlier makes so wide that the high end can come out as zero.
    """

    def __init__(self, extremes: _Extremes) -> None:
        self._place = (1 - _PERCENTILE / 100) / 2 * (extremes.count - 1)
        self._kept = min(int(self._place) + 2, extremes.count)
        self._low, self._high = np.empty(0, np.float32), np.empty(0, np.float32)

    def see(self, values: Floats) -> None:
        self._low, self._high = self._lowest(self._low, values), self._lowest(self._high, -values)

    def _lowest(self, before: Floats, values: Floats) -> Floats:
        full = len(before) == self._kept
        both = np.concatenate([before, values[values < before.max()] if full else values])
        return both if len(both) <= self._kept else np.partition(both, self._kept - 1)[: self._kept]

    def range(self) -> Range:
        """Interpolate between the two nearest values, as numpy does by default."""
        ends = []
        for outermost in (self._low, self._high):
            ordered = np.sort(outermost).astype(np.float64)
            ends.append(float(np.interp(self._place, np.arange(len(ordered)), ordered)))
        return ends[0], -ends[1]


class _Entropy:
    """Range at which the quantized distribution diverges least from the true one (Migacz, "8-bit inference with
    TensorRT", 2017).

    The library computes it, with bins over the known extremes: otherwise the bins grow with each new largest value, and
    the time with their square. With as many levels as bins, its default, it would keep the whole range.
    """

    def __init__(self, extremes: _Extremes) -> None:
        from onnxruntime.quantization.calibrate import HistogramCollector

        self._extremes = extremes
        self._collector = HistogramCollector(
            "entropy", symmetric=False, num_bins=_BINS, num_quantized_bins=_LEVELS, percentile=None, scenario=None
        )
        low, high = np.float32(extremes.low), np.float32(extremes.high)
        most: Any = max(abs(low), abs(high))
        self._tiny = bool(most < np.finfo(np.float32).tiny)  # too small for bins
        if not self._tiny:
            counts, edges = np.histogram(np.empty(0, np.float32), _BINS, range=(-most, most))
            self._collector.histogram_dict[""] = (counts, edges, low, high, most)

    def see(self, values: Floats) -> None:
        if not self._tiny:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints, and a builder's replies use this stream
                self._collector.collect({"": values})

    def range(self) -> Range:
        if self._tiny:
            return self._extremes.range()
        with contextlib.redirect_stdout(io.StringIO()):
            low, high, *_ = self._collector.compute_collection_result()[""]
        return float(low), float(high)


_RULES: Mapping[Calibration, Callable[[_Extremes], _Seen]] = {"entropy": _Entropy, "percentile": _Percentile}
