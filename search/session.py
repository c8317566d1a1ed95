"""Session of a study: its settings, its place, its trials and its ledger."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from uuid import uuid4

from objectives.jobs.requests import PrepareRequest
from objectives.records import Prepared
from objectives.serving.devices import cores_allowed, describe, int8_weight_bits
from objectives.store import written_whole
from objectives.task import Task
from search.ablation.records import FACT_FILE, ablations
from search.cli.console import Console
from search.config.data_sections import SyntheticData, TableData
from search.config.load import check_server_packages, rows_trace, traffic_of
from search.config.sections import StudyConfig
from search.config.study_file import difference
from search.errors import ConfigError
from search.format import metric_name
from search.home import Home, write_ahead, write_json
from search.ledger.ledger import Ledger
from search.locking import locked, opening
from search.profile.study_profile import read_profile
from search.report.page_data import Links
from search.report.report import CONFIG, front_figure, write_report
from search.results import Front, front_json
from search.run_pages import RunPages, is_server
from search.study import Study
from search.study_front import study_front
from search.workers.meter_jobs import MeterJobs, Side, ratio_noise
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Worker, Workers, call
from spaces.serialization import from_plain, to_plain

# Numbers of another version of this cannot stand beside those of this one.
MEASUREMENT = 7
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
        return study_front(self.config, self.study)

    def sides(self) -> dict[int, Side]:
        """Model file and candidate of each trial that was built."""
        return {
            trial.number: (trial.outcome.artifact, trial.candidate)
            for trial in self.study.ended()
            if trial.outcome.artifact is not None
        }

    def jobs(self, front: Front) -> MeterJobs:
        """The jobs of a study that has been prepared; ConfigError as in `prepared_of`."""
        return jobs_of(self.config, self.home, prepared_of(self, front), self.study)

    def pairs(self, front: Front, workers: Workers, console: Console) -> PairedComparison:
        """The comparison of the study's models on these workers; ConfigError as in `prepared_of`."""
        return PairedComparison(self.jobs(front), workers.builder, workers.meter, console)

    def level(self, console: Console, runs: bool = True) -> Front:
        """Bring the ledger level with the trials, write the front and the report, and give the result.

        Args:
            runs: False to leave the ledger alone, since the process that runs the study writes to it
        """
        found = self.front()
        path = self.home.reports(self.config.name) / "report.html"
        write_json(front_json(found), path.with_name("front.json"))
        figure = path.with_name("front.html")
        with written_whole(figure) as partial:
            front_figure(found).write_html(partial, config=CONFIG)
        members, facts = {point.trial for point in found.members}, self.study.facts
        prepared = from_plain(Prepared, facts["prepared"]) if "prepared" in facts else None
        written = runs and self.ledger.level(self.study.ended(), members, ablations(facts), found, prepared)
        linked = members | {point.trial for point in found.reference_points}
        pages = self.ledger.pages(linked) if written and self._has_ui else RunPages()
        write_report(found, path, Links(console.study_arguments, pages), read_profile(facts))
        if written:
            self.ledger.log_file(figure)
            for file in (path, path.with_name(FACT_FILE)):
                if file.exists():
                    self.ledger.log_file(file, "report")
        if self.ledger.trouble:
            console.warn(self.ledger.trouble)
        return found

    @property
    def _has_ui(self) -> bool:
        """Return whether the ledger has pages: its server's, or those of `leanrec ui`, which shows the home's store."""
        uri = self.home.tracking_uri(self.config.tracking_uri)
        return is_server(uri) or uri == self.home.tracking_uri(None)


def open_session(config: StudyConfig, home: Home) -> Session:
    """Make or find the study and its ledger; ConfigError where a study of that name was begun with other settings."""
    home.claim()
    with opening(home):
        storage = home.storage(config.storage)
        if config.storage is None:
            write_ahead(storage)
        study = Study(config.name, storage, config.objectives, config.quality.limits, config.seed, config.sampler)
        settings = config.model_dump(mode="json")
        if study.finished() and study.facts.get("measurement") != MEASUREMENT:
            raise ConfigError(
                f"the study {config.name!r} was measured by another version, whose numbers cannot stand beside those "
                "of this one; give it another name (start_from begins with its front)"
            )
        before, identity = study.facts.get("config"), study.facts.get("identity") or uuid4().hex
        changed = None if before is None else difference(before, settings)
        if changed is not None:
            if study.finished():
                raise ConfigError(
                    f"{changed}, but the study {config.name!r} was begun with the former; give it another name"
                )
            with locked(home, config.name):
                study.forget()
                study.note(identity=identity)
        study.note(config=settings, measurement=MEASUREMENT, identity=identity)
        ledger = Ledger(home.tracking_uri(config.tracking_uri), home.artifacts, config.name, identity, home.root)
        ledger.open(settings, anew=changed is not None)
        return Session(config, home, study, ledger)


