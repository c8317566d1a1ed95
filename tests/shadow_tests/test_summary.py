"""State of a shadowing, its file, and the numbers that follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objectives.errors import InputError
from objectives.shadow.score_differences import ScoreDifferences
from objectives.shadow.state import WINDOW, Counts, ShadowState, read_state, write_state
from objectives.shadow.summary import summarize


def shadowed(champion_ms: np.ndarray, challenger_ms: np.ndarray) -> ShadowState:
    state = ShadowState("a", "b")
    for pair in zip(champion_ms.tolist(), challenger_ms.tolist(), strict=True):
        state = state.compared(state.differences, pair)
    return state


def test_a_state_survives_its_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    state = shadowed(rng.random(40), rng.random(40)).counted(Counts(failed=2, refused=1), "it hung")
    state = replace(state, differences=ScoreDifferences().with_request(rng.random((30, 2)), rng.random((30, 2))))
    file = tmp_path / "deep" / "state.json"
    assert read_state(file) is None
    write_state(state, file)
    assert read_state(file) == state and [path.name for path in file.parent.iterdir()] == ["state.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"champion": "a"}', '{"champion": "a", "challenger": "b", "x": 1}'])
def test_a_file_that_is_no_state_is_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text(text)
    with pytest.raises(InputError, match=r"state.json: must be the state of a shadowing"):
        read_state(tmp_path / "state.json")


def test_only_the_newest_times_are_kept() -> None:
    times = np.arange(float(WINDOW + 50))
    state = shadowed(times, 2 * times)
    assert state.counts == Counts(shadowed=WINDOW + 50)
    assert state.champion_ms == tuple(times[-WINDOW:]) and state.challenger_ms == tuple(2 * times[-WINDOW:])


def test_a_challenger_that_is_three_times_slower_has_that_ratio() -> None:
    times = np.random.default_rng(1).lognormal(size=1000)
    found = summarize(shadowed(times, 3 * times))
    assert found.p95_ratio == pytest.approx(3) and found.p95_ratio_interval == pytest.approx((3, 3))
    assert found.champion_ms.p95 == np.sort(times)[949] and found.challenger_ms.p99 == 3 * np.sort(times)[989]


def test_a_challenger_as_fast_as_the_champion_has_1_in_its_interval() -> None:
    """A few of 40 intervals at 95% confidence miss it."""
    rng = np.random.default_rng(2)
    found = [summarize(shadowed(*rng.lognormal(size=(2, 500)))).p95_ratio_interval for _ in range(40)]
    assert sum(one is not None and one[0] <= 1 <= one[1] for one in found) >= 34


def test_numbers_of_too_few_requests_are_not_known() -> None:
    none, few = summarize(ShadowState("a", "b")), summarize(shadowed(np.ones(100), np.ones(100)))
    assert summarize(shadowed(np.ones(499), np.ones(499))).p95_ratio is None
    assert summarize(shadowed(np.ones(500), np.ones(500))).p95_ratio_interval == (1, 1)
    assert none.champion_ms.p50 is none.mean_difference is none.rank_agreement is None
    assert few.champion_ms.p50 == 1 and few.champion_ms.p95 is few.p95_ratio is few.p95_ratio_interval is None


def test_counts_add_by_kind() -> None:
    assert Counts(1, 2, 3, 4, 5) + Counts(10, 20, 30, 40, 50) == Counts(11, 22, 33, 44, 55)
