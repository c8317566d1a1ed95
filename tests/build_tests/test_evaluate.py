"""Evaluation of users by the rank of what came next, and of rows by slice, on an engine whose scores are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.metrics import roc_auc_score

from objectives.build import evaluate as judging
from objectives.build import user_ranks
from objectives.build.evaluate import evaluate
from objectives.held_out_rows import HeldOut, write_held_out
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.measurement.metrics.quality import paired_quality, quality_by_output
from objectives.records import Artifact, Quality
from objectives.serving.engines import open_replica
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup, Placement, Route

USERS, ITEMS, LENGTH = 90, 40, 5
# How far each arm's file is from the truth.
BLUR = {"base": 0.1, "ours": 0.6, "worse": 2.0}
TASTE = np.random.default_rng(0).normal(size=(ITEMS + 1, ITEMS + 1))
NOISE = np.random.default_rng(1).normal(size=(ITEMS + 1, ITEMS + 1))


def _scores(latest: int, items: NDArray[np.int64], blur: float) -> NDArray[np.float32]:
    return np.asarray(TASTE[latest, items] + blur * NOISE[latest, items], dtype=np.float32)


def _write_model(file: Path, blur: float) -> None:
    """Write a graph that scores items by the latest one of a history, which is given once."""
    table = np.stack([_scores(latest, np.arange(ITEMS + 1), blur) for latest in range(ITEMS + 1)])
    nodes = [
        helper.make_node("Gather", ["history", "last"], ["latest"], axis=1),
        helper.make_node("Gather", ["table", "latest"], ["row"]),
        helper.make_node("Reshape", ["row", "flat"], ["scores_of_all"]),
        helper.make_node("Gather", ["scores_of_all", "item"], ["scores"]),
    ]
    whole = TensorProto.INT64
    inputs = [
        helper.make_tensor_value_info("history", whole, [1, LENGTH]),
        helper.make_tensor_value_info("item", whole, ["rows"]),
    ]
    held = {"table": table, "last": np.array(LENGTH - 1), "flat": np.array([-1])}
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["rows"])
    constants = [numpy_helper.from_array(values, name) for name, values in held.items()]
    graph = helper.make_graph(nodes, "net", inputs, [output], constants)
    file.parent.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(file))


class Counted:
    """A real engine that notes the shapes of histories and the numbers of items of its requests."""

    def __init__(self, engine: Engine, asked: list[tuple[tuple[int, ...], int]]) -> None:
        self.engine, self.asked, self.once = engine, asked, engine.once

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        scores = self.engine.run(inputs)
        self.asked.append((inputs["history"].shape, len(scores)))
        return scores


def _users() -> HeldOut:
    """Users whose next item is often what the latest one leads to, and never one that was taken before."""
    random = np.random.default_rng(2)
    seen = np.array([random.permutation(np.arange(1, ITEMS + 1))[:12] for _ in range(USERS)])
    seen[::3, :6] = 0  # shorter histories, padded on the left
    labels = np.empty(USERS, dtype=np.int64)
    for user in range(USERS):
        free = np.setdiff1d(np.arange(1, ITEMS + 1), seen[user])
        liking = TASTE[seen[user, -1], free] + random.normal(size=len(free))
        labels[user] = free[np.argmax(liking)]
    return HeldOut(
        ({"history": seen[:, -LENGTH:]},),
        labels,
        np.arange(USERS),
        {"short": np.arange(USERS) % 3 == 0, "nobody": np.zeros(USERS, dtype=bool)},
        seen,
        np.arange(1, ITEMS + 1),
    )


@pytest.fixture
def asked() -> list[tuple[tuple[int, ...], int]]:
    return []


@pytest.fixture
def holdout(tmp_path: Path, asked: list[tuple[tuple[int, ...], int]], monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, blur in BLUR.items():
        _write_model(tmp_path / name / "model.onnx", blur)

    def opened(file: Path, instance_group: InstanceGroup, lookup: EmbeddingDevice | None, compute: str) -> Engine:
        if instance_group.engine == "openvino":  # which ranks worse here
            file = tmp_path / "worse" / "model.onnx"
        return Counted(open_replica(file, replace(instance_group, engine="onnxruntime"), lookup, compute), asked)

    monkeypatch.setattr(user_ranks, "open_replica", opened)
    folder = tmp_path / "holdout"
    folder.mkdir()
    write_held_out(_users(), folder, "test")
    return folder


def _judge(
    holdout: Path,
    metric: str,
    ours: str = "ours",
    placement: Placement | None = None,
    reject_above: float | None = None,
) -> tuple[Quality, bool]:
    found = evaluate(EvaluateRequest(_asked(holdout, ours, placement), metric, 0, 0.95, reject_above))
    return found.quality, found.reused


def _asked(holdout: Path, ours: str = "ours", placement: Placement | None = None) -> ScoreRequest:
    def deployed(name: str, placement: Placement) -> Deployment:
        artifact = Artifact(name, str(holdout.with_name(name) / "model.onnx"), {}, 1, 0.0)
        return Deployment(artifact, artifact.path, placement, "fp32")

    pair = (deployed(ours, placement or Placement()), deployed("base", Placement()))
    return ScoreRequest(*pair, str(holdout.with_name("cache")), str(holdout), "test")


def _gains(metric: str, blur: float) -> NDArray[np.float64]:
    """NDCG or HR of each user, by the ranks that sorting gives."""
    name, cut = metric.split("@")
    places = _places(blur)
    worth = np.ones(USERS) if name == "hr" else 1 / np.log2(1 + places)
    return np.where(places <= int(cut), worth, 0.0)


def _places(blur: float) -> NDArray[np.float64]:
    """Rank of each user's next item, by sorting what is left of the catalogue."""
    users, places = _users(), []
    assert users.seen is not None
    for seen, target in zip(users.seen.tolist(), users.labels.tolist(), strict=True):
        left = np.array([item for item in range(1, ITEMS + 1) if item not in seen])
        order = left[np.argsort(-_scores(seen[-1], left, blur), kind="stable")].tolist()
        places.append(order.index(target) + 1.0)
    return np.array(places)


