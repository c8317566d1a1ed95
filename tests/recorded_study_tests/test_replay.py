"""The recorded study, and searches that are replayed on it."""

from __future__ import annotations

from collections import Counter
from typing import Any, get_args

import numpy as np
import pytest
from optuna.trial import TrialState

from search.config.sections import SamplerName
from search.samplers.drawn import Drawn
from search.samplers.expected_gain import Evidence, ExpectedGainSampler
from search.trials import EndedTrial
from tests.recorded_study_tests.replay import Replay
from tests.recorded_study_tests.table import SPACE, RecordedStudy, candidates_of, read_recorded_study
from tests.search_tests.measurements import in_memory


@pytest.fixture(scope="module")
def recorded() -> RecordedStudy:
    return read_recorded_study()


def searched(recorded: RecordedStudy, sampler: SamplerName, seed: int, minutes: float) -> Replay:
    replay = Replay(recorded, sampler, seed, in_memory())
    replay.run(minutes)
    return replay


def test_every_candidate_of_the_space_is_recorded(recorded: RecordedStudy) -> None:
    """The record has every combination of weights, widths and placements.

    There are the baseline and students of 2, 3 and 4 sizes, in 2 widths of 3 groups. Each has 2 engines, with 2 layouts
    of one replica that may be inline, and one of two.
    """
    ids = [candidate.id for _, candidate in candidates_of(SPACE)]
    assert len(ids) == len(set(ids)) == (1 + 2 * 3 * 4) * 2**3 * 2 * (2 * 2 + 1)
    assert set(ids) == set(recorded.rows)


def test_the_table_holds_losses_costs_and_seconds(recorded: RecordedStudy) -> None:
    rows = recorded.rows.values()
    baseline = next(row for row in rows if row.candidate.is_baseline)
    assert baseline.loss == 0 and baseline.simulated.p95_ratio == pytest.approx(1, rel=0.2), "it is simulated as any"
    assert all(low <= row.loss <= high for row in rows for low, high in [row.loss_interval])
    assert all(row.p95_ratio > 0 and row.throughput_ratio > 0 for row in rows)
    assert min(row.cost_seconds[1] for row in rows) > 0
    assert sum(row.benchmarked for row in rows) >= 40
    of_weights = {(row.candidate.weights.id, row.build_seconds[0]) for row in rows}
    assert len(of_weights) == 25, "a training is shared by all widths and placements"


@pytest.mark.parametrize("sampler", get_args(SamplerName))
def test_a_trial_has_the_numbers_of_its_row(recorded: RecordedStudy, sampler: SamplerName) -> None:
    replay = Replay(recorded, sampler, 0, in_memory(), ask_seconds=1.0)
    replay.run(2)
    assert any(trial.measurement is not None for trial in replay.ended if trial.number > 0)
    for trial in replay.ended:
        row = recorded.rows[trial.candidate.id]
        if trial.outcome.simulated is not None:
            assert trial.outcome.simulated == row.simulated
        if (quality := trial.outcome.evaluated) is not None:
            assert quality.loss == row.loss
        if (measured := trial.measurement) is not None:
            assert (measured.latency.p95_ratio, measured.throughput.ratio) == (row.p95_ratio, row.throughput_ratio)


def test_jobs_take_their_time(recorded: RecordedStudy) -> None:
    """One meter does one job after another, and so do two builders, which stand still while it measures time."""
    replay = searched(recorded, "random", 0, 4)
    seconds, ended = Counter[str](), replay.ended[replay.dry_trials :]
    for trial in ended:
        seconds.update(trial.outcome.seconds)
    last = 60 * max(trial.minutes or 0.0 for trial in ended)
    assert seconds["time"] <= last + 1e-6
    assert seconds["fit"] + seconds["export"] + seconds["judge"] <= 2 * (last - seconds["time"]) + 1e-6
    assert last > 3 * 60


