"""Products of 4 bits whose activations are rounded to int8 block by block, beside numpy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from spaces.techniques.quantization import Precision
from tests.protos import quantize, read_widths, run_onnx
from tests.quantization_tests.test_degenerate_widths import lookup_and_product
from tests.quantization_tests.test_widths import PRODUCTS, Arithmetic, Array, _held


def rounded_by_block(x: Array, size: int) -> Array:
    """Values with the largest magnitude of each row and block at 127."""
    columns = x.shape[-1]
    padded = np.zeros((*x.shape[:-1], -(-columns // size) * size), np.float32)
    padded[..., :columns] = x
    blocks = padded.reshape(*x.shape[:-1], -1, size)
    scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0))
    back: Array = (codes * scale).reshape(padded.shape)[..., :columns]
    return back


@dataclass
class Rounded(Arithmetic):
    def multiply(self, x: Array, name: str) -> Array:
        return super().multiply(rounded_by_block(x, 16 if x.shape[-1] <= 16 else 32), name)


@pytest.mark.parametrize("form", PRODUCTS)
def test_products_are_those_of_the_codes(form: str) -> None:
    """Products differ by no more than activations that fall on the other side of a rounding edge."""
    case = PRODUCTS[form]()
    narrow = case.narrow("int4-dynamic")
    assert read_widths(narrow, case.structure) == {"mlp": "int4-dynamic"}
    expected = case.scores(Rounded(_held(narrow), {}, {}), case.rows)
    plain = case.scores(Arithmetic(_held(narrow), {}, {}), case.rows)
    off = np.abs(run_onnx(narrow, case.rows) - expected).mean() / expected.std()
    assert off < 0.2 * np.abs(plain - expected).mean() / expected.std()


@pytest.mark.parametrize("columns", [9, 64, 100])
def test_scores_do_not_depend_on_the_rows_beside_them(columns: int) -> None:
    graph, structure = lookup_and_product(columns)
    narrow = quantize(graph, Precision((("l", "int4-dynamic"),)), structure, {})
    item = np.arange(40)
    together = run_onnx(narrow, {"item": item})
    alone = np.concatenate([run_onnx(narrow, {"item": item[i : i + 1]}) for i in item])
    assert np.allclose(together, alone, atol=1e-5)


def test_weights_are_those_of_int4() -> None:
    graph, structure = lookup_and_product(64)

    def stored(width: str) -> dict[str, bytes]:
        narrow: onnx.ModelProto = quantize(graph, Precision((("l", width),)), structure, {})
        return {t.name: t.SerializeToString() for t in narrow.graph.initializer}

    assert stored("int4-dynamic") == stored("int4")
