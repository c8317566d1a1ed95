"""The only mlflow: one parent run a study, one child run a trial, and one a technique's effect.

All are written from what the study knows. Its database is what counts; the ledger is brought level with it after every
trial and at every start, so a kill or an absent server costs nothing but a delay.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

# A dead server must not hold up a search: fail fast, come back later.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")

from mlflow.entities import Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException
from mlflow.store.db import utils as databases
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from objectives.records import Measurement, Outcome
from search.ablation.records import Ablation, Difference, Effect
from search.trials import EndedTrial
from spaces.candidate import Candidate
from spaces.serialization import digest, to_plain

logging.getLogger("mlflow").setLevel(logging.ERROR)
logging.getLogger("alembic").setLevel(logging.ERROR)

_STATUS = {"complete": "FINISHED", "stopped": "KILLED", "failed": "FAILED"}
_AGAIN_SECONDS = 60.0
# MLflow opens a database ten times over, in 100 seconds: as of a server, once more is enough.
_TIMES = 2
_PAGE = 1000
# Tag of a run: the raw timings that its numbers were computed from.
_TIMINGS = "leanrec.timings"


class Ledger:
    """One study's runs in MLflow. `record` never raises for an absent server; `level` says whether all is written."""

    def __init__(self, tracking_uri: str, artifacts: Path, study: str, home: Path) -> None:
        self._uri, self._artifacts, self._study, self._home = tracking_uri, artifacts, study, home
        self._settings: Mapping[str, object] = {}
        self._experiment = ""
        self._parent: str | None = None
        self._down_since: float | None = None
        self.trouble: str | None = None

    @cached_property
    def _client(self) -> MlflowClient:
        """Open the client: a database URI connects here, under `_try`, which handles an unreachable one."""
        databases.MAX_RETRY_COUNT = _TIMES
        return MlflowClient(tracking_uri=self._uri)

    def open(self, settings: Mapping[str, object]) -> None:
        """Find or make the study's experiment and its parent run."""
        self._settings = settings
        self._try(self._open)

    def record(self, trial: EndedTrial) -> None:
        """Write one trial as a child run; skipped while the server is away, for `level` to make up."""
        resting = self._down_since is not None and time.monotonic() - self._down_since < _AGAIN_SECONDS
        if self._parent is not None and not resting:
            self._try(lambda: self._write(trial))

    def level(self, trials: Sequence[EndedTrial], front: Container[int], ablations: Iterable[Ablation] = ()) -> bool:
        """One finished run for each trial and each effect of a technique, and none else; front members carry a tag, and
        an effect measured anew replaces the former. False while the server is away."""
        effects = [(ablation.trial, effect) for ablation in ablations for effect in ablation.effects]
        self._down_since = None
        return self._try(lambda: self._level(trials, front, {digest(*pair): pair for pair in effects}))

    def log_file(self, path: Path, folder: str) -> None:
        """A file or a folder as an artifact of the parent run."""
        if self._parent is not None:
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            self._try(lambda: log(self._parent, str(path), folder))

    def register(
        self, name: str, model: Path, trial: int, tags: Mapping[str, str], metrics: Mapping[str, float]
    ) -> dict[str, str] | None:
        """A model file as a new version of a registered one, with the alias champion; None without a server.

        Args:
            tags: of the version
            metrics: of the trial's run, known since it was chosen
        """
        registered: dict[str, str] = {}

        def register() -> None:
            import mlflow.onnx
            import onnx

            assert self._parent is not None
            runs = {run.data.tags["leanrec.trial"]: run for run in self._runs("trial")}
            if str(trial) not in runs:
                raise MlflowException(f"trial {trial} has no run yet")
            run = runs[str(trial)]
            mlflow.set_tracking_uri(self._uri)
            with mlflow.start_run(run_id=run.info.run_id):
                mlflow.log_metrics(dict(metrics))
                info = mlflow.onnx.log_model(
                    onnx.load(str(model)), name="model", pip_requirements=["onnxruntime", "numpy"], metadata=dict(tags)
                )
            try:
                self._client.create_registered_model(name)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            version = self._client.create_model_version(
                name, info.model_uri, run.info.run_id, tags=dict(tags), model_id=info.model_id
            )
            self._client.set_registered_model_alias(name, "champion", version.version)
            registered.update(name=name, version=str(version.version), alias="champion")

        return registered if self._try(register) else None

    def _open(self) -> None:
        experiment = self._client.get_experiment_by_name(self._study)
        if experiment is None:
            location = self._artifacts.as_uri() if self._uri.startswith("sqlite:") else None
            identity = self._client.create_experiment(self._study, artifact_location=location)
        else:
            identity = experiment.experiment_id
        self._experiment = identity
        found = self._client.search_runs([identity], "tags.`leanrec.role` = 'study'")
        if found:
            self._parent = found[0].info.run_id
            return
        run = self._client.create_run(
            identity, run_name=self._study, tags={"leanrec.role": "study", "leanrec.study": self._study}
        )
        self._parent = run.info.run_id
        params = [Param(key, str(value)[:500]) for key, value in _flat(self._settings).items()]
        self._client.log_batch(self._parent, params=params[:100])
        self._client.set_terminated(self._parent)

    def _write(self, trial: EndedTrial) -> None:
        number, outcome = trial.number, trial.outcome
        tags, metrics = _tags_and_metrics(trial)
        seconds, status = sum(outcome.seconds.values()), _STATUS[outcome.state]
        self._add("trial", number, f"trial {number}", trial.candidate, outcome, tags, metrics, status, seconds)

    def _update(self, run: str, trial: EndedTrial) -> None:
        """Bring a trial's run level with its numbers; those of a final benchmark are a second step of each metric."""
        tags, metrics = _tags_and_metrics(trial)
        self._log(run, trial.outcome, tags, metrics, step=int(trial.final))

    def _write_effect(self, name: str, trial: int, effect: Effect) -> None:
        tags = {"leanrec.effect": name, "technique": effect.technique, "kind": effect.kind}
        if effect.group is not None:
            tags["group"] = effect.group
        title = f"trial {trial} {effect.kind}: {' '.join(filter(None, (effect.technique, effect.group)))}"
        metrics = {} if effect.difference is None else _measured(effect.difference)
        status = "FINISHED" if effect.reason is None else "FAILED"
        self._add("ablation", trial, title, effect.other, effect, tags, metrics, status)

    def _add(
        self, role: str, trial: int, title: str, candidate: Candidate, record: Outcome | Effect,
        tags: Mapping[str, str], metrics: Mapping[str, float], status: str, seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Write a child run, which stays RUNNING until it is whole."""
        now = int(time.time() * 1000)
        whose = {"mlflow.parentRunId": self._parent or "", "leanrec.role": role, "leanrec.study": self._study}
        run = self._client.create_run(
            self._experiment,
            start_time=now - int(1000 * seconds),
            run_name=title,
            tags={**whose, "leanrec.trial": str(trial)},
        )
        reason = {} if record.reason is None else {"reason": record.reason}
        params = {key: str(value) for key, value in candidate.knobs().items()}
        self._log(run.info.run_id, record, {"candidate": candidate.id, **reason, **tags}, metrics, params)
        self._client.set_terminated(run.info.run_id, status)

    def _log(
        self, run: str, record: Outcome | Effect, tags: Mapping[str, str], metrics: Mapping[str, float],
        params: Mapping[str, str] | None = None, step: int = 0,
    ) -> None:  # fmt: skip
        """Write numbers and raw timings; which timings they are is known once all is written."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            run,
            metrics=[Metric(key, value, now, step) for key, value in metrics.items()],
            params=[Param(key, value) for key, value in (params or {}).items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        if record.timings is not None:
            if (self._home / record.timings).exists():
                self._client.log_artifact(run, str(self._home / record.timings), "timings")
            self._client.set_tag(run, _TIMINGS, record.timings)

    def _level(
        self, trials: Sequence[EndedTrial], front: Container[int], effects: Mapping[str, tuple[int, Effect]]
    ) -> None:
        kept = self._kept("trial", "leanrec.trial", {str(trial.number) for trial in trials})
        for trial in trials:
            if str(trial.number) not in kept:
                self._write(trial)
        by_number = {str(trial.number): trial for trial in trials}
        for run in self._runs("trial"):
            trial = by_number[run.data.tags["leanrec.trial"]]
            if trial.outcome.timings != run.data.tags.get(_TIMINGS):
                self._update(run.info.run_id, trial)
            member = "true" if trial.number in front else "false"
            if run.data.tags.get("on_front", "false") != member:
                self._client.set_tag(run.info.run_id, "on_front", member)
        kept = self._kept("ablation", "leanrec.effect", effects)
        for name, (number, effect) in effects.items():
            if name not in kept:
                self._write_effect(name, number, effect)

    def _kept(self, role: str, tag: str, wanted: Container[str]) -> set[str]:
        """Delete a role's runs but one whole run for each wanted value of the tag; the values that have one."""
        kept: set[str] = set()
        for run in self._runs(role):
            name = run.data.tags.get(tag, "")
            if name not in wanted or name in kept or run.info.status == "RUNNING":
                self._client.delete_run(run.info.run_id)
            else:
                kept.add(name)
        return kept

    def _runs(self, role: str) -> list[Run]:
        """All of a role, page by page."""
        if self._parent is None:
            self._open()
        runs: list[Run] = []
        token: str | None = None
        while True:
            page = self._client.search_runs(
                [self._experiment], f"tags.`leanrec.role` = '{role}'", max_results=_PAGE, page_token=token
            )
            runs += page
            token = page.token
            if not token:
                return runs

    def _try(self, work: Callable[[], object]) -> bool:
        """MLflow's own errors and a store that cannot be reached leave a line in `trouble`."""
        try:
            work()
        except (MlflowException, SQLAlchemyError, OSError) as error:
            self._down_since = time.monotonic()
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.trouble = f"MLflow at {self._uri} did not answer ({first[:200]}); it is brought level later"
            return False
        self.trouble, self._down_since = None, None
        return True


def _tags_and_metrics(trial: EndedTrial) -> tuple[dict[str, str], dict[str, float]]:
    candidate, outcome = trial.candidate, trial.outcome
    tags = {"state": outcome.state, "weights": candidate.weights.id, "variant": candidate.variant_id}
    metrics = {f"seconds.{stage}": seconds for stage, seconds in outcome.seconds.items()}
    if outcome.measurement is not None:
        tags["benchmark"] = "final" if trial.final else "search"
    if outcome.reused:
        tags["reused"] = ", ".join(outcome.reused)
    if trial.minutes is not None:
        metrics["minutes"] = trial.minutes
    if outcome.artifact is not None:
        metrics["parity"] = outcome.artifact.parity
        tags |= {f"width.{group}": width for group, width in outcome.artifact.widths.items()}
        tags |= {f"units.{group}": "-".join(map(str, units)) for group, units in outcome.artifact.units.items()}
    if outcome.simulated is not None:
        metrics |= _numbers(_flat(to_plain(outcome.simulated), "simulated."))
    if outcome.quality is not None:
        metrics |= _numbers(_flat(to_plain(outcome.quality), "quality."))
    if outcome.measurement is not None:
        metrics |= _measured(outcome.measurement)
    return tags, metrics


def _measured(record: Measurement | Difference) -> dict[str, float]:
    """Every number that was measured, by its dotted name; intervals as .low and .high."""
    found = _flat(to_plain(record))
    for part in record.quality.slices:
        name = re.sub(r"[^A-Za-z0-9_ -]", "_", part.name)  # other characters MLflow does not accept
        found |= _flat(to_plain(part), f"quality.slice.{name}.")
    return _numbers(found)


def _numbers(flat: Mapping[str, object]) -> dict[str, float]:
    return {name: float(value) for name, value in flat.items() if isinstance(value, (int, float))}


def _flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        elif isinstance(value, list) and "_interval" in key:
            flat |= {f"{name}.low": value[0], f"{name}.high": value[1]}
        else:
            flat[name] = value
    return flat
