"""Benchmark of one bundle under one pattern of traffic: opened, warmed up, played, and reported."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from objectives.measure.deployment import Submitter, load_target, quiet, warm_up
from objectives.measure.remote_model import RemoteModel
from objectives.measurement.arrivals import PATTERNS, Pattern, Traffic, gaps
from objectives.measurement.interference import Interference, InterferenceMonitor
from objectives.measurement.load_generator import Request, not_offered
from objectives.measurement.load_target import LoadTarget
from objectives.measurement.request_log import RequestLog, RequestLogError, read_request_log, write_trace
from objectives.measurement.statistics import fewest_samples
from objectives.measurement.throughput import measure_capacity
from objectives.measurement.timeline import Played, Timeline, joined, play, play_closed, timeline
from objectives.recommenders.requests import lognormal_rows
from objectives.records import InputSpec
from objectives.serving.bundle import Bundle
from objectives.serving.devices import describe
from objectives.serving.http.datatypes import DATATYPES
from search.bench.requests import draw_requests
from search.bench.summary import BLOCKS, PERCENTS, BesidePoisson, Percentile, beside_poisson, percentiles
from search.cli.console import Console
from search.config.sections import RowsConfig
from search.errors import ConfigError

PATTERN_NAMES = ("closed", *PATTERNS)
# A pattern and Poisson take turns of a few seconds: a machine's drift meets both, and a burst's queue seldom meets an
# end.
_TURNS = 5
# A p99 needs its answers: at a low rate a schedule may last this many times longer than asked.
_LONGEST_TIMES = 3
_DRAWN_SIZES = 2000
# Requests of the longest schedule, whose times take some hundred bytes each.
_MOST_REQUESTS = 10_000_000


@dataclass(frozen=True)
class Plan:
    """Plan of a benchmark: a pattern at a rate, else at a load, a share of the bundle's own capacity, and its duration.

    rows: None for the log's, else those of the requests that the bundle's study was measured with
    url: of the model on a server, to which requests are sent; None for the bundle's own pool

    Raises:
        ConfigError: in the constructor, naming the option.
    """

    pattern: str = "poisson"
    rate_rps: float | None = None
    load: float = 0.6
    seconds: float = 20.0
    rows: RowsConfig | None = None
    log: Path | None = None
    seed: int = 0
    url: str | None = None

    def __post_init__(self) -> None:
        if self.pattern not in PATTERN_NAMES:
            raise ConfigError(f"--pattern: must be one of {', '.join(PATTERN_NAMES)}, but got {self.pattern!r}")
        for option, value in (("rate", self.rate_rps), ("load", self.load), ("seconds", self.seconds)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"--{option}: must be a number above 0, but got {value}")
        if (self.pattern == "replay") != (self.log is not None):
            raise ConfigError(
                f"--log: goes with the pattern replay and with no other, but got {self.pattern} and {self.log}"
            )
        if self.pattern == "closed" and self.rate_rps is not None:
            raise ConfigError(f"--rate: a closed loop has none, but got {self.rate_rps}")
        if self.rate_rps is not None:
            self.check_requests(self.rate_rps)

    def check_requests(self, rate_rps: float) -> None:
        """Check that a schedule at a rate fits into memory; ConfigError where it does not."""
        if rate_rps * self.seconds > _MOST_REQUESTS:
            raise ConfigError(
                f"--seconds: must be at most {_MOST_REQUESTS / rate_rps:.3g} at {rate_rps:.3g} requests/s, which are "
                f"{_MOST_REQUESTS:,} requests, but got {self.seconds:g}"
            )


@dataclass(frozen=True)
class RequestRows:
    """Rows of the requests that were drawn."""

    median: float
    max: int


@dataclass(frozen=True)
class QueueLength:
    """Requests that wait."""

    mean: float
    max: int


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """A bundle under one pattern of traffic, as `leanrec bench --json` prints it.

    rate_rps, load: None in a closed loop; load is a share of the capacity
    valid: whether the run says something about the model, else `reason`
    disturbed: whether other processes took the machine meanwhile
    cpu_share: of the time in which threads were ready, that in which they ran
    latency_ms: p50, p95 and p99, as in `percentiles`
    poisson: None where the pattern is Poisson or a closed loop
    cpu_cores: of this process, which is the client's where a server answers
    """

    bundle: str
    url: str | None = None
    name: str
    machine: str
    pattern: str
    log: str | None
    seed: int
    rows: RequestRows
    capacity_rps: float
    rate_rps: float | None
    load: float | None
    valid: bool
    reason: str | None
    disturbed: bool
    cpu_share: float
    seconds: float
    requests: int
    refused: int
    offered_rps: float
    served_rps: float
    latency_ms: Mapping[str, Percentile | None]
    lag_p95_ms: float
    offered_share: float
    queue: QueueLength
    cpu_cores: float
    poisson: BesidePoisson | None
    timeline: Timeline


def bench(bundle: Bundle, plan: Plan, out: Path, console: Console) -> BenchResult:
    """Play, and write bench.html and bench.json into `out`; a run that is not valid is written too, and says why.

    Raises:
        ConfigError: the log cannot be read, or the server's model has other inputs.
        InputError: no model answers at the URL.
        EngineError: an engine of the bundle is not available here.
    """
    try:
        log = None if plan.log is None else read_request_log(plan.log)
    except RequestLogError as error:
        raise ConfigError(f"--log: {error}") from error
    rows = _rows(plan, log, bundle)
    requests = draw_requests(_sized(bundle), rows, plan.seed)
    with tempfile.TemporaryDirectory() as scratch, quiet(), _opened(bundle, plan.url) as pool:
        placement = bundle.candidate.placement
        console.say(f"bench: warming up over requests of {rows.min()} to {rows.max()} rows")
        warm_up(pool.submit, requests, placement)
        target = load_target(pool, placement, requests)
        capacity = float(np.median(measure_capacity([target], requests, plan.seed)))
        console.say(f"bench: it can answer {capacity:,.0f} requests/s")
        watching = InterferenceMonitor()
        traffic = _traffic(plan, log, Path(scratch))
        rate, played, poisson = _play(target, requests, plan, traffic, capacity, console)
        interference = watching.stop()
    found = _summary(bundle, plan, rows, capacity, rate, played, poisson, interference)
    # Plotly is loaded after the clock has stopped.
    from search.report.report import write_bench

    write_bench(found, out)
    return found


@contextmanager
def _opened(bundle: Bundle, url: str | None) -> Iterator[Submitter]:
    """Open the bundle's own pool, or connect to a server that has its model."""
    if url is None:
        with bundle.open() as pool:
            yield pool
        return
    with RemoteModel(url) as remote:
        ours = {spec.name: DATATYPES[np.dtype(spec.dtype)] for spec in bundle.inputs}
        if (theirs := dict(remote.inputs)) != ours:
            raise ConfigError(f"--url: must serve a model with the bundle's inputs, {ours}, but got {theirs}")
        yield remote


