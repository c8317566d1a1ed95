"""First trials of a study: they show that every stage works, and how many trials the budget holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from objectives.measurement.metrics.quality import resolution
from objectives.records import Outcome
from search.cli.console import Console
from search.config.sections import StudyConfig
from search.errors import JobError
from search.explore.estimate import COST_SECONDS, StageSeconds, trials_in
from search.explore.explorer import EXHAUSTED
from search.study import Study
from search.trials import EndedTrial

# Number of candidates of which one must complete every stage: a machine may be busy for a while, one candidate too fast
# for the load generator, and another invalid.
MOST_CANDIDATES = 4
# Facts: the numbers of the dry run's trials, once it was reported; and whether the resolution is known for good.
_DONE, _RESOLVED = "dry_run", "resolved"


def begun(study: Study) -> bool:
    """Return whether the baseline was measured as trial 0, so that earlier trials are kept."""
    baseline = _outcomes(study).get(0)
    return baseline is not None and baseline.measurement is not None


def is_done(study: Study) -> bool:
    """Return whether the dry run of this study was reported; what comes after it counts towards the budget."""
    return bool(study.facts.get(_DONE))


def dry_run_trials(study: Study) -> frozenset[int]:
    """Return the numbers of the dry run's trials, whose time is no part of the budget; none before it was reported.

    A study of an earlier version knows of the baseline only.
    """
    known = study.facts.get(_DONE, ())
    return frozenset({0} if known is True else known)


def run_first_trials(study: Study, run: Callable[[int], str]) -> Outcome:
    """Let `run` end trials until the baseline and one candidate are measured; return the candidate's outcome.

    `run` takes the number of trials to end at a time, and returns why it ended. The baseline is trial 0. Where the
    space has no candidates but the reference points, one of these takes the candidate's place.

    Raises:
        JobError: the baseline was not measured, or none of `MOST_CANDIDATES` candidates of this call was.
    """
    earlier, end = set(_outcomes(study)), ""
    while True:
        outcomes = {number: outcome for number, outcome in _outcomes(study).items() if outcome.state != "stopped"}
        failed = {n: told.reason for n, told in outcomes.items() if told.state == "failed" and n not in earlier}
        if 0 in failed:
            raise JobError(f"The dry run ended: the baseline did not get through every stage: {failed[0]}")
        if len(failed) >= MOST_CANDIDATES:
            raise JobError(
                f"The dry run ended: none of {len(failed)} candidates got through every stage, the last for: "
                f"{failed[max(failed)]}"
            )
        for number, outcome in outcomes.items():
            if number != 0 and outcome.measurement is not None:
                return outcome
        if end == EXHAUSTED:
            return _reference(study, {n: told.reason for n, told in outcomes.items() if told.state == "failed"})
        end = run(max(1, 2 - len(outcomes)))


def _reference(study: Study, failed: Mapping[int, str | None]) -> Outcome:
    """Return the outcome of a reference point of the baseline's own weights.

    Raises:
        JobError: candidates failed, or none was measured.
    """
    if failed:
        raise JobError(
            f"The dry run ended: of all candidates of the space none got through every stage, the last of "
            f"{len(failed)} for: {failed[max(failed)]}"
        )
    for trial in study.measured_trials():
        if trial.reference is not None and trial.candidate.weights.reference is None:
            return trial.outcome
    raise JobError("The dry run ended: the space offers nothing but the baseline; more groups, widths or layouts do")


def note_resolution(study: Study, ended: EndedTrial) -> None:
    """Note the smallest loss that the data can show, which is that of the first candidate with trained weights.

    Before there is one, it is the largest of the others: weights of the baseline that are run otherwise may score as it
    does.
    """
    measured = ended.measurement  # else it may have been evaluated on few users, and lose too much
    if measured is None or ended.number == 0 or study.facts.get(_RESOLVED, True):
        return
    trained, shown = ended.candidate.weights.distillation is not None, resolution(measured.quality)
    if trained or (ended.candidate.weights.reference is None and shown > study.resolution):
        study.note(resolution=shown, **{_RESOLVED: trained})


def report_first_trials(config: StudyConfig, study: Study, first: Outcome, console: Console, builders: int) -> None:
    """Report and record the resolution of the data, and the expected number of trials."""
    baseline = _outcomes(study)[0].measurement
    assert baseline is not None and first.measurement is not None
    console.say(
        f"baseline: at {baseline.latency.rate_rps:.0f} requests/s, {config.traffic.load:.0%} of what it "
        f"answers one by one now, its p95 is {baseline.latency.baseline.p95_ms:.2f} ms"
    )
    shown, seconds = resolution(first.measurement.quality), first.seconds
    study.note(resolution=shown, search_seconds=0.0, **{_RESOLVED: False})
    for trial in study.ended():
        note_resolution(study, trial)
    shown = study.resolution
    study.note(**{_DONE: [trial.number for trial in study.finished()]})
    fit, export, evaluate = (seconds.get(stage, 0.0) for stage in ("fit", "export", "judge"))
    stages = StageSeconds(fit, export, evaluate, COST_SECONDS, seconds["time"])
    holds = trials_in(60 * config.budget.minutes, stages, builders)
    console.say(
        f"dry run: passed; a trial takes about {stages.fit + stages.export:.0f} s to build, and {stages.time:.0f} s "
        f"to benchmark where it is not stopped before, so {config.budget.minutes:g} minutes hold {holds.sentence}"
    )
    tolerated = config.quality.max_loss
    console.say(f"resolution: these held-out rows can show a loss of {shown:.2%}; tolerated is {tolerated:.2%}")
    if shown > tolerated:
        console.warn("the data cannot show a loss as small as the one tolerated: more held-out rows are needed")


def _outcomes(study: Study) -> dict[int, Outcome]:
    """Return the outcomes of the baseline and of the search's own trials, by number.

    A reference point's scores may tell nothing of the data's resolution.
    """
    return {trial.number: trial.outcome for trial in study.ended() if trial.reference is None}
