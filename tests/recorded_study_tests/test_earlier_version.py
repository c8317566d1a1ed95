"""Searches of the earlier version that are replayed on the recorded study."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from optuna.trial import FixedTrial

from search.front import hypervolume, unit_objectives
from tests.recorded_study_tests.earlier_version import BENCHMARK_SECONDS, LONG_SECONDS, EarlierVersion, Ended
from tests.recorded_study_tests.table import SPACE, RecordedStudy, Row, read_recorded_study

MAX_LOSS = 0.01


@pytest.fixture(scope="module")
def recorded() -> RecordedStudy:
    return read_recorded_study()


@pytest.fixture(scope="module", params=range(3))
def replay(recorded: RecordedStudy, request: pytest.FixtureRequest) -> EarlierVersion:
    search = EarlierVersion(recorded, int(request.param), ask_seconds=0.02)
    search.run(10)
    return search


def slower(row: Row, service_ratio: float, capacity_ratio: float) -> bool:
    found = row.simulated
    return found.service_p50_ratio > 1.25 * service_ratio and 1.25 * found.capacity_ratio < capacity_ratio


def dominates(one: Row, other: Row) -> bool:
    ours, theirs = ([r.p95_ratio, -r.throughput_ratio, max(0.0, r.loss)] for r in (one, other))
    return all(a <= b for a, b in zip(ours, theirs, strict=True)) and ours != theirs


def reason_to_stop(ended: Ended, before: list[Ended]) -> bool:
    """Return whether a candidate surely loses too much, or is slower than the baseline or one that loses no more."""
    rivals = [one.row for one in before if one.number > 0 and one.benchmarked and one.row.loss <= MAX_LOSS]
    kept = [row for row in rivals if row.loss <= max(ended.row.loss, 0.0)]
    return (
        ended.row.loss_interval[0] > MAX_LOSS
        or slower(ended.row, 1.0, 1.0)
        or any(slower(ended.row, r.simulated.service_p50_ratio, r.simulated.capacity_ratio) for r in kept)
    )


def test_candidates_are_stopped_by_their_loss_or_by_their_speed(replay: EarlierVersion) -> None:
    stopped = [(i, one) for i, one in enumerate(replay.ended) if not one.benchmarked]
    assert len(stopped) > 10 and any(one.quick_benchmarked for _, one in stopped)
    assert all(reason_to_stop(one, replay.ended[:i]) for i, one in stopped)
    benchmarked = [one for one in replay.ended if one.benchmarked and one.minutes is not None]
    assert not any(reason_to_stop(one, []) for one in benchmarked)


def test_it_has_about_as_many_trials_as_a_real_study_of_that_commit(replay: EarlierVersion) -> None:
    """The real study of ten minutes on the machine of the record had 54 trials, of which 12 were benchmarked."""
    assert 40 <= len(replay.ended) <= 70
    assert 10 <= sum(one.benchmarked for one in replay.ended) <= 24


def test_benchmarks_take_their_time(replay: EarlierVersion) -> None:
    """One begins after another, and a point that none before it dominates has a longer one too."""
    before, last, longer = [one.row for one in replay.ended if one.minutes is None and one.benchmarked], 0.0, 0
    for one in replay.ended:
        if one.minutes is None or not one.benchmarked:
            continue
        able = [row for row in before if row.loss <= MAX_LOSS]
        enters = one.row.loss <= MAX_LOSS and not any(dominates(row, one.row) for row in able)
        assert 60 * one.minutes - last >= BENCHMARK_SECONDS + LONG_SECONDS * enters - 1e-6
        before.append(one.row)
        last, longer = 60 * one.minutes, longer + enters
    assert longer > 2 and last <= 600


def test_no_candidate_is_tried_twice(replay: EarlierVersion) -> None:
    assert max(Counter(one.row.candidate.id for one in replay.ended).values()) == 1


def test_every_other_choice_takes_weights_of_the_front(replay: EarlierVersion) -> None:
    """Such a choice fixes some knobs: those of weights that were benchmarked within the limit of the loss."""
    trials = replay._study.get_trials(deepcopy=False)[len(SPACE.starts()) :]
    fixed = [t for t in trials if "fixed_params" in t.system_attrs]
    assert 10 <= len(fixed) <= len(trials) / 2 + 1
    assert all(np.diff([t.number for t in fixed]) >= 2)
    able = {one.row.candidate.weights.id: one.number for one in reversed(replay._able())}
    again = [SPACE.suggest(FixedTrial(dict(t.params))).weights.id for t in fixed if t.params]
    assert set(again) <= set(able)
    ways = Counter(one.row.candidate.weights.id for one in replay.ended)
    assert all(able[key] < t.number for key, t in zip(again, fixed, strict=True))
    assert max(ways[key] for key in again) >= 5


def test_the_hypervolume_is_that_of_the_feasible_points(replay: EarlierVersion) -> None:
    rows = [one.row for one in replay.ended if one.benchmarked and one.number > 0 and one.row.loss <= MAX_LOSS]
    points = [unit_objectives([r.p95_ratio], [r.throughput_ratio], [r.loss], MAX_LOSS)[0] for r in rows]
    assert replay.hypervolume(10) == pytest.approx(hypervolume(np.array(points)))
    assert replay.hypervolume(2) <= replay.hypervolume(5) <= replay.hypervolume(10)


def test_one_seed_gives_one_search(recorded: RecordedStudy) -> None:
    ids = []
    for seed in (1, 1, 2):
        search = EarlierVersion(recorded, seed)
        search.run(3)
        ids.append([one.row.candidate.id for one in search.ended])
    assert ids[0] == ids[1] != ids[2]
