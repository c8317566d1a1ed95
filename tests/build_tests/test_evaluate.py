"""Evaluation of users by the rank of what came next, and of rows by slice, on an engine whose scores are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from objectives.build import evaluate as judging
from objectives.build.evaluate import evaluate
from objectives.held_out_rows import HeldOut, write_held_out
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.measurement.metrics.quality import paired_quality, quality_by_output
from objectives.records import Artifact, Quality
from spaces.techniques.placement import InstanceGroup, Placement, Route

USERS, ITEMS, LENGTH = 90, 40, 5
# How far each arm's file is from the truth.
BLUR = {"base": 0.1, "ours": 0.6, "worse": 2.0}
TASTE = np.random.default_rng(0).normal(size=(ITEMS + 1, ITEMS + 1))
NOISE = np.random.default_rng(1).normal(size=(ITEMS + 1, ITEMS + 1))


def _scores(latest: int, items: NDArray[np.int64], blur: float) -> NDArray[np.float32]:
    return np.asarray(TASTE[latest, items] + blur * NOISE[latest, items], dtype=np.float32)


class Engine:
    """Scores items by the latest one of a history, which is given once."""

    once = frozenset({"history"})

    def __init__(self, blur: float, asked: list[tuple[tuple[int, ...], int]]) -> None:
        self.blur, self.asked = blur, asked

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        assert set(inputs) == {"history", "item"}
        self.asked.append((inputs["history"].shape, len(inputs["item"])))
        return _scores(int(inputs["history"][0, -1]), inputs["item"], self.blur)


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
    def opened(file: Path, instance_group: InstanceGroup, lookup: object, compute: str) -> Any:
        return Engine(BLUR["worse" if instance_group.engine == "openvino" else file.parent.name], asked)

    monkeypatch.setattr(judging, "open_replica", opened)
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
        artifact = Artifact(name, f"{name}/model.onnx", {}, 1, 0.0)
        return Deployment(artifact, artifact.path, placement, "fp32")

    pair = (deployed(ours, placement or Placement()), deployed("base", Placement()))
    return ScoreRequest(*pair, str(holdout.with_name("cache")), str(holdout), "test")


def _gains(metric: str, blur: float) -> NDArray[np.float64]:
    """NDCG or HR of each user, by sorting what is left of the catalogue."""
    name, cut = metric.split("@")
    users, gains = _users(), []
    assert users.seen is not None
    for seen, target in zip(users.seen.tolist(), users.labels.tolist(), strict=True):
        left = np.array([item for item in range(1, ITEMS + 1) if item not in seen])
        order = left[np.argsort(-_scores(seen[-1], left, blur), kind="stable")].tolist()
        place = order.index(target) + 1
        worth = 1.0 if name == "hr" else 1 / np.log2(1 + place)
        gains.append(worth if place <= int(cut) else 0.0)
    return np.array(gains)


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


@pytest.mark.parametrize(("reject_above", "whole"), [(None, True), (9.0, True), (-9.0, False)])
def test_a_tenth_tells_what_is_hopeless(
    reject_above: float | None, whole: bool, holdout: Path, asked: list[tuple[tuple[int, ...], int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(judging, "_ENOUGH", USERS // 10)
    quality, _ = _judge(holdout, "ndcg@10", ours="worse", reject_above=reject_above)
    ours, theirs = (_gains("ndcg@10", BLUR[name])[:: 1 if whole else 10] for name in ("worse", "base"))
    assert quality.value == pytest.approx(ours.mean()) and quality.baseline == pytest.approx(theirs.mean())
    tenth = 0 if reject_above is None else USERS // 10
    assert len(asked) == 2 * (tenth + (USERS if whole else 0))
    assert quality.slices[0].rows == (30 if whole else sum(user % 3 == 0 for user in range(0, USERS, 10)))


def test_a_tenth_that_tells_nothing_leaves_it_to_all(holdout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline ranks nobody's next item first in the tenth, but some in all rows."""
    monkeypatch.setattr(judging, "_ENOUGH", USERS // 10)
    found, whole = judging.paired_quality, _judge(holdout, "hr@1", ours="worse")[0]

    def of_a_tenth(metric: str, ours: Any, theirs: Any, *rest: Any, **more: Any) -> Quality:
        theirs = np.full_like(theirs, ITEMS) if len(theirs) < USERS else theirs
        return found(metric, ours, theirs, *rest, **more)

    monkeypatch.setattr(judging, "paired_quality", of_a_tenth)
    assert _judge(holdout, "hr@1", ours="worse", reject_above=-9.0)[0] == whole


def test_few_users_are_judged_all_at_once(holdout: Path, asked: list[tuple[tuple[int, ...], int]]) -> None:
    _judge(holdout, "ndcg@10", ours="worse", reject_above=-9.0)
    assert len(asked) == 2 * USERS


def test_the_baseline_loses_nothing_against_itself(holdout: Path) -> None:
    quality, _ = _judge(holdout, "ndcg@10", ours="base")
    assert quality.loss == 0 and quality.loss_interval == (0, 0)


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
    opened, plain = list[int | None](), judging.open_replica

    def noted(file: Path, instance_group: InstanceGroup, lookup: Any, compute: str) -> Any:
        opened.append(instance_group.threads)
        return plain(file, instance_group, lookup, compute)

    monkeypatch.setattr(judging, "open_replica", noted)
    scores = replace(_asked(holdout), threads=threads)
    evaluate(EvaluateRequest(scores, "ndcg@10", 0, 0.95))
    assert opened == [threads, threads]
    assert evaluate(EvaluateRequest(replace(scores, threads=2), "ndcg@10", 0, 0.95)).reused and len(opened) == 2
