"""Choice of a study: finalists confirmed, bundled and registered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from search.ablation.records import DistillationGain
from search.choose.choose import (
    Confirmed,
    Look,
    Policy,
    beside_tuned_baseline,
    bundle_up,
    choice,
    confirm,
    finalists,
    reason,
    tuned_ratios,
)
from search.choose.distillation_ablation import control
from search.cli.console import Console
from search.locking import locked, stoppable
from search.results import Choice, Front, TunedRatios, choice_json
from search.session import Session, jobs_of, prepared_of, task_of
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import open_workers
from spaces.serialization import from_plain, to_plain


def choose(session: Session, policy: Policy, out: Path | None, console: Console) -> Choice:
    """Confirm finalists in their fixed order, write and register the bundle of the first that holds.

    Raises:
        NothingConfirmedError: none does.
        ConfigError: nothing was measured yet, or files of the baseline are gone.
        JobError: the baseline cannot be timed.
    """
    config, home, study = session.config, session.home, session.study
    facts, found = study.facts, session.front()
    prepared, task = prepared_of(session, found), task_of(config, home)
    jobs, ordered = jobs_of(config, home, prepared, study), finalists(found, policy)
    console.say(f"choose: {len(ordered)} finalists; the tolerated loss is {policy.max_loss:.2%}")
    looks = [from_plain(Look, look) for look in facts.get("looks", [])]
    with locked(home, config.name), stoppable():
        with open_workers(home.logs(config.name)) as workers:
            pairs, sides = PairedComparison(jobs, workers.builder, workers.meter, console), session.sides()
            try:
                known = [(point, sides[point.trial]) for point in ordered]
                point, confirmed = confirm(pairs, known, looks, policy)
            finally:
                study.note(looks=to_plain(looks))
            gained = control(pairs, sides[point.trial])
            tuned = _beside_tuned(pairs, point.trial, confirmed, found, sides)
            confirmed = replace(confirmed, control=gained, tuned=tuned)
        artifact, candidate = sides[point.trial]
        why = reason(point, confirmed, policy, len(ordered))
        folder = out or home.reports(config.name) / "bundle"
        folder.parent.mkdir(parents=True, exist_ok=True)
        machine = study.facts["machine"]
        bundle_up(folder, config, task, prepared, candidate, artifact, confirmed, why, machine, policy)
        console.say("choose: registering the bundle with MLflow")
        session.level(console)
        model = home.root / artifact.path
        tags = {"candidate": candidate.id, "reason": why[:500]} | ({"control": gained.sentence} if gained else {})
        registered = session.ledger.register(config.name, model, point.trial, tags, _gain(gained))
        chosen = choice(point, confirmed, folder, why, registered)
        study.note(chosen=choice_json(chosen))
        session.ledger.log_file(folder, "bundle")
        session.level(console)
    return chosen


def _beside_tuned(
    pairs: PairedComparison, trial: int, confirmed: Confirmed, found: Front, sides: Mapping[int, Side]
) -> TunedRatios | None:
    """The confirmed model's ratios to the tuned baseline; None where it is the tuned baseline itself. Where no
    placement was better than the baseline's own, those to the baseline are known already."""
    assert found.tuned_baseline is not None, "the baseline is measured, and it is one"
    tuned = found.tuned_baseline.trial
    if tuned == trial:
        return None
    if tuned == 0:
        return tuned_ratios(0, confirmed.latency, confirmed.throughput)
    return beside_tuned_baseline(pairs, sides[trial], (tuned, sides[tuned]))


def _gain(control: DistillationGain | None) -> dict[str, float]:
    if control is None:
        return {}
    name, (low, high) = "test.distillation_gain", control.gain_interval
    return {name: control.gain, f"{name}.low": low, f"{name}.high": high}
