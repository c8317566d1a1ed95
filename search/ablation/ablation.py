"""Ablation of a trial: each technique is removed, and applied alone, and measured against the model that lacks it."""

from __future__ import annotations

from objectives.serving.devices import describe
from search.ablation.records import FACT, FACT_FILE, KINDS, Ablation, AblationSummary, Effect, Kind, ablations, fact
from search.ablation.verdict import ablation_summary, label, told
from search.cli.console import Console
from search.errors import ConfigError, JobError
from search.home import write_json
from search.profile.study_profile import read_profile
from search.results import Front
from search.session import Session
from search.verdict import subject
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Workers
from spaces.ablations import Technique, techniques
from spaces.candidate import Candidate

_DONE_TO_IT = {"without": "taken back", "alone": "alone"}


def ablate(session: Session, trial: int | None, workers: Workers, console: Console) -> AblationSummary:
    """Measure what is not measured yet of a trial's techniques; write and give the summary.

    Each effect is noted with the study as soon as it is there. One that fails has a reason, the others go on, and the
    next call tries it again.

    Args:
        trial: None for the chosen one, else the best compromise on the front

    Raises:
        ConfigError: there is no such trial, nothing in it to take back, or the study has no baseline or lost its files.
        JobError: the trial's own model cannot be built again.
    """
    found = session.front()
    pairs = session.pairs(found, workers, console)
    number = _trial(found, trial)
    candidate = next(ended.candidate for ended in session.study.ended() if ended.number == number)
    parts = techniques(candidate)
    if not parts:
        raise ConfigError(f"--trial: must differ from the baseline by a technique, but trial {number} has none")
    known = _known(session, number, candidate, console)
    wanted = [
        (part, kind)
        for kind in KINDS
        for part in parts
        if (effect := known.found(part.name, part.group, kind)) is None or effect.difference is None
    ]
    if wanted:
        chosen = (pairs.built(candidate), candidate)
        for place, (part, kind) in enumerate(wanted, 1):
            known = known.joined(_effect(pairs, chosen, part, kind, f"{place} of {len(wanted)}", number))
            session.study.note(**{FACT: fact(ablations(session.study.facts), known)})
    summary = ablation_summary(session.config.name, known, read_profile(session.study.facts))
    write_json(summary, session.home.reports(session.config.name) / FACT_FILE)
    return summary


def _trial(front: Front, trial: int | None) -> int:
    if trial is None:
        point = subject(front)
        if point is None:
            raise ConfigError(f"STUDY: the front of {front.study!r} has no point but the baseline")
        return point.trial
    measured = [point.trial for point in front.points if point.trial != 0]
    if trial not in measured:
        raise ConfigError(f"--trial: must be a measured trial, one of {measured}, but got {trial}")
    return trial


def _known(session: Session, trial: int, candidate: Candidate, console: Console) -> Ablation:
    """Return the effects that an earlier call measured on this machine."""
    empty = Ablation(trial, candidate, describe())
    for before in ablations(session.study.facts):
        if (before.trial, before.candidate) == (trial, candidate):
            if before.machine == empty.machine:
                return before
            console.say(f"what was measured on {before.machine} is measured again on this machine")
    return empty


def _effect(pairs: PairedComparison, chosen: Side, part: Technique, kind: Kind, place: str, trial: int) -> Effect:
    """Measure the chosen model against itself without the technique, or the baseline with it against the baseline."""
    other, say = (part.without if kind == "without" else part.alone), pairs.console.say
    recording = pairs.jobs.recording(f"ablation-{trial}-{kind}-{other.id}")
    head = f"{label(part.name, part.group)}, {_DONE_TO_IT[kind]}"
    say(f"{head} ({place}): building and measuring")
    try:
        theirs = (pairs.built(other), other)
        sides = (chosen, theirs) if kind == "without" else (theirs, pairs.jobs.baseline)
        difference = pairs.difference(*sides, "final", recording)
    except (JobError, ValueError) as error:
        say(f"{head}: not measured: {error}")
        return Effect(part.name, part.group, kind, other, reason=str(error))
    say(f"{head}: {told(difference)}")
    return Effect(part.name, part.group, kind, other, difference, timings=recording)


def nothing_measured(summary: AblationSummary) -> bool:
    """Return whether no comparison has numbers."""
    effects = (effect for part in summary.techniques for effect in (part.without, part.alone))
    return all(effect is None or effect.difference is None for effect in effects)
