"""Run of a study: dry run, reference points, search, final benchmark; and the profile of its baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from objectives.records import Measurement, Prepared
from objectives.serving.devices import cores_allowed
from search.cli.console import Console, SearchBar
from search.config.defaults import epochs_for, space_for
from search.config.loss_limits import check_slices
from search.config.sections import StudyConfig
from search.errors import ConfigError
from search.explore.cost_model import CostModel
from search.explore.estimate import observed, remaining_gain, stages_reached, trials_in
from search.explore.explorer import Explorer
from search.explore.final_benchmark import FinalBenchmark
from search.explore.first_trials import (
    begun,
    dry_run_trials,
    is_done,
    note_resolution,
    report_first_trials,
    run_first_trials,
)
from search.explore.reference_points import references_of, tuned_placement
from search.explore.warm_start import check_sources, starting_points
from search.format import count
from search.front import hypervolume, largest_box, unit_objectives
from search.home import Home
from search.locking import locked, stoppable
from search.profile.study_profile import FACT, StudyProfile, UserOnce, read_profile, study_profile
from search.report.profile import user_once
from search.report.report import write_profile
from search.results import Front
from search.session import Session, jobs_of, open_session, prepare
from search.study import STARTED_FROM, Study
from search.trials import EndedTrial
from search.workers.meter_jobs import MeterJobs
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Worker, call, open_workers
from spaces.candidate import Candidate
from spaces.domains import Choice
from spaces.model_structure import ModelStructure
from spaces.search_space import SearchSpace
from spaces.serialization import digest, to_plain


def run(config: StudyConfig, home: Home, console: Console) -> tuple[Session, Front]:
    """Launch or resume a study until its budget is spent or Ctrl-C; finished trials are kept either way.

    Raises:
        ConfigError: the settings do not fit the model, the machine, or the study begun before.
        JobError: the baseline cannot be trained, exported or timed, or the first candidate does not get through.
    """
    session = open_session(config, home)
    with locked(home, config.name), stoppable():
        try:
            search(session, console)
        finally:
            # Once more, for a signal that came while the search closed its trials.
            session.study.sweep()
            found = session.level(console)
    return session, found


def search(session: Session, console: Console) -> None:
    config, home, study = session.config, session.home, session.study
    if not begun(study):
        # What was left would only stand in trial 0's place.
        study.restart()
        home.service_curves(config.name).unlink(missing_ok=True)
    study.sweep()
    check_sources([source for source in config.start_from if source not in study.facts.get(STARTED_FROM, [])], home)
    # The dry run is not part of the budget, whether it ended or was interrupted.
    spent = float(study.facts.get("search_seconds", 0.0)) if is_done(study) else 0.0
    budget = config.budget.minutes * 60
    ended = study.spent()
    searched = spent >= budget or (config.budget.trials is not None and ended >= config.budget.trials)
    if searched and not study.final_is_due:
        console.say(f"The budget is spent ({spent / 60:.1f} minutes, {ended} trials); --minutes or --trials give more.")
        return
    cores = cores_allowed()
    builders = config.workers.builders or min(cores, 4)
    with open_workers(home.logs(config.name), builders) as workers:
        meter = workers.meter
        prepared = prepare(session, workers.builder, console)
        check_slices(config.quality.slices, prepared.parts)
        jobs = jobs_of(config, home, prepared)
        space = space_for(config.space, prepared, _epochs(study, prepared))
        if config.space.focus > 0:
            space = focused(space, profiled(study, jobs, meter, console), prepared.structure, console)
        _same_choices(study, space, config.name)
        threads = max(1, cores // builders)

        def explorer(bar: SearchBar) -> Explorer:
            def record(told: EndedTrial) -> None:
                note_resolution(study, told)
                session.ledger.record(told)
                counts = stages_reached([ended.outcome for ended in study.ended()])
                spent = 60 * (told.minutes or 0.0)
                progress = _progress(study, config.quality.max_loss, spent, budget - final.reserve())
                bar.told(told, *progress, counts, spent)

            own = workers.builders, meter, threads
            return Explorer(jobs, costs, space, study, *own, record, bar.tick, final.reserve)

        costs, final = CostModel(jobs, home.service_curves(config.name)), FinalBenchmark(session, jobs, meter, console)
        _enqueue(study, space, costs, PairedComparison(jobs, workers.builder, meter, console))
        if not is_done(study):
            console.say("dry run: the baseline and one candidate go through every stage")
            with SearchBar(console, 0.0) as bar:
                first = run_first_trials(study, lambda trials: explorer(bar).run(float("inf"), trials, 0.0))
            report_first_trials(config, study, first, console, builders)
        elif (seen := observed([ended.outcome for ended in study.ended() if ended.number > 0])) is not None:
            left = trials_in(budget - spent, seen.stages, builders, seen.stopped_interval)
            console.say(
                f"so far {seen.stopped:.0%} of the trials were stopped early: the time left holds {left.sentence}"
            )
        if not searched:
            with SearchBar(console, budget) as bar:
                trials = None if config.budget.trials is None else config.budget.trials - study.spent()
                end = explorer(bar).run(budget - spent, trials, spent)
            console.say(f"search: {end}")
            spent = float(study.facts["search_seconds"])
        final.run(budget - spent, spent)
        study.note(importance=to_plain(study.importance()))


def _progress(
    study: Study, max_loss: float, spent: float, seconds: float
) -> tuple[float, float | None, Measurement | None]:
    """Return the hypervolume so far, what the rest of the search's seconds is expected to add, and the best compromise.

    The trials of the dry run count as found at the beginning.
    """
    able = {number: m for number, m in study.contenders().items() if number != 0}
    if not able:
        return 0.0, None, None
    dry, minutes = dry_run_trials(study), {trial.number: trial.minutes or 0.0 for trial in study.measured_trials()}
    found = [*able.values()]
    early = [m for number, m in able.items() if number in dry or 60 * minutes[number] <= spent / 2]
    reached, at_half = (hypervolume(unit_objectives(*_ratios(of), max_loss)) for of in (found, early))
    best = found[largest_box(*_ratios(found), max_loss)]
    return reached, remaining_gain(reached, at_half, spent, seconds), best


def _ratios(measured: Sequence[Measurement]) -> tuple[list[float], list[float], list[float]]:
    """Return p95 ratios, throughput ratios and losses."""
    p95, throughput = [m.latency.p95_ratio for m in measured], [m.throughput.ratio for m in measured]
    return p95, throughput, [m.quality.loss for m in measured]


def _enqueue(study: Study, space: SearchSpace, costs: CostModel, pairs: PairedComparison) -> None:
    """Enqueue the first trials: the baseline, the reference points, and the starting points of the search.

    Raises:
        JobError: the baseline's service curve cannot be measured.
    """
    new, prepared = not begun(study), pairs.jobs.prepared
    costs.measure_baseline(pairs)
    first, *starts = space.starts()
    if new:
        study.enqueue(first)
    if not study.references:
        pairs.console.say("references: looking for the best placement of the baseline")
        tuned = tuned_placement(space.placement, lambda tried: costs.simulated(Candidate(placement=tried), pairs))
        for name, candidate in references_of(prepared, space.precision, tuned).items():
            study.enqueue_reference(name, candidate)
    _enqueue_others(study, space, pairs)
    for start in starts if new else ():
        study.enqueue(start)


def _enqueue_others(study: Study, space: SearchSpace, pairs: PairedComparison) -> None:
    """Enqueue the points of other fronts, once each; ConfigError where one cannot be read."""
    config, home = pairs.jobs.config, Home(Path(pairs.jobs.task.home))
    done = list(study.facts.get(STARTED_FROM, []))
    for source in config.start_from:
        if source not in done:
            points = starting_points(source, home, space, config.seed)
            for point in points:
                study.enqueue(point)
            done.append(source)
            study.note(**{STARTED_FROM: done})
            pairs.console.say(f"start: {count(len(points), 'point')} of {source}")


def _epochs(study: Study, prepared: Prepared) -> int:
    """Return the epochs of a cycle of training, decided once for a study: they depend on the speed of the machine."""
    known = study.facts.get("epochs")
    if known is None or not study.finished():
        known = epochs_for(prepared.training, prepared.epoch_seconds)
        study.note(epochs=known)
    return int(known)


def _same_choices(study: Study, space: SearchSpace, name: str) -> None:
    """Note the choices of the space.

    The number of cycles of a training is none of these choices; it depends on the sampler.

    Raises:
        ConfigError: the study has trials from a space of other choices.
    """
    once = replace(space, weights=replace(space.weights, cycles=Choice((1,))))
    before, now = study.facts.get("space"), digest(once)
    if before not in (None, now) and study.finished():
        raise ConfigError(
            f"space: the study {name!r} was begun where the knobs had other choices (by another machine, engines or "
            "version of leanrec), but its trials have to share them; give it another name"
        )
    study.note(space=now)


def profile(session: Session, console: Console) -> StudyProfile:
    """The profile of a study's baseline, which is trained and measured on the first call; its files are written."""
    config, home = session.config, session.home
    if (found := read_profile(session.study.facts)) is None:
        with locked(home, config.name), stoppable(), open_workers(home.logs(config.name)) as workers:
            prepared = prepare(session, workers.builder, console)
            workers.builder.kill()
            found = profiled(session.study, jobs_of(config, home, prepared), workers.meter, console)
    write_profile(found, home.reports(config.name))
    return found


