"""Exploration: asks for trials, decides the next job, dispatches it, and records; never trains or measures itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from objectives.jobs.protocol import Request
from objectives.records import Outcome
from search.errors import JobError
from search.explore.benchmark_groups import MOST_WAITING, BenchmarkQueue
from search.explore.cost_model import CostModel
from search.explore.early_stopping import EarlyStopping
from search.explore.running_trial import (
    BUILDING,
    FITS,
    LONG,
    TIMING,
    RunningTrial,
    next_job,
    waiting_for_network,
)
from search.explore.screening import Screening
from search.explore.stages import Stages, seconds_name
from search.study import Study
from search.trials import EndedTrial
from search.workers.meter_jobs import MeterJobs
from search.workers.processes import Clock, SystemClock, Worker
from spaces.candidate import Candidate
from spaces.domains import Choice, Scalar
from spaces.search_space import SearchSpace
from spaces.weights import CYCLES

# Number of consecutive choices that were measured before: the sampler finds nothing new.
_DUPLICATES = 50
EXHAUSTED = f"the last {_DUPLICATES} choices were all made before"
_POLL_SECONDS = 0.2
_WAITS = "waits for its benchmark"
# Slices that wait for their elastic network while other trials begin.
_MOST_SLICES = 8


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
        clock: Clock | None = None,
    ) -> None:
        self._config, self._jobs, self._costs = jobs.config, jobs, costs
        if jobs.config.sampler != "auto" and jobs.config.space.distillation.cycles is None:
            # Only `auto` lets a training go on by what it has reached.
            space = replace(space, weights=replace(space.weights, cycles=Choice((1,))))
        self._space, self._study = without_networks(space, study.failed_networks), study
        self._screening = Screening(jobs.config, study)
        self._builders, self._meter = builders, meter
        early = EarlyStopping(study, self._screening, len(space.weights.cycles.values))
        self._stages = Stages(jobs, costs, self._screening, early, threads, failed=study.failed_networks)
        self._record, self._tick, self._reserve = record, tick, reserve
        self._clock = clock or SystemClock()
        self._benchmarks = BenchmarkQueue(jobs, study, self._screening)
        self._running_trials: list[RunningTrial] = []
        self._screened: object = None
        self._known: set[str] = set()
        self._trained: set[str] = set()
        for ended in study.ended():
            self._learn(ended.candidate, ended.outcome)
        self._duplicates = self._told = 0
        self._limit: int | None = None

    def run(self, seconds: float, trials: int | None, spent_seconds: float) -> str:
        """Search until the time or the trials are used up, and return the reason of the end in one line.

        Args:
            seconds: seconds left for this call and for what `reserve` keeps for later
            trials: number of trials to end in this call, in any state, without reference points; None for no limit
            spent_seconds: search time of earlier calls, for the trials' minutes

        Raises:
            JobError: the disk is full.
        """
        start = self._clock.now()
        self._told, self._limit, reserve, closed = 0, trials, self._reserve(), False
        try:
            while True:
                elapsed = self._clock.now() - start
                if (end := self._end()) is not None:
                    return end
                left = seconds - elapsed - reserve
                closing = self._benchmarks.expected_seconds(len(self._waiting)) >= left
                if closing and not self._timing:
                    # What waits for a benchmark is worth one more.
                    if closed or not self._waiting:
                        return "the budget is spent"
                    closed = self._dispatch_benchmark(elapsed, now=True, left=left)
                elif not self._timing:
                    closed = False  # the final benchmark of fewer points takes less time
                    self._after_networks((elapsed + spent_seconds) / 60)
                    # A proposal takes a tenth of a second or more of a core, which a benchmark would show.
                    self._told += self._fill(elapsed + spent_seconds, left)
                    # A slice that a run left open may belong to a network that has failed since.
                    self._after_networks((elapsed + spent_seconds) / 60)
                    self._dispatch(elapsed)
                self._clock.wait([*self._builders, self._meter], _POLL_SECONDS)
                minutes = (self._clock.now() - start + spent_seconds) / 60
                if ended := self._collect(minutes) + self._simulate(minutes) + self._screen(minutes):
                    self._told, reserve = self._told + ended, self._reserve()
                self._tick(self._clock.now() - start + spent_seconds)
        finally:
            # The workers first: on a full disk nothing can be noted.
            self._stop_workers()
            self._study.note(search_seconds=self._clock.now() - start + spent_seconds)
            self._note_failed_networks()
            self._study.sweep()

    def _end(self) -> str | None:
        """Return the reason why the search is over, whatever time is left."""
        if self._duplicates >= _DUPLICATES and not self._running_trials:
            return EXHAUSTED
        if self._limit is None or self._told < self._limit:
            return None
        pending = any(running.reference for running in self._running_trials) or self._study.reference_waits
        return None if pending else "the budget is spent"

    @property
    def _waiting(self) -> list[RunningTrial]:
        return [running for running in self._running_trials if running.waiting]

    def _may_ask(self) -> bool:
        """Return whether another trial may begin."""
        waiting, slices = len(self._waiting), waiting_for_network(self._running_trials)
        # One more than the builders, so that the meter has work; slices leave theirs to others for a while.
        busy = len(self._running_trials) - waiting - min(sum(one.worker is None for one in slices), _MOST_SLICES)
        free = waiting < MOST_WAITING and busy <= len(self._builders)
        return free and self._duplicates < _DUPLICATES and (self._within_limit or self._study.reference_waits)

    @property
    def _within_limit(self) -> bool:
        """True if another trial may begin that is no reference point."""
        own = sum(running.reference is None for running in self._running_trials)
        return self._limit is None or self._told + own < self._limit

    def _fill(self, seconds: float, left: float) -> int:
        """Begin trials until so many run; return how many ended at once, by what is known of their cost."""
        ended = 0
        for _ in range(_DUPLICATES):
            # After a trial that ended by its cost, whose simulation took a while, waiting workers come first.
            if ended or not self._may_ask():
                break
            ended += self._ask(seconds, left)
        return ended

    def _ask(self, seconds: float, left: float) -> int:
        """Begin a trial; return 1 where what is known of its cost ends it, else 0."""
        if self._within_limit:
            evaluated = [(one, self._stages.ended(one, "stopped", _WAITS)) for one in self._waiting]
            known = [EndedTrial(one.number, one.candidate, outcome, None) for one, outcome in evaluated]
            trial, candidate = self._study.ask(self._space, self._again(), known, len(self._builders), left)
        else:
            trial, candidate = self._study.ask_reference()
        running = RunningTrial(trial, candidate, "export")
        if candidate.id in self._known | {f.candidate.id for f in self._running_trials}:
            self._duplicates += 1
            self._tell([(running, Outcome("stopped", "the same choice was made before"))], seconds / 60)
            return 0
        self._duplicates = 0
        running.simulated = self._stages.simulated(candidate)
        if (reason := self._screening.dominated(running, self._waiting)) is not None:
            self._tell([(running, self._stages.ended(running, "stopped", reason))], seconds / 60)
            return 1
        if candidate.weights.distillation is not None:
            trained = candidate.weights.id in self._trained
            costed = running.simulated is not None or trained or not self._stages.measures_cost(running)
            training = "fit" if trained else self._stages.training(running)
            running.stage = training if costed else "export_untrained"
        self._running_trials.append(running)
        return 0

    def _again(self) -> dict[str, Scalar] | None:
        """Return the knobs of existing weights, every other time.

        `auto` itself weighs them against new ones, and `random` draws every knob.
        """
        if self._config.sampler in ("auto", "random") or self._study.next_number % 2:
            return None
        trial = self._screening.least_tried([running.candidate.weights.id for running in self._running_trials])
        return None if trial is None else self._space.weights_knobs(trial.knobs)

    def _dispatch(self, elapsed: float) -> None:
        while not self._timing:
            slices = waiting_for_network(self._running_trials)
            idle = len(self._waiting) + len(slices) == len(self._running_trials) and not self._may_ask()
            builders = [b for b in self._builders if not b.busy]
            if builders and len(self._waiting) >= MOST_WAITING:
                # Nothing new begins until some of these have ended.
                idle = idle or next_job(self._running_trials, len(builders), False) is None
            if self._dispatch_benchmark(elapsed, idle):
                return
            running = next_job(self._running_trials, len(builders), not self._meter.busy)
            if running is None:
                return
            worker = builders[0] if running.stage in BUILDING else self._meter
            self._start([running], worker, self._stages.request(running), self._limit_seconds(running))

    def _limit_seconds(self, running: RunningTrial) -> float:
        """Return the longest duration of a trial's job."""
        if running.stage in FITS:
            return self._jobs.fit_limit_seconds(running.candidate.weights)
        workers = self._config.workers
        return workers.fit_seconds if running.stage in LONG else workers.job_seconds

    def _dispatch_benchmark(self, elapsed: float, now: bool, left: float = math.inf) -> bool:
        """Begin the benchmark of a group if one is due; return whether it began."""
        if self._meter.busy or not (group := self._benchmarks.take(self._waiting, now, elapsed, left)):
            return False
        self._start(group, self._meter, self._benchmarks.request(group), self._config.workers.job_seconds)
        return True

    def _start(self, group: Sequence[RunningTrial], worker: Worker, request: Request[object], limit: float) -> None:
        for running in group:
            running.worker = worker
        if self._timing:
            for builder in self._builders:
                builder.pause()
        worker.start(request, limit)

    @property
    def _timing(self) -> bool:
        """True while a deployment is measured, which has the machine to itself."""
        return any(running.stage in TIMING and running.worker is not None for running in self._running_trials)

    def _collect(self, minutes: float) -> int:
        """Advance the trials whose jobs are done; return how many ended, without reference points."""
        ended = 0
        for worker in (self._meter, *self._builders):
            group = [running for running in self._running_trials if running.worker is worker]
            done = worker.poll() if group else None
            worker.progress.clear()
            if done is None:
                continue
            if done.full_disk:
                raise JobError(done.error or "")
            if group[0].stage in TIMING:
                for builder in self._builders:
                    builder.resume()
            for running in group:
                running.worker, stage = None, seconds_name(running.stage)
                running.seconds[stage] = running.seconds.get(stage, 0.0) + done.seconds / len(group)
            if done.killed and len(group) == 1 and not group[0].repeated:
                group[0].repeated = True  # its stage begins once more
                if group[0].stage == "benchmark":
                    self._benchmarks.begin_again(done)
                continue
            if group[0].stage == "benchmark":
                outcomes = [(one, self._stages.timed(one, found)) for one, found in self._benchmarks.end(done)]
            else:
                outcome = self._stages.advance(group[0], done, self._waiting)
                outcomes = [] if outcome is None else [(group[0], outcome)]
            ended += self._close(outcomes, minutes)
        return ended

    def _after_networks(self, minutes: float) -> None:
        """Let slices go on whose elastic network is trained.

        Slices whose network failed are asked for again: the study remembers the failure, and what would be a slice is
        trained separately from then on.
        """
        if self._note_failed_networks():
            self._space = without_networks(self._space, self._stages.failed)
        slices = [(running, self._stages.after_network(running)) for running in self._running_trials]
        again = [(running, outcome) for running, outcome in slices if outcome is not None]
        for running, _ in again:
            self._study.ask_again(running.number, {CYCLES: 1})
        if again:
            self._close(again, minutes)

    def _note_failed_networks(self) -> bool:
        """Note elastic networks that failed; return whether one did that the study did not know of."""
        new = self._stages.failed != self._study.failed_networks
        if new:
            self._study.failed_networks = self._stages.failed
        return new

    def _close(self, outcomes: Sequence[tuple[RunningTrial, Outcome]], minutes: float) -> int:
        """End trials; return how many are no reference points."""
        for running, _ in outcomes:
            self._running_trials.remove(running)
        self._tell(outcomes, minutes)
        if outcomes:
            self._duplicates = 0  # the sampler knows more now
        return sum(running.reference is None for running, _ in outcomes)

    def _simulate(self, minutes: float) -> int:
        """Simulate the trials whose service curves are known by now; return how many ended by it."""
        ended = 0
        waiting = [f for f in self._running_trials if f.stage == "curve" and f.worker is None]
        for running in [f for f in waiting if not self._costs.missing(f.candidate)]:
            running.simulated = self._stages.simulated(running.candidate)
            running.stage = self._stages.training(running) if running.artifact is None else self._stages.evaluation
            if (reason := self._screening.dominated(running, self._waiting)) is not None:
                ended += self._close([(running, self._stages.ended(running, "stopped", reason))], minutes)
        return ended

    def _screen(self, minutes: float) -> int:
        """End the trials that need no benchmark any more, since others are better; return how many."""
        state = [running.number for running in self._waiting], len(self._study.measured_trials())
        if self._timing or state == self._screened:
            return 0
        self._screened, ended = state, 0
        for running in self._waiting:
            others = [other for other in self._waiting if other is not running]
            if (reason := self._screening.rejects(running, others)) is not None:
                ended += self._close([(running, self._stages.ended(running, "stopped", reason))], minutes)
        return ended

    def _tell(self, outcomes: Sequence[tuple[RunningTrial, Outcome]], minutes: float) -> None:
        # All are kept before any is recorded, which takes longer: an interruption meanwhile loses none.
        for running, outcome in outcomes:
            self._study.tell(running.number, outcome, minutes)
            self._learn(running.candidate, outcome)
        # Only between benchmarks: a write to the database would disturb one.
        self._study.note(search_seconds=60 * minutes)
        for running, outcome in outcomes:
            of = running.number, running.candidate, outcome, minutes, running.reference
            self._record(EndedTrial(*of, expected_loss=running.expected_loss))

    def _learn(self, candidate: Candidate, outcome: Outcome) -> None:
        """Keep what need not be asked, trained or compared again; what failed would fail again."""
        if outcome.state != "stopped" or outcome.informative:
            self._known.add(candidate.id)
        if outcome.artifact is not None:
            self._trained.update(weights.id for weights in candidate.weights.trainings)

    def _stop_workers(self) -> None:
        """Stop the jobs of the running trials; the next run asks for the same choices again."""
        for running in self._running_trials:
            if running.worker is not None:
                running.worker.kill()
                running.worker.busy = False
        for builder in self._builders:
            builder.resume()
        self._running_trials.clear()


def without_networks(space: SearchSpace, origins: Collection[str]) -> SearchSpace:
    """Return the space in which weights of these origins are trained separately, and not as slices."""
    kept = {origin: epochs for origin, epochs in space.weights.elastic_epochs.items() if origin not in origins}
    return replace(space, weights=replace(space.weights, elastic_epochs=kept))
