"""State of a shadowing, its file, and the numbers that follow from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from objectives.errors import InputError
from objectives.shadow.batch_means import BATCHES, mean_interval
from objectives.shadow.score_differences import ScoreDifferences
from objectives.shadow.state import NEWEST, WINDOW_REQUESTS, Counts, ShadowState, read_state, write_state
from objectives.shadow.state_files import OwnFile, read_states
from objectives.shadow.summary import summarize

# Requests up to the first interval, where windows are as short as they can be.
FIRST = BATCHES * WINDOW_REQUESTS


def shadowed(champion_ms: np.ndarray, challenger_ms: np.ndarray, window_seconds: float = 0.0) -> ShadowState:
    """A request a second."""
    state = ShadowState("a", "b")
    for pair in zip(champion_ms.tolist(), challenger_ms.tolist(), strict=True):
        state = replace(state.compared(state.differences), seconds=state.seconds + 1).timed(*pair, window_seconds)
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
    times = np.arange(1.0, NEWEST + 51)
    state = shadowed(times, 2 * times)
    assert state.counts == Counts(shadowed=NEWEST + 50)
    assert state.champion_ms == tuple(times[-NEWEST:]) and state.challenger_ms == tuple(2 * times[-NEWEST:])


@pytest.mark.parametrize(("seconds", "requests"), [(0.0, WINDOW_REQUESTS), (100.0, 100), (100.5, 101)])
def test_a_window_has_enough_requests_and_lasts_long_enough(seconds: float, requests: int) -> None:
    ours, theirs = np.random.default_rng(0).lognormal(size=(2, 5 * requests + 3))
    state = shadowed(theirs, ours, seconds)
    windows = [slice(start, start + requests) for start in range(0, 5 * requests, requests)]
    p95 = [[np.sort(one[window])[int(np.ceil(0.95 * requests)) - 1] for window in windows] for one in (ours, theirs)]
    assert np.exp(state.log_p95_ratios.means) == pytest.approx(np.array(p95[0]) / p95[1])
    assert state.window_requests == 3 and state.window_start == 5 * requests


def test_a_challenger_that_is_three_times_slower_has_that_ratio() -> None:
    times = np.random.default_rng(1).lognormal(size=FIRST)
    found = summarize(shadowed(times, 3 * times))
    assert found.p95_ratio == pytest.approx(3) and found.p95_ratio_interval == pytest.approx((3, 3))
    assert found.champion_ms.p95 == np.sort(times)[int(np.ceil(0.95 * FIRST)) - 1]


def test_numbers_of_too_few_requests_are_not_known() -> None:
    none, few = summarize(ShadowState("a", "b")), summarize(shadowed(np.ones(100), np.ones(100)))
    early, first = (summarize(shadowed(np.ones(count), np.ones(count))) for count in (FIRST - 1, FIRST))
    assert (early.p95_ratio, early.windows) == (None, BATCHES - 1)
    assert (first.p95_ratio_interval, first.windows) == ((1, 1), BATCHES)
    assert none.champion_ms.p50 is none.mean_difference is none.rank_agreement is None
    assert few.champion_ms.p50 == 1 and few.champion_ms.p95 is few.p95_ratio is few.p95_ratio_interval is None


def test_states_of_several_servers_are_summed_up_together() -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(3, 30))
    parts = []
    for server in range(2):
        state = shadowed(*rng.lognormal(size=(2, FIRST)))
        differences = ScoreDifferences().with_request(scores[2], scores[server])
        counts = Counts(shadowed=FIRST, failed=server)
        parts.append(replace(state, seconds=10.0 * server, differences=differences, counts=counts))
    found = summarize(*parts)
    assert found.counts == Counts(shadowed=2 * FIRST, failed=1) and found.seconds == 10.0
    both = ScoreDifferences().with_request(scores[2], scores[0]).with_request(scores[2], scores[1])
    assert found.mean_difference == pytest.approx(both.mean_difference)
    assert (found.timed_requests, found.windows) == (2 * FIRST, 2 * BATCHES)
    together = mean_interval([state.log_p95_ratios for state in parts])
    assert together is not None and found.p95_ratio_interval == pytest.approx(tuple(np.exp(together[1])))
    assert found.champion_ms.p50 == np.sort([time for state in parts for time in state.champion_ms])[FIRST - 1]


def test_each_server_has_a_file_of_its_own_and_a_restart_the_same_one(tmp_path: Path) -> None:
    folder = tmp_path / "states"
    assert read_states(folder) == ()
    first, second = OwnFile.claim(folder), OwnFile.claim(folder)
    assert first.path.parent == second.path.parent == folder and first.path != second.path
    for server, own in enumerate((first, second)):
        write_state(ShadowState("a", f"b{server}"), own.path)
    assert [state.challenger for state in read_states(folder)] == ["b0", "b1"]
    first.close()
    again = OwnFile.claim(folder)
    assert again.path == first.path, "the first one that is free"
    second.close()
    again.close()


def test_counts_add_by_kind() -> None:
    both = Counts(1, 2, 3, 4, 5, 6) + Counts(10, 20, 30, 40, 50, 60)
    assert both == Counts(11, 22, 33, 44, 55, 66) and both.not_compared == 22 + 33 + 44
