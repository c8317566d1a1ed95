"""The range of a value over some rows, for static int8: all of it, or as much as a rule keeps."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from objectives.compression.graph import keep_needed, once_inputs
from spaces.precision import Calibration

Range = tuple[float, float]
Rows = Mapping[str, NDArray[np.generic]]
_BATCH = 256
# Of the values, as many per cent lie within the range (Wu et al., "Integer quantization for deep learning inference",
# 2020, section 5: 99.99 and more do well).
_PERCENTILE = 99.99
# Of the histogram, each a candidate for the range's end, and of the rounded one: as published.
_BINS, _LEVELS = 2048, 128


def value_ranges(graph: onnx.ModelProto, values: Sequence[str], rows: Rows, rule: Calibration) -> dict[str, Range]:
    """(low, high) of each named value of an fp32 graph.

    All that the values are over the rows is held at once.

    Args:
        rows: inputs; where the graph takes the user's inputs once, the rows of one user go through it together

    Raises:
        ValueError: a value is not finite on some row.
    """
    seen = {name: rows[name] for name in values if name in rows}
    seen |= _computed(graph, [name for name in dict.fromkeys(values) if name not in rows], rows)
    return {name: _range(name, found.ravel().astype(np.float32, copy=False), rule) for name, found in seen.items()}


def _range(name: str, values: NDArray[np.float32], rule: Calibration) -> Range:
    if not np.isfinite(values).all():
        raise ValueError(f"Calibration rows give finite values, but {name!r} got others.")
    return _RULES[rule](values)


def _computed(graph: onnx.ModelProto, values: Sequence[str], rows: Rows) -> dict[str, NDArray[np.generic]]:
    """What nodes give, flat."""
    import onnxruntime

    if not values:
        return {}
    probe = onnx.ModelProto()
    probe.CopyFrom(graph)
    del probe.graph.output[:]
    probe.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in values)
    keep_needed(probe)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen = [session.run(values, batch) for batch in _batches(rows, once_inputs(graph))]
    return {name: np.concatenate([batch[i].ravel() for batch in seen]) for i, name in enumerate(values)}


def _batches(rows: Rows, once: frozenset[str]) -> Iterator[dict[str, NDArray[np.generic]]]:
    """Rows in their order; those of one user together, and what is taken once given by the first of them."""
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


def _minmax(values: NDArray[np.float32]) -> Range:
    return float(values.min()), float(values.max())


def _percentile(values: NDArray[np.float32]) -> Range:
    """Half of what is left out lies below, half above.

    By the values themselves: the library reads it from a histogram, whose bins an outlier makes so wide that the high
    end can come out as nought.
    """
    outside = (1 - _PERCENTILE / 100) / 2
    low, high = np.quantile(values, (outside, 1 - outside))
    return float(low), float(high)


def _entropy(values: NDArray[np.float32]) -> Range:
    """Where the rounded distribution diverges least from the true one (Migacz, "8-bit inference with TensorRT", 2017).

    By the library, given all values at once: batch by batch its bins grow with each new largest value, and the time
    with their square; and with as many levels as bins, which is its default, it would keep the whole range.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    if np.abs(values).max() < np.finfo(np.float32).tiny:  # too little for bins
        return _minmax(values)
    collector = HistogramCollector(
        "entropy", symmetric=False, num_bins=_BINS, num_quantized_bins=_LEVELS, percentile=None, scenario=None
    )
    with contextlib.redirect_stdout(io.StringIO()):  # it prints, and a builder speaks on this stream
        collector.collect({"": values})
        low, high, *_ = collector.compute_collection_result()[""]
    return float(low), float(high)


_RULES: Mapping[Calibration, Callable[[NDArray[np.float32]], Range]] = {
    "minmax": _minmax,
    "entropy": _entropy,
    "percentile": _percentile,
}