@pytest.mark.parametrize("metric", ["ndcg@10", "hr@1", "hr@10", "ndcg@5"])
def test_a_ranking_is_that_of_the_sorted_catalogue(metric: str, holdout: Path) -> None:
    quality, reused = _judge(holdout, metric)
    ours, theirs = _gains(metric, BLUR["ours"]), _gains(metric, BLUR["base"])
    assert not reused and quality.metric == metric
    assert quality.value == pytest.approx(ours.mean()) and quality.baseline == pytest.approx(theirs.mean())
    assert quality.loss == pytest.approx((theirs.mean() - ours.mean()) / theirs.mean())
    assert (quality.rows, quality.groups) == (USERS, USERS)
    assert quality.loss_interval[0] < quality.loss < quality.loss_interval[1]
    short, nobody = quality.slices
    kept = np.arange(USERS) % 3 == 0
    assert (short.name, short.rows) == ("short", 30) and short.value == pytest.approx(ours[kept].mean())
    assert (nobody.rows, nobody.value) == (0, None) and nobody.reason is not None


def test_each_user_is_one_request_with_all_items(holdout: Path, asked: list[tuple[tuple[int, ...], int]]) -> None:
    _judge(holdout, "ndcg@10")
    assert asked == [((1, LENGTH), ITEMS)] * (2 * USERS), "both arms"


def test_ranks_are_kept_whatever_is_made_of_them(holdout: Path, asked: list[tuple[tuple[int, ...], int]]) -> None:
    _judge(holdout, "ndcg@10")
    asked.clear()
    quality, reused = _judge(holdout, "hr@3")
    assert reused and not asked and quality.value == pytest.approx(_gains("hr@3", BLUR["ours"]).mean())


