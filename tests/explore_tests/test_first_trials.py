"""The dry run over a real study, with trials whose ends are given."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from objectives.records import Outcome
from search.cli.console import Console
from search.config.loss_limits import Limits
from search.config.study_file import load
from search.errors import JobError
from search.explore.explorer import EXHAUSTED
from search.explore.first_trials import (
    begun,
    dry_run_trials,
    is_done,
    note_resolution,
    report_first_trials,
    run_first_trials,
)
from search.study import Study
from search.trials import EndedTrial
from spaces.candidate import Candidate
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.weights import Weights
from tests.search_tests.measurements import complete_outcome, small_space

LATE = Outcome("failed", "BehindError: late", None, None, {"fit": 1.0, "judge": 1.0, "time": 9.0})
BROKEN = Outcome("failed", "export: no such operator", None, None, {"fit": 1.0, "export": 1.0})
DONE = complete_outcome()
STOPPED = Outcome("stopped", "the run ended before it was measured")


class Trials:
    """A study whose next trials end as given."""

    def __init__(self, folder: Path, ends: list[Outcome]) -> None:
        folder.mkdir(exist_ok=True)
        self.study = Study("preflight", f"sqlite:///{folder}/study.db", ("latency_p95",), Limits(0.01), 0)
        self.ends, self.asked = ends, 0

    def run(self, trials: int) -> str:
        for _ in range(trials):
            if not self.ends:
                return EXHAUSTED
            trial, _ = self.study.ask(small_space())
            self.study.tell(trial.number, self.ends.pop(0), 0)
            self.asked += 1
        return "the budget is spent"


def test_the_baseline_and_one_candidate_are_enough(tmp_path: Path) -> None:
    trials = Trials(tmp_path, [DONE, DONE, DONE])
    assert not begun(trials.study)
    assert run_first_trials(trials.study, trials.run) == DONE
    assert trials.asked == 2 and begun(trials.study)


def test_what_an_interrupted_dry_run_finished_is_kept(tmp_path: Path) -> None:
    trials = Trials(tmp_path, [DONE, STOPPED, DONE])
    trials.run(2)
    assert begun(trials.study)
    run_first_trials(trials.study, trials.run)
    assert trials.asked == 3
    run_first_trials(trials.study, trials.run)
    assert trials.asked == 3, "nothing is left to do"


@pytest.mark.parametrize("ended", [LATE, BROKEN], ids=["late", "broken"])
def test_a_candidate_that_failed_is_followed_by_others(ended: Outcome, tmp_path: Path) -> None:
    trials = Trials(tmp_path, [DONE, ended, ended, DONE])
    assert run_first_trials(trials.study, trials.run) == DONE
    failing = Trials(tmp_path / "b", [DONE, ended, ended, ended, ended, ended, DONE])
    with pytest.raises(JobError, match=f"none of 4 candidates got through every stage, the last for: {ended.reason}"):
        run_first_trials(failing.study, failing.run)
    assert run_first_trials(failing.study, failing.run) == DONE, "another call tries others"


def test_a_space_without_other_candidates_has_a_reference_point(tmp_path: Path) -> None:
    """The best placement is one that the search would propose, and simple models tell nothing of the stages."""
    trials = Trials(tmp_path, [DONE, DONE, complete_outcome(0.7)])
    simple, tuned = Candidate(Weights(reference="popularity")), Candidate(placement=Placement(InstanceGroup(threads=1)))
    study = trials.study
    study.enqueue({})
    study.enqueue_reference("popularity", simple)
    study.enqueue_reference("tuned baseline", tuned)
    trials.run(3)
    found = run_first_trials(study, trials.run)
    assert found.measurement is not None and found.measurement.latency.p95_ratio == 0.7
    broken = Trials(tmp_path / "c", [DONE, BROKEN])
    with pytest.raises(JobError, match="none got through every stage, the last of 1 for: export: no such operator"):
        run_first_trials(broken.study, broken.run)
    with pytest.raises(JobError, match="the last of 1 for"):
        run_first_trials(broken.study, broken.run)
    bare = Trials(tmp_path / "b", [DONE])
    with pytest.raises(JobError, match="the space offers nothing but the baseline"):
        run_first_trials(bare.study, bare.run)


def test_the_resolution_is_that_of_trained_weights(tmp_path: Path) -> None:
    """The first candidate scores as the baseline does, which tells nothing; the largest counts until one is trained."""
    trials = Trials(tmp_path, [DONE, DONE])
    first = run_first_trials(trials.study, trials.run)
    study, own = trials.study, Candidate(placement=Placement(InstanceGroup(threads=1)))
    student = Candidate(Weights(distillation=Distillation(2.0, 0.5, 1)))

    def shown(candidate: Candidate, half: float, reference: str | None = None) -> float:
        measured = complete_outcome().measurement
        assert measured is not None
        quality = replace(measured.quality, loss_interval=(-half, half))
        outcome = replace(DONE, measurement=replace(measured, quality=quality))
        note_resolution(study, EndedTrial(9, candidate, outcome, 1.0, reference))
        return study.resolution

    report_first_trials(load("ml-100k"), study, first, Console(quiet=True, as_json=False), 1)
    study.note(resolution=0.0, resolved=False)
    assert shown(own, 0.0) == 0.0
    assert shown(Candidate(Weights(reference="popularity")), 0.09, "popularity") == 0.0
    assert shown(own, 0.001) == 0.001 and shown(own, 0.0005) == 0.001
    assert shown(student, 0.0007) == 0.0007
    assert shown(student, 0.002) == shown(own, 0.002) == 0.0007, "it is known"


def test_a_baseline_that_fails_ends_the_dry_run(tmp_path: Path) -> None:
    broken = Trials(tmp_path, [LATE, DONE])
    with pytest.raises(JobError, match="the baseline did not get through every stage: BehindError: late"):
        run_first_trials(broken.study, broken.run)
    assert not begun(broken.study)


def test_a_reported_dry_run_is_not_repeated(tmp_path: Path) -> None:
    trials = Trials(tmp_path, [DONE, DONE, DONE])
    first = run_first_trials(trials.study, trials.run)
    assert not is_done(trials.study) and not dry_run_trials(trials.study)
    report_first_trials(load("ml-100k"), trials.study, first, Console(quiet=True, as_json=False), 1)
    assert is_done(trials.study) and trials.study.facts["resolution"] > 0
    trials.run(1)
    assert dry_run_trials(trials.study) == {0, 1}, "those before the report"
    trials.study.note(dry_run=True)
    assert is_done(trials.study) and dry_run_trials(trials.study) == {0}, "as an earlier version noted it"
