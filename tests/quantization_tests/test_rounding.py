"""Codes and scales, compared with brute force and the standard's own operators."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper
from onnx.reference import ReferenceEvaluator

from objectives.compression.quantization.rounding import block_codes, block_size, int8_codes, packed, uint8_range
from objectives.int8_weights import Int8WeightBits, largest_code

FLOATS = st.floats(-1e3, 1e3, width=32)
MATRICES = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 70)), elements=FLOATS)


def _values(codes: np.ndarray, scales: np.ndarray, bits: int) -> np.ndarray:
    """Values that codes stand for, (rows, blocks, block)."""
    return (codes.astype(np.float32) - (1 << (bits - 1))) * scales[..., None]


@given(MATRICES, st.sampled_from([2, 4, 8]))
def test_blocks_are_no_worse_than_those_that_hold_their_peak(matrix: np.ndarray, bits: int) -> None:
    """Each block is compared with the plain rule, scale = -peak / 2^(bits - 1), by hand; zero stays zero."""
    codes, scales = block_codes(matrix, bits)
    rows, columns = matrix.shape
    size = block_size(columns)
    assert codes.shape == (rows, -(-columns // size), size)
    assert codes.max() < 1 << bits
    values, half = _values(codes, scales, bits), 1 << (bits - 1)
    assert np.all(values.reshape(rows, -1)[:, columns:] == 0)
    for row in range(rows):
        for block in range(codes.shape[1]):
            true = matrix[row, block * size : (block + 1) * size].astype(np.float64)
            scale = -true[np.abs(true).argmax()] / half or 1.0
            plain = np.clip(np.rint(true / scale), -half, half - 1) * scale
            got = values[row, block, : len(true)]
            assert np.square(got - true).sum() <= np.square(plain - true).sum() * (1 + 1e-3) + 1e-6
            assert np.all(got[true == 0] == 0)


@pytest.mark.parametrize(("bits", "error"), [(2, 0.45), (4, 0.085), (8, 0.006)])
def test_more_bits_lie_nearer(bits: int, error: float) -> None:
    """The root mean square error of normal values falls."""
    matrix = np.random.default_rng(0).normal(size=(500, 64)).astype(np.float32)
    values = _values(*block_codes(matrix, bits), bits).reshape(500, 64)
    assert error / 3 < np.sqrt(np.square(values - matrix).mean()) < error


def test_a_large_table_is_rounded_as_its_rows_are() -> None:
    """A large table is taken some rows at a time."""
    matrix = np.random.default_rng(0).normal(size=(20_000, 3)).astype(np.float32)
    codes, scales = block_codes(matrix, 4)
    for row in (0, 16_383, 16_384, 19_999):
        alone = block_codes(matrix[row : row + 1], 4)
        assert np.array_equal(codes[row : row + 1], alone[0])
        assert np.array_equal(scales[row : row + 1], alone[1])


@pytest.mark.parametrize(("columns", "size"), [(1, 16), (16, 16), (17, 32), (64, 32)])
def test_thin_rows_have_smaller_blocks(columns: int, size: int) -> None:
    assert block_size(columns) == size


@given(st.data(), st.sampled_from([2, 4, 8]))
def test_codes_are_packed_with_the_first_lowest(data: st.DataObject, bits: int) -> None:
    codes = data.draw(hnp.arrays(np.uint8, (3, 16), elements=st.integers(0, (1 << bits) - 1)))
    each = 8 // bits
    expected = [
        [sum(int(code) << (bits * place) for place, code in enumerate(row[i : i + each])) for i in range(0, 16, each)]
        for row in codes
    ]
    assert np.array_equal(packed(codes, bits), expected)


@given(MATRICES, st.sampled_from([0, 1]))
def test_int8_lies_within_half_a_step(matrix: np.ndarray, axis: int) -> None:
    codes, scale = int8_codes(matrix, axis)
    assert codes.dtype == np.int8
    assert codes.min() >= -127
    assert np.all(np.abs(codes * scale - matrix) <= scale * 0.501)
    peaks = np.abs(matrix).max(axis=axis, keepdims=True)
    assert np.all(np.isclose(np.abs(codes * scale).max(axis=axis, keepdims=True), peaks, rtol=1e-5))


@given(st.tuples(FLOATS, FLOATS))
def test_a_range_is_covered_and_nought_is_exact(ends: tuple[float, float]) -> None:
    """The oracle is QuantizeLinear and DequantizeLinear of onnx's reference."""
    low, high = sorted(ends)
    scale, zero = uint8_range(low, high)
    x = np.array([low, 0, high], np.float32)
    text = (
        '<ir_version: 10, opset_import: ["": 20]> g (float[3] x, float s, uint8 z) => (float[3] y)'
        "{ q = QuantizeLinear(x, s, z)\n y = DequantizeLinear(q, s, z) }"
    )
    (back,) = ReferenceEvaluator(onnx.parser.parse_model(text)).run(None, {"x": x, "s": scale, "z": zero})
    assert back[1] == 0
    assert np.all(np.abs(back - x) <= scale * 1.001)


@pytest.mark.parametrize(("low", "high", "scale", "zero"), [(-1, 3, 4 / 255, 64), (1, 3, 3 / 255, 0), (0, 0, 1, 0)])
def test_ranges_hold_nought(low: float, high: float, scale: float, zero: int) -> None:
    got = uint8_range(low, high)
    assert got == (pytest.approx(scale), zero)
    assert helper.np_dtype_to_tensor_dtype(np.asarray(got[1]).dtype) == onnx.TensorProto.UINT8


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (np.nan, 1.0), (-np.inf, 1.0)])
def test_a_range_is_finite_and_forward(low: float, high: float) -> None:
    with pytest.raises(ValueError, match=f"range .*{low}.*{high}"):
        uint8_range(low, high)


# -- the sums of int8 products on a CPU without VNNI

UINT8 = st.sampled_from([0, 1, 127, 254, 255])


@given(MATRICES, st.data())
def test_pairs_of_products_of_7_bits_stay_within_16(matrix: np.ndarray, data: st.DataObject) -> None:
    """The sum of any two of a row fits, as VPMADDUBSW adds them, by the saturating sum of numpy's clip."""
    codes, _ = int8_codes(matrix, 1, bits=7)
    x = data.draw(hnp.arrays(np.uint8, codes.shape, elements=UINT8)).astype(np.int32)
    products = x * codes
    pairs = products[:, :, None] + products[:, None, :]
    assert np.array_equal(np.clip(pairs, -(2**15), 2**15 - 1), pairs)


def test_pairs_of_products_of_8_bits_do_not() -> None:
    codes, _ = int8_codes(np.ones((1, 2), np.float32), 1, bits=8)
    assert 255 * codes.astype(int).sum() > 2**15 - 1


@pytest.mark.parametrize(("bits", "largest"), [(7, 63), (8, 127)])
def test_int8_codes_span_their_bits(bits: Int8WeightBits, largest: int) -> None:
    """Codes go by row, from the peak; the error of a value is at most half a step."""
    matrix = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    codes, scale = int8_codes(matrix, 1, bits)
    assert np.array_equal(np.abs(codes.astype(int)).max(axis=1), [largest] * 5)
    assert np.abs(codes * scale - matrix).max() <= 0.501 * scale.max()
    assert largest_code(bits) == largest
