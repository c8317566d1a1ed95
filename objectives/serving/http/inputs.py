"""Comparison of a request's arrays with the inputs of a bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NoReturn

import numpy as np

from objectives.arrays import Array, Arrays
from objectives.bags import Bags, padded
from objectives.records import InputSpec
from objectives.serving.http.datatypes import convert_exactly
from objectives.serving.http.json_data import RequestError, shown
from objectives.serving.http.limits import Limits


def check_inputs(specs: Sequence[InputSpec], given: Arrays, limits: Limits, repeat_user: bool) -> tuple[Arrays, int]:
    """Compare arrays with the inputs of a bundle.

    Args:
        repeat_user: whether an input of the user's side that is given in one row is repeated for every row, as a graph
            needs it that does not take it once

    Returns:
        Arrays of exactly the dtypes that the model takes, bags padded; and the number of rows.

    Raises:
        RequestError: an input is missing, unknown, or not what the bundle takes.
    """
    _check_names(specs, given)
    flat = [spec.bags for spec in specs if spec.bags is not None and _is_flat(given[spec.bags.offsets])]
    arrays: Arrays = {spec.name: _converted(spec, given[spec.name], flat) for spec in specs}
    _check_padded_size(arrays, flat, limits)
    try:
        arrays = padded(arrays, flat)
    except ValueError as error:
        raise RequestError(shown(str(error))) from error
    _check_masks(specs, arrays)
    rows = _rows(specs, arrays, limits)
    if repeat_user:
        size = sum(values.nbytes * (rows // len(values)) for values in arrays.values())
        if size > limits.body_bytes:
            _refuse("inputs", f"have at most {limits.body_bytes} bytes with the user's row in every row", size)
        arrays = {n: v if len(v) == rows else np.repeat(v, rows, axis=0) for n, v in arrays.items()}
    return arrays, rows


def _check_names(specs: Sequence[InputSpec], given: Mapping[str, object]) -> None:
    names = {spec.name for spec in specs}
    if unknown := sorted(given.keys() - names):
        _refuse("inputs", f"be {', '.join(sorted(names))}", f"an unknown {unknown[0]}")
    if missing := sorted(names - given.keys()):
        _refuse("inputs", f"be {', '.join(sorted(names))}", f"no {missing[0]}")


def _is_flat(offsets: Array) -> bool:
    """Return whether bags are given flat: their offsets are integers, where a mask has one dimension more."""
    return offsets.ndim == 1 and offsets.dtype.kind in "iu"


def _converted(spec: InputSpec, values: Array, flat: Sequence[Bags]) -> Array:
    """Check datatype, shape and values of one input."""
    dtype, shape = np.dtype(spec.dtype), spec.shape
    for bags in flat:
        if spec.name == bags.offsets:
            dtype, shape = np.dtype(np.int64), ()
        elif spec.name in bags.values:
            shape = spec.shape[1:]
    if not _fits(values.shape, shape):
        wanted = ["any" if size is None else size for size in shape]
        _refuse(f"input {shown(spec.name)}: shape", f"be rows followed by {wanted}", list(values.shape))
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        _refuse(f"input {shown(spec.name)}", "hold finite numbers", "NaN or infinity")
    try:
        return convert_exactly(values, dtype)
    except ValueError as error:
        raise RequestError(f"input {shown(spec.name)}: {error}") from error


def _fits(given: tuple[int, ...], shape: tuple[int | None, ...]) -> bool:
    """Return whether a shape is rows of another one, whose free sizes may be any but 0."""
    if len(given) != len(shape) + 1:
        return False
    return given[1:] == shape or all(
        size == found or (size is None and found > 0) for size, found in zip(shape, given[1:], strict=True)
    )


def _check_padded_size(arrays: Arrays, flat: Sequence[Bags], limits: Limits) -> None:
    """Check flat bags before memory is taken for them: one long bag makes every row as long."""
    for bags in flat:
        offsets, values = arrays[bags.offsets], [arrays[name] for name in bags.values]
        ends = np.append(offsets, len(values[0]))
        if len(offsets) == 0 or offsets[0] != 0 or (ends[1:] < ends[:-1]).any():
            _refuse(f"input {bags.offsets}", f"ascend from 0 to the {len(values[0])} values", offsets.tolist())
        longest, rows = int(np.diff(ends).max()), len(offsets)
        size = rows * longest * sum(v.nbytes // max(1, len(v)) for v in values)
        if size > limits.body_bytes:
            _refuse(
                f"input {bags.offsets}",
                f"have bags of at most {limits.body_bytes} bytes when all are as long as the longest",
                f"{rows} bags of up to {longest} values",
            )


def _check_masks(specs: Sequence[InputSpec], arrays: Arrays) -> None:
    """Check that padded bags have the shape of their mask."""
    for spec in specs:
        for name in () if spec.bags is None else spec.bags.values:
            mask, values = arrays[spec.name], arrays[name]
            if values.shape[: mask.ndim] != mask.shape:
                _refuse(f"input {name}: shape", f"begin with its mask's {list(mask.shape)}", list(values.shape))


def _rows(specs: Sequence[InputSpec], arrays: Arrays, limits: Limits) -> int:
    """Return the rows of a request, which every input has; one of the user's side may have a single row."""
    rows = max(len(values) for values in arrays.values())
    if not 1 <= rows <= limits.rows:
        _refuse("inputs", f"have from 1 to {limits.rows} rows", rows)
    for spec in specs:
        found = len(arrays[spec.name])
        if found != rows and not (found == 1 and spec.side == "user"):
            also = ", or a single one" if spec.side == "user" else ""
            _refuse(f"input {shown(spec.name)}", f"have the {rows} rows of the others{also}", found)
    return rows


def _refuse(field: str, rule: str, got: object) -> NoReturn:
    raise RequestError(f"{field}: must {rule}, but got {shown(got)}")
