"""Runs of one study in MLflow: a parent run, one child run a trial, and one a technique's effect."""

from __future__ import annotations

import getpass
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import DatasetInput, Metric, Param, Run, RunTag
from mlflow.tracking import MlflowClient

from objectives.records import Outcome
from objectives.serving.bundle_files import model_files
from search.ablation.records import Effect
from search.ledger.notes import NOTE, Links, shared_views, study_note, trial_note, version_note
from search.ledger.run_data import (
    NAMES,
    NAMES_VERSION,
    Standing,
    accepted,
    flat,
    measured,
    study_metrics,
    trial_data,
)
from search.ledger.titles import candidate_title, run_name
from search.results import Front
from search.run_pages import RunPages
from search.trials import EndedTrial
from spaces.candidate import Candidate
from spaces.serialization import digest, to_plain

_STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_PAGE = 1000
# Most parameters of one call, and of a study.
_PARAMS = 100
# Tags of a run: the raw timings that its numbers were computed from, those numbers and the step that they have, and the
# model whose files it holds.
_TIMINGS, _NUMBERS, _STEP, _MODEL = "leanrec.timings", "leanrec.numbers", "leanrec.step", "leanrec.model"
ROLE = "leanrec.role"
# Tag of a run: which study of the name it is of, where several homes have one and write to the same server.
_IDENTITY = "leanrec.identity"
# The custom-model view, in place of MLflow's view for language models; and the metric that its charts show first.
_VIEW = {
    "mlflow.experimentKind": "custom_model_development",
    "mlflow.experiment.primaryMetric.name": "p95_ratio",
    "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
    **shared_views(),
}


@dataclass(frozen=True)
class Facts:
    """Facts of a study as a whole, beside its trials.

    front: its result; None where that is not told
    data: its data set; None until it is prepared
    """

    front: Front | None = None
    data: DatasetInput | None = None


