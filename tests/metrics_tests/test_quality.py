"""Paired losses against scikit-learn, a bootstrap that copies rows one by one, and simulated coverage; by slice too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from objectives.measurement.metrics import paired_loss
from objectives.measurement.metrics.paired_loss import UndefinedLossError
from objectives.measurement.statistics import group_auc, group_weights, weighted_mean
from objectives.records import NotFiniteError, Quality, SliceQuality
from spaces.serialization import from_plain, to_plain
from tests.metrics_tests.arrays import paired_quality, paired_ranking

Rows = NDArray[np.int64]
Auc = Callable[[np.ndarray, np.ndarray], float]
# Of a table's rows, and the user whom each belongs to in it.
Score = Callable[[Rows, Rows], float]


def _pairs_won(labels: np.ndarray, scores: np.ndarray) -> float:
    """The AUC by its meaning: the share of pairs of a positive and a negative in the right order."""
    ahead = scores[labels == 1][:, None] - scores[labels == 0]
    return float(np.mean((ahead > 0) + (ahead == 0) / 2))


def _gauc(scores: np.ndarray, labels: np.ndarray, groups: Rows, auc: Auc = _pairs_won) -> float:
    """GAUC by its definition, user by user."""
    told = [(np.sum(groups == g), labels[groups == g], scores[groups == g]) for g in np.unique(groups)]
    both = [(rows, auc(y, s)) for rows, y, s in told if 0 < y.sum() < rows]
    return float(sum(rows * own for rows, own in both) / sum(rows for rows, _ in both))


def _draw(seed: int, users: int, better: float = 1.0) -> tuple[np.ndarray, ...]:
    """Scores of two models, labels, and users of 2 to 14 rows whose own levels differ."""
    random = np.random.default_rng(seed)
    groups = np.repeat(random.permutation(users), random.integers(2, 15, users))
    level = random.normal(size=users)[groups]
    truth = random.normal(size=len(groups))
    labels = (level + truth + random.normal(size=len(groups)) > 0).astype(np.float32)
    noise = random.normal(size=(2, len(groups)))
    ours, theirs = (level + truth + better * noise[0]).astype(np.float32), (level + truth + noise[1]).astype(np.float32)
    return ours, theirs, labels, groups


def _draw_ranks(seed: int, users: int, better: float = 1.0) -> tuple[np.ndarray, ...]:
    """Ranks by two models of each user's 1 to 4 held-out items, whose difficulty they share."""
    random = np.random.default_rng(seed)
    groups = np.repeat(np.arange(users), random.integers(1, 5, users))
    hard = random.normal(size=users)[groups]
    ours, theirs = (1 + np.floor(np.exp(2 + hard + random.normal(size=len(groups)))) for _ in range(2))
    return np.maximum(1, np.floor(ours * better)), theirs, groups


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([1, 2, 5, 1000]))
@settings(max_examples=30)
def test_the_auc_of_groups_is_scikit_learns(seed: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    groups, labels = random.integers(-3, 9, 70), random.integers(0, 2, 70).astype(float)
    scores = random.integers(0, levels, 70).astype(float)
    found = group_auc(scores, labels, groups)
    for group in np.unique(groups):
        own = groups == group
        if labels[own].min() == labels[own].max():
            assert np.isnan(found[own]).all()
        else:
            assert np.allclose(found[own], roc_auc_score(labels[own], scores[own]))


def test_a_weighted_mean_leaves_out_what_is_not_a_number() -> None:
    weights = np.array([[1.0, 1, 1], [3, 5, 0], [0, 2, 0]])
    found = weighted_mean(np.array([2.0, np.nan, 4.0]), weights.T)
    assert found[:2].tolist() == [3, 2] and np.isnan(found[2])


def test_gauc_is_the_mean_of_scikit_learns_auc_by_user() -> None:
    ours, theirs, labels, groups = _draw(3, 60)
    quality = paired_quality("gauc", ours, theirs, labels, groups, 0)
    assert quality.value == pytest.approx(_gauc(ours, labels, groups, roc_auc_score))
    assert quality.baseline == pytest.approx(_gauc(theirs, labels, groups, roc_auc_score))
    assert quality.loss == pytest.approx(1 - quality.value / quality.baseline)
    assert (quality.metric, quality.rows, quality.groups) == ("gauc", len(groups), 60)
    assert quality.value < paired_quality("auc", ours, theirs, labels, groups, 0).value, "levels of users are no merit"


def test_gauc_does_not_see_what_is_added_to_all_scores_of_a_user() -> None:
    ours, theirs, labels, groups = _draw(4, 40)
    whole = np.rint(10 * ours)
    moved = whole + 1000 * (groups % 7)
    plain, shifted = (paired_quality("gauc", scores, theirs, labels, groups, 0) for scores in (whole, moved))
    assert shifted == plain
    assert paired_quality("auc", moved, theirs, labels, groups, 0).value < plain.value, "which the AUC of all rows does"


def test_a_ranking_is_the_mean_over_rows() -> None:
    ours, theirs = np.array([1.0, 3.0, 20.0, 2.0]), np.array([1.0, 1.0, 5.0, 30.0])
    hits = paired_ranking("hr@10", ours, theirs, np.array([0, 0, 1, 2]), 0)
    assert (hits.value, hits.baseline, hits.loss) == (0.75, 0.75, 0)
    assert (hits.metric, hits.rows, hits.groups, hits.confidence) == ("hr@10", 4, 3, 0.95)
    gain = paired_ranking("ndcg@10", ours, theirs, np.array([0, 0, 1, 2]), 0)
    assert gain.value == pytest.approx((1 + 0.5 + 0 + 0.63092975) / 4)
    assert gain.baseline == pytest.approx((1 + 1 + 0.38685281 + 0) / 4)
    assert gain.loss == pytest.approx(1 - 2.13092975 / 2.38685281)


def _by_copies(metric: Score, weights: np.ndarray, groups: Rows, kept: np.ndarray) -> np.ndarray:
    """The metric of each resample, made as a table: the rows of a user drawn twice are there twice, as two users'."""
    found = []
    for drawn in weights.T:
        copies = [np.flatnonzero(kept & (drawn > number)) for number in range(int(drawn.max()))]
        owners = [groups[rows] + 1000 * number for number, rows in enumerate(copies)]
        found.append(metric(np.concatenate(copies), np.concatenate(owners)))
    return np.array(found)


def _judge(metric: str, seed: int) -> tuple[Callable[..., Quality], list[Score], Rows]:
    """Run the function under test; also return both arms as scikit-learn or the definition has them, and the users."""
    if metric == "ndcg@10":
        ours, theirs, groups = _draw_ranks(seed, 25, 1.3)
        worth = [np.array([1 / np.log2(1 + rank) if rank <= 10 else 0 for rank in ranks]) for ranks in (ours, theirs)]
        return (
            partial(paired_ranking, metric, ours, theirs, groups),
            [lambda rows, users, side=side: float(side[rows].mean()) for side in worth],
            groups,
        )
    ours, theirs, labels, groups = _draw(seed, 25, 2.0)
    oracle = _gauc if metric == "gauc" else lambda scores, truth, users: float(roc_auc_score(truth, scores))
    return (
        partial(paired_quality, metric, ours, theirs, labels, groups),
        [lambda rows, users, side=side: oracle(side[rows], labels[rows], users) for side in (ours, theirs)],
        groups,
    )


@pytest.mark.parametrize("metric", ["auc", "gauc", "ndcg@10"])
def test_intervals_are_those_of_a_bootstrap_that_copies_rows(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both bootstraps draw the same users.

    For the oracle, each resample is written out and scored by another library. A slice has its rows of each resample.
    """
    monkeypatch.setattr(paired_loss, "group_weights", lambda groups, seed, _: group_weights(groups, seed, 40))
    paired, metrics, groups = _judge(metric, seed=5)
    part = groups % 3 > 0
    quality = paired(seed=7, confidence=0.9, slices={"part": part})
    (weights,) = group_weights(groups, 7, resamples=40)
    for found, kept in ((quality, np.ones(len(groups), dtype=bool)), (quality.slices[0], part)):
        mine, base = (_by_copies(side, weights, groups, kept) for side in metrics)
        drawn = sorted((base - mine) / base)
        assert found.loss_interval == pytest.approx((drawn[1], drawn[37])), "ranks 2 and 38 of 40: 5% and 95%"


@pytest.mark.parametrize("metric", ["auc", "gauc", "ndcg@10"])
def test_a_slice_is_judged_on_its_rows_alone(metric: str) -> None:
    paired, (ours, theirs), groups = _judge(metric, seed=11)
    slices = {"two thirds": groups % 3 > 0, "one": groups % 3 == 0, "all": groups >= 0}
    quality = paired(seed=0, slices=slices)
    assert [part.name for part in quality.slices] == list(slices)
    for part in quality.slices:
        rows = np.flatnonzero(slices[part.name])
        assert (part.rows, part.groups, part.reason) == (len(rows), len(set(groups[rows])), None)
        assert part.value == pytest.approx(ours(rows, groups[rows]))
        assert part.baseline == pytest.approx(theirs(rows, groups[rows]))
        assert part.loss == pytest.approx(1 - ours(rows, groups[rows]) / theirs(rows, groups[rows]))
    whole = quality.slices[-1]
    assert (whole.value, whole.loss, whole.loss_interval) == (quality.value, quality.loss, quality.loss_interval)
    assert paired(seed=0) == Quality(**{**vars(quality), "slices": ()}), "slices change nothing of the whole"


def test_a_loss_in_one_slice_only_is_seen_there_only() -> None:
    _, theirs, groups = _draw_ranks(2, 800)
    rare = np.random.default_rng(0).random(len(groups)) < 0.25
    quality = paired_ranking(
        "hr@10", np.where(rare, 3 * theirs, theirs), theirs, groups, 0, slices={"rare": rare, "others": ~rare}
    )
    worse, same = quality.slices
    assert worse.loss_interval is not None and worse.loss_interval[0] > 0.1
    assert (same.loss, same.loss_interval) == (0, (0, 0))


@pytest.mark.parametrize("metric", ["gauc", "ndcg@10"])
def test_intervals_cover_as_often_as_they_say(metric: str) -> None:
    """Two models of equal true quality: about 190 of 200 intervals hold zero, of all rows and of a slice."""
    held = np.zeros(2)
    for seed in range(200):
        arrays = _draw_ranks(seed, 150) if metric == "ndcg@10" else _draw(seed, 80)
        slices = {"half": np.random.default_rng(seed).random(len(arrays[-1])) < 0.5}
        quality = (paired_ranking if metric == "ndcg@10" else paired_quality)(metric, *arrays, seed, slices=slices)
        intervals = [quality.loss_interval, quality.slices[0].loss_interval]
        held += [low <= 0 <= high for low, high in intervals]
    assert (held >= 181).all() and (held <= 197).all()


def test_the_same_model_loses_nothing_exactly() -> None:
    ours, _, labels, groups = _draw(0, 50)
    held, _, owners = _draw_ranks(0, 50)
    for quality in (
        paired_quality("gauc", ours, ours, labels, groups, 0),
        paired_ranking("ndcg@10", held, held, owners, 0),
    ):
        assert (quality.loss, quality.loss_interval) == (0, (0, 0))


def test_a_slice_that_cannot_tell_says_why() -> None:
    ours, theirs, labels, groups = _draw(1, 40)
    slices = {
        "nobody": np.zeros(len(groups), dtype=bool),
        "one user": groups == 3,
        "clicked": labels == 1,
        "two opposite users": np.zeros(len(groups), dtype=bool),
        "all": groups >= 0,
    }
    first = [np.flatnonzero((labels == label) & (groups == group))[0] for label, group in _opposite(labels, groups)]
    slices["two opposite users"][first] = True
    parts = {part.name: part for part in paired_quality("auc", ours, theirs, labels, groups, 0, slices=slices).slices}
    assert re.search(r"groups.* 0\.", str(parts["nobody"].reason))
    assert re.search(r"groups.* 1\.", str(parts["one user"].reason))
    clicked = int(labels.sum())
    assert re.search(f"Labels.* 1 .*{clicked} rows", str(parts["clicked"].reason))
    assert (parts["clicked"].rows, parts["clicked"].groups) == (clicked, len(set(groups[labels == 1])))
    assert re.search(r"5% .*resamples .*\d%", str(parts["two opposite users"].reason))
    for part in parts.values():
        assert (part.value is None) == (part.loss_interval is None) == (part.reason is not None)
    assert parts["all"].reason is None


def _opposite(labels: np.ndarray, groups: np.ndarray) -> list[tuple[int, int]]:
    clicked = int(groups[labels == 1][0])
    return [(1, clicked), (0, int(groups[(labels == 0) & (groups != clicked)][0]))]


def test_gauc_needs_two_users_with_both_classes() -> None:
    labels, groups = np.array([0, 1, 1, 1, 0, 0], dtype=np.float32), np.array([1, 1, 2, 2, 3, 3])
    scores = np.arange(6, dtype=np.float32)
    with pytest.raises(UndefinedLossError, match=r"groups.* 1"):
        paired_quality("gauc", scores, scores, labels, groups, 0)


def test_a_baseline_that_ranks_nothing_high_has_no_relative_loss() -> None:
    good, bad = np.full(40, 2.0), np.full(40, 50.0)
    with pytest.raises(UndefinedLossError, match=r"metric .*baseline .*0"):
        paired_ranking("ndcg@10", good, bad, np.arange(40), 0)
    bad[0] = 1
    with pytest.raises(UndefinedLossError, match=r"5% .*resamples.* 3\d%"):
        paired_ranking("ndcg@10", good, bad, np.arange(40), 0)  # the one hit is drawn in 1 - 1/e of the resamples


@pytest.mark.parametrize("name", ["", "AUC", "ndcg", "hr@0", "logloss", "ndcg@10"])
def test_what_is_no_metric_of_scores_is_refused_with_those_known(name: str) -> None:
    with pytest.raises(ValueError, match=rf"auc or gauc, .*'{name}'"):
        paired_quality(name, *_draw(1, 30), 0)


@pytest.mark.parametrize("name", ["", "AUC", "ndcg", "hr@0", "logloss", "auc"])
def test_what_is_no_metric_of_ranks_is_refused_with_those_known(name: str) -> None:
    with pytest.raises(ValueError, match=rf"hr@K or ndcg@K .*'{name}'"):
        paired_ranking(name, np.ones(3), np.ones(3), np.arange(3), 0)


def test_scores_and_labels_that_cannot_be_judged_are_refused() -> None:
    ours, theirs, labels, groups = _draw(1, 30)
    with pytest.raises(ValueError, match=f"rows.*{len(ours) - 1}"):
        paired_quality("auc", ours[1:], theirs, labels, groups, 0)
    broken = np.where(groups == 3, np.inf, theirs)
    with pytest.raises(ValueError, match=f"Scores .*{np.isinf(broken).sum()} .*baseline"):
        paired_quality("auc", ours, broken, labels, groups, 0)
    with pytest.raises(ValueError, match=r"Labels .*4"):
        paired_quality("auc", ours, theirs, 4 * labels, groups, 0)
    with pytest.raises(UndefinedLossError, match=f"Labels .*0 .*{len(labels)}"):
        paired_quality("auc", ours, theirs, 0 * labels, groups, 0)
    with pytest.raises(UndefinedLossError, match=r"groups.* 1"):
        paired_quality("auc", ours, theirs, labels, 0 * groups, 0)


@pytest.mark.parametrize("rank", [0.5, 0, -1, np.nan, np.inf])
def test_what_is_no_rank_is_refused(rank: float) -> None:
    with pytest.raises(ValueError, match=f"Ranks .*candidate .*{rank:g}"):
        paired_ranking("hr@10", np.array([1, rank, 2]), np.ones(3), np.arange(3), 0)
    with pytest.raises(ValueError, match=f"Ranks .*baseline .*{rank:g}"):
        paired_ranking("hr@10", np.ones(3), np.array([1, rank, 2]), np.arange(3), 0)


def test_ranks_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rows.*\[3, 2, 3, 3\]"):
        paired_ranking("hr@10", np.ones(3), np.ones(2), np.arange(3), 0)


@pytest.mark.parametrize("mask", [np.ones(2, dtype=bool), np.ones((3, 1), dtype=bool), np.arange(3), np.ones(3)])
def test_a_slice_that_is_no_mask_of_the_rows_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"'odd' .*3 rows"):
        paired_ranking("hr@10", np.ones(3), np.ones(3), np.arange(3), 0, slices={"odd": mask})


def test_a_quality_with_slices_survives_json() -> None:
    ours, theirs, labels, groups = _draw(1, 40)
    slices = {"even": groups % 2 == 0, "nobody": groups < 0}
    quality = paired_quality("gauc", ours, theirs, labels, groups, 0, slices=slices)
    back = from_plain(Quality, json.loads(json.dumps(to_plain(quality))))
    assert back == quality
    assert isinstance(back.slices[0], SliceQuality) and back.slices[1].reason is not None
    written_before = {key: value for key, value in to_plain(quality).items() if key != "slices"}
    assert from_plain(Quality, written_before).slices == ()


def test_a_slice_has_its_numbers_or_a_reason() -> None:
    numbers: dict[str, Any] = {"value": 0.5, "baseline": 0.5, "loss": 0.0, "loss_interval": (0.0, 0.0)}
    for wrong in ({}, {"value": 0.5, "reason": "too few"}, {**numbers, "reason": "too few"}):
        with pytest.raises(ValueError, match="reason"):
            SliceQuality("half", 10, 5, **wrong)
    with pytest.raises(NotFiniteError, match=r"SliceQuality\.loss_interval .*inf"):
        SliceQuality("half", 10, 5, 0.5, 0.5, 0.0, (0.0, float("inf")))