def test_one_seed_gives_one_search(recorded: RecordedStudy) -> None:
    first, again, other = (searched(recorded, "auto", seed, 3) for seed in (1, 1, 2))
    ids = [[trial.candidate.id for trial in replay.ended] for replay in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert [t.minutes for t in first.ended] == [t.minutes for t in again.ended]


class InterruptedSearchError(Exception):
    """The end of a search at an instant that it does not choose."""


class Last(list[EndedTrial]):
    """Trials that end, the last of which ends the search."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def append(self, trial: EndedTrial) -> None:
        super().append(trial)
        if len(self) == self._count:
            raise InterruptedSearchError


def test_an_interrupted_search_goes_on(recorded: RecordedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials are those of a whole search; those under way are asked for first; nothing is measured twice."""
    whole, storage = searched(recorded, "auto", 3, 4), in_memory()
    begun = Replay(recorded, "auto", 3, storage)
    begun.ended = Last(15)
    with pytest.raises(InterruptedSearchError):
        begun.run(4)
    assert [(t.number, t.candidate.id) for t in begun.ended] == [
        (t.number, t.candidate.id) for t in whole.ended[: len(begun.ended)]
    ]
    under_way = {trial.number for trial in begun.study._study.get_trials() if trial.state == TrialState.WAITING}
    resumed, asked = Replay(recorded, "auto", 3, storage, before=begun), list[int]()
    ask = resumed.study.ask

    def noted(*arguments: Any) -> Any:
        trial, candidate = ask(*arguments)
        asked.append(trial.number)
        return trial, candidate

    monkeypatch.setattr(resumed.study, "ask", noted)
    resumed.run(4)
    choices = [[t.user_attrs["candidate"] for t in of.study._study.get_trials()] for of in (whole, resumed)]
    assert under_way and choices[0][: max(under_way)] == choices[1][: max(under_way)]
    assert asked[: len(under_way)] == sorted(under_way)
    measured = [trial.candidate.id for trial in resumed.study.measured_trials()]
    assert len(measured) == len(set(measured)) > len([t for t in begun.ended if t.measurement is not None])
    assert resumed.study.facts["search_seconds"] >= 200


def test_proposals_know_the_seconds_that_are_left(recorded: RecordedStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, told = Replay(recorded, "auto", 0, in_memory()), list[tuple[float, float]]()
    propose = ExpectedGainSampler.propose

    def noted(sampler: ExpectedGainSampler, evidence: Evidence, number: int) -> Drawn:
        told.append((replay._clock.now(), evidence.left))
        return propose(sampler, evidence, number)

    monkeypatch.setattr(ExpectedGainSampler, "propose", noted)
    replay.run(2)
    (begin, whole), *_ = [(at, left) for at, left in told if left < np.inf]
    left = [seconds for at, seconds in told if at >= begin]
    assert 60 < whole <= 120 and len(left) > 5
    np.testing.assert_allclose(left, [whole - (at - begin) for at, _ in told if at >= begin])


def test_visits_that_err_are_judged_by_what_is_recorded(recorded: RecordedStudy) -> None:
    """Errors of visits lead a search to a front whose recorded ratios are not those that it measured."""
    replay = Replay(recorded, "auto", 0, in_memory(), noise=0.5)
    replay.run(2.0)
    errors = []
    for trial in replay.ended:
        if (measured := trial.measurement) is not None:
            row, interval = recorded.rows[trial.candidate.id], measured.latency.p95_ratio_interval
            errors.append(np.log(measured.latency.p95_ratio / row.p95_ratio))
            assert np.log(interval[1] / interval[0]) == pytest.approx(2 * 1.96 * 0.5)
    assert len(errors) > 5 and 0.2 < np.std(errors) < 1.0
    assert replay.recorded_hypervolume(2.0) != pytest.approx(replay.hypervolume(2.0), rel=0.01)
    exact = searched(recorded, "auto", 0, 2.0)
    assert exact.recorded_hypervolume(2.0) == pytest.approx(exact.hypervolume(2.0), abs=0.02)
