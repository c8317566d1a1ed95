"""Replay of a recorded study by the rules of the search of commit 657676f, with which today's is compared.

The rules are restated here. TPE sees stopped trials as pruned ones without values. Every second choice takes the
weights of the front that were tried in the fewest ways. A candidate is trained and evaluated before anything is known
of its cost, a quick benchmark comes next, and each is benchmarked alone, twice where it would enter the front.

Where the record does not tell, the assumptions favour that search: one setting of distillation, where it had several to
train for each shape; a quick benchmark that finds the simulated ratios; and no seconds between its jobs.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from search.front import hypervolume, non_dominated, unit_objectives
from spaces.candidate import Candidate
from spaces.domains import Scalar
from tests.recorded_study_tests.replay import BUILDERS, VirtualClock
from tests.recorded_study_tests.table import SPACE, RecordedStudy, Row

Stage = Literal["fit", "export", "evaluate", "quick", "benchmark", "long"]
_BUILDING: tuple[Stage, ...] = ("fit", "export")
# While these run, nothing else does.
_TIMING: tuple[Stage, ...] = ("long", "benchmark", "quick")
# From a study by that commit on ml-100k, 7 December 2026, 2 cores of an AMD EPYC: the median of a quick benchmark, the
# baseline's benchmark, which no longer one follows, and the rest of the median of those that one follows.
_QUICK_SECONDS = 1.7
BENCHMARK_SECONDS = 16.3
LONG_SECONDS = 20.0
# Factor by which a quick benchmark may be wrong.
_MARGIN = 1.25
_DUPLICATES = 50
# Ways in which weights of the front are tried before new ones are worth more.
_WAYS = 6


@dataclass(eq=False)
class _Worker:
    """A worker on the virtual clock."""

    busy: bool = False
    paused: bool = False
    left: float = 0.0


@dataclass(eq=False)
class _RunningTrial:
    """A trial on its way through the stages."""

    trial: Trial
    row: Row
    stage: Stage
    worker: _Worker | None = None
    quick_benchmarked: bool = False

    @property
    def candidate(self) -> Candidate:
        return self.row.candidate


@dataclass(frozen=True)
class Ended:
    """A trial that ended.

    minutes: of the search until then; None in the dry run
    """

    number: int
    row: Row
    minutes: float | None
    quick_benchmarked: bool
    benchmarked: bool


class EarlierVersion:
    """A search over a recorded study by the rules of commit 657676f, for one seed."""

    def __init__(self, recorded: RecordedStudy, seed: int, ask_seconds: float = 0.0) -> None:
        """Open a study in memory; each proposal takes some seconds."""
        self._recorded, self._ask_seconds = recorded, ask_seconds
        self._max_loss = recorded.config.quality.limits.max_loss
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        self._study = optuna.create_study(sampler=sampler, directions=["minimize"] * 3)
        for start in SPACE.starts():
            self._study.enqueue_trial(dict(start))
        self._clock, self._begin = VirtualClock(), float("inf")
        self._meter, self._builders = _Worker(), [_Worker() for _ in range(BUILDERS)]
        self._running_trials: list[_RunningTrial] = []
        self._cache = set[object]()
        self._asked = self._duplicates = 0
        self.ended: list[Ended] = []

    def run(self, minutes: float) -> None:
        """Search for so many minutes, after a dry run that does not count."""
        while len(self._measured()) < 2:
            self._run(float("inf"), max(1, 2 - len(self.ended)))
        self._begin = self._clock.now()
        self._run(self._begin + 60 * minutes, None)

    def hypervolume(self, minutes: float) -> float:
        """Return the hypervolume of the feasible candidates benchmarked in so many minutes of the search."""
        found = [one.row for one in self._able() if (one.minutes or 0.0) <= minutes]
        p95, rate, loss = np.reshape([(row.p95_ratio, row.throughput_ratio, row.loss) for row in found], (-1, 3)).T
        return hypervolume(unit_objectives(p95, rate, loss, self._max_loss))

    def _run(self, until: float, trials: int | None) -> None:
        last = len(self.ended) + (trials or 0)
        while self._clock.now() < until and self._duplicates < _DUPLICATES:
            if trials is not None and len(self.ended) >= last:
                return
            # One more than the builders, so that the meter always has something to do.
            most = len(self._builders) + 1
            allowed = most if trials is None else min(most, last - len(self.ended))
            while len(self._running_trials) < allowed and self._duplicates < _DUPLICATES:
                self._ask()
            self._dispatch()
            self._clock.wait(self._workers, max(0.0, until - self._clock.now()))
            for running in [f for f in self._running_trials if f.worker is not None and f.worker.left <= 1e-9]:
                self._collect(running)

    @property
    def _workers(self) -> Sequence[_Worker]:
        return [self._meter, *self._builders]

    def _ask(self) -> None:
        self._clock.advance(self._workers, self._ask_seconds)
        self._asked += 1
        waiting = self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        if self._asked % 2 == 0 and not waiting and (again := self._least_tried()) is not None:
            self._study.enqueue_trial(dict(again))
        trial = self._study.ask()
        row = self._recorded.rows[SPACE.suggest(trial).id]
        if row.candidate.id in {one.row.candidate.id for one in self.ended} | {
            f.candidate.id for f in self._running_trials
        }:
            self._duplicates += 1
            self._study.tell(trial, state=TrialState.PRUNED)
            return
        self._duplicates = 0
        self._running_trials.append(
            _RunningTrial(trial, row, "fit" if row.candidate.weights.distillation else "export")
        )

    def _least_tried(self) -> Mapping[str, Scalar] | None:
        """Return the knobs of the weights on the front that were tried in the fewest ways; None if all were enough."""
        able = sorted(self._able(), key=lambda one: one.number)
        if not able:
            return None
        kept = non_dominated(np.array([_values(one.row) for one in able]))
        tried = Counter(candidate.weights.id for candidate in self._candidates())
        front = [one for one, front in zip(able, kept, strict=True) if front]
        least = min(front, key=lambda one: tried[one.row.candidate.weights.id])
        if tried[least.row.candidate.weights.id] >= _WAYS:
            return None
        return SPACE.weights_knobs(self._trial(least.number).params)

    def _candidates(self) -> list[Candidate]:
        """Return the candidates of all trials, those that were chosen again included."""
        trials = self._study.get_trials(deepcopy=False)
        return [SPACE.suggest(optuna.trial.FixedTrial(dict(t.params))) for t in trials if t.params]

    def _trial(self, number: int) -> FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _dispatch(self) -> None:
        while not any(f.stage in _TIMING and f.worker is not None for f in self._running_trials):
            running = self._next()
            if running is None:
                return
            if running.stage in _BUILDING:
                running.worker = next(worker for worker in self._builders if not worker.busy)
            else:
                running.worker = self._meter
            for builder in self._builders:
                builder.paused = builder.busy and running.stage in _TIMING
            running.worker.busy, running.worker.left = True, self._seconds(running)

    def _next(self) -> _RunningTrial | None:
        """Return the trial to go on with: measuring before building, and no weights trained twice at once."""
        waiting = [running for running in self._running_trials if running.worker is None]
        if not self._meter.busy:
            for stage in (*_TIMING, "evaluate"):
                for running in waiting:
                    if running.stage == stage:
                        return running
        if all(builder.busy for builder in self._builders):
            return None
        fitting = {f.candidate.weights.id for f in self._running_trials if f.worker is not None and f.stage == "fit"}
        able = (f for f in waiting if f.stage in _BUILDING and f.candidate.weights.id not in fitting)
        return next(able, None)

    def _seconds(self, running: _RunningTrial) -> float:
        """Return the seconds of a stage; those of a build that is in the cache are few."""
        recorded, row = self._recorded, running.row
        if running.stage == "quick":
            return _QUICK_SECONDS
        if running.stage in _TIMING:
            return LONG_SECONDS if running.stage == "long" else BENCHMARK_SECONDS
        made, seconds = self._built(running), row.build_seconds[("fit", "export", "evaluate").index(running.stage)]
        return min(seconds, recorded.reused_seconds) if made in self._cache else seconds

    def _built(self, running: _RunningTrial) -> object:
        """Return what a stage leaves in the cache."""
        candidate = running.candidate
        if running.stage == "fit":
            return candidate.weights.id
        if running.stage == "export":
            return candidate.variant_id
        return candidate.variant_id, candidate.placement.instance_group.engine

    def _collect(self, running: _RunningTrial) -> None:
        """Move a trial on whose stage ended, or end it."""
        worker, stage, row = running.worker, running.stage, running.row
        assert worker is not None
        worker.busy, running.worker = False, None
        if stage in _TIMING:
            for builder in self._builders:
                builder.paused = False
        else:
            self._cache.add(self._built(running))
        if stage == "fit":
            running.stage = "export"
        elif stage == "export":
            running.stage = "evaluate"
        elif stage == "evaluate":
            running.stage = "quick" if self._screens(running) else "benchmark"
            if self._screens(running) and row.loss_interval[0] > self._max_loss:
                self._end(running, benchmarked=False)
        elif stage == "quick":
            running.quick_benchmarked, running.stage = True, "benchmark"
            if self._dominated(row):
                self._end(running, benchmarked=False)
        elif stage == "benchmark" and running.trial.number > 0 and self._would_enter(row):
            running.stage = "long"
        else:
            self._end(running, benchmarked=True)

    def _end(self, running: _RunningTrial, benchmarked: bool) -> None:
        self._running_trials.remove(running)
        now = self._clock.now()
        minutes = (now - self._begin) / 60 if now >= self._begin else None
        self.ended.append(Ended(running.trial.number, running.row, minutes, running.quick_benchmarked, benchmarked))
        if not benchmarked:
            self._study.tell(running.trial, state=TrialState.PRUNED)
            return
        running.trial.set_constraint("loss", running.row.loss - self._max_loss)
        self._study.tell(running.trial, _values(running.row))

    def _measured(self) -> list[Ended]:
        return [one for one in self.ended if one.benchmarked]

    def _able(self) -> list[Ended]:
        """Return the candidates that were benchmarked and keep the limit of the loss; not the baseline."""
        return [one for one in self._measured() if one.number > 0 and one.row.loss <= self._max_loss]

    def _screens(self, running: _RunningTrial) -> bool:
        """Return whether one candidate went through every stage, beside which the rest are held."""
        return running.trial.number > 0 and any(one.number > 0 for one in self._measured())

    def _dominated(self, row: Row) -> bool:
        """Return whether a candidate is slower than the baseline, or than one that loses no more."""
        if _slower(row, 1.0, 1.0):
            return True
        rivals = [one.row for one in self._able() if one.row.loss <= max(row.loss, 0.0)]
        return any(_slower(row, r.simulated.service_p50_ratio, r.simulated.capacity_ratio) for r in rivals)

    def _would_enter(self, row: Row) -> bool:
        """Return whether a point is feasible and none that was benchmarked dominates it."""
        if row.loss > self._max_loss:
            return False
        able = [one.row for one in self._measured() if one.row.loss <= self._max_loss]
        return bool(non_dominated(np.array([_values(each) for each in (row, *able)]))[0])


def _values(row: Row) -> list[float]:
    """Return the values that are minimised."""
    return [row.p95_ratio, 1 / row.throughput_ratio, max(0.0, row.loss)]


def _slower(row: Row, service_ratio: float, capacity_ratio: float) -> bool:
    found = row.simulated
    return found.service_p50_ratio > _MARGIN * service_ratio and _MARGIN * found.capacity_ratio < capacity_ratio
