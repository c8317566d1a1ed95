"""Ranks against sorted lists, HR and NDCG against hand-worked numbers and scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from objectives.ranking_metrics import gains, is_ranking, ranks


def _places(scores: list[float], target: int, history: set[int]) -> list[int]:
    """All the places that the target may have in a list sorted by score, best first."""
    codes = [code for code in range(1, len(scores) + 1) if code == target or code not in history]
    ordered = sorted((scores[code - 1] for code in codes), reverse=True)
    return [place for place, score in enumerate(ordered, start=1) if score == scores[target - 1]]


@given(
    scores=st.lists(st.integers(0, 6), min_size=1, max_size=25),
    data=st.data(),
)
def test_a_rank_is_the_mean_of_the_places_that_ties_leave_open(scores: list[int], data: st.DataObject) -> None:
    codes = st.integers(1, len(scores))
    target, history = data.draw(codes), data.draw(st.lists(codes, max_size=10))
    padded = np.array([0, 0, *history], dtype=np.int64)
    arrays = np.array(scores, dtype=np.float32)
    (found,) = ranks(lambda row: arrays, np.array([target]), [padded])
    assert found == np.mean(_places([float(s) for s in scores], target, set(history)))


def test_each_row_has_its_own_scores_and_history() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.5, 0.9], [0.9, 0.5, 0.1]], dtype=np.float32)
    histories = np.array([[0, 0], [0, 0], [0, 1]])
    asked: list[int] = []

    def score(row: int) -> np.ndarray:
        asked.append(row)
        return scores[row]

    found = ranks(score, np.array([3, 3, 3]), histories)
    assert found.tolist() == [3, 1, 2], "the item that the third user has seen is out of the way"
    assert asked == [0, 1, 2]
    assert np.isfinite(scores).all(), "the scores are the caller's: nothing is written into them"


def test_ties_count_half() -> None:
    same = np.zeros(101, dtype=np.float32)
    assert ranks(lambda row: same, np.array([7]), [np.array([0])]).tolist() == [51]
    assert gains("hr@10", np.array([51.0])).tolist() == [0], "equal scores for all are no first rank"


def test_a_held_out_item_that_was_seen_before_stays_in() -> None:
    scores = np.array([0.1, 0.9, 0.5], dtype=np.float32)
    assert ranks(lambda row: scores, np.array([3]), [np.array([2, 3])]).tolist() == [1]


def test_gains_worked_by_hand() -> None:
    held = np.array([1.0, 2.0, 3.0, 7.0, 10.0, 10.5, 11.0])
    assert gains("hr@10", held).tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert gains("hr@1", held).tolist() == [1, 0, 0, 0, 0, 0, 0]
    by_hand = [1, 0.63092975, 0.5, 1 / 3, 0.28906483, 0, 0]
    assert gains("ndcg@10", held) == pytest.approx(by_hand)
    assert gains("ndcg@2", held) == pytest.approx([1, 0.63092975, 0, 0, 0, 0, 0])
    assert gains("ndcg@100", np.array([99.0])) == pytest.approx([1 / math.log2(100)])


@pytest.mark.parametrize("cut", [1, 5, 10, 60])
def test_ndcg_is_scikit_learns(cut: int) -> None:
    random = np.random.default_rng(cut)
    scores = random.normal(size=(200, 40))
    targets = random.integers(1, 41, 200)
    relevance = np.zeros((200, 40))
    relevance[np.arange(200), targets - 1] = 1
    found = ranks(lambda row: scores[row], targets, np.zeros((200, 1), dtype=np.int64))
    assert gains(f"ndcg@{cut}", found).mean() == pytest.approx(ndcg_score(relevance, scores, k=cut))


@pytest.mark.parametrize("name", ["hr@10", "ndcg@1", "ndcg@1000"])
def test_names_of_ranking_metrics(name: str) -> None:
    assert is_ranking(name)


@pytest.mark.parametrize(
    "name",
    [
        "auc",
        "ndcg",
        "ndcg@",
        "ndcg@0",
        "ndcg@-1",
        "ndcg@1.5",
        "NDCG@10",
        "mrr@10",
        "hr@10 ",
        "hr@٣",
        "hr@" + "9" * 5000,
    ],
)
def test_other_names_are_refused(name: str) -> None:
    assert not is_ranking(name)
    with pytest.raises(ValueError, match="hr@K or ndcg@K"):
        gains(name, np.ones(3))


@pytest.mark.parametrize(
    ("scores", "target", "history", "line"),
    [
        ([1, 2, 3], 0, [0], "item .*1 to 3, .*0"),
        ([1, 2, 3], 4, [0], "item .*1 to 3, .*4"),
        ([1, 2, 3], 1, [2, 4], "history .*0 to 3, .*2 to 4"),
        ([1, 2, 3], 1, [-1, 2], "history .*0 to 3, .*-1 to 2"),
        ([1, np.nan, np.inf], 1, [0], "Scores .*2 of 3"),
    ],
)
def test_what_has_no_rank_is_refused(scores: list[float], target: int, history: list[int], line: str) -> None:
    given_scores = np.array(scores, dtype=np.float32)
    with pytest.raises(ValueError, match=line):
        ranks(lambda row: given_scores, np.array([target]), [np.array(history)])


def test_a_history_is_needed_for_each_target() -> None:
    with pytest.raises(ValueError, match=r"history .*1 for 2"):
        ranks(lambda row: np.ones(3, dtype=np.float32), np.array([1, 2]), [np.array([0])])


def test_an_empty_history_leaves_nothing_out() -> None:
    empty = np.array([], dtype=np.int64)
    assert ranks(lambda row: np.arange(3.0), np.array([1]), [empty]).tolist() == [3]
