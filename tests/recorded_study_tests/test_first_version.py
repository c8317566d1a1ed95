"""Searches of the first version that are replayed on the recorded study."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from search.front import hypervolume, unit_objectives
from tests.recorded_study_tests.first_version import Ended, FirstVersion
from tests.recorded_study_tests.table import RecordedStudy, Row, read_recorded_study

MAX_LOSS = 0.01


@pytest.fixture(scope="module")
def recorded() -> RecordedStudy:
    return read_recorded_study()


@pytest.fixture(scope="module", params=range(3))
def replay(recorded: RecordedStudy, request: pytest.FixtureRequest) -> FirstVersion:
    search = FirstVersion(recorded, int(request.param), ask_seconds=0.02)
    search.run(10)
    return search


def slower(row: Row, service_ratio: float, capacity_ratio: float) -> bool:
    found = row.simulated
    return found.service_p50_ratio > 1.25 * service_ratio and 1.25 * found.capacity_ratio < capacity_ratio


def reason_to_stop(ended: Ended, before: list[Ended]) -> bool:
    """Return whether a candidate surely loses too much, or is slower than the baseline or one that loses no more."""
    rivals = [one.row for one in before if one.number > 0 and one.benchmarked and one.row.loss <= MAX_LOSS]
    kept = [row for row in rivals if row.loss <= max(ended.row.loss, 0.0)]
    return (
        ended.row.loss_interval[0] > MAX_LOSS
        or slower(ended.row, 1.0, 1.0)
        or any(slower(ended.row, r.simulated.service_p50_ratio, r.simulated.capacity_ratio) for r in kept)
    )


def test_candidates_are_stopped_by_their_loss_or_at_a_glance(replay: FirstVersion) -> None:
    stopped = [(i, one) for i, one in enumerate(replay.ended) if not one.benchmarked]
    assert len(stopped) > 10
    assert all(one.judged and reason_to_stop(one, replay.ended[:i]) for i, one in stopped)


def test_it_has_about_as_many_trials_as_a_real_study_of_that_commit(replay: FirstVersion) -> None:
    """The real study of ten minutes on the machine of the record had 54 trials, of which 12 were benchmarked."""
    assert 40 <= len(replay.ended) <= 70
    assert 12 <= sum(one.benchmarked for one in replay.ended) <= 24


def test_benchmarks_take_their_time(replay: FirstVersion, recorded: RecordedStudy) -> None:
    """Each takes at least as long as a group of one, and one begins after another."""
    visit = sum(recorded.benchmark_seconds)
    ends = [60 * one.minutes for one in replay.ended if one.benchmarked and one.minutes is not None]
    assert all(np.diff([0.0, *ends]) >= visit)
    ended = [60 * one.minutes for one in replay.ended if one.minutes is not None]
    assert ended == sorted(ended) and ended[-1] <= 600


def test_no_candidate_is_tried_twice(replay: FirstVersion) -> None:
    assert max(Counter(one.row.candidate.id for one in replay.ended).values()) == 1


def test_every_other_choice_takes_weights_of_the_front(replay: FirstVersion) -> None:
    """Weights that are benchmarked and feasible are tried in several ways."""
    ways = Counter(one.row.candidate.weights.id for one in replay.ended)
    assert ways.most_common(1)[0][1] >= 6
    assert len(ways) > 10


def test_the_hypervolume_is_that_of_the_feasible_points(replay: FirstVersion) -> None:
    rows = [one.row for one in replay.ended if one.benchmarked and one.number > 0 and one.row.loss <= MAX_LOSS]
    points = [unit_objectives([r.p95_ratio], [r.throughput_ratio], [r.loss], MAX_LOSS)[0] for r in rows]
    assert replay.hypervolume(10) == pytest.approx(hypervolume(np.array(points)))
    assert replay.hypervolume(2) <= replay.hypervolume(5) <= replay.hypervolume(10)


def test_one_seed_gives_one_search(recorded: RecordedStudy) -> None:
    ids = []
    for seed in (1, 1, 2):
        search = FirstVersion(recorded, seed)
        search.run(3)
        ids.append([one.row.candidate.id for one in search.ended])
    assert ids[0] == ids[1] != ids[2]