def task_of(config: StudyConfig, home: Home) -> Task:
    check_server_packages(config.traffic)
    rows, data = config.traffic.rows, config.data
    synthetic = data.model_dump(exclude={"source"}) if isinstance(data, SyntheticData) else None
    columns = data.columns.model_dump(mode="json") if isinstance(data, TableData) else None
    return Task(
        str(home.root), config.recommender, "" if data is None else data.source, config.metric,
        rows.median, rows.sigma, rows.max, config.seed, synthetic, rows_trace(config, home), columns, config.sizes,
        config.quality.slice_by, batch_size=config.training.batch_size, int8_weight_bits=int8_weight_bits(),
    )  # fmt: skip


def jobs_of(config: StudyConfig, home: Home, prepared: Prepared, study: Study | None = None) -> MeterJobs:
    """Return the meter's jobs in this study, whose benchmarks estimate the variance between visits on this machine."""
    earlier = () if study is None else study.measured().values()
    noise = ratio_noise([(m.latency, m.throughput) for m in earlier])
    task = replace(task_of(config, home), expected=prepared.key)
    return MeterJobs(config, task, prepared, traffic_of(config.traffic, home), noise)


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
        ConfigError: the study was begun with another checkpoint, other data or another metric, or on another
            machine.
    """
    config, study = session.config, session.study
    machine, here = study.facts.get("machine"), describe()
    if machine not in (None, here) and study.finished():
        raise ConfigError(
            f"STUDY: {config.name!r} was begun on another machine ({machine}), whose times are none of this one's "
            f"({here}); give it another name, where start_from: [{config.name}] begins with its front"
        )
    prepared, before = prepared_by(builder, config, session.home, console), study.facts.get("prepared")
    given = prepared.key, prepared.metric
    if before is not None and (before["key"], before["metric"]) != given and study.finished():
        raise ConfigError(
            f"recommender: must give the model, data, requests and metric that the study {config.name!r} was begun "
            "with, by the same code and library versions, but gave others; give the study another name"
        )
    study.note(prepared=to_plain(prepared), machine=here)
    known = {name: value for name, value in prepared.references.items() if value is not None}
    best_first = sorted(known.items(), key=itemgetter(1), reverse=True)
    scores = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in best_first)
    console.say(
        f"baseline: {metric_name(prepared.reference_metric)} on test {scores} "
        f"({prepared.rows['test']:,} rows{f', {prepared.users:,} users' if prepared.users else ''})"
    )
    if prepared.undertrained is not None:
        console.warn(f"the baseline is under-trained: {prepared.undertrained}; what distilling gains is partly that")
    console.warn(*unused_settings(config))
    if prepared.rows_interact is not None:
        console.warn(
            f"{prepared.rows_interact}; requests are neither split nor batched, but quality is evaluated on rows of "
            "several requests together"
        )
    simple = [value for name, value in known.items() if name in ("popularity", "logistic_regression")]
    if simple and known["baseline"] <= max(simple):
        console.warn("the baseline does not beat the references: a smaller model may be all that the data need")
    return prepared


def unused_settings(config: StudyConfig) -> tuple[str, ...]:
    """Return a warning of each setting that counts for nothing."""
    told = "is not used: the requests of one's own recommender have sizes of their own, which traffic.rows.file changes"
    return tuple(f"traffic.rows.{key} {told}" for key in config.unused_rows)


def prepared_of(session: Session, front: Front) -> Prepared:
    """Return the prepared study that every later benchmark is compared with.

    Raises:
        ConfigError: nothing was measured yet, or the baseline's model file or the requests are gone.
    """
    name, facts = session.config.name, session.study.facts
    if "prepared" not in facts or front.baseline is None:
        raise ConfigError(f"STUDY: {name!r} has no measured baseline yet; leanrec run does that")
    prepared = from_plain(Prepared, facts["prepared"])
    for what, path in (
        ("the baseline's model file", session.home.root / prepared.baseline.path),
        ("the requests", Path(prepared.holdout) / "requests.npz"),
    ):
        if not path.is_file():
            raise ConfigError(f"STUDY: {what} of {name!r} must lie in the cache, but {path} is gone")
    return prepared
