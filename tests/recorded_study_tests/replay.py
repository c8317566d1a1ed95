"""Replay of a recorded study: the search as it is, with workers that answer from the table, on a clock of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import exp
from pathlib import Path
from typing import Any

import numpy as np

from objectives.jobs import requests
from objectives.jobs.protocol import Request
from objectives.measurement.arrivals import Traffic
from objectives.measurement.service_curve import Line, ServiceCurve
from objectives.records import Artifact, Footprint, Measurement, Quality, SimulatedRatios
from objectives.task import Task
from search.config.sections import SamplerName
from search.expected_cost import expected_costs
from search.explore.cost_model import BASELINE, CostModel
from search.explore.explorer import Explorer
from search.explore.first_trials import run_first_trials
from search.front import hypervolume, resolved_front, unit_objectives
from search.study import Study
from search.trials import EndedTrial
from search.workers.meter_jobs import CurvePart, MeterJobs
from search.workers.processes import Done
from spaces.candidate import Candidate
from spaces.techniques.placement import Placement
from tests.recorded_study_tests.table import SPACE, RecordedStudy, Row
from tests.search_tests.measurements import complete_outcome

BUILDERS = 2
_AUC = 0.8
_LINE = Line((1.0, 1000.0), (1.0, 1.0), (1.0,))
_CURVE = ServiceCurve(_LINE, _LINE, _LINE, _LINE, 0.0, 0.0, 0, 1, 1000)


class VirtualClock:
    """A clock that goes on to the end of the next job."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def now(self) -> float:
        return self.seconds

    def wait(self, workers: Sequence[Any], seconds: float) -> None:
        """Let the time pass in which the first of the busy workers ends its job, at most some seconds."""
        left = [worker.left for worker in workers if worker.busy and not worker.paused]
        self.advance(workers, min([seconds, *left]))

    def advance(self, workers: Sequence[Any], seconds: float) -> None:
        self.seconds += seconds
        for worker in workers:
            if worker.busy and not worker.paused:
                worker.left = max(0.0, worker.left - seconds)


class RecordedWorker:
    """A worker whose jobs take the seconds of the table, and have its results."""

    def __init__(self, recorded: RecordedStudy, cache: set[object], noise: VisitError | None = None) -> None:
        """Make the worker; `cache` is what the workers of a study have made."""
        self._recorded, self._cache, self._noise = recorded, cache, noise
        self.progress: list[str] = []
        self.busy = self.paused = False
        self.left = 0.0
        self._done: Done | None = None
        self._made: object = None

    def start(self, request: Request[object], limit_seconds: float) -> None:
        result, seconds, self._made = self._answer(request)
        if self._made in self._cache:
            seconds = min(seconds, self._recorded.reused_seconds)
        self.busy, self.left, self._done = True, seconds, Done(result, None, seconds)

    def poll(self) -> Done | None:
        if self.left > 1e-9:
            return None
        self.busy = False
        if self._made is not None:
            self._cache.add(self._made)
        return self._done

    def pause(self) -> None:
        self.paused = self.busy

    def resume(self) -> None:
        self.paused = False

    def kill(self) -> None:
        self.busy = self.paused = False

    def _answer(self, request: Request[object]) -> tuple[object, float, object]:
        """Return the response to a request, its seconds, and what is in the cache afterwards."""
        recorded = self._recorded
        match request:
            case requests.FitRequest():
                key = request.weights.id
                row = recorded.by_weights[key]
                return requests.FitResponse(key in self._cache), row.build_seconds[0], key
            case requests.ExportRequest():
                key = request.candidate.variant_id
                row, untrained = recorded.by_variant[key], request.candidate == request.candidate.untrained
                seconds = row.cost_seconds[0] if untrained else row.build_seconds[1]
                return requests.ExportResponse(_artifact(key), key in self._cache), seconds, key
            case requests.EvaluateRequest():
                scored = request.scores.candidate
                row = self._row(scored.artifact, scored.placement)
                made = scored.artifact.key, scored.placement.instance_group.engine
                return requests.EvaluateResponse(_quality(row), made in self._cache), row.build_seconds[2], made
            case requests.ServiceCurveRequest():
                row = self._row(request.deployment.artifact, request.deployment.placement)
                return requests.ServiceCurveResponse(_CURVE, 1.0), row.cost_seconds[1], None
            case _:
                assert isinstance(request, requests.GroupBenchmarkRequest)
                rows = [self._row(candidate.artifact, candidate.placement) for candidate in request.candidates]
                base, each = recorded.benchmark_seconds
                found = tuple(_benchmark(row, self._noise) for row in rows)
                return requests.GroupBenchmarkResponse(found, (None,) * len(found)), base + each * len(found), None

    def _row(self, artifact: Artifact, placement: Placement) -> Row:
        """Return the row of a model file, trained or not, in a placement."""
        of = self._recorded.by_variant[artifact.key].candidate
        return self._recorded.rows[replace(of, placement=placement).id]


