"""Scores that depend on the rows that are scored together are evaluated request by request, as they are served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from objectives.build.evaluate import evaluate, score
from objectives.held_out_rows import HeldOut, write_held_out
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.measurement.metrics.quality import paired_quality
from objectives.records import Artifact
from objectives.serving.pool import Pool
from spaces.techniques.placement import Placement
from tests.protos import dynamic_int8

COLUMNS, USERS = 16, 30


def _graph() -> onnx.ModelProto:
    """A graph of scores = relu(x V) w."""
    random = np.random.default_rng(0)
    first, last = (random.normal(size=size).astype(np.float32) for size in ((COLUMNS, COLUMNS), (COLUMNS,)))
    made = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "first"], ["wide"]),
            helper.make_node("Relu", ["wide"], ["hidden"]),
            helper.make_node("MatMul", ["hidden", "last"], ["scores"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", COLUMNS])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(last, "last")],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def _held() -> HeldOut:
    """Rows of users in any order, in two blocks; some users' values are a hundred times larger."""
    random = np.random.default_rng(1)
    groups = random.permutation(np.repeat(np.arange(USERS), random.integers(1, 12, USERS)))
    x = random.normal(size=(len(groups), COLUMNS)) * np.where(groups % 3, 0.1, 10)[:, None]
    x = x.astype(np.float32)
    labels = (random.random(len(groups)) < 0.4).astype(np.float32)
    return HeldOut(({"x": x[:40]}, {"x": x[40:]}), labels, groups)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The fp32 model, and the one whose first product rounds what it reads."""
    narrow = dynamic_int8(_graph(), "first", bits=8)
    for name, graph in (("fp32", _graph()), ("int8", narrow)):
        (tmp_path / name).mkdir()
        onnx.save(graph, str(tmp_path / name / "model.onnx"))
    return tmp_path / "fp32/model.onnx", tmp_path / "int8/model.onnx"


def _served(model: Path, held: HeldOut) -> NDArray[np.float32]:
    """Serve each block's rows of a group as one request to the pool."""
    found, start = np.empty(len(held.labels), np.float32), 0
    with Pool.open(model, Placement()) as pool:
        for block in held.inputs:
            owners = held.groups[start : start + len(block["x"])]
            for group in np.unique(owners):
                rows = np.flatnonzero(owners == group)
                found[start + rows] = pool.submit({"x": block["x"][rows]}).result(timeout=30)
            start += len(owners)
    return found


def test_a_row_is_evaluated_as_it_is_served(files: tuple[Path, Path], tmp_path: Path) -> None:
    held, (plain, narrow) = _held(), files
    holdout = tmp_path / "holdout"
    holdout.mkdir()
    write_held_out(held, holdout, "test")
    artifacts = (
        Artifact("int8", str(narrow), {"layers": "int8-dynamic"}, 1, 0.0),
        Artifact("fp32", str(plain), {"layers": "fp32"}, 1, 0.0),
    )
    ours, theirs = (Deployment(each, each.path, Placement(), "fp32") for each in artifacts)
    scores = ScoreRequest(ours, theirs, str(tmp_path / "cache"), str(holdout), "test")
    (file,) = score(scores).candidates
    served = _served(narrow, held)
    assert np.array_equal(np.load(file), served)
    with Pool.open(narrow, Placement()) as pool:  # of all users together, the small ones round to nothing
        together = np.concatenate([pool.submit({"x": block["x"]}).result(timeout=30) for block in held.inputs])
    assert np.abs(together - served).max() > 10 * np.abs(_served(plain, held) - served).min()
    assert not np.allclose(together, served, rtol=0.1)
    found = evaluate(EvaluateRequest(scores, "auc", 0, 0.95))
    quality = found.quality
    assert found.reused
    expected = paired_quality("auc", served, _served(plain, held), held, 0)
    assert (quality.value, quality.loss) == (pytest.approx(expected.value), pytest.approx(expected.loss, abs=1e-6))
