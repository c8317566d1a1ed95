"""Dry run: the stages of a study, each once and on three batches of train, before any budget is spent."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from objectives.jobs.protocol import Request
from objectives.jobs.requests import ExportRequest, FitRequest, PrepareRequest
from objectives.measurement.profile.profile import Profile
from objectives.records import Prepared
from objectives.serving.devices import cores_allowed
from search.cli.console import Console
from search.config.defaults import space_for
from search.config.load import traffic_of
from search.config.loss_limits import check_slices
from search.config.sections import StudyConfig
from search.errors import JobError
from search.explore.first_trials import MOST_CANDIDATES
from search.home import Home
from search.session import task_of
from search.workers.meter_jobs import MeterJobs, curve_parts
from search.workers.processes import Response, Worker, Workers, call
from spaces.candidate import Candidate
from spaces.domains import FixedValues

_LIMIT_SECONDS = 600.0


@dataclass(frozen=True)
class DryRun:
    """Result of a dry run.

    seconds: of each stage
    batch_seconds: mean seconds of a batch of training, 0 where the space trains nothing
    """

    prepared: Prepared
    profile: Profile
    seconds: dict[str, float]
    batch_seconds: float


def dry_run(config: StudyConfig, home: Home, workers: Workers, console: Console) -> DryRun:
    """Run the stages of the baseline, then those of the search's first candidates until one gets through.

    Raises:
        ConfigError: the study file does not fit the model, or the factory's result is invalid.
        JobError: a stage failed; the message names it and what to do.
    """
    cache, stages = home.mlruns / "cache", _Stages(console)
    cache.mkdir(exist_ok=True)
    with TemporaryDirectory(prefix="dry-run-", dir=cache, ignore_cleanup_errors=True) as folder:
        task = replace(task_of(config, home), dry_run=folder)
        try:
            prepared = stages.run("prepare", workers.builder, PrepareRequest(task, cores_allowed()))
            check_slices(config.quality.slices, prepared.parts)
            space = space_for(config.space, prepared)
            task = replace(task, expected=prepared.key)
            jobs = MeterJobs(config, task, prepared, traffic_of(config.traffic, home))
            profile = stages.run("profile", workers.meter, jobs.profile()).profile
        except JobError as error:
            raise JobError(f"The dry run ended at {error}; correct the recommender or its data") from error
        starts = dict.fromkeys(space.suggest(FixedValues(start)) for start in space.starts()[1:])
        # Where the space trains at all, a model that cannot be trained must not get through.
        trained = [candidate for candidate in starts if candidate.weights.distillation is not None]
        candidates = (trained or [*starts] or [Candidate()])[:MOST_CANDIDATES]
        for candidate in candidates:
            try:
                return DryRun(prepared, profile, stages.seconds, _through(candidate, jobs, workers, stages))
            except JobError as error:
                last = error
                console.say(f"dry run: {candidate.id} ended at {error}")
        raise JobError(
            f"The dry run ended: none of {len(candidates)} candidates got through every stage, the last ended at "
            f"{last}; leave what failed out of space, or correct the recommender"
        ) from last


def _through(candidate: Candidate, jobs: MeterJobs, workers: Workers, stages: _Stages) -> float:
    """Take a candidate through every stage, and return the mean seconds of a batch of its training."""
    (builder, meter), threads, task = (workers.builder, workers.meter), cores_allowed(), jobs.task
    batch_seconds = 0.0
    if candidate.weights.distillation is not None:
        batch_seconds = stages.run("fit", builder, FitRequest(task, candidate.weights, threads)).batch_seconds
    artifact = stages.run("export", builder, ExportRequest(task, candidate, threads)).artifact
    ours = (artifact, candidate)
    scores = jobs.score(ours, "validation")
    if jobs.config.own and not jobs.prepared.custom_metric:
        stages.run("evaluate", builder, jobs.evaluate(scores, 0.95))
    else:  # of a built-in model, which is not trained here, the loss may be undefined
        scored = stages.run("evaluate", builder, scores)
        if jobs.prepared.custom_metric:
            stages.run("metric", builder, jobs.evaluate_custom_metric(scored, "validation", 0.95, threads))
    for part in curve_parts(candidate.placement):
        stages.run("service curve", meter, jobs.service_curve(ours, part))
    recording = str(Path(task.dry_run, "recording.npz").relative_to(task.home))
    stages.run("benchmark", meter, jobs.time(ours, "brief", jobs.config.seed, recording))
    return batch_seconds


@dataclass(frozen=True)
class _Stages:
    """Stages that are run one after another, with the seconds of each; a failure names its stage."""

    console: Console
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self, stage: str, worker: Worker, request: Request[Response]) -> Response:
        self.console.say(f"dry run: {stage}")
        start = time.monotonic()
        try:
            response = call(worker, request, _LIMIT_SECONDS, self.console.say)
        except JobError as error:
            raise JobError(f"{stage}: {error}") from error
        self.seconds[stage] = time.monotonic() - start
        return response
