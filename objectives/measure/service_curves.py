"""Measurement of service curves, and of the machine's pace meanwhile.

Runs are measured in a short open loop, with every replica busy, with those of other instance groups busy too, and at
the study's rate.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from objectives.arrays import Arrays
from objectives.held_out_rows import read_requests
from objectives.jobs.protocol import UNHEARD, PartProgress
from objectives.jobs.requests import ServiceCurveRequest, ServiceCurveResponse
from objectives.measure.deployment import load_target, pace_ms, quiet, warm_up
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.interference import InterferenceMonitor, calm_blocks, least_disturbed
from objectives.measurement.load_generator import Request, drawn_requests
from objectives.measurement.load_target import LiveTarget
from objectives.measurement.service_curve import FEWEST_RUNS, Runs, ServiceCurve
from objectives.records import rows_of
from objectives.serving.engines import open_replica
from objectives.serving.pool import Pool
from objectives.serving.split_engine import Engine
from spaces.techniques.placement import InstanceGroup, Placement

# Seconds of the open loop, its fewest requests for each replica and its most in all; and requests for each replica when
# all are busy.
_OPEN_SECONDS = 0.15
_FEWEST_REQUESTS, _MOST_REQUESTS = 80, 200
_BUSY_REQUESTS = 40
# Utilisation of the open loop, at which some runs find a replica idle and others do not.
_SHARE = 0.5
# The study's rate is played too where that one is so many times as high, for so long.
_RESTED = 3.0
_RESTED_SECONDS = 0.15
# Sizes of the requests, where each takes time before it is measured.
_SIZES = 24
# Share of a core that other processes may take without a repetition, besides the margin of every block.
_CALM = 0.02
# Seconds after which no further block begins.
_BLOCKS_SECONDS = 5.0
# Columns of `Runs`.
Columns = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True)
class StudyRate:
    """Rate of a study, as its utilisation of the baseline.

    baseline_ms: milliseconds of a request to the baseline's pool; None to take what the measured deployment takes
    transport_ms: milliseconds that a request spends on its way to the pool and back
    """

    share: float
    baseline_ms: float | None = None
    transport_ms: float = 0.0

    def rps(self, mean_ms: float) -> float:
        """Return the requests per second, where a request takes the deployment so many milliseconds."""
        return 1000 * self.share / (self.transport_ms + (mean_ms if self.baseline_ms is None else self.baseline_ms))


class Observed:
    """An engine that notes which requests it runs, and when each run begins and ends."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.once = engine, engine.once
        self.runs: list[_Run] = []

    def run(self, inputs: Arrays) -> NDArray[np.float32]:
        noted = _Run(id(inputs), time.perf_counter_ns())
        self.runs.append(noted)
        scores = self._engine.run(inputs)
        noted.end_ns = time.perf_counter_ns()
        return scores


@dataclass
class _Run:
    """A run of a request, which is known by its id; until it ends its end is infinite."""

    request: int
    start_ns: int
    end_ns: float = math.inf


def service_curve(request: ServiceCurveRequest, progress: PartProgress = UNHEARD) -> ServiceCurveResponse:
    """Measure the service curve of a deployment of one instance group, and the machine's pace meanwhile.

    The baseline's model stays open for the next such request.

    The curve is that of the machine at its reference speed, at which its pace is `reference_pace_ms`.

    Args:
        progress: `next_part` is called before each part
    """
    measured = request.deployment
    requests = read_requests(Path(request.holdout))
    sizes = [*requests, *further_sizes(requests, request.batch_rows, request.split_over)]
    if measured.placement.prepared_by_size:
        sizes = of_few_sizes(sizes)

    def engine(group: InstanceGroup) -> Engine:
        return open_replica(Path(measured.model), group, measured.placement.embedding_device, measured.compute)

    with quiet():
        progress.next_part()
        looks = [pace_ms(request.baseline, requests)]
        slowness = 1.0 if request.reference_pace_ms is None else looks[0] / request.reference_pace_ms
        baseline_ms = None if request.baseline_ms is None else slowness * request.baseline_ms
        rate = StudyRate(request.share, baseline_ms, slowness * request.transport_ms)

        def run() -> ServiceCurve:
            asked = request.seed, rate, request.blocks, progress.next_part, request.beside
            return measure_service_curve(engine, measured.placement, sizes, *asked)

        # Of several blocks the disturbed ones are left out, and the whole is not repeated.
        curve = run() if request.blocks > 1 else least_disturbed(run, _CALM, InterferenceMonitor)
        progress.next_part()
        looks.append(pace_ms(request.baseline, requests))
    pace = math.sqrt(math.prod(looks))
    factor = 1.0 if request.reference_pace_ms is None else request.reference_pace_ms / pace
    return ServiceCurveResponse(curve.scaled(factor), pace, measured.artifact.model_bytes)