class RecordedCosts(CostModel):
    """Simulated ratios of the table, for candidates whose service curves were measured in the replay."""

    def __init__(self, jobs: MeterJobs, recorded: RecordedStudy, with_curves: set[str]) -> None:
        """Make the costs; `with_curves` are the candidates, of untrained weights, whose curves are known."""
        super().__init__(jobs, Path("/nonexistent"))
        self._recorded, self._with_curves = recorded, with_curves

    def missing(self, candidate: Candidate) -> tuple[CurvePart, ...]:
        return () if candidate.untrained.id in self._with_curves else super().missing(candidate)

    def learn(self, candidate: Candidate, part: CurvePart, measured: requests.ServiceCurveResponse) -> None:
        self._with_curves.add(candidate.untrained.id)

    @property
    def baseline_ms(self) -> float:
        return 1.0  # whatever is asked for, the replay answers with the same curve

    def ratios(self, candidate: Candidate) -> SimulatedRatios:
        variant = self._recorded.by_variant[candidate.untrained.variant_id].candidate
        return self._recorded.rows[replace(variant, placement=candidate.placement).id].simulated


@dataclass(frozen=True)
class VisitError:
    """Errors of single visits: the logarithm of each ratio is off by a normal number of this deviation."""

    deviation: float
    seed: int

    def of(self, row: Row) -> tuple[float, float]:
        """Return the ratios of p95 and throughput that a visit of a row finds."""
        errors = np.random.default_rng([self.seed, *row.candidate.id.encode()]).normal(0.0, self.deviation, 2)
        return row.p95_ratio * exp(errors[0]), row.throughput_ratio * exp(errors[1])


