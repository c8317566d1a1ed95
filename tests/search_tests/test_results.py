"""The front of a study whose trials' outcomes are given."""

from __future__ import annotations

from typing import Any

import pytest

from objectives.records import Outcome
from search.config.loss_limits import Limits
from search.config.study_file import load
from search.results import Front
from search.study import Study
from search.study_front import study_front
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
    """Twice as slow for 0.1% of AUC; slower still for a gain, which is no more than no loss."""
    outcomes = [
        complete_outcome(1.0, 1.0, 0.0),
        complete_outcome(0.2, 5.0, 0.0010),
        complete_outcome(0.4, 2.5, 0.0),
        complete_outcome(0.6, 2.0, -0.004),
    ]
    members = told(outcomes, resolution=resolution).members
    assert [point.trial for point in members] == front
