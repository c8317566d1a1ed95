"""Rows of many users in one run, against the same rows user by user, on graphs whose scores are known."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from objectives.arrays import Arrays
from objectives.build import evaluate as judging
from objectives.build.evaluate import evaluate
from objectives.build.many_users import open_for_many_users
from objectives.held_out_rows import HeldOut, write_held_out
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.records import Artifact
from objectives.serving.engines import open_replica
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import InstanceGroup, Placement

WIDTH, USERS, EACH = 4, 40, 7
# How the user's row reaches the items': as it is; as the mean over the rows of a request; in a form for one row only.
NODES = {
    "by row": [helper.make_node("Identity", ["user"], ["seen"])],
    "mixed": [helper.make_node("ReduceMean", ["user", "axis"], ["seen"], keepdims=1)],
    "one row": [helper.make_node("Reshape", ["user", "form"], ["seen"])],
}


def write_model(file: Path, kind: str) -> Path:
    """Write a graph of the scores sum(user * item), of a user that is given once."""
    file.parent.mkdir(parents=True)
    nodes = [
        *NODES[kind],
        helper.make_node("Mul", ["seen", "item"], ["both"]),
        helper.make_node("ReduceSum", ["both", "last"], ["scores"], keepdims=0),
    ]
    inputs = [
        helper.make_tensor_value_info("user", TensorProto.FLOAT, [1, WIDTH]),
        helper.make_tensor_value_info("item", TensorProto.FLOAT, ["rows", WIDTH]),
    ]
    held = {"axis": np.array([0]), "last": np.array([1]), "form": np.array([1, WIDTH])}
    constants = [numpy_helper.from_array(values, name) for name, values in held.items()]
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])
    graph = helper.make_graph(nodes, "net", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model.ir_version = 9
    onnx.save(model, file)
    return file


def rows_of_users(seed: int = 0) -> Arrays:
    random = np.random.default_rng(seed)
    users = random.normal(size=(USERS, WIDTH)).astype(np.float32)
    order = random.permutation(np.repeat(np.arange(USERS), EACH))
    return {"user": users[order], "item": random.normal(size=(USERS * EACH, WIDTH)).astype(np.float32)}


@pytest.fixture(params=["onnxruntime", "openvino"])
def instance_group(request: pytest.FixtureRequest) -> InstanceGroup:
    pytest.importorskip(request.param)
    return InstanceGroup(request.param, threads=1)


def opened(kind: str, blocks: list[Arrays], folder: Path, instance_group: InstanceGroup) -> Engine | None:
    model = write_model(folder / kind / "model.onnx", kind)

    def open_engine(file: Path) -> Engine:
        return open_replica(file, instance_group, None)

    found = open_for_many_users(open_engine, model, open_engine(model), blocks, folder)
    assert [file.name for file in folder.iterdir()] == [kind], "nothing is left behind"
    return found


def test_rows_of_many_users_are_scored_in_one_run(tmp_path: Path, instance_group: InstanceGroup) -> None:
    block = rows_of_users()
    engine = opened("by row", [block, rows_of_users(1)], tmp_path, instance_group)
    assert engine is not None and not engine.once
    np.testing.assert_allclose(engine.run(block), (block["user"] * block["item"]).sum(axis=1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["mixed", "one row"])
def test_users_that_change_each_others_scores_are_scored_apart(
    kind: str, tmp_path: Path, instance_group: InstanceGroup
) -> None:
    assert opened(kind, [rows_of_users()], tmp_path, instance_group) is None


@pytest.mark.parametrize("several", [True, False])
def test_a_block_of_one_user_shows_nothing_of_several(several: bool, tmp_path: Path) -> None:
    block = rows_of_users()
    one = {"user": np.repeat(block["user"][:1], 9, axis=0), "item": block["item"][:9]}
    found = opened("by row", [one, block] if several else [one], tmp_path, InstanceGroup())
    assert (found is not None) == several


def test_users_are_scored_one_by_one_where_that_takes_less_time(tmp_path: Path) -> None:
    """What depends on the user alone takes long, and is computed for each row of a request of many users."""
    model = write_model(tmp_path / "by row" / "model.onnx", "by row")

    class Slow:
        once: frozenset[str] = frozenset()

        def __init__(self, engine: Engine) -> None:
            self._engine = engine

        def run(self, inputs: Arrays) -> NDArray[np.float32]:
            time.sleep(0.3)
            return self._engine.run(inputs)

    def open_engine(file: Path) -> Engine:
        return open_replica(file, InstanceGroup(threads=1), None)

    blocks = [rows_of_users()]
    assert (
        open_for_many_users(lambda file: Slow(open_engine(file)), model, open_engine(model), blocks, tmp_path) is None
    )


@pytest.mark.parametrize(("kind", "runs"), [("by row", 1), ("mixed", USERS)])
def test_a_model_that_takes_users_once_is_evaluated_as_user_by_user(
    kind: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stored scores are those of each user's own row; all rows of these take one run where that gives the same."""
    block, random = rows_of_users(), np.random.default_rng(3)
    truth = (block["user"] * block["item"]).sum(axis=1)
    labels = (truth + random.normal(size=len(truth)) > 0).astype(np.float32)
    groups = np.unique(block["user"], axis=0, return_inverse=True)[1].ravel()
    (tmp_path / "held").mkdir()
    write_held_out(HeldOut((block,), labels, groups), tmp_path / "held", "test")
    model = write_model(tmp_path / kind / "model.onnx", kind)
    counted: list[int] = []
    plain = judging.run_blocks

    def noted(engine: Engine, *rest: object) -> object:
        run = engine.run

        def counting(inputs: Arrays) -> object:
            counted.append(len(inputs["item"]))
            return run(inputs)

        monkeypatch.setattr(engine, "run", counting, raising=True)
        return plain(engine, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(judging, "run_blocks", noted)
    deployment = Deployment(Artifact("a", "a", {}, 1, 0.0), str(model), Placement(), "fp32")
    scores = ScoreRequest(deployment, deployment, str(tmp_path / "cache"), str(tmp_path / "held"), "test", 1)
    quality = evaluate(EvaluateRequest(scores, "auc", 0, 0.95)).quality
    assert quality.loss == 0.0 and quality.value > 0.7
    (file,) = (tmp_path / "cache").rglob("scores.npy")
    np.testing.assert_allclose(np.load(file), truth, rtol=1e-4, atol=1e-5)
    assert len(counted) == runs and sum(counted) == len(labels)
