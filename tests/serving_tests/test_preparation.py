"""Ids that training has not seen go to the row that the manifest defines, or are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from objectives.bags import Bags
from objectives.records import InputSpec
from objectives.serving.bundle import read_bundle, write_bundle
from objectives.serving.preparation import UnseenIdError, preparation
from spaces.candidate import Candidate
from tests.serving_tests.dot import TABLE, WEIGHT, write_dot

DTYPES = st.sampled_from(["int8", "int32", "int64", "uint8", "uint64"])
IDS = DTYPES.flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, max_dims=3, min_side=0)))


@given(IDS, st.integers(1, 300), st.one_of(st.none(), st.integers(0, 5)))
def test_every_id_is_known_defined_or_refused(values: np.ndarray, vocabulary: int, unseen: int | None) -> None:
    prepare = preparation([InputSpec("item", str(values.dtype), (), vocabulary, unseen=unseen)])
    flat = values.ravel().tolist()
    if unseen is None and any(not 0 <= each < vocabulary for each in flat):
        with pytest.raises(UnseenIdError, match=r"^input item: must hold ids from 0 to "):
            prepare({"item": values})
        return
    found = prepare({"item": values})["item"]
    assert (found.dtype, found.shape) == (values.dtype, values.shape)
    assert found.ravel().tolist() == [each if 0 <= each < vocabulary else unseen for each in flat]


def test_flat_bags_are_checked_before_they_are_padded() -> None:
    bags = Bags("bounds", ("genres",))
    specs = (InputSpec("genres", "int64", (None,), 9, unseen=0), InputSpec("bounds", "bool", (None,), None, bags=bags))
    request = {"genres": np.array([3, 9, -1]), "bounds": np.array([0, 1])}
    found = preparation(specs)(request)
    assert found["genres"][found["bounds"]].tolist() == [3, 0, 0]
    assert request["genres"].tolist() == [3, 9, -1], "the caller's arrays stay"


@pytest.mark.parametrize("unseen", [None, 4])
@pytest.mark.parametrize("strange", [-1, 30, 2**40])
def test_a_pool_does_as_the_manifest_says(unseen: int | None, strange: int, tmp_path: Path) -> None:
    """Left to ONNX Runtime, -1 would be the last row."""
    inputs = (InputSpec("item", "int64", (), 30, unseen=unseen),)
    model, example = write_dot(tmp_path / "model.onnx"), {"item": np.arange(5, dtype=np.int64)}
    write_bundle(tmp_path / "bundle", "toy", model, Candidate(), {}, inputs, "# toy\n", example)
    with read_bundle(tmp_path / "bundle").open() as pool:
        if unseen is None:
            with pytest.raises(UnseenIdError, match=f"from 0 to 29, .*but got {strange}$"):
                pool.submit({"item": np.array([7, strange])})
        else:
            scores = pool.submit({"item": np.array([7, strange])}).result(timeout=5)
            assert scores == pytest.approx(TABLE[[7, unseen]] @ WEIGHT, abs=1e-5)