class Replay:
    """A search over a recorded study by one sampler and one seed.

    ended: the trials that ended, each with the minutes of the search until then
    dry_trials: number of them that were the dry run's, whose minutes are its own
    """

    def __init__(
        self,
        recorded: RecordedStudy,
        sampler: SamplerName,
        seed: int,
        storage: Any,
        ask_seconds: float = 0.0,
        before: Replay | None = None,
        noise: float | None = None,
    ) -> None:
        """Open a study, or go on with the one that was begun in this storage; each proposal takes some seconds.

        Args:
            noise: deviation of the logarithms that a visit finds; None where visits find what is recorded
        """
        self.config = recorded.config.model_copy(update={"sampler": sampler, "seed": seed})
        self.ended: list[EndedTrial] = []
        self._recorded, self._clock = recorded, VirtualClock()
        limits = self.config.quality.limits
        self.study = _TimedStudy("s", storage, self.config.objectives, limits, seed, sampler)
        self._cache, self._measured = set[object](), {BASELINE.untrained.id}
        self._noise = None if noise is None else VisitError(noise, seed)
        self.dry_trials = 0
        if before is not None:
            self._cache, self._measured = before._cache, before._measured
        self.study.ask_seconds = ask_seconds
        self.study.note(resolution=recorded.resolution)
        if not self.study.finished():
            for start in SPACE.starts():
                self.study.enqueue(start)

    def run(self, minutes: float) -> None:
        """Search until so many minutes are spent, after a dry run that does not count; again to go on."""
        jobs = MeterJobs(self.config, _task(), self._recorded.prepared, Traffic())
        costs = RecordedCosts(jobs, self._recorded, self._measured)
        self.study.sweep()
        workers: list[Any] = [RecordedWorker(self._recorded, self._cache, self._noise) for _ in range(BUILDERS + 1)]
        self.study.passes = lambda seconds: self._clock.advance(workers, seconds)
        own = workers[1:], workers[0], 1, self.ended.append, lambda seconds: None, lambda: 0.0, self._clock

        def explorer() -> Explorer:
            return Explorer(jobs, costs, SPACE, self.study, *own)

        if not any(trial.number > 0 for trial in self.study.measured_trials()):
            run_first_trials(self.study, lambda count: explorer().run(float("inf"), count, 0.0))
            self.study.note(search_seconds=0.0)
            self.dry_trials = len(self.ended)
        spent = float(self.study.facts["search_seconds"])
        explorer().run(60 * minutes - spent, None, spent)

    def hypervolume(self, minutes: float) -> float:
        """Return the hypervolume of the front after so many minutes of the search."""
        ended = [one for at, one in enumerate(self.ended) if at < self.dry_trials or (one.minutes or 0.0) <= minutes]
        measured = [m for trial in ended if trial.number > 0 and (m := trial.measurement) is not None]
        found = [m for m in measured if self.config.quality.limits.kept(m.quality)]
        return self._volume([(m.latency.p95_ratio, m.throughput.ratio, m.quality.loss) for m in found])

    def recorded_hypervolume(self, minutes: float) -> float:
        """Return the hypervolume of what is recorded of the front that was expected after so many minutes.

        A final benchmark without error would find this.
        """
        ended = [one for at, one in enumerate(self.ended) if at < self.dry_trials or (one.minutes or 0.0) <= minutes]
        able = {t.number: t for t in ended if t.measurement and self.config.quality.limits.kept(t.measurement.quality)}
        expected, objectives = expected_costs(ended, self.config.objectives).measured, self.config.objectives
        losses = [max(0.0, t.measurement.quality.loss) for t in able.values() if t.measurement]
        table = np.column_stack([np.reshape([expected[number] for number in able], (-1, 2)), losses])
        kept = resolved_front(table, objectives.index("quality"), self._recorded.resolution)
        rows = [self._recorded.rows[t.candidate.id] for t, front in zip(able.values(), kept, strict=True) if front]
        return self._volume([(row.p95_ratio, row.throughput_ratio, row.loss) for row in rows])

    def _volume(self, points: Sequence[tuple[float, float, float]]) -> float:
        p95, throughput, loss = np.reshape(points, (-1, 3)).T
        return hypervolume(unit_objectives(p95, throughput, loss, self.config.quality.max_loss))


class _TimedStudy(Study):
    """A study in which a proposal takes time, while the workers work on."""

    passes: Callable[[float], None]
    ask_seconds = 0.0

    def ask(self, *arguments: Any) -> Any:
        self.passes(self.ask_seconds)
        return super().ask(*arguments)


def _task() -> Task:
    return Task("/nonexistent", "dcn-v2", "ml-100k", "auc", 200, 0.6, 1000, 0)


def _artifact(key: str) -> Artifact:
    return Artifact(key, f"{key}/model.onnx", {}, 1000, 0.0)


def _quality(row: Row) -> Quality:
    return Quality("auc", _AUC * (1 - row.loss), _AUC, row.loss, row.loss_interval, 1000, 100)


def _benchmark(row: Row, noise: VisitError | None) -> requests.BenchmarkResponse:
    p95, throughput = (row.p95_ratio, row.throughput_ratio) if noise is None else noise.of(row)
    found = complete_outcome(p95, throughput).measurement
    assert isinstance(found, Measurement)
    latency, rates = found.latency, found.throughput
    if noise is not None:
        wide = exp(1.96 * noise.deviation)
        latency = replace(latency, p95_ratio_interval=(p95 / wide, p95 * wide))
        rates = replace(rates, ratio_interval=(throughput / wide, throughput * wide))
    return requests.BenchmarkResponse(latency, rates, Footprint(1000))