def of_few_sizes(requests: Sequence[Request]) -> list[Request]:
    """Return a few requests from the smallest to the largest, at even distances by their rank.

    An engine that prepares its kernels by size takes longer to prepare those of hundreds of sizes than the measurement
    of a curve takes in all.
    """
    ordered = sorted(requests, key=rows_of)
    places = np.linspace(0, len(ordered) - 1, min(_SIZES, len(ordered)))
    return [ordered[round(place)] for place in places]


def further_sizes(requests: Sequence[Request], batch_rows: int | None, split_over: int | None) -> list[Request]:
    """Return requests of the sizes that batches and the parts of split requests have."""
    found = [] if batch_rows is None else joined(requests, batch_rows)
    if split_over is not None:
        found += [_first_rows(request, -(-rows_of(request) // split_over)) for request in requests]
    return found


def _first_rows(request: Request, rows: int) -> Request:
    """Return the first rows of a request; the user's inputs may be given once."""
    return {name: values if len(values) == 1 else values[:rows] for name, values in request.items()}


def measure_service_curve(
    open_engine: Callable[[InstanceGroup], Engine],
    placement: Placement,
    requests: Sequence[Request],
    seed: int,
    study_rate: StudyRate | None = None,
    blocks: int = 1,
    next_part: Callable[[], None] = lambda: None,
    beside: Sequence[InstanceGroup] = (),
) -> ServiceCurve:
    """Measure an instance group, in a placement that neither batches, splits, routes nor refuses.

    Args:
        requests: of the sizes that will be simulated, batches included
        study_rate: at which a small model has long idle times; None for none
        blocks: most times that runs are measured, within some seconds; those of undisturbed blocks count together
        next_part: as in `LiveTarget`, and called before each schedule
        beside: other instance groups on the same machine, idle but for one schedule, in which they run without pause
    """
    instance_group = placement.instance_group
    engines: list[Observed] = []

    def observed(group: InstanceGroup) -> Engine:
        engines.append(Observed(open_engine(group)))
        return engines[-1]

    with Pool(placement, observed) as pool:
        warm_up(pool.submit, requests, placement)
        others = [Observed(open_engine(group)) for group in beside for _ in range(group.replicas)]
        theirs = of_few_sizes(requests)
        for other, request in itertools.product(others, theirs):
            other.run(request)
        target = replace(load_target(pool, placement, requests), next_part=next_part)
        target.settle()
        # With the smallest and the largest of all, so that every size lies between two that were measured.
        some = drawn_requests(requests, _MOST_REQUESTS, seed)
        some[:2] = min(requests, key=rows_of), max(requests, key=rows_of)
        mean_ms = float(target.closed_loop(some[:20]).mean())
        rate = _SHARE * 1000 * instance_group.replicas / mean_ms
        some = some[: max(_FEWEST_REQUESTS * instance_group.replicas, int(rate * _OPEN_SECONDS))]
        together = np.ones(_BUSY_REQUESTS * instance_group.replicas, dtype=np.int64)
        rate_rps = math.inf if study_rate is None else study_rate.rps(mean_ms)
        rested = 0  # requests at the study's rate, none where that is not low
        if rate_rps < rate / _RESTED:
            busy = rate_rps * mean_ms / 1000 / instance_group.replicas
            fewest = rested_requests((1 - busy) ** instance_group.replicas)
            rested = min(max(int(rate_rps * _RESTED_SECONDS), fewest), _MOST_REQUESTS)

        def play(block: int) -> _Block:
            drawn = seed + block
            parts = [
                _play(target, engines, some, gaps(Traffic(), rate, len(some), drawn)),
                _play(target, engines, drawn_requests(requests, len(together), drawn, 1), together),
            ]
            if others:
                crowd = _Crowd(others, theirs)
                parts.append(_play(target, engines, drawn_requests(requests, len(together), drawn, 3), together, crowd))
            if not rested:
                return _Block(parts, ())
            apart = gaps(Traffic(), rate_rps, rested, drawn)
            return _Block(parts, [_play(target, engines, drawn_requests(requests, rested, drawn, 2), apart)])

        measured = [play(0)] if blocks == 1 else _calm(play, blocks)
    at_study_rate = [columns for block in measured for columns in block.rested]
    return ServiceCurve.fit(
        _concatenated([columns for block in measured for columns in block.parts]),
        _concatenated(at_study_rate) if at_study_rate else None,
    )


@dataclass(frozen=True)
class _Crowd:
    """Replicas of other instance groups, and the requests that they run."""

    engines: Sequence[Observed]
    requests: Sequence[Request]

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Run requests on each engine, one after another, until the context ends; an error of theirs is raised then."""
        over = threading.Event()

        def run(engine: Observed) -> None:
            engine.runs.clear()
            for request in itertools.cycle(self.requests):
                if over.is_set():
                    return
                engine.run(request)

        with ThreadPoolExecutor(max(len(self.engines), 1)) as threads:
            running = [threads.submit(run, engine) for engine in self.engines]
            try:
                yield
            finally:
                over.set()
        for each in running:
            each.result()


_ALONE = _Crowd((), ())


class _Block(NamedTuple):
    """Runs of a block.

    parts: in an open loop, with all replicas busy, and with those of other instance groups busy too, if there are any
    rested: at the study's rate
    """

    parts: Sequence[Columns]
    rested: Sequence[Columns]


def _calm(play: Callable[[int], _Block], blocks: int) -> list[_Block]:
    """Return the undisturbed ones of so many blocks, or of as many as begin within some seconds."""
    found, taken = list[_Block](), list[float]()
    end = time.monotonic() + _BLOCKS_SECONDS
    while not found or (len(found) < blocks and time.monotonic() < end):
        monitor = InterferenceMonitor()
        found.append(play(len(found)))
        taken.append(monitor.stop().taken)
    return [block for block, keep in zip(found, calm_blocks(taken), strict=True) if keep]


def _concatenated(parts: Sequence[Columns]) -> Runs:
    return Runs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def rested_requests(share: float) -> int:
    """Return the number of requests of which enough find all replicas idle, in 97 of 100 draws or more.

    Args:
        share: mean share of the requests that find all replicas idle
    """
    return math.ceil((FEWEST_RUNS + 2 * math.sqrt(FEWEST_RUNS * (1 - share))) / share)


def _play(
    target: LiveTarget,
    engines: Sequence[Observed],
    requests: Sequence[Request],
    gaps_ns: NDArray[np.int64],
    crowd: _Crowd = _ALONE,
) -> Columns:
    """Play a schedule beside a crowd that is busy, and return the columns of `Runs`."""
    target.next_part()
    own = [dict(request) for request in requests]  # so that each has an identity
    place = {id(request): number for number, request in enumerate(own)}
    for engine in engines:
        engine.runs.clear()
    with crowd.busy():
        played = target.open_loop(own, gaps_ns)
    # Without the runs that keep an engine warm, which go on while this reads.
    runs_of = [[run for run in engine.runs if run.request in place] for engine in engines]
    due_ns = played.start_ns + np.cumsum(gaps_ns)
    finished_ns = due_ns + np.rint(played.latency_ms * 1e6).astype(np.int64)
    ns, idle_ns, busy = (np.zeros(len(own), np.int64) for _ in range(3))
    for runs in runs_of:
        others = [*(other for other in runs_of if other is not runs), *(list(one.runs) for one in crowd.engines)]
        before_ns = played.start_ns
        # The target also runs some of the requests before the schedule begins.
        for run in [run for run in runs if run.start_ns >= played.start_ns]:
            number = place[run.request]
            idle_ns[number] = due_ns[number] - before_ns
            ns[number] = finished_ns[number] - max(due_ns[number], before_ns)
            before_ns = finished_ns[number]
            busy[number] = sum(any(one.start_ns <= run.start_ns < one.end_ns for one in other) for other in others)
    return np.array([rows_of(request) for request in own]), ns, idle_ns, busy


def joined(requests: Sequence[Request], most_rows: int) -> list[Request]:
    """Join neighbouring requests to batches of at most so many rows, for the sizes that a batching placement runs."""
    found: list[Request] = []
    for request in requests:
        if found and rows_of(found[-1]) + rows_of(request) <= most_rows:
            found[-1] = {name: np.concatenate([found[-1][name], values]) for name, values in request.items()}
        else:
            found.append(request)
    return found
