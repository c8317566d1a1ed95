"""Quantization of arrays: arrays in, codes and scales out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objectives.int8_weights import Int8WeightBits, largest_code

Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

# Shares of the peak that a block's scale may cover: clipping the largest values often reduces the total error.
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# Rows that are quantized at a time, so that a large table is not held several times.
_ROWS = 1 << 14
# Block sizes that the engine's kernels support: powers of two from 16.
_LEAST_BLOCK, _BLOCK = 16, 32
_LEAST_PEAK = np.finfo(np.float32).tiny * 2**16


def int8_codes(matrix: Floats, axis: int, bits: Int8WeightBits = 8) -> tuple[NDArray[np.int8], Floats]:
    """Return symmetric codes, and one scale along the axis (kept, of size 1): a value is about code * scale."""
    largest = largest_code(bits)
    peak = np.abs(matrix).max(axis=axis, keepdims=True)
    scale = np.where(peak < _LEAST_PEAK, 1, peak / largest).astype(np.float32)
    return np.clip(np.rint(matrix / scale), -largest, largest).astype(np.int8), scale


def by_rows(table: Floats, stored: Callable[[Floats], tuple[NDArray[Any], ...]]) -> tuple[NDArray[Any], ...]:
    """Apply `stored` to a table's rows, some at a time, so that a large table is not held several times."""
    parts = [stored(table[i : i + _ROWS]) for i in range(0, len(table), _ROWS)]
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def uint8_range(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Return (scale, zero): a value is about (code - zero) * scale, the codes span the range, and zero has a code.

    Raises:
        ValueError: the range is not finite or ends before it begins.
    """
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
        raise ValueError(f"A range is finite and goes from its low end to its high end, but got ({low}, {high}).")
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.float32((high - low) / 255)
    if scale < np.finfo(np.float32).tiny:
        return np.float32(1), np.uint8(0)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def block_size(columns: int) -> int:
    """Return the number of adjacent numbers of a row that share a scale: 32, or 16 where a row has no more."""
    return _LEAST_BLOCK if columns <= _LEAST_BLOCK else _BLOCK


def block_codes(matrix: Floats, bits: int) -> tuple[Bytes, Floats]:
    """Return codes (rows, blocks, block) and scales (rows, blocks): value = (code - 2^(bits - 1)) * scale.

    After the last column, values are zero. Of a few scales, each block has the one of the least squared error (Guan et
    al., "Post-training 4-bit quantization on embedding tables", 2019, do so for rows).
    """
    codes, scales = by_rows(matrix, partial(_block_codes, bits=bits))
    return codes, scales


def _block_codes(matrix: Floats, bits: int) -> tuple[Bytes, Floats]:
    rows, columns = matrix.shape
    size = block_size(columns)
    blocks = np.pad(matrix, ((0, 0), (0, -columns % size))).reshape(rows, -1, size)
    half = 1 << (bits - 1)
    peak = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    least = np.full(peak.shape, np.inf, np.float32)
    best, codes = np.ones_like(peak), np.zeros_like(blocks)
    for share in _SHARES:
        # The scale has the opposite sign of the peak, since there is one code more below zero than above. A peak whose
        # scale would have no reciprocal counts as zero.
        nought = np.abs(peak) < _LEAST_PEAK
        scale = np.where(nought, 1, peak * np.float32(-share / half)).astype(np.float32)
        tried = np.clip(np.rint(blocks / scale), -half, half - 1)
        error = np.square(tried * scale - blocks).sum(axis=-1, keepdims=True)
        pairs, better = ((error, least), (scale, best), (tried, codes)), error < least
        least, best, codes = (np.where(better, new, old) for new, old in pairs)
    return (codes + half).astype(np.uint8), best[..., 0]


def packed(codes: Bytes, bits: int) -> Bytes:
    """Pack several codes of the last axis into a byte, the first in its lowest bits.

    Args:
        codes: (..., n), n a multiple of 8 / bits
    """
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    together: Bytes = np.bitwise_or.reduce(codes.reshape(*codes.shape[:-1], -1, len(shifts)) << shifts, axis=-1)
    return together