def _sized(bundle: Bundle) -> list[InputSpec]:
    """The bundle's inputs; a length that differs between requests is that of its example."""
    example = bundle.manifest.example.inputs if any(None in spec.shape for spec in bundle.inputs) else {}
    return [
        replace(spec, shape=np.asarray(example[spec.name]).shape[1:]) if None in spec.shape else spec
        for spec in bundle.inputs
    ]


def _rows(plan: Plan, log: RequestLog | None, bundle: Bundle) -> NDArray[np.int64]:
    rows, known = plan.rows, bundle.row_quantiles
    if rows is None and log is not None and log.rows is not None:
        return log.rows
    if rows is None and known:
        # The largest of all stands for itself alone, and would be drawn as often as each quantile.
        return np.random.default_rng(plan.seed).choice(np.array(known[:-1] or known, np.int64), _DRAWN_SIZES)
    drawn = rows or RowsConfig()
    return lognormal_rows(drawn.median, drawn.sigma, drawn.max, _DRAWN_SIZES, plan.seed)


def _traffic(plan: Plan, log: RequestLog | None, scratch: Path) -> Traffic | None:
    """Return the traffic of a plan, None for a closed loop. A day lasts as long as the run, which sees all of it."""
    if plan.pattern == "closed":
        return None
    if log is None:
        return Traffic(cast(Pattern, plan.pattern), period_seconds=plan.seconds)
    trace = scratch / "trace.npz"
    write_trace(log, trace)
    return Traffic("replay", trace=str(trace))


