"""Calibration of static int8: the range of a value over some rows, all of it or as much as a rule keeps.

Values are processed batch by batch and not stored: a first pass finds the extremes, and a rule that keeps less counts
in a second one. Each range covers all elements of a value.

ONNX Runtime's own calibrators are not used as a whole: they read a file with all of its weights, calibrate kinds of
operators instead of named values, ignore NaN, and bin percentiles so coarsely that an outlier makes an end zero. Fed
one batch at a time, the entropy calibrator's bins grow with each new largest value, and its time with their square; of
it the threshold is taken, for a histogram over the known extremes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from objectives.arrays import Array, Arrays, groups_of_equal_rows
from objectives.onnx_graph import once_inputs, open_session
from spaces.techniques.quantization import Calibration

Range = tuple[float, float]
Floats = NDArray[np.float32]
_BATCH = 256
# Per cent of the values within the range (Wu et al., "Integer quantization for deep learning inference", 2020, section
# 5: 99.99 and more do well).
_PERCENTILE = 99.99
# Bins of the histogram, each a candidate for the range's end, and levels of the quantized one, as published; with as
# many levels as bins, the library's default, entropy would keep the whole range.
_BINS, _LEVELS = 2048, 128


def value_ranges(model: ir.Model, values: Sequence[str], rows: Arrays, rule: Calibration) -> dict[str, Range]:
    """Return the range (low, high) of each named value of an fp32 graph.

    Args:
        rows: inputs; where the graph takes the user's inputs once, the rows of one user are run together

    Raises:
        ValueError: a value is not finite on some row.
    """
    stream = _stream(model, list(dict.fromkeys(values)), rows)
    extremes = {name: _Extremes(name) for name in values}
    _see(extremes, stream)
    if rule == "minmax":
        return {name: seen.range() for name, seen in extremes.items()}
    kept = {name: _RULES[rule](seen) for name, seen in extremes.items()}
    _see(kept, stream)
    return {name: seen.range() for name, seen in kept.items()}


def _see(seen: Mapping[str, _Seen], stream: Callable[[], Iterator[tuple[str, Array]]]) -> None:
    for name, values in stream():
        seen[name].see(values.ravel().astype(np.float32, copy=False))


def _stream(model: ir.Model, values: Sequence[str], rows: Arrays) -> Callable[[], Iterator[tuple[str, Array]]]:
    """Return a function that yields all values by name, one batch at a time, each time it is called."""
    given = [name for name in values if name in rows]
    computed = [name for name in values if name not in rows]
    session, once = _probe(model, computed) if computed else None, once_inputs(model)

    def stream() -> Iterator[tuple[str, Array]]:
        for batch in _batches(rows, once):
            yield from ((name, rows[name][batch]) for name in given)
            if session is not None:
                feeds = {name: of[batch[:1] if name in once else batch] for name, of in rows.items()}
                yield from zip(computed, session.run(computed, feeds), strict=True)

    return stream


def _probe(model: ir.Model, values: Sequence[str]) -> Any:
    """Open a session that computes these values."""
    probe = model.clone()
    made = ir.convenience.create_value_mapping(probe.graph)
    probe.graph.outputs[:] = [made[name] for name in values]
    for value in probe.graph.outputs:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    RemoveUnusedNodesPass()(probe)
    return open_session(probe)


def _batches(rows: Arrays, once: frozenset[str]) -> Iterator[NDArray[np.int64]]:
    """Iterate over row numbers in their order; those of one user together, by the inputs taken once."""
    count = len(next(iter(rows.values())))
    order = groups_of_equal_rows([rows[name] for name in sorted(once)]) if once else [np.arange(count)]
    for chosen in order:
        yield from (chosen[start : start + _BATCH] for start in range(0, len(chosen), _BATCH))


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
    """Percentile range of the values themselves, of which the outermost are kept; half of those left out are below."""

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
        low, high = (np.sort(outermost).astype(np.float64) for outermost in (self._low, self._high))
        places = np.arange(len(low))
        return float(np.interp(self._place, places, low)), -float(np.interp(self._place, places, high))


class _Entropy:
    """Range of the least divergence by quantization (Migacz, "8-bit inference with TensorRT", 2017), by the library."""

    def __init__(self, extremes: _Extremes) -> None:
        self._extremes = extremes
        most = float(np.float32(max(abs(extremes.low), abs(extremes.high))))
        self._span = (-most, most)
        self._has_bins = most >= np.finfo(np.float32).tiny
        self._counts = np.zeros(_BINS, np.int64)

    def see(self, values: Floats) -> None:
        if self._has_bins:
            self._counts += np.histogram(values, _BINS, self._span)[0]

    def range(self) -> Range:
        from onnxruntime.quantization.calibrate import HistogramCollector

        if not self._has_bins:
            return self._extremes.range()
        collector = HistogramCollector("entropy", False, _BINS, _LEVELS, percentile=None, scenario=None)
        edges = np.histogram_bin_edges(np.empty(0, np.float32), _BINS, self._span)
        ends = (np.float32(end) for end in self._extremes.range())
        low, high = collector.get_entropy_threshold((self._counts, edges, *ends), _LEVELS)
        return float(low), float(high)


# Statistics of a value, updated batch by batch, and the range that follows from them.
_Seen = _Extremes | _Percentile | _Entropy
_RULES: Mapping[Calibration, Callable[[_Extremes], _Seen]] = {"entropy": _Entropy, "percentile": _Percentile}
