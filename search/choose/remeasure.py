"""Repeated benchmarks of a study's artifacts, here and over a long window, compared with those of the search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from objectives.records import Interval, Through
from objectives.serving.bundle_files import model_files
from objectives.serving.devices import describe
from search.choose.point_bundles import points_of
from search.cli.console import Console
from search.config.load import check_server_packages
from search.errors import ConfigError, JobError
from search.format import MISSING, count, ranged
from search.home import write_json
from search.results import Point, Timing, timing_numbers
from search.session import Session
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import Workers
from spaces.serialization import fields_in

_WAYS: Mapping[Through, str] = {"pool": "in the pool", "http": "through the HTTP server"}


@dataclass(frozen=True, kw_only=True)
class TimingNow(Timing):
    """A timing by a new benchmark, with the baseline's p95 and the load."""

    baseline_p95_ms: float
    rate_rps: float
    requests: int


@dataclass(frozen=True)
class Remeasured:
    """A point timed again, or why it was not.

    agrees, throughput_agrees: whether the intervals of then and now overlap; None where requests went another way then
    """

    trial: int
    then: Timing
    now: TimingNow | None = None
    agrees: bool | None = None
    throughput_agrees: bool | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Remeasurement:
    """Points timed again, as `leanrec remeasure --json` prints it."""

    study: str
    machine_then: str | None
    machine_now: str
    rows: tuple[Remeasured, ...]
    through: Through = "pool"


def remeasure(
    session: Session,
    workers: Workers,
    console: Console,
    trials: Sequence[int] = (),
    through: Through | None = None,
) -> Remeasurement:
    """Time points again, the fastest first; write and return the result.

    The baseline is not among them, since it runs beside every one. The study's trials stay unchanged. A row that fails
    has no `now` and a `reason`, and the others go on.

    Args:
        trials: measured trials, on the front or not; none for those of the front
        through: how requests reach both deployments; None for the study's own way

    Raises:
        ConfigError: nothing was measured yet, a trial was not, there is no point but the baseline, or the baseline's
        model file or the requests are gone.
    """
    config, home = session.config, session.home
    front = session.front()
    pairs, sides = session.pairs(front, workers, console), session.sides()
    way = through or config.traffic.through
    if way != config.traffic.through:
        pairs = replace(pairs, jobs=pairs.jobs.sent(way))
        check_server_packages(pairs.jobs.config.traffic)
    named = points_of(front, trials) if trials else front.members
    points = sorted((point for point in named if point.trial != 0), key=lambda point: point.p95_ratio)
    if not points:
        raise ConfigError(f"STUDY: there is no point of {config.name!r} to time but the baseline")
    rows = []
    for place, point in enumerate(points, 1):
        console.say(f"trial {point.trial} ({place} of {len(points)}): timing over a long window")
        row = _timed_again(pairs, point, sides[point.trial])
        console.say(f"trial {point.trial}: {_told(row)}")
        rows.append(row)
    found = Remeasurement(config.name, session.study.facts.get("machine"), describe(), tuple(rows), way)
    write_json(found, home.reports(config.name) / file_of(found))
    return found


def file_of(found: Remeasurement) -> str:
    """Return the name of its file in the study's folder, one for each way."""
    return "remeasure.json" if found.through == "pool" else f"remeasure-{found.through}.json"


def all_failed(found: Remeasurement) -> bool:
    return all(row.now is None for row in found.rows)