def _play(
    target: LoadTarget, requests: Sequence[Request], plan: Plan, traffic: Traffic | None, capacity: float,
    console: Console,
) -> tuple[float | None, Played, Played | None]:  # fmt: skip
    """The rate, what was played at it, and Poisson arrivals at the same rate where the pattern was another."""
    # A bar that redraws itself would take the interpreter from the measured threads: each play is announced beforehand.
    target.settle()
    if traffic is None:
        console.say(f"bench: one request at a time for {plan.seconds:g} s")
        return None, play_closed(target, requests, plan.seconds), None
    rate = plan.rate_rps or plan.load * capacity
    plan.check_requests(rate)
    count = _count(rate, plan.seconds)
    chosen = [requests[i % len(requests)] for i in range(count)]
    schedule = _schedule(traffic, rate, count, plan.seed)
    if traffic.pattern == "poisson":
        console.say(f"bench: poisson at {rate:,.0f} requests/s for {schedule.sum() / 1e9:.0f} s")
        return rate, play(target, chosen, schedule), None
    beside = _schedule(Traffic("poisson"), rate, count, plan.seed + 1)
    ours, theirs = _alternating(target, chosen, {plan.pattern: schedule, "poisson": beside}, console)
    return rate, ours, theirs


def _count(rate_rps: float, seconds: float) -> int:
    """Requests of a schedule: whole blocks, and enough for the highest percentile unless that takes too long."""
    wanted = rate_rps * seconds
    enough = min(fewest_samples(max(PERCENTS)), _LONGEST_TIMES * wanted)
    return BLOCKS * math.ceil(max(wanted, enough) / BLOCKS)


def _schedule(traffic: Traffic, rate_rps: float, count: int, seed: int) -> NDArray[np.int64]:
    """Return the nanoseconds between arrivals, (count,), of exactly this mean rate."""
    # A few bursts, or a part of a trace, may be far from their rate; schedules of two rates could not be compared.
    drawn = gaps(traffic, rate_rps, count, seed)
    stretched: NDArray[np.int64] = np.maximum(drawn * (count * 1e9 / rate_rps / drawn.sum()), 1).astype(np.int64)
    return stretched


def _alternating(
    target: LoadTarget, requests: Sequence[Request], schedules: dict[str, NDArray[np.int64]], console: Console
) -> list[Played]:
    """Play the same requests by each schedule, turn by turn; who goes first alternates.

    A turn's queue drains at its end.
    """
    plays: dict[str, list[Played]] = {name: [] for name in schedules}
    length = len(requests) // _TURNS
    for turn in range(_TURNS):
        part = slice(turn * length, (turn + 1) * length)
        for name in reversed(schedules) if turn % 2 else schedules:
            seconds = schedules[name][part].sum() / 1e9
            console.say(f"bench: {name}, turn {turn + 1} of {_TURNS}, {seconds:.1f} s")
            target.settle()
            plays[name].append(play(target, requests[part], schedules[name][part]))
    return [joined(plays[name]) for name in schedules]


def _summary(
    bundle: Bundle, plan: Plan, rows: NDArray[np.int64], capacity: float, rate: float | None, played: Played,
    poisson: Played | None, interference: Interference,
) -> BenchResult:  # fmt: skip
    line = timeline(played)
    runs = [run for run in (played, poisson) if run is not None]
    invalid = (not_offered(run.latency_ms, run.lag_ms, run.offered_share) for run in runs)
    reason = next(filter(None, invalid), None)
    return BenchResult(
        bundle=str(bundle.folder),
        url=plan.url,
        name=bundle.name,
        machine=describe(),
        pattern=plan.pattern,
        log=None if plan.log is None else str(plan.log),
        seed=plan.seed,
        rows=RequestRows(float(np.median(rows)), int(rows.max())),
        capacity_rps=capacity,
        rate_rps=rate,
        load=None if rate is None else rate / capacity,
        valid=reason is None,
        reason=reason,
        disturbed=interference.busy,
        cpu_share=interference.cpu_share,
        seconds=played.seconds,
        requests=len(played.latency_ms),
        refused=int((~played.served).sum()),
        offered_rps=len(played.latency_ms) / played.seconds,
        served_rps=int(played.served.sum()) / played.seconds,
        latency_ms=percentiles(played.latency_ms),
        lag_p95_ms=float(np.percentile(played.lag_ms, 95)),
        offered_share=played.offered_share,
        queue=QueueLength(float(np.mean(line.queue_mean)), max(line.queue_max)),
        cpu_cores=float(played.cpu_s[-1] / played.cpu_at_s[-1]),
        poisson=None if poisson is None else beside_poisson(played, poisson, plan.seed),
        timeline=line,
    )
