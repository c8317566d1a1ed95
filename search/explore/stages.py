"""Stages of a trial: the request of each, and what its response changes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from objectives.jobs import requests
from objectives.jobs.protocol import Request
from objectives.records import Measurement, Outcome, SimulatedRatios, State
from search.explore.benchmark_groups import side
from search.explore.cost_model import CostModel
from search.explore.early_stopping import EarlyStopping
from search.explore.running_trial import TIMING, RunningTrial, Stage
from search.explore.screening import Screening
from search.trials import sought
from search.workers.meter_jobs import MeterJobs
from search.workers.processes import Done
from spaces.candidate import Candidate

# Stages of trained weights, of which a trial records whether the cache had their results.
_WHOLE: tuple[Stage, ...] = ("fit_network", "fit", "export", "evaluate", "score", "custom_metric")
_CACHED = (
    requests.FitNetworkResponse,
    requests.FitResponse,
    requests.ExportResponse,
    requests.EvaluateResponse,
    requests.ScoreResponse,
)


@dataclass(frozen=True)
class Stages:
    """Stages of the trials of one study; builders run `threads` threads.

    networks: origins of slices whose elastic network is trained
    failed: those whose network could not be trained, with the reason
    """

    jobs: MeterJobs
    costs: CostModel
    screening: Screening
    early: EarlyStopping
    threads: int
    networks: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)

    def request(self, running: RunningTrial) -> Request[object]:
        """Return the request of a trial's stage, which is not the benchmark."""
        candidate, threads = running.candidate, self.threads
        if running.stage == "fit_network":
            return requests.FitNetworkRequest(self.jobs.task, candidate.weights, threads)
        if running.stage == "fit":
            return requests.FitRequest(self.jobs.task, candidate.weights, threads)
        if running.stage in ("fit_early", "export_early", "evaluate_early"):
            return self._early_request(running)
        if running.stage == "export_untrained":
            return requests.ExportRequest(self.jobs.task, candidate.untrained, threads)
        if running.stage == "export":
            return requests.ExportRequest(self.jobs.task, candidate, threads)
        if running.stage == "custom_metric":
            assert running.scored is not None
            return self.jobs.evaluate_custom_metric(running.scored, "validation", 0.95, threads)
        if running.stage == "curve":
            built = running.artifact or running.untrained
            assert built is not None
            running.curve_part = self.costs.missing(candidate)[0]
            return self.costs.request(built, candidate, running.curve_part)
        scores = self.jobs.score(side(running), "validation", threads=threads)
        if running.stage == "score":
            return scores
        return self.jobs.evaluate(scores, 0.95, self.screening.reject_above(running))

    def _early_request(self, running: RunningTrial) -> Request[object]:
        early, threads = running.early_candidate, self.threads
        assert early is not None
        if running.stage == "fit_early":
            return requests.FitRequest(self.jobs.task, early.weights, threads)
        if running.stage == "export_early":
            return requests.ExportRequest(self.jobs.task, early, threads)
        assert running.artifact is not None
        scores = self.jobs.score((running.artifact, early), "validation", threads=threads)
        return self.jobs.evaluate(scores, 0.95, self.screening.reject_above(running))

    def advance(self, running: RunningTrial, done: Done, waiting: Sequence[RunningTrial]) -> Outcome | None:
        """Process the end of a stage but the benchmark, and return the trial's outcome where it ends."""
        result = done.result
        if result is None and running.stage == "export_untrained":
            # Untrained weights may have no scores to compare, where trained ones do.
            running.stage = self.training(running)
            return None
        if result is None and running.stage in ("export_early", "evaluate_early"):
            running.artifact, running.stage = None, "fit"  # neither need weights that are half trained
            return None
        if result is None and running.stage == "fit_network":
            self.failed[running.candidate.weights.origin] = str(done.error)
        if result is None:
            return self.ended(running, "failed", done.error)
        if isinstance(result, _CACHED) and result.reused and running.stage in _WHOLE:
            running.reused.append(seconds_name(running.stage))
        try:
            return self._next(running, result, waiting)
        except ValueError as error:
            return self.ended(running, "failed", str(error))

    def _next(self, running: RunningTrial, result: object, waiting: Sequence[RunningTrial]) -> Outcome | None:
        """Keep the result of a stage and set the next stage, or return the outcome."""
        match result:
            case requests.FitNetworkResponse():
                self.networks.add(running.candidate.weights.origin)
                running.stage = "fit"
            case requests.FitResponse() if running.stage == "fit_early":
                running.stage = "fit" if result.whole else "export_early"
            case requests.FitResponse():
                running.stage = "export"
            case requests.ExportResponse() if running.stage == "export_early":
                running.artifact, running.stage = result.artifact, "evaluate_early"
            case requests.EvaluateResponse() if running.stage == "evaluate_early":
                running.artifact, running.stage = None, "fit"
                running.early, reason = self.early.decide(running, result.quality.loss, waiting)
                if reason is not None:
                    return self.ended(running, "stopped", reason)
            case requests.ExportResponse() if running.stage == "export_untrained":
                running.untrained, running.stage = result.artifact, "curve"
            case requests.ExportResponse():
                running.artifact = result.artifact
                running.stage = "curve" if self.measures_cost(running) else self.evaluation
            case requests.ScoreResponse():
                running.scored, running.stage = result, "custom_metric"
            case requests.EvaluateResponse():
                running.quality = result.quality
                if (reason := self.screening.rejects(running, waiting)) is not None:
                    return self.ended(running, "stopped", reason)
                running.stage = "benchmark"
            case _:
                assert isinstance(result, requests.ServiceCurveResponse) and running.curve_part is not None
                self.costs.learn(running.candidate, running.curve_part, result)
        return None

    def timed(self, running: RunningTrial, found: requests.BenchmarkResponse | str) -> Outcome:
        """Return the outcome of a trial by its benchmark, or by the reason why it has no numbers."""
        if isinstance(found, str):
            return self.ended(running, "failed", found)
        assert running.quality is not None
        measurement = Measurement(running.quality, found.latency, found.throughput, found.footprint)
        try:
            sought(measurement, self.jobs.config.objectives)
        except ValueError as error:  # one is missing, as a p99 of refused requests
            return self.ended(running, "failed", str(error))
        return self.ended(running, "complete", None, measurement)

    def ended(
        self, running: RunningTrial, state: State, reason: str | None, measurement: Measurement | None = None
    ) -> Outcome:
        """Return the outcome of a trial, with all that is known of it."""
        recording = None if measurement is None else self.jobs.recording(f"trial-{running.number}")
        seconds, reused = dict(running.seconds), tuple(running.reused)
        cost, quality = running.simulated, running.quality if measurement is None else None
        kept = running.artifact, seconds, reused, recording, cost, quality, running.early
        return Outcome(state, reason, measurement, *kept)

    def simulated(self, candidate: Candidate) -> SimulatedRatios | None:
        """Return the simulated cost; None while a service curve is missing, or where it cannot be simulated."""
        if self.costs.missing(candidate):
            return None
        with contextlib.suppress(ValueError):
            return self.costs.ratios(candidate)
        return None

    def measures_cost(self, running: RunningTrial) -> bool:
        """Return whether a service curve is to be measured, since the cost decides if the trial goes on."""
        return self.screening.compares_cost(running) and bool(self.costs.missing(running.candidate))

    def training(self, running: RunningTrial) -> Stage:
        """Return the first stage of a trial's training."""
        weights = running.candidate.weights
        if weights.elastic:
            return "fit" if weights.origin in self.networks else "fit_network"
        return "fit_early" if not self.jobs.prepared.custom_metric and self.early.applies(running) else "fit"

    def after_network(self, running: RunningTrial) -> Outcome | None:
        """Let a slice go on whose elastic network is trained; return the outcome of one whose network failed."""
        origin = running.candidate.weights.origin
        if running.stage != "fit_network" or running.worker is not None:
            return None
        if origin in self.networks:
            running.stage = "fit"
        if origin not in self.failed:
            return None
        return Outcome("stopped", "its elastic network failed; asked for again, to be trained separately")

    @property
    def evaluation(self) -> Stage:
        """First stage of the evaluation."""
        return "score" if self.jobs.prepared.custom_metric else "evaluate"


def seconds_name(stage: Stage) -> str:
    """Return the name that the seconds of the stage are recorded under."""
    if stage in ("export_untrained", "curve"):
        return "cost"
    if stage == "fit_network":
        return "network"
    own = stage.removesuffix("_early")
    return "time" if stage in TIMING else "judge" if own in ("evaluate", "score", "custom_metric") else own