class StudyRuns:
    """Runs of a study. Every method raises the store's errors."""

    def __init__(
        self,
        client: MlflowClient,
        study: str,
        identity: str,
        settings: Mapping[str, object],
        artifacts: Path | None,
        home: Path,
        anew: bool = False,
    ) -> None:
        """Find or make the study's experiment and its parent run.

        Args:
            identity: of this study among all of its name; runs without one, of an earlier version, count as its own
            artifacts: folder of the artifacts; None for the store's own
            anew: whether the study begins anew with other settings than a run that there is
        """
        self._client, self._study, self._identity, self._home = client, study, identity, home
        self._experiment = self._open_experiment(artifacts)
        self._data: DatasetInput | None = None
        found = self._runs("study")
        for run in found if anew else ():
            client.delete_run(run.info.run_id)
        found = [] if anew else found
        self._idle = bool(found) and found[0].info.status != "RUNNING"
        self._parent = found[0].info.run_id if found else self._create_parent(settings)

    def write(self, trial: EndedTrial) -> None:
        """Write one trial as a child run."""
        if self._idle:
            self._client.update_run(self._parent, status="RUNNING")
            self._idle = False
        tags, metrics = trial_data(trial)
        seconds, status = sum(trial.outcome.seconds.values()), _STATUS[trial.outcome.state]
        tags[NOTE] = trial_note(trial)
        name = run_name(trial)
        times = trial.times_ms or _until_now(seconds)
        self._add("trial", trial.number, name, trial.candidate, trial.outcome, tags, metrics, status, times)

    def level(
        self,
        trials: Sequence[EndedTrial],
        front: Container[int],
        effects: Mapping[str, tuple[int, Effect]],
        facts: Facts,
    ) -> None:
        """Leave one finished run for each trial and each effect, and none else, with what is known now."""
        self._data = facts.data or self._data
        kept = self._kept("trial", "leanrec.trial", {str(trial.number): _choice(trial) for trial in trials})
        for trial in trials:
            if str(trial.number) not in kept:
                self.write(trial)
        by_number = {trial.number: trial for trial in trials}
        runs = {int(run.data.tags["leanrec.trial"]): run for run in self._runs("trial")}
        links = Links(self._experiment, self._parent, {number: run.info.run_id for number, run in runs.items()})
        links = _with_version(links, facts.front)
        standing = Standing.of(front, facts.front)
        for number, run in runs.items():
            self._update(run, by_number[number], standing, links)
        kept = self._kept("ablation", "leanrec.effect", {name: {} for name in effects})
        for name, (number, effect) in effects.items():
            if name not in kept:
                self._write_effect(name, number, effect)
        self._end_parent(trials, facts.front, links)

    def log_file(self, path: Path, folder: str | None, trial: int | None = None) -> None:
        """Log a file or a folder as an artifact of the parent run, or of a trial's where it has one."""
        run = self._parent if trial is None else self.run_of(trial)
        if run is not None:
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log(run, str(path), folder)

    def pages(self, ui: str, trials: Iterable[int]) -> RunPages:
        """Return the addresses of the study's run and of these trials' in MLflow's UI."""
        runs = {int(run.data.tags["leanrec.trial"]): run.info.run_id for run in self._runs("trial")}
        links = Links(self._experiment, self._parent)
        of_trials = {trial: f"{ui}/{links.run(runs[trial])}" for trial in trials if trial in runs}
        return RunPages(f"{ui}/{links.run(self._parent)}", of_trials)

    def run_of(self, trial: int) -> str | None:
        """Return the id of a trial's run; None where it has none yet."""
        runs = {run.data.tags["leanrec.trial"]: run.info.run_id for run in self._runs("trial")}
        return runs.get(str(trial))

    def _open_experiment(self, artifacts: Path | None) -> str:
        found = self._client.get_experiment_by_name(self._study)
        if found is None:
            location = None if artifacts is None else artifacts.as_uri()
            return str(self._client.create_experiment(self._study, location, tags=_VIEW))
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        for key, value in _VIEW.items():
            if found.tags.get(key) != value:
                self._client.set_experiment_tag(found.experiment_id, key, value)
        return str(found.experiment_id)

    def _create_parent(self, settings: Mapping[str, object]) -> str:
        run = self._client.create_run(self._experiment, run_name=self._study, tags=self._whose("study"))
        named = {".".join(map(accepted, key.split("."))): str(value)[:500] for key, value in flat(settings).items()}
        params = [Param(key, value) for key, value in named.items()]
        self._client.log_batch(run.info.run_id, params=params[:_PARAMS])
        return str(run.info.run_id)

    def _whose(self, role: str) -> dict[str, str]:
        """Return the tags that every run has: its role, and what MLflow shows as its user and source."""
        source = {"mlflow.source.name": f"leanrec run {self._study}", "mlflow.source.type": "LOCAL"}
        named = {"leanrec.study": self._study, _IDENTITY: self._identity}
        return {ROLE: role, **named, "mlflow.user": _user(), **source}

    def _write_effect(self, name: str, trial: int, effect: Effect) -> None:
        tags = {
            "leanrec.effect": name,
            "technique": effect.technique,
            "kind": effect.kind,
            "candidate": effect.other.id,
        }
        tags[NOTE] = effect.reason or candidate_title(effect.other)
        if effect.group is not None:
            tags["group"] = effect.group
        if effect.reason is not None:
            tags["reason"] = effect.reason
        title = f"trial {trial} {effect.kind}: {' '.join(filter(None, (effect.technique, effect.group)))}"
        metrics = {} if effect.difference is None else measured(effect.difference)
        status = "FINISHED" if effect.reason is None else "FAILED"
        self._add("ablation", trial, title, effect.other, effect, tags, metrics, status, _until_now(0.0))

    def _add(
        self, role: str, trial: int, title: str, candidate: Candidate, record: Outcome | Effect,
        tags: Mapping[str, str], metrics: Mapping[str, float], status: str, times_ms: tuple[int, int],
    ) -> None:  # fmt: skip
        """Write a child run, which stays RUNNING until it is whole."""
        whose = {**self._whose(role), "mlflow.parentRunId": self._parent, "leanrec.trial": str(trial)}
        run = self._client.create_run(self._experiment, start_time=times_ms[0], run_name=title, tags=whose)
        params = {key: str(value) for key, value in candidate.knobs().items()}
        self._log(run.info.run_id, record, tags, metrics, params)
        if self._data is not None:
            self._client.log_inputs(run.info.run_id, [self._data])
        self._client.set_terminated(run.info.run_id, status, times_ms[1])

    def _update(self, run: Run, trial: EndedTrial, standing: Standing, links: Links) -> None:
        """Bring a trial's run level with what is known; other numbers are a further step of each metric."""
        tags, identity = run.data.tags, run.info.run_id
        if _NUMBERS in tags:
            changed = tags[_NUMBERS] != _numbers(trial.outcome)
        else:  # of an earlier version
            changed = trial.outcome.timings != tags.get(_TIMINGS)
        if changed or tags.get(NAMES) != NAMES_VERSION:
            self._log(identity, trial.outcome, *trial_data(trial), step=int(tags.get(_STEP, 0)) + 1)
            self._client.update_run(identity, name=run_name(trial))
        wanted = standing.tags(trial.number)
        wanted[NOTE] = trial_note(
            trial,
            links if wanted["chosen"] == "true" else None,
            self._study if wanted["on_front"] == "true" else None,
        )
        others = [RunTag(key, value) for key, value in wanted.items() if tags.get(key, "false") != value]
        if others:
            self._client.log_batch(identity, tags=others)
        if self._data is not None and not run.inputs.dataset_inputs:
            self._client.log_inputs(identity, [self._data])
        if wanted["on_front"] == "true":
            self._log_model(run, trial)

    def _log_model(self, run: Run, trial: EndedTrial) -> None:
        """Log the ONNX files of a trial, once."""
        artifact = trial.outcome.artifact
        if artifact is None or run.data.tags.get(_MODEL) == artifact.key:
            return
        folder = (self._home / artifact.path).parent
        files = [folder / name for name in model_files(trial.candidate.placement, folder)]
        if all(file.exists() for file in files):
            for file in files:
                self._client.log_artifact(run.info.run_id, str(file), "onnx")
            self._client.set_tag(run.info.run_id, _MODEL, artifact.key)

    def _log(
        self, run: str, record: Outcome | Effect, tags: Mapping[str, str], metrics: Mapping[str, float],
        params: Mapping[str, str] | None = None, step: int = 0,
    ) -> None:  # fmt: skip
        """Write numbers and raw timings; the tags that tell which they are come last, as in every batch of MLflow's."""
        now, told = int(time.time() * 1000), {**tags, _STEP: str(step)}
        if record.timings is not None:
            if (self._home / record.timings).exists():
                self._client.log_artifact(run, str(self._home / record.timings), "timings")
            told[_TIMINGS] = record.timings
        if isinstance(record, Outcome):
            told[_NUMBERS] = _numbers(record)
        self._client.log_batch(
            run,
            metrics=[Metric(key, value, now, step) for key, value in metrics.items()],
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in told.items()],
        )

    def _end_parent(self, trials: Sequence[EndedTrial], front: Front | None, links: Links) -> None:
        """Describe the study in its experiment, its parent run and its registered model, and end the parent run."""
        parent = self._client.get_run(self._parent)
        if front is not None:
            note, metrics = study_note(front, links), study_metrics(front)
            changed = [
                Metric(k, v, int(time.time() * 1000), 0) for k, v in metrics.items() if parent.data.metrics.get(k) != v
            ]
            if note != parent.data.tags.get(NOTE) or changed:
                self._client.log_batch(self._parent, metrics=changed, tags=[RunTag(NOTE, note)])
                self._client.set_experiment_tag(self._experiment, NOTE, note)
                self._describe_version(front, note, links)
        if self._data is not None and not parent.inputs.dataset_inputs:
            self._client.log_inputs(self._parent, [self._data])
        last = max((trial.times_ms[1] for trial in trials if trial.times_ms is not None), default=None)
        if parent.info.status == "RUNNING" or (last is not None and last > parent.info.end_time):
            self._client.set_terminated(self._parent, "FINISHED", last)
            self._idle = True

    def _describe_version(self, front: Front, note: str, links: Links) -> None:
        if links.version is not None:
            name, version = links.version
            self._client.update_registered_model(name, f"{note}\n\nFrom the {links.study} {front.study}.")
            self._client.update_model_version(name, version, version_note(front, links))

    def _kept(self, role: str, tag: str, wanted: Mapping[str, Mapping[str, str]]) -> set[str]:
        """Delete a role's runs but one whole run for each wanted value of the tag; return the values that have one.

        Args:
            wanted: by the value, other tags that the run may not contradict
        """
        kept: set[str] = set()
        for run in self._runs(role):
            tags = run.data.tags
            name = tags.get(tag, "")
            others = wanted.get(name, {}).items()
            strange = name not in wanted or any(tags.get(other, value) != value for other, value in others)
            if strange or name in kept or run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)
            else:
                kept.add(name)
        return kept

    def _runs(self, role: str) -> list[Run]:
        """Return all of the study's runs of a role, read page by page."""
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`{ROLE}` = '{role}'", max_results=_PAGE, page_token=token
            )
            runs += [run for run in page if run.data.tags.get(_IDENTITY, self._identity) == self._identity]
            token = page.token
            if not token:
                return runs


def _choice(trial: EndedTrial) -> dict[str, str]:
    """Return the tags that tell a trial from one of the same number before the study was restarted."""
    return {"candidate": trial.candidate.id, "state": trial.outcome.state}


def _numbers(outcome: Outcome) -> str:
    """Identify the numbers of a trial: a final benchmark that goes on has others, in the same file of timings."""
    return digest(outcome.timings, to_plain(outcome.measurement))[:16]


def _with_version(links: Links, front: Front | None) -> Links:
    if front is None or front.chosen is None or front.chosen.registered is None:
        return links
    registered = front.chosen.registered
    return Links(links.experiment, links.parent, links.runs, (registered["name"], registered["version"]))


def _until_now(seconds: float) -> tuple[int, int]:
    now = int(time.time() * 1000)
    return now - int(1000 * seconds), now


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
