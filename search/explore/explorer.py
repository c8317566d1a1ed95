"""Which job next: the only place that decides it. Asks, dispatches, records and tells; never trains, never measures."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from optuna.trial import Trial

from objectives.measure.quick_benchmark import Glance
from objectives.records import Artifact, Footprint, Latency, Measurement, Outcome, Quality, Throughput
from objectives.task import Task
from search.config.sections import StudyConfig
from search.explore.reference_points import cost
from search.explore.screening import UNSEEN, loses, outrun
from search.explore.visit_noise import ratio_noise
from search.explore.weight_reuse import least_tried
from search.study import Study, candidate_of, front_of, measured, outcome_of, reference_of
from search.workers.meter_jobs import Length, MeterJobs, building
from search.workers.processes import Done, Worker, wait
from spaces.candidate import Candidate
from spaces.search_space import SearchSpace
from spaces.serialization import from_plain

# Judging is one stage, or two where the metric is the user's own: the meter scores, and a builder grades.
Stage = Literal["fit", "export", "judge", "score", "grade", "glance", "time", "near"]
_BUILDING: tuple[Stage, ...] = ("grade", "fit", "export")
_JUDGING: tuple[Stage, ...] = ("judge", "score")
# Of many users, judging takes as long as learning does.
_LONG: tuple[Stage, ...] = ("fit", "judge", "score", "grade")
# While these run, nothing else does.
_TIMING: tuple[Stage, ...] = ("near", "time", "glance")
# From so many seconds of judging on, a glance at a candidate's speed comes before its quality is looked at.
_LONG_JUDGING = 10.0
# So many choices in a row that were measured before: the sampler finds nothing new.
_DUPLICATES = 50
_POLL_SECONDS = 0.2


@dataclass
class Flight:
    """A trial on its way through the stages."""

    trial: Trial
    candidate: Candidate
    stage: Stage
    seconds: dict[str, float] = field(default_factory=dict)
    reused: list[str] = field(default_factory=list)
    worker: Worker | None = None
    artifact: Artifact | None = None
    quality: Quality | None = None
    glance: Glance | None = None
    measured: Measurement | None = None
    visits: int = 0
    scored: Mapping[str, Any] | None = None

    @property
    def number(self) -> int:
        return self.trial.number

    @property
    def reference(self) -> str | None:
        """Name of the reference point that it measures."""
        name: str | None = self.trial.user_attrs.get("reference")
        return name


@dataclass(frozen=True)
class Told:
    """One trial that ended, for whoever watches."""

    number: int
    candidate: Candidate
    outcome: Outcome
    minutes: float


def next_job(flights: Sequence[Flight], builders_idle: int, meter_idle: bool) -> Flight | None:
    """The flight to move on, oldest first: measuring before building, never the same weights fitted twice at once."""
    waiting = [f for f in flights if f.worker is None]
    if meter_idle:
        for stage in (*_TIMING, *_JUDGING):
            for flight in waiting:
                if flight.stage == stage:
                    return flight
    fitting = {f.candidate.weights.id for f in flights if f.worker is not None and f.stage == "fit"}
    for flight in waiting:
        if builders_idle and flight.stage in _BUILDING and flight.candidate.weights.id not in fitting:
            return flight
    return None


class Explorer:
    """One run of a study: trials in flight, the workers they run on, and the clock of the budget."""

    def __init__(
        self,
        config: StudyConfig,
        task: Task,
        jobs: MeterJobs,
        space: SearchSpace,
        study: Study,
        builders: Sequence[Worker],
        meter: Worker,
        threads: int,
        record: Callable[[Told], None],
        tick: Callable[[float], None],
    ) -> None:
        self._config, self._task, self._jobs = config, task, jobs
        self._space, self._study = space, study
        self._builders, self._meter, self._threads = builders, meter, threads
        self._record, self._tick = record, tick
        self._flights: list[Flight] = []
        self._known = {t.user_attrs["candidate_id"] for t in study.finished() if _settled(outcome_of(t))}
        self._duplicates = self._asked = 0

    def run(self, seconds: float, trials: int | None, spent_seconds: float) -> str:
        """Search until the time or the trials are used up; says in one line why it ended.

        Args:
            seconds: left for this call
            trials: to end in this call, however they end, reference points aside; or None
            spent_seconds: search time of earlier calls, for the trials' minutes
        """
        start = time.monotonic()
        told = 0
        # One more than the builders: the meter always finds something.
        most = len(self._builders) + 1
        try:
            while True:
                elapsed = time.monotonic() - start
                pending = any(flight.reference is not None for flight in self._flights)
                over = elapsed >= seconds or (trials is not None and told >= trials and not pending)
                if over or self._duplicates >= _DUPLICATES:
                    return (
                        f"the last {_DUPLICATES} choices were all made before"
                        if self._duplicates >= _DUPLICATES
                        else "the budget is spent"
                    )
                allowed = most if trials is None else min(most, trials - told)
                while len(self._flights) < allowed and self._duplicates < _DUPLICATES:
                    self._ask(elapsed + spent_seconds)
                self._dispatch()
                wait([*self._builders, self._meter], _POLL_SECONDS)
                told += self._collect((time.monotonic() - start + spent_seconds) / 60)
                self._tick(time.monotonic() - start)
        finally:
            self._study.note(search_seconds=time.monotonic() - start + spent_seconds)
            self._ground()

    def _ask(self, seconds: float) -> None:
        trial, candidate = self._study.ask(self._space, self._again())
        trial.set_user_attr("candidate_id", candidate.id)
        in_flight = {f.candidate.id for f in self._flights}
        if candidate.id in self._known | in_flight:
            self._duplicates += 1
            self._tell(
                Flight(trial, candidate, "fit"), Outcome("stopped", "the same choice was made before"), seconds / 60
            )
            return
        self._duplicates = 0
        self._flights.append(Flight(trial, candidate, "fit" if candidate.weights.distillation else "export"))

    def _again(self) -> dict[str, Any] | None:
        """Knobs of weights that there are, every other time."""
        self._asked += 1
        if self._asked % 2:
            return None
        finished, config = self._study.finished(), self._config
        flying = [flight.candidate.weights.id for flight in self._flights]
        trial = least_tried(finished, flying, config.objectives, config.quality.limits, self._study.resolution)
        return None if trial is None else self._space.weights_knobs(trial.params)

    def _dispatch(self) -> None:
        while not (self._meter.busy and self._timing()):
            idle = [b for b in self._builders if not b.busy]
            flight = next_job(self._flights, len(idle), not self._meter.busy)
            if flight is None:
                return
            flight.worker = idle[0] if flight.stage in _BUILDING else self._meter
            if flight.stage in _TIMING:
                for builder in self._builders:
                    builder.pause()
            workers = self._config.workers
            limit = workers.fit_seconds if flight.stage in _LONG else workers.job_seconds
            if flight.stage in ("time", "near"):
                limit = self._jobs.limit_seconds(_length(flight))
            job = "time" if flight.stage == "near" else flight.stage
            flight.worker.start(job, self._arguments(flight), limit)

    def _timing(self) -> bool:
        return any(f.stage in _TIMING and f.worker is not None for f in self._flights)

    def _arguments(self, flight: Flight) -> Mapping[str, Any]:
        candidate = flight.candidate
        if flight.stage == "fit" or flight.stage == "export":
            return building(self._task, candidate, flight.stage, self._threads)
        if flight.stage == "grade":
            assert flight.scored is not None
            return self._jobs.grade(flight.scored, "validation", 0.95, self._threads)
        assert flight.artifact is not None
        if flight.stage == "score":
            return self._jobs.score(flight.artifact, candidate, "validation", threads=self._threads)
        if flight.stage == "judge":
            hopeless = self._config.quality.limits.max_loss if self._screens(flight) else None
            return self._jobs.judge(
                flight.artifact, candidate, "validation", 0.95, hopeless=hopeless, threads=self._threads
            )
        if flight.stage == "glance":
            return self._jobs.glance(flight.artifact, candidate)
        seed = self._config.seed + flight.number
        jobs = replace(self._jobs, noise=ratio_noise(list(measured(self._study.finished()).values())))
        # The visits of a point that would enter the front do not count the first look, which was lucky to be so good.
        near, append = flight.stage == "near", flight.visits > 0
        return jobs.time(
            flight.artifact, candidate, _length(flight), seed, self._recording(flight.number, near), append=append
        )

    def _recording(self, number: int, near: bool) -> str:
        return self._jobs.recording(f"trial-{number}-visits" if near else f"trial-{number}")

    def _collect(self, minutes: float) -> int:
        """Move on what came back; the number of trials that ended, reference points aside."""
        ended = 0
        for flight in [f for f in self._flights if f.worker is not None]:
            worker = flight.worker
            assert worker is not None
            done = worker.poll()
            worker.progress.clear()
            if done is None:
                continue
            flight.worker = None
            if flight.stage in _TIMING:
                for builder in self._builders:
                    builder.resume()
            stage = _told_as(flight.stage)
            flight.seconds[stage] = flight.seconds.get(stage, 0.0) + done.seconds
            outcome = self._advance(flight, done)
            if outcome is not None:
                self._flights.remove(flight)
                self._tell(flight, outcome, minutes)
                ended += flight.reference is None
        return ended

    def _advance(self, flight: Flight, done: Done) -> Outcome | None:
        """Take in what a stage gave; the trial's outcome when that was the last."""
        result = done.result
        if result is None and flight.measured is not None:
            # A visit that failed leaves what was measured before as it was, its recording too.
            return self._complete(flight, flight.measured)
        if result is None:
            return self._ended(flight, "failed", done.error)
        if result.get("reused"):
            flight.reused.append(_told_as(flight.stage))
        try:
            if flight.stage == "fit":
                flight.stage = "export"
                return None
            if flight.stage == "export":
                flight.artifact = from_plain(Artifact, result["artifact"])
                flight.stage = "glance" if self._glances_first(flight) else self._judging
                return None
            if flight.stage == "score":
                flight.scored, flight.stage = result, "grade"
                return None
            if flight.stage in ("judge", "grade"):
                flight.quality = from_plain(Quality, result["quality"])
                if flight.candidate.weights.reference is not None and (lost := self._loses_too_much(flight)):
                    return self._ended(flight, "stopped", lost)
                if not self._screens(flight):
                    flight.stage = "time"
                    return None
                reason = loses(flight.quality, self._config.quality.limits) or self._outrun(flight)
                flight.stage = "glance" if flight.glance is None else "time"
                return None if reason is None else self._ended(flight, "stopped", reason)
            if flight.stage == "glance":
                flight.glance = from_plain(Glance, result)
                reason = self._outrun(flight)
                flight.stage = self._judging if flight.quality is None else "time"
                return None if reason is None else self._ended(flight, "stopped", reason)
            assert flight.quality is not None and flight.artifact is not None
            footprint = from_plain(Footprint, result["footprint"])
            if footprint.peak_memory_bytes is None and flight.measured is not None:
                footprint = flight.measured.footprint
            measurement = Measurement(
                flight.quality,
                from_plain(Latency, result["latency"]),
                from_plain(Throughput, result["throughput"]),
                footprint,
            )
            flight.visits += flight.stage == "near"
            if flight.stage == "time" and not (flight.number == 0 or self._worth_longer(flight, measurement)):
                return self._complete(flight, measurement)
            flight.stage, flight.measured = "near", measurement
            if flight.visits < self._jobs.near_visits:
                return None
        except ValueError as error:
            return self._ended(flight, "failed", str(error))
        return self._complete(flight, measurement)

    def _ended(self, flight: Flight, state: Literal["failed", "stopped"], reason: str | None) -> Outcome:
        return Outcome(state, reason, None, flight.artifact, dict(flight.seconds), tuple(flight.reused))

    def _complete(self, flight: Flight, measurement: Measurement) -> Outcome:
        reused, recording = tuple(flight.reused), self._recording(flight.number, flight.visits > 0)
        return Outcome("complete", None, measurement, flight.artifact, dict(flight.seconds), reused, recording)

    def _screens(self, flight: Flight) -> bool:
        """Not before a candidate went through every stage: the baseline and it are what the rest is held against. A
        reference point is measured whatever comes out."""
        if flight.number == 0 or flight.reference is not None:
            return False
        candidates = [t for t in self._study.finished() if t.number > 0 and reference_of(t) is None]
        return bool(measured(candidates))

    def _loses_too_much(self, flight: Flight) -> str | None:
        """Why a simple model need not be timed: it is no alternative to a baseline that it falls short of."""
        assert flight.quality is not None
        if self._config.quality.limits.kept(flight.quality):
            return None
        return f"not timed: its loss of {flight.quality.loss:.2%} is above the tolerated"

    @property
    def _judging(self) -> Stage:
        return "score" if self._jobs.prepared.graded else "judge"

    def _glances_first(self, flight: Flight) -> bool:
        """Where judging takes long, what is slower than the baseline need not be judged. Scores from the cache say
        nothing of how long it takes."""
        if not self._screens(flight) or UNSEEN & set(self._config.objectives):
            return False
        outcomes = filter(None, map(outcome_of, self._study.finished()))
        return any("judge" not in o.reused and o.seconds.get("judge", 0.0) >= _LONG_JUDGING for o in outcomes)

    def _outrun(self, flight: Flight) -> str | None:
        """As far as it is known: of what was not judged yet, beside the baseline alone."""
        if flight.glance is None or UNSEEN & set(self._config.objectives):
            return None
        if flight.quality is None:
            return outrun(flight.glance, 0.0, {}, 0.0)
        if flight.candidate.keeps_model:
            # Whether it is the better tuned baseline is a question of its own, whatever a smaller model can do.
            kept = {n: m for n, m in self._of_kept_model().items() if n > 0}
            return outrun(flight.glance, 0.0, kept, math.inf)
        able = self._able()
        on_front = front_of(list(able.values()), self._config.objectives, self._study.resolution)
        front = {number: able[number] for number, kept in zip(able, on_front, strict=True) if kept and number > 0}
        return outrun(flight.glance, flight.quality.loss, front, self._study.resolution)

    def _able(self) -> dict[int, Measurement]:
        """What was measured within the tolerated losses, by trial."""
        limits = self._config.quality.limits
        return {n: m for n, m in measured(self._study.finished()).items() if limits.kept(m.quality)}

    def _of_kept_model(self) -> dict[int, Measurement]:
        """What was measured of the baseline's own model, by trial."""
        kept = [t for t in self._study.finished() if (c := candidate_of(t)) is not None and c.keeps_model]
        return measured(kept)

    def _worth_longer(self, flight: Flight, measurement: Measurement) -> bool:
        """Whether it may be a point that others are held against: of the front, or a reference."""
        if flight.reference is not None or self._would_enter(measurement):
            return True
        if not flight.candidate.keeps_model:
            return False
        known = [cost(m.latency.p95_ratio, m.throughput.ratio) for m in self._of_kept_model().values()]
        return cost(measurement.latency.p95_ratio, measurement.throughput.ratio) < min(known, default=math.inf)

    def _would_enter(self, measurement: Measurement) -> bool:
        """Whether a screened point is feasible and no measured one dominates it: then it is worth a longer look."""
        if not self._config.quality.limits.kept(measurement.quality):
            return False
        return front_of([measurement, *self._able().values()], self._config.objectives, self._study.resolution)[0]

    def _tell(self, flight: Flight, outcome: Outcome, minutes: float) -> None:
        self._study.tell(flight.number, outcome, minutes)
        # Only now, never while the clock runs: a write to the database would disturb a timing.
        self._study.note(search_seconds=60 * minutes)
        if _settled(outcome):
            self._known.add(flight.candidate.id)
        self._record(Told(flight.number, flight.candidate, outcome, minutes))

    def _ground(self) -> None:
        """End what is in flight; the next run asks for the same choices again."""
        for worker in [f.worker for f in self._flights if f.worker is not None]:
            worker.kill()
            worker.busy = False
        for builder in self._builders:
            builder.resume()
        self._flights.clear()
        self._study.sweep()


def _told_as(stage: Stage) -> str:
    """Under which of DESIGN's stages its seconds are counted."""
    return "time" if stage in _TIMING else "judge" if stage in ("score", "grade") else stage


def _length(flight: Flight) -> Length:
    return "visit" if flight.stage == "near" else "screen"


def _settled(outcome: Outcome | None) -> bool:
    """Measured, or built and found not worth timing: nothing that need be asked again."""
    if outcome is None:
        return False
    return outcome.state == "complete" or (outcome.state == "stopped" and outcome.artifact is not None)