def profiled(study: Study, jobs: MeterJobs, meter: Worker, console: Console) -> StudyProfile:
    """Return the study's profile, which is measured on the first call only.

    Another timing would change the space under its trials.

    Raises:
        JobError: the baseline cannot be profiled.
    """
    if (known := read_profile(study.facts)) is not None:
        return known
    console.say("profile: where the baseline's time goes")
    config, prepared = jobs.config, jobs.prepared
    found = call(meter, jobs.profile(), config.workers.job_seconds, console.say)
    once = UserOnce(prepared.user_once_refused, prepared.user_once_share)
    profile = study_profile(config.name, found.profile, found.roofline, once, config.space.focus)
    study.note(**{FACT: to_plain(profile)})
    return profile


def focused(space: SearchSpace, profile: StudyProfile, structure: ModelStructure, console: Console) -> SearchSpace:
    """The space without the groups that take too little to be worth compressing; each is told with its shares."""
    modules = {group.name: group.modules for group in structure.groups}
    inside: set[str] = set()
    for group in profile.groups:
        if group.in_focus:
            inside |= {group.name, *modules.get(group.name, ())}  # a table by itself is looked at as its group is
        if group.name in modules:
            console.say(f"profile: {group.name}: {group.reason}")
    console.say(f"profile: {user_once(profile)}")
    return space.within(inside)