def _timed_again(pairs: PairedComparison, point: Point, ours: Side) -> Remeasured:
    artifact, candidate = ours
    before = {**vars(point), **vars(point.latency_ms), "p95_ms": point.latency_ms.p95}
    then = Timing(**fields_in(Timing, before))
    model = Path(pairs.jobs.task.home, artifact.path)
    for file in (model.with_name(name) for name in model_files(candidate.placement, model.parent)):
        if not file.is_file():
            return Remeasured(point.trial, then, reason=f"its model file is gone from the cache: {file}")
    try:
        name = f"remeasure-{pairs.jobs.config.traffic.through}-{point.trial}"
        timed = pairs.benchmark(ours, "confirm", pairs.jobs.recording(name))
    except JobError as error:
        return Remeasured(point.trial, then, reason=str(error))
    now = TimingNow(**fields_in(TimingNow, timing_numbers(timed.latency, timed.throughput)))
    if now.through != then.through:
        return Remeasured(point.trial, then, now)
    p95_agrees = _overlap(then.p95_ratio_interval, now.p95_ratio_interval)
    throughput_agrees = _overlap(then.throughput_ratio_interval, now.throughput_ratio_interval)
    return Remeasured(point.trial, then, now, p95_agrees, throughput_agrees)


def _overlap(then: Interval, now: Interval) -> bool:
    (low, high), (least, most) = then, now
    return low <= most and least <= high


def _told(row: Remeasured) -> str:
    if row.now is None:
        return f"not timed: {row.reason}"
    told = f"p95 ratio {_ratio(row.then)} then, {_ratio(row.now)} now"
    if row.agrees is None:
        return f"{told}, {_WAYS[row.now.through]} and not {_WAYS[row.then.through]}"
    return f"{told}: {'the intervals overlap' if row.agrees else 'the intervals do not overlap'}"


def conclusion(found: Remeasurement) -> str:
    """Count the points that agree with the earlier benchmark, in one sentence."""
    timed = [row for row in found.rows if row.now is not None]
    agree = sum(bool(row.agrees) for row in timed)
    failed = len(found.rows) - len(timed)
    told = f"{agree} of {count(len(timed), 'point')} timed again agree with the p95 ratio of the search"
    if any(row.agrees is None for row in timed):
        told = f"{count(len(timed), 'point')} timed {_WAYS[found.through]}, which the search was not"
    return told + (f"; {failed} could not be timed" if failed else "")


def remeasured_table(found: Remeasurement) -> Table:
    """Old and new side by side, the fastest first, a line for each number."""
    machines = f"then: {found.machine_then or MISSING}\nnow: {found.machine_now}"
    table = Table(title=f"Points of {found.study}, timed again", title_justify="left", caption=machines)
    table.caption_justify = "left"
    then, now = "then", "now"
    for before in {row.then.through for row in found.rows} - {found.through}:  # one at most: a study has one way
        then, now = f"then, {_WAYS[before]}", f"now, {_WAYS[found.through]}"
    table.add_column("trial", justify="right")
    table.add_column("number")
    for when in (then, now):
        table.add_column(when, justify="right", no_wrap=True)
    table.add_column("the intervals overlap")
    for row in found.rows:
        for place, (name, word) in enumerate(_CELLS.items()):
            trial = "" if place else str(row.trial)
            again = MISSING if row.now is None else word(row.now)
            table.add_row(
                trial, name, word(row.then), again, _agreement(row, name), end_section=place + 1 == len(_CELLS)
            )
    return table


def _agreement(row: Remeasured, name: str) -> str:
    """Return whether the intervals of a number overlap, in a word; beside the first one, why a row was not timed."""
    if row.now is None:
        return f"not timed: {row.reason}" if name == next(iter(_CELLS)) else ""
    same = {"p95 ratio": row.agrees, "throughput ratio": row.throughput_agrees}.get(name)
    return "" if same is None else "yes" if same else "no"


def _ratio(found: Timing) -> str:
    return ranged(found.p95_ratio, found.p95_ratio_interval)


_CELLS: Mapping[str, Callable[[Timing], str]] = {
    "p95 ms": lambda found: f"{found.p95_ms:.3f}",
    "p95 ratio": _ratio,
    "throughput ratio": lambda found: ranged(found.throughput_ratio, found.throughput_ratio_interval, ".2f"),
    "capacity ratio": lambda found: ranged(found.capacity_ratio, found.capacity_ratio_interval, ".2f"),
}
