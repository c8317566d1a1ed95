"""Session of a study, from its file to its front: prepare, dry run, search, record."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from objectives.jobs import PrepareRequest
from objectives.measurement.recording import NO_RATIO_NOISE
from objectives.records import Outcome, Prepared
from objectives.serving.devices import cores_allowed, describe, int8_weight_bits
from objectives.task import Task
from search.ablation.records import FACT_FILE, DistillationGain, ablations
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
from search.cli.console import Console, SearchBar
from search.config.data_sections import SyntheticData, TableData
from search.config.defaults import space_for
from search.config.load import rows_trace, traffic_of
from search.config.loss_limits import check_slices
from search.config.sections import StudyConfig
from search.config.study_file import difference
from search.errors import ConfigError
from search.explore.dry_run import begun, is_done, report_first_trials, run_first_trials
from search.explore.estimate import observed, trials_in
from search.explore.explorer import Explorer, TrialEvent
from search.explore.profiling import focused, profiled, write_profile_files
from search.explore.reference_points import references_of, tuned_placement
from search.explore.study_profile import StudyProfile, read_profile
from search.explore.visit_noise import ratio_noise
from search.format import metric_name
from search.home import Home
from search.ledger import Entry, Ledger
from search.report.report import write_report
from search.results import Choice, Front, TunedRatios, choice_json
from search.study import Study, candidate_of, measured, outcome_of
from search.study import spent as spent_trials
from search.study_front import study_front
from search.verdict import best_compromise
from search.workers.meter_jobs import MeterJobs, Side
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Worker, call, open_workers
from spaces.candidate import Candidate
from spaces.search_space import SearchSpace
from spaces.serialization import digest, from_plain, to_plain

# Numbers of another version of this cannot stand beside those of this one.
MEASUREMENT = 3
# The baseline trains to its optimum, however long a student's fit may take.
_PREPARE_TIMES = 10


@dataclass(frozen=True)
class Session:
    """An opened study: its settings, its place, its trials and its ledger."""

    config: StudyConfig
    home: Home
    study: Study
    ledger: Ledger

    def front(self) -> Front:
        """The result so far."""
        return study_front(self.config, self.study.finished(), self.study.facts)

    def entries(self) -> list[Entry]:
        found: list[Entry] = []
        for trial in self.study.finished():
            candidate, outcome = candidate_of(trial), outcome_of(trial)
            if candidate is not None and outcome is not None:
                found.append((trial.number, candidate, outcome, trial.user_attrs.get("minutes")))
        return found

    def level(self, console: Console) -> Front:
        """Bring the ledger level with the trials, write the report, and give the result."""
        found = self.front()
        path = self.home.reports(self.config.name) / "report.html"
        write_report(found, path)
        level = self.ledger.level(self.entries(), [point.trial for point in found.members])
        if level and self.ledger.level_effects(ablations(self.study.facts)):
            for file in (path, path.with_name(FACT_FILE)):
                if file.exists():
                    self.ledger.log_file(file, "report")
        if self.ledger.trouble:
            console.warn(self.ledger.trouble)
        return found


def open_session(config: StudyConfig, home: Home) -> Session:
    """Make or find the study and its ledger.

    Raises:
        ConfigError: a study of that name was begun with other settings.
    """
    home.claim()
    with _opening(home):
        return _opened(config, home)


def _opened(config: StudyConfig, home: Home) -> Session:
    study = Study(config.name, home.storage(config.storage), config.objectives, config.quality.limits, config.seed)
    settings = config.model_dump(mode="json")
    if study.finished() and study.facts.get("measurement") != MEASUREMENT:
        raise ConfigError(
            f"the study {config.name!r} was measured by an earlier version, whose throughput was not compared like for "
            "like; give it another name"
        )
    before = study.facts.get("config")
    changed = None if before is None else difference(before, settings)
    if changed is not None:
        if study.finished():
            raise ConfigError(
                f"{changed}, but the study {config.name!r} was begun with the former; give it another name"
            )
        with locked(home, config.name):
            study.forget()
    study.note(config=settings, measurement=MEASUREMENT)
    ledger = Ledger(home.tracking_uri(config.tracking_uri), home.artifacts, config.name, home.root)
    ledger.open(settings)
    return Session(config, home, study, ledger)


def task_of(config: StudyConfig, home: Home) -> Task:
    rows, data = config.traffic.rows, config.data
    synthetic = data.model_dump(exclude={"source"}) if isinstance(data, SyntheticData) else None
    columns = data.columns.model_dump(mode="json") if isinstance(data, TableData) else None
    return Task(
        str(home.root), config.recommender, "" if data is None else data.source, config.metric,
        rows.median, rows.sigma, rows.max, config.seed, synthetic, rows_trace(config, home), columns, config.sizes,
        config.quality.slice_by, batch_size=config.training.batch_size, int8_weight_bits=int8_weight_bits(),
    )  # fmt: skip


def jobs_of(config: StudyConfig, home: Home, prepared: Prepared, study: Study | None = None) -> MeterJobs:
    """Return the arguments of the meter's jobs in this study; its benchmarks estimate the variance between visits on
    this machine.
    """
    noise = NO_RATIO_NOISE if study is None else ratio_noise(list(measured(study.finished()).values()))
    task = replace(task_of(config, home), expected=prepared.key)
    return MeterJobs(config, task, prepared, traffic_of(config.traffic, home), noise)


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
            found = session.level(console)
    return session, found


def search(session: Session, console: Console) -> None:
    config, home, study = session.config, session.home, session.study
    if not begun(study):
        # What was left would only stand in trial 0's place.
        study.restart()
    study.sweep()
    # The dry run is not part of the budget, whether it ended or was interrupted.
    spent = float(study.facts.get("search_seconds", 0.0)) if is_done(study) else 0.0
    budget = config.budget.minutes * 60
    ended = spent_trials(study.finished())
    if spent >= budget or (config.budget.trials is not None and ended >= config.budget.trials):
        console.say(f"The budget is spent ({spent / 60:.1f} minutes, {ended} trials); --minutes or --trials give more.")
        return
    cores = cores_allowed()
    count = config.workers.builders or min(cores, 4)
    with open_workers(home.logs(config.name), count) as workers:
        meter = workers.meter
        prepared = prepare(session, workers.builder, console)
        check_slices(config.quality.slices, prepared.parts)
        jobs = jobs_of(config, home, prepared)
        space = space_for(config.space, prepared)
        if config.space.focus > 0:
            space = focused(space, profiled(study, jobs, meter, console), prepared.structure, console)
        _same_choices(study, space, config.name)
        threads = max(1, cores // count)

        def explorer(bar: SearchBar, seconds: float) -> Explorer:
            def record(told: TrialEvent) -> None:
                session.ledger.record(told.number, told.candidate, told.outcome, told.minutes)
                found = session.front()
                able = [point for point in found.points if point.feasible and point.trial != 0]
                best = best_compromise(able, config.quality.max_loss) if able else None
                bar.told(told, found.hypervolume, best, len(found.points), told.minutes * 60)

            return Explorer(config, jobs.task, jobs, space, study, workers.builders, meter, threads, record, bar.tick)

        _enqueue(study, space, PairedComparison(jobs, workers.builder, meter, console))
        if not study.facts.get("preflight"):
            console.say("preflight: the baseline and one candidate go through every stage")
            with SearchBar(console, 0.0) as bar:
                first = run_first_trials(study, lambda trials: explorer(bar, 0.0).run(float("inf"), trials, 0.0))
            report_first_trials(config, study, first, console, count)
        elif (seen := observed([o for t in study.finished() if t.number > 0 and (o := outcome_of(t))])) is not None:
            left = trials_in(budget - spent, seen.stages, count, seen.stopped_interval)
            console.say(
                f"so far {seen.stopped:.0%} of the trials were stopped early: the time left holds {left.sentence}"
            )
        with SearchBar(console, budget) as bar:
            trials = None if config.budget.trials is None else config.budget.trials - spent_trials(study.finished())
            end = explorer(bar, budget).run(budget - spent, trials, spent)
        console.say(f"search: {end}")


def _enqueue(study: Study, space: SearchSpace, pairs: PairedComparison) -> None:
    """Enqueue the first trials: the baseline, the reference points, and the starting points of the search."""
    new, prepared = not begun(study), pairs.jobs.prepared
    first, *starts = space.starts()
    if new:
        study.enqueue(first)
    if not study.references:
        pairs.console.say("references: looking for the best placement of the baseline")
        tuned = tuned_placement(space.placement, pairs.quick)
        for name, candidate in references_of(prepared, space.precision, tuned).items():
            study.enqueue_reference(name, candidate)
    for start in starts if new else ():
        study.enqueue(start)


def _same_choices(study: Study, space: SearchSpace, name: str) -> None:
    """Check that the study's trials share the choices of the space.

    Raises:
        ConfigError: the study has trials from a space of other choices, by another machine, engine or version.
    """
    before, now = study.facts.get("space"), digest(space)
    if before not in (None, now) and study.finished():
        raise ConfigError(
            f"space: the study {name!r} was begun where the knobs had other choices (by another machine, engines or "
            "version of leanrec), but its trials have to share them; give it another name"
        )
    study.note(space=now)


def profile(session: Session, console: Console) -> StudyProfile:
    """The profile of a study's baseline, measured on the first call; its files are written. A baseline that is not in
    the cache is trained first."""
    config, home = session.config, session.home
    if (known := read_profile(session.study.facts)) is not None:
        write_profile_files(known, home.reports(config.name))
        return known
    with locked(home, config.name), stoppable(), open_workers(home.logs(config.name)) as workers:
        prepared = prepare(session, workers.builder, console)
        workers.builder.kill()
        found = profiled(session.study, jobs_of(config, home, prepared), workers.meter, console)
    write_profile_files(found, home.reports(config.name))
    return found


def prepared_by(builder: Worker, config: StudyConfig, home: Home, console: Console) -> Prepared:
    """A study's recommender, from the cache as far as it is there.

    Raises:
        ConfigError: the factory, or something that it gave, is not what it should be.
        JobError: the baseline cannot be trained or exported.
    """
    limit = _PREPARE_TIMES * config.workers.fit_seconds
    return call(builder, PrepareRequest(task_of(config, home), cores_allowed()), limit, console.say)


def prepare(session: Session, builder: Worker, console: Console) -> Prepared:
    """Train the baseline, evaluate it and the simple references, and export it.

    Raises:
        ConfigError: the study was begun with another checkpoint or other data.
    """
    config, study = session.config, session.study
    prepared, before = prepared_by(builder, config, session.home, console), study.facts.get("prepared")
    if before is not None and before["key"] != prepared.key and study.finished():
        raise ConfigError(
            f"recommender: must give the model, data and requests that the study {config.name!r} was begun with, by "
            "the same code and library versions, but gave others; give the study another name"
        )
    study.note(prepared=to_plain(prepared), machine=describe())
    known = {name: value for name, value in prepared.references.items() if value is not None}
    console.say(
        f"baseline: {metric_name(prepared.reference_metric)} on test "
        + ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in sorted(known.items(), key=_descending))
        + f" ({prepared.rows['test']:,} rows, {prepared.users:,} users)"
    )
    if prepared.undertrained is not None:
        console.warn(f"the baseline is under-trained: {prepared.undertrained}; what distilling gains is partly that")
    simple = [value for name, value in known.items() if name in ("popularity", "logistic_regression")]
    if simple and known["baseline"] <= max(simple):
        console.warn("the baseline does not beat the references: a smaller model may be all that the data need")
    return prepared


def _descending(item: tuple[str, float]) -> float:
    return -item[1]


def choose(session: Session, policy: Policy, out: Path | None, console: Console) -> Choice:
    """Confirm finalists in their fixed order, write and register the bundle of the first that holds.

    Raises:
        NothingConfirmedError: none does.
        JobError: the baseline cannot be timed.
    """
    config, home, study = session.config, session.home, session.study
    facts, found = study.facts, session.front()
    if "prepared" not in facts or found.baseline is None:
        raise ConfigError(f"STUDY: {config.name!r} has no measured baseline yet; leanrec run does that")
    prepared, task = from_plain(Prepared, facts["prepared"]), task_of(config, home)
    jobs, ordered = jobs_of(config, home, prepared, study), finalists(found, policy)
    entries = {number: (candidate, outcome) for number, candidate, outcome, _ in session.entries()}
    console.say(f"choose: {len(ordered)} finalists; the tolerated loss is {policy.max_loss:.2%}")
    looks = [from_plain(Look, look) for look in facts.get("looks", [])]
    with locked(home, config.name), stoppable():
        with open_workers(home.logs(config.name)) as workers:
            builder, meter = workers.builder, workers.meter
            known = [(point, *entries[point.trial]) for point in ordered]
            try:
                point, confirmed = confirm(jobs, known, looks, policy, meter, builder, console.say)
            finally:
                study.note(looks=to_plain(looks))
            candidate, outcome = entries[point.trial]
            assert outcome.artifact is not None
            gained = control(PairedComparison(jobs, builder, meter, console), (outcome.artifact, candidate))
            tuned = _beside_tuned(jobs, point.trial, confirmed, found, entries, meter, console)
            confirmed = replace(confirmed, control=gained, tuned=tuned)
        why = reason(point, confirmed, policy, len(ordered))
        folder = out or home.reports(config.name) / "bundle"
        folder.parent.mkdir(parents=True, exist_ok=True)
        machine = study.facts["machine"]
        bundle_up(folder, config, task, prepared, candidate, outcome, confirmed, why, machine, policy)
        console.say("choose: registering the bundle with MLflow")
        session.level(console)
        model = home.root / outcome.artifact.path
        tags = {"candidate": candidate.id, "reason": why[:500]} | ({"control": gained.sentence} if gained else {})
        registered = session.ledger.register(config.name, model, point.trial, tags, _gain(gained))
        chosen = choice(point, confirmed, folder, why, registered)
        study.note(chosen=choice_json(chosen))
        session.ledger.log_file(folder, "bundle")
        session.level(console)
    return chosen


def _beside_tuned(
    jobs: MeterJobs,
    trial: int,
    confirmed: Confirmed,
    found: Front,
    entries: Mapping[int, tuple[Candidate, Outcome]],
    meter: Worker,
    console: Console,
) -> TunedRatios | None:
    """The confirmed model's ratios to the tuned baseline; None where it is the tuned baseline itself. Where no
    placement was better than the baseline's own, those to the baseline are known already."""
    assert found.tuned_baseline is not None, "the baseline is measured, and it is one"
    tuned = found.tuned_baseline.trial
    if tuned == trial:
        return None
    if tuned == 0:
        return tuned_ratios(0, confirmed.latency, confirmed.throughput)

    def side(number: int) -> Side:
        candidate, outcome = entries[number]
        assert outcome.artifact is not None
        return outcome.artifact, candidate

    return beside_tuned_baseline(jobs, side(trial), (tuned, side(tuned)), meter, console.say)


def _gain(control: DistillationGain | None) -> dict[str, float]:
    if control is None:
        return {}
    name, (low, high) = "test.distillation_gain", control.gain_interval
    return {name: control.gain, f"{name}.low": low, f"{name}.high": high}


@contextmanager
def locked(home: Home, study: str) -> Iterator[None]:
    """One coordinator for a study at a time."""
    path = home.mlruns / f"{study}.lock"
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"the study {study!r} is being run by another process; wait for it or stop it") from error
        yield


@contextmanager
def _opening(home: Home) -> Iterator[None]:
    """One process at a time: neither Optuna nor MLflow makes a new database where another is making it."""
    with (home.mlruns / ".opening").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and raise KeyboardInterrupt for either, whatever a library made of it.

    A signal may arrive anywhere, also in a library that turns an interrupted call into an error of its own.
    """
    stopped = False

    def interrupt(number: int, frame: object) -> None:
        nonlocal stopped
        stopped = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    except Exception as error:
        if stopped:
            raise KeyboardInterrupt from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
