"""Exploration: asks for trials, decides the next job, dispatches it, and records; never trains or measures itself."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from objectives.jobs import requests
from objectives.jobs.protocol import Request
from objectives.records import Measurement, Outcome, SimulatedRatios, State
from search.explore.cost_model import CostModel
from search.explore.running_trial import BUILDING, LONG, TIMING, RunningTrial, Stage, next_job
from search.explore.screening import Screening
from search.study import Study
from search.trials import EndedTrial, sought
from search.workers.meter_jobs import MeterJobs, ratio_noise
from search.workers.processes import Done, Worker, wait
from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.search_space import SearchSpace

_CACHED = (requests.FitResponse, requests.ExportResponse, requests.EvaluateResponse, requests.ScoreResponse)
# Number of consecutive choices that were measured before: the sampler finds nothing new.
_DUPLICATES = 50
_POLL_SECONDS = 0.2


class Explorer:
    """One run of a study: the running trials, their workers, and the clock of the budget."""

    def __init__(
        self,
        jobs: MeterJobs,
        costs: CostModel,
        space: SearchSpace,
        study: Study,
        builders: Sequence[Worker],
        meter: Worker,
        threads: int,
        record: Callable[[EndedTrial], None],
        tick: Callable[[float], None],
        reserve: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._config, self._jobs, self._costs = jobs.config, jobs, costs
        self._space, self._study, self._screening = space, study, Screening(jobs.config, study)
        self._builders, self._meter, self._threads = builders, meter, threads
        self._record, self._tick, self._reserve = record, tick, reserve
        self._running_trials: list[RunningTrial] = []
        self._known: set[str] = set()
        self._trained: set[str] = set()
        for ended in study.ended():
            self._learn(ended.candidate, ended.outcome)
        self._duplicates = self._asked = 0

    def run(self, seconds: float, trials: int | None, spent_seconds: float) -> str:
        """Search until the time or the trials are used up, and return the reason of the end in one line.

        Args:
            seconds: seconds left for this call and for what `reserve` keeps for later
            trials: number of trials to end in this call, in any state, without reference points; None for no limit
            spent_seconds: search time of earlier calls, for the trials' minutes
        """
        start = time.monotonic()
        told, reserve = 0, self._reserve()
        # One more than the builders, so that the meter always has work.
        most = len(self._builders) + 1
        try:
            while True:
                elapsed = time.monotonic() - start
                if self._duplicates >= _DUPLICATES:
                    return f"the last {_DUPLICATES} choices were all made before"
                pending = any(running.reference is not None for running in self._running_trials)
                if elapsed + reserve >= seconds or (trials is not None and told >= trials and not pending):
                    return "the budget is spent"
                allowed = most if trials is None else min(most, trials - told)
                if not self._timing:
                    # A proposal takes a tenth of a second or more of a core, which a benchmark would show.
                    told += self._fill(allowed, elapsed + spent_seconds)
                self._dispatch()
                wait([*self._builders, self._meter], _POLL_SECONDS)
                minutes = (time.monotonic() - start + spent_seconds) / 60
                if ended := self._collect(minutes) + self._simulate(minutes):
                    told, reserve = told + ended, self._reserve()
                self._tick(time.monotonic() - start)
        finally:
            self._study.note(search_seconds=time.monotonic() - start + spent_seconds)
            self._abort()

    def _fill(self, allowed: int, seconds: float) -> int:
        """Begin trials until so many run; return how many ended at once, by what is known of their cost."""
        ended = 0
        for _ in range(_DUPLICATES):
            # After a trial that ended by its cost, whose simulation took a while, waiting workers come first.
            if ended or len(self._running_trials) >= allowed or self._duplicates >= _DUPLICATES:
                break
            ended += self._ask(seconds)
        return ended

    def _ask(self, seconds: float) -> int:
        """Begin a trial; return 1 where what is known of its cost ends it, else 0."""
        trial, candidate = self._study.ask(self._space, self._again())
        trial.set_user_attr("candidate_id", candidate.id)
        running = RunningTrial(trial, candidate, "export")
        if candidate.id in self._known | {f.candidate.id for f in self._running_trials}:
            self._duplicates += 1
            self._tell(running, Outcome("stopped", "the same choice was made before"), seconds / 60)
            return 0
        self._duplicates = 0
        running.simulated = self._simulated(candidate)
        if (reason := self._screening.dominated(running)) is not None:
            self._tell(running, self._ended(running, "stopped", reason), seconds / 60)
            return 1
        if candidate.weights.distillation is not None:
            costed = running.simulated is not None or candidate.weights.id in self._trained
            running.stage = "fit" if costed or not self._to_measure(running) else "export_untrained"
        self._running_trials.append(running)
        return 0

    def _again(self) -> dict[str, Scalar] | None:
        """Return the knobs of existing weights, every other time; `auto` itself weighs them against new ones."""
        self._asked += 1
        if self._asked % 2 or self._config.sampler == "auto":
            return None
        trial = self._screening.least_tried([running.candidate.weights.id for running in self._running_trials])
        return None if trial is None else self._space.weights_knobs(trial.knobs)

    def _dispatch(self) -> None:
        while not self._timing:
            idle = [b for b in self._builders if not b.busy]
            running = next_job(self._running_trials, len(idle), not self._meter.busy)
            if running is None:
                return
            running.worker = idle[0] if running.stage in BUILDING else self._meter
            if running.stage in TIMING:
                for builder in self._builders:
                    builder.pause()
            workers = self._config.workers
            limit = workers.fit_seconds if running.stage in LONG else workers.job_seconds
            if running.stage == "benchmark":
                limit = self._jobs.limit_seconds("screen")
            running.worker.start(self._request(running), limit)

    @property
    def _timing(self) -> bool:
        """True while a deployment is measured, which has the machine to itself."""
        return any(running.stage in TIMING and running.worker is not None for running in self._running_trials)

    def _request(self, running: RunningTrial) -> Request[object]:
        candidate, threads = running.candidate, self._threads
        if running.stage == "fit":
            return requests.FitRequest(self._jobs.task, candidate.weights, threads)
        if running.stage == "export_untrained":
            return requests.ExportRequest(self._jobs.task, candidate.untrained, threads)
        if running.stage == "export":
            return requests.ExportRequest(self._jobs.task, candidate, threads)
        if running.stage == "custom_metric":
            assert running.scored is not None
            return self._jobs.evaluate_custom_metric(running.scored, "validation", 0.95, threads)
        if running.stage == "curve":
            built = running.artifact or running.untrained
            assert built is not None
            running.curve_part = self._costs.missing(candidate)[0]
            return self._costs.request(built, candidate, running.curve_part)
        assert running.artifact is not None
        ours = (running.artifact, candidate)
        scores = self._jobs.score(ours, "validation", threads=threads)
        if running.stage == "score":
            return scores
        if running.stage == "evaluate":
            reject_above = self._config.quality.limits.max_loss if self._screening.applies(running) else None
            return self._jobs.evaluate(scores, 0.95, reject_above)
        timings = [(m.latency, m.throughput) for m in self._study.measured().values()]
        jobs = replace(self._jobs, noise=ratio_noise(timings))
        return jobs.time(ours, "screen", self._config.seed + running.number, self._recording(running.number))

    def _recording(self, number: int) -> str:
        return self._jobs.recording(f"trial-{number}")

    def _collect(self, minutes: float) -> int:
        """Advance the trials whose jobs are done; return how many ended, without reference points."""
        ended = 0
        for running, worker in [(f, f.worker) for f in self._running_trials if f.worker is not None]:
            done = worker.poll()
            worker.progress.clear()
            if done is None:
                continue
            running.worker = None
            if running.stage in TIMING:
                for builder in self._builders:
                    builder.resume()
            stage = _told_as(running.stage)
            running.seconds[stage] = running.seconds.get(stage, 0.0) + done.seconds
            outcome = self._advance(running, done)
            if outcome is not None:
                self._running_trials.remove(running)
                self._tell(running, outcome, minutes)
                ended += running.reference is None
        return ended

    def _simulate(self, minutes: float) -> int:
        """Simulate the trials whose service curves are known by now; return how many ended by it."""
        ended = 0
        waiting = [f for f in self._running_trials if f.stage == "curve" and f.worker is None]
        for running in [f for f in waiting if not self._costs.missing(f.candidate)]:
            running.simulated = self._simulated(running.candidate)
            running.stage = "fit" if running.artifact is None else self._evaluation
            if (reason := self._screening.dominated(running)) is not None:
                self._running_trials.remove(running)
                self._tell(running, self._ended(running, "stopped", reason), minutes)
                ended += running.reference is None
        return ended

    def _advance(self, running: RunningTrial, done: Done) -> Outcome | None:
        """Process the end of a stage, and return the trial's outcome after the last one."""
        result = done.result
        if result is None and running.stage == "export_untrained":
            running.stage = "fit"  # untrained weights may not have scores to compare, where trained ones do
            return None
        if result is None:
            return self._ended(running, "failed", done.error)
        if isinstance(result, _CACHED) and result.reused and running.stage != "export_untrained":
            running.reused.append(_told_as(running.stage))
        try:
            return self._next(running, result)
        except ValueError as error:
            return self._ended(running, "failed", str(error))

    def _next(self, running: RunningTrial, result: object) -> Outcome | None:
        """Keep the result of a stage and set the next stage, or return the outcome; ValueError: a number is missing."""
        reason: str | None = None
        match result:
            case requests.FitResponse():
                running.stage = "export"
            case requests.ExportResponse() if running.stage == "export_untrained":
                running.untrained, running.stage = result.artifact, "curve"
            case requests.ExportResponse():
                running.artifact = result.artifact
                running.stage = "curve" if self._to_measure(running) else self._evaluation
            case requests.ScoreResponse():
                running.scored, running.stage = result, "custom_metric"
            case requests.EvaluateResponse():
                running.quality = result.quality
                reason, running.stage = self._screening.rejects(running), "benchmark"
            case requests.ServiceCurveResponse():
                assert running.curve_part is not None
                self._costs.learn(running.candidate, running.curve_part, result)
            case _:
                assert isinstance(result, requests.BenchmarkResponse)
                return self._timed(running, result)
        return None if reason is None else self._ended(running, "stopped", reason)

    def _timed(self, running: RunningTrial, result: requests.BenchmarkResponse) -> Outcome:
        assert running.quality is not None
        measurement = Measurement(running.quality, result.latency, result.throughput, result.footprint)
        sought(measurement, self._config.objectives)  # raises where one is missing, as a p99 of refused requests
        return self._ended(running, "complete", None, measurement)

    def _ended(
        self, running: RunningTrial, state: State, reason: str | None, measurement: Measurement | None = None
    ) -> Outcome:
        recording = None if measurement is None else self._recording(running.number)
        seconds, reused = dict(running.seconds), tuple(running.reused)
        cost, quality = running.simulated, running.quality if measurement is None else None
        return Outcome(state, reason, measurement, running.artifact, seconds, reused, recording, cost, quality)

    def _simulated(self, candidate: Candidate) -> SimulatedRatios | None:
        """Return the simulated cost; None while a service curve is missing, or where it cannot be simulated."""
        if self._costs.missing(candidate):
            return None
        with contextlib.suppress(ValueError):
            return self._costs.ratios(candidate)
        return None

    def _to_measure(self, running: RunningTrial) -> bool:
        """Return whether a service curve is to be measured, since the cost decides if the trial goes on."""
        return self._screening.compares_cost(running) and bool(self._costs.missing(running.candidate))

    @property
    def _evaluation(self) -> Stage:
        return "score" if self._jobs.prepared.custom_metric else "evaluate"

    def _tell(self, running: RunningTrial, outcome: Outcome, minutes: float) -> None:
        self._study.tell(running.number, outcome, minutes)
        # Only between benchmarks: a write to the database would disturb one.
        self._study.note(search_seconds=60 * minutes)
        self._learn(running.candidate, outcome)
        self._record(EndedTrial(running.number, running.candidate, outcome, minutes, running.reference))

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        """Keep what need not be asked, trained or compared again."""
        if outcome.state == "complete" or (outcome.state == "stopped" and outcome.informative):
            self._known.add(candidate.id)
        if outcome.artifact is not None:
            self._trained.add(candidate.weights.id)

    def _abort(self) -> None:
        """Abort the running trials; the next run asks for the same choices again."""
        for running in self._running_trials:
            if running.worker is not None:
                running.worker.kill()
                running.worker.busy = False
        for builder in self._builders:
            builder.resume()
        self._running_trials.clear()
        self._study.sweep()


def _told_as(stage: Stage) -> str:
    """Return the name that the seconds of the stage are recorded under."""
    if stage in ("export_untrained", "curve"):
        return "cost"
    return "time" if stage in TIMING else "judge" if stage in ("evaluate", "score", "custom_metric") else stage
