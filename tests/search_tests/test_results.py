"""The front of a study whose trials' outcomes are given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from objectives.records import Outcome
from search.config.loss_limits import Limits
from search.config.study_file import load
from search.report.data import hypervolume_curves
from search.results import Front
from search.study import Study
from search.study_front import study_front
from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.search_tests.measurements import complete_outcome, in_memory, small_space


def told(outcomes: list[Outcome], **facts: Any) -> Front:
    """The front of a study with these trials, the baseline first."""
    config = load("ml-100k")
    study = Study("s", in_memory(), config.objectives, Limits(0.01), 0)
    for outcome in outcomes:
        trial, _ = study.ask(small_space())
        study.tell(trial.number, outcome, 0.0)
    study.note(**facts)
    return study_front(config, study)


@pytest.mark.parametrize(("resolution", "front"), [(0.0028, [1]), (0.0005, [1, 2])])
def test_losses_closer_than_the_resolution_count_as_equal(resolution: float, front: list[int]) -> None:
    """Trial 2 is twice as slow for 0.1% of AUC; 3 is slower still for a gain, which is no more than no loss."""
    outcomes = [
        complete_outcome(1.0, 1.0, 0.0),
        complete_outcome(0.2, 5.0, 0.0010),
        complete_outcome(0.4, 2.5, 0.0),
        complete_outcome(0.6, 2.0, -0.004),
    ]
    members = told(outcomes, resolution=resolution).members
    assert [point.trial for point in members] == front


def test_the_minutes_of_the_dry_run_are_none_of_the_searchs() -> None:
    """The dry run has a clock of its own, so its trials are there from the start; the curve ends with the search."""
    config = load("ml-100k")
    study = Study("s", in_memory(), config.objectives, Limits(0.01), 0)
    for p95, minutes in ((1.0, 9.0), (0.5, 14.0), (0.2, 2.0)):
        trial, _ = study.ask(small_space())
        study.tell(trial.number, complete_outcome(p95, 1 / p95), minutes)
    study.note(dry_run=[0, 1], search_seconds=240.0)
    front = study_front(config, study)
    assert [row.minutes for row in front.rows] == [0.0, 0.0, 2.0]
    _, by_minutes = hypervolume_curves(front)
    assert by_minutes.x == (0.0, 0.0, 2.0, 4.0)
    assert by_minutes.hypervolume[1] > 0 and by_minutes.hypervolume[-1] == pytest.approx(front.hypervolume)


def test_the_source_of_a_trial_is_what_proposed_it() -> None:
    """A trial that was interrupted and asked for again keeps its source."""
    config, space = load("ml-100k"), small_space()
    study = Study("s", in_memory(), config.objectives, Limits(0.01), 0)
    first, second = space.starts()[:2]
    study.enqueue(first)
    study.enqueue(second)
    study.ask(space)
    study.sweep()
    study.enqueue_reference("post-training quantization", Candidate(Weights(), Precision((("mlp", "int8-dynamic"),))))
    knobs = list[Mapping[str, Scalar] | None]([None] * 5)
    for number in range(5):
        trial, _ = study.ask(space, knobs[number])
        study.tell(trial.number, complete_outcome(), 0.0)
        if number == 3:
            knobs[4] = space.weights_knobs(study.ended()[-1].knobs)
    sources = {row.trial: row.source for row in study_front(config, study).rows}
    origins = {row.trial: row.origin for row in study_front(config, study).rows}
    drawn = "known weights" if origins[4] == "baseline" else "new weights"
    assert [*sources.values()] == ["starting point"] * 2 + ["reference point", drawn, "known weights"]