def test_a_slower_engine_that_ranks_worse_speaks_for_both(holdout: Path) -> None:
    routed = Placement(InstanceGroup(threads=1), route=Route(20, InstanceGroup("openvino", threads=1)))
    quality, _ = _judge(holdout, "ndcg@10", placement=routed)
    assert quality.value == pytest.approx(_gains("ndcg@10", BLUR["worse"]).mean())


def _first(tenths: int) -> NDArray[np.bool_]:
    return np.arange(USERS) % 10 < tenths


def _tells(metric: str, tenths: int) -> Quality:
    """Evaluate the ranks that sorting gives, of the first so many of every ten users."""
    kept = _first(tenths)
    ours, theirs = (_places(BLUR[name])[kept] for name in ("worse", "base"))
    return paired_quality(metric, ours, theirs, _users().of_users(np.flatnonzero(kept)), seed=0)


@pytest.mark.parametrize("tenths", [1, 3, 10])
def test_users_are_evaluated_until_the_interval_lies_above_what_is_rejected(
    tenths: int, holdout: Path, asked: list[tuple[tuple[int, ...], int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "_MANY", USERS)
    low = {looked: _tells("ndcg@10", looked).loss_interval[0] for looked in (1, 3, 10)}
    assert low[1] < low[3]
    reject_above = {1: low[1] - 0.001, 3: low[3] - 0.001, 10: 9.0}[tenths]
    quality, _ = _judge(holdout, "ndcg@10", ours="worse", reject_above=reject_above)
    kept = _first(tenths)
    ours, theirs = (_gains("ndcg@10", BLUR[name])[kept] for name in ("worse", "base"))
    assert quality.value == pytest.approx(ours.mean()) and quality.baseline == pytest.approx(theirs.mean())
    assert quality.loss_interval == pytest.approx(_tells("ndcg@10", tenths).loss_interval)
    assert (quality.rows, quality.slices[0].rows) == (kept.sum(), (kept & (np.arange(USERS) % 3 == 0)).sum())
    assert len(asked) == 2 * kept.sum()
    _judge(holdout, "ndcg@10", ours="worse")
    assert len(asked) == 2 * USERS, "no user is scored twice"


def test_users_that_tell_nothing_leave_it_to_all(holdout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline ranks nobody's next item first of some users, but does of all."""
    monkeypatch.setattr(judging, "_MANY", USERS)
    found, whole = judging.paired_quality, _judge(holdout, "hr@1", ours="worse")[0]

    def of_some(metric: str, ours: Any, theirs: Any, *rest: Any, **more: Any) -> Quality:
        theirs = np.full_like(theirs, ITEMS) if len(theirs) < USERS else theirs
        return found(metric, ours, theirs, *rest, **more)

    monkeypatch.setattr(judging, "paired_quality", of_some)
    assert _judge(holdout, "hr@1", ours="worse", reject_above=-9.0)[0] == whole


def test_few_users_are_judged_all_at_once(holdout: Path, asked: list[tuple[tuple[int, ...], int]]) -> None:
    _judge(holdout, "ndcg@10", ours="worse", reject_above=-9.0)
    assert len(asked) == 2 * USERS


def test_the_baseline_loses_nothing_against_itself(holdout: Path) -> None:
    quality, _ = _judge(holdout, "ndcg@10", ours="base")
    assert quality.loss == 0 and quality.loss_interval == (0, 0)


def test_scores_of_a_deployment_that_stands_for_the_baseline_depend_on_its_engine_alone(
    holdout: Path, asked: list[tuple[tuple[int, ...], int]]
) -> None:
    """Replicas that are pinned have no number of threads to themselves where scores are computed."""
    placement = Placement(InstanceGroup(threads=1, pinned=True, replicas=2))
    expected, _ = _judge(holdout, "ndcg@10")
    count, scores = len(asked), _asked(holdout)
    scores = replace(scores, baseline=replace(scores.baseline, placement=placement))
    found = evaluate(EvaluateRequest(scores, "ndcg@10", 0, 0.95))
    assert found.quality == expected and found.reused and len(asked) == count


@pytest.mark.parametrize("metric", ["auc", "gauc"])
def test_users_and_what_came_next_have_no_metric_of_rows(metric: str, holdout: Path) -> None:
    with pytest.raises(ValueError, match=rf"hr@K .*ndcg@K.*'{metric}'") as caught:
        _judge(holdout, metric)
    assert len(str(caught.value).splitlines()) == 1


def test_rows_are_judged_by_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random, rows = np.random.default_rng(3), 500
    item = random.integers(1, ITEMS + 1, rows)
    truth = TASTE[1, item] + random.normal(size=rows)
    masks = {"even": item % 2 == 0, "first users": np.arange(rows) < 100, "nobody": np.zeros(rows, dtype=bool)}
    held = HeldOut(({"item": item},), (truth > 0).astype(np.float32), np.arange(rows) // 10, masks)
    write_held_out(held, tmp_path, "test")

    def opened(file: Path, *_: object) -> Any:
        blur = BLUR[file.parent.name]
        return SimpleNamespace(once=frozenset(), run=lambda inputs: _scores(1, inputs["item"], blur))

    monkeypatch.setattr(judging, "open_replica", opened)
    quality, _ = _judge(tmp_path, "auc")
    assert [part.name for part in quality.slices] == list(masks)
    for part in quality.slices[:2]:
        kept = masks[part.name]
        ours, theirs = (
            roc_auc_score(held.labels[kept], _scores(1, item[kept], BLUR[deployment]))
            for deployment in ("ours", "base")
        )
        assert (part.rows, part.groups) == (kept.sum(), len(np.unique(held.groups[kept])))
        assert part.value == pytest.approx(ours) and part.baseline == pytest.approx(theirs)
        assert part.loss == pytest.approx((theirs - ours) / theirs)
    assert quality.slices[2].reason is not None


def test_another_output_that_cannot_be_judged_has_the_reason() -> None:
    """Ratings have no AUC, and one class has none either; the main output is judged all the same."""
    random = np.random.default_rng(0)
    labels = (random.random(60) < 0.5).astype(np.float32)
    held = HeldOut(
        ({"x": np.zeros(60)},),
        labels,
        np.arange(60),
        others={"like": 1 - labels, "stars": random.integers(1, 6, size=60).astype(np.float32), "none": np.zeros(60)},
    )
    scores = random.normal(size=(60, 4)).astype(np.float32)
    theirs = scores + random.normal(size=(60, 4)).astype(np.float32)
    quality = quality_by_output(scores, theirs, held, partial(paired_quality, "auc", seed=0))
    like, stars, none = quality.others
    assert like.value == pytest.approx(roc_auc_score(1 - labels, scores[:, 1])) and like.reason is None
    assert (stars.name, stars.rows, stars.value) == ("output stars", 60, None) and "0 or 1" in str(stars.reason)
    assert none.value is None and none.reason
    assert quality.value == pytest.approx(roc_auc_score(labels, scores[:, 0]))


@pytest.mark.parametrize("threads", [None, 1])
def test_the_engine_has_the_threads_that_are_left_to_it(
    holdout: Path, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores that were computed with another number of threads are not computed again."""
    opened, plain = list[int | None](), user_ranks.open_replica

    def noted(file: Path, instance_group: InstanceGroup, lookup: Any, compute: str) -> Any:
        opened.append(instance_group.threads)
        return plain(file, instance_group, lookup, compute)

    monkeypatch.setattr(user_ranks, "open_replica", noted)
    scores = replace(_asked(holdout), threads=threads)
    evaluate(EvaluateRequest(scores, "ndcg@10", 0, 0.95))
    assert opened == [threads, threads]
    assert evaluate(EvaluateRequest(replace(scores, threads=2), "ndcg@10", 0, 0.95)).reused and len(opened) == 2
