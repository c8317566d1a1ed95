"""Observation of traffic: a request log by hour and weekday, or a running server by its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from objectives.serving.devices import cores_allowed
from planning.capacity import Objective, capacity_table
from planning.demand import Workload, unit_gaps
from planning.fleet import MachineKind, offers_of
from planning.hours_of_week import HOURS, named_hours
from planning.metrics_samples import Interval, interval, intervals
from planning.observation import Observation, observe
from search.cli.console import Console
from search.errors import ConfigError
from search.format import milliseconds, percent, rate, significant
from search.home import write_json
from search.plan.columns import HOUR_COLUMNS
from search.plan.deployments import Menu, menu_of
from search.plan.figures import hours_figure, server_figure, week_figure
from search.plan.inputs import read_log, write_profile
from search.plan.scrape import metrics_address, sample
from search.session import Session

LOG_FILE, SERVER_FILE, PAGE, PROFILE = "observe.json", "server.json", "observe.html", "profile.csv"
# A phase of the workload that capacities are simulated with, and the most of its gaps.
_PHASE_SECONDS = 60.0
_GAPS = 200_000
# Above these, a log is called bursty, and a plan by phases is worth its switches.
_BURSTY, _PEAKED = 1.5, 1.5
# The SLO that a study takes by default is so many times the p95.
_SLO_TIMES = 2.0


@dataclass(frozen=True)
class Sizing:
    """Machines like this one that a point of the study needs for the log's rates, None where it cannot keep the SLO."""

    trial: int
    loss: float
    capacity_rps: float
    for_mean: int | None
    for_p95: int | None
    for_peak: int | None


@dataclass(frozen=True)
class LogReport:
    """Observation of a log with what it suggests: settings of a study, sentences, and machines by trial."""

    log: str
    observation: Observation
    traffic: Mapping[str, object]
    slo_ms: float | None
    sizing: tuple[Sizing, ...]
    suggestions: tuple[str, ...]


@dataclass(frozen=True)
class ServerReport:
    """Observation of a running server: the whole time, the intervals between samples, and what they suggest."""

    url: str
    whole: Interval
    queue_mean: float
    queue_max: float
    in_flight_mean: float
    in_flight_max: float
    intervals: tuple[Interval, ...]
    suggestions: tuple[str, ...]


def observe_log(
    path: Path, rows_column: str | None, session: Session | None, out: Path, seed: int, console: Console
) -> LogReport:
    """Observe a log, and write observe.json, observe.html and profile.csv into `out`.

    Raises:
        ConfigError: the log cannot be read, or the study was not measured.
    """
    log = read_log(path, "LOG", rows_column, seed)
    found = observe(log.seconds, log.rows, log.start_s)
    menu = None if session is None else menu_of(session, console)
    sizing: tuple[Sizing, ...] = ()
    if menu is not None:
        rows = menu.rows if log.rows is None else log.rows
        sizing = _sizing(menu, Workload(unit_gaps(log.seconds[-_GAPS:], _PHASE_SECONDS), rows), found, seed)
    traffic: dict[str, object] = {"pattern": f"log:{path}"}
    if found.rows is not None:
        traffic["rows"] = {
            "median": round(found.rows.median),
            "sigma": round(found.rows.sigma, 2),
            "max": found.rows.max,
        }
    slo_ms = None if menu is None else menu.slo_ms
    report = LogReport(str(path), found, traffic, slo_ms, sizing, _log_suggestions(found, path, sizing))
    write_json(report, out / LOG_FILE)
    write_profile(found.hours, out / PROFILE)
    _write_log_page(report, out / PAGE)
    return report


def _sizing(menu: Menu, workload: Workload, found: Observation, seed: int) -> tuple[Sizing, ...]:
    kind, objective = MachineKind("this machine", cores_allowed()), Objective(menu.slo_ms, menu.percent)
    rates = (found.mean_rps, found.p95_rps, found.peak_rps)
    rows = []
    for offer in offers_of(menu.deployments, (kind,)):
        try:
            table = capacity_table(offer, workload, objective, seed)
            machines = [table.machines(each) for each in rates]
            rows.append(Sizing(offer.deployment.trial, offer.deployment.loss, table.rate(1), *machines))
        except ValueError as error:  # OutsideRangeError
            raise ConfigError(f"LOG: must have requests of sizes that the study measured, but: {error}") from error
    return tuple(rows)


def _log_suggestions(found: Observation, path: Path, sizing: tuple[Sizing, ...]) -> tuple[str, ...]:
    hours = {(hour.weekday, hour.hour) for hour in found.hours}
    said = [
        f"traffic: pattern log:{path} replays these gaps; a load test runs from {rate(found.mean_rps)} in the mean to "
        f"{rate(found.peak_rps)} in the busiest minute"
    ]
    if found.gap_cv_within > _BURSTY:
        said.append(
            f"arrivals cluster within a minute (variation of the gaps {significant(found.gap_cv_within)}, Poisson has "
            "1): Poisson arrivals would show too low a p95"
        )
    if found.peak_to_mean > _PEAKED:
        said.append(
            f"the busiest minute has {significant(found.peak_to_mean)} times the mean rate: leanrec plan shows what "
            "machines by phase save"
        )
    if lacking := [hour for hour in range(HOURS) if divmod(hour, 24) not in hours]:
        said.append(
            f"{PROFILE} lacks {len(lacking)} hours of the week ({named_hours(lacking)}): leanrec plan --profile needs "
            "them all; observe a log of a week or more, or plan from the log with --trace"
        )
    known = [each for each in sizing if each.for_peak is not None and each.for_mean is not None]
    if known:
        least = min(known, key=lambda each: (each.for_peak or 0, each.loss))
        said.append(
            f"trial {least.trial} keeps the SLO with {least.for_mean} machines like this one at the mean rate and "
            f"{least.for_peak} in the busiest minute, at a loss of {percent(max(least.loss, 0.0))}"
        )
    return tuple(said)


def _write_log_page(report: LogReport, path: Path) -> None:
    from search.report.report import write_figures

    figures = {"week": week_figure(report.observation.hours), "hours": hours_figure(report.observation.hours)}
    values = {"found": report, "facts": log_facts(report.observation), "hour_columns": HOUR_COLUMNS}
    write_figures(path, "observe.html.j2", figures, title=report.log, suggestions=report.suggestions, **values)


def log_facts(found: Observation) -> list[str]:
    """List the numbers of a log."""
    facts = [
        f"{found.requests:,} requests in {significant(found.seconds / 3600, 3)} hours",
        f"{rate(found.mean_rps)} in the mean, {significant(found.p95_rps, 3)} in the p95 of the minutes, "
        f"{significant(found.peak_rps, 3)} in the busiest minute ({significant(found.peak_to_mean)} times the mean)",
        f"variation of the gaps {significant(found.gap_cv)}, {significant(found.gap_cv_within)} within minutes; "
        f"dispersion of a second {significant(found.dispersion)}",
    ]
    if found.rows is not None:
        facts.append(
            f"{significant(found.rows.median, 3)} rows at the median, {significant(found.rows.p95, 3)} at p95, "
            f"{found.rows.max:,} at most"
        )
    return facts


def observe_server(url: str, seconds: float, every_s: float, out: Path, console: Console) -> ServerReport:
    """Observe a running server for so many seconds, and write server.json and observe.html into `out`.

    Raises:
        ConfigError: no `leanrec serve` answers there.
    """
    if every_s > seconds:
        raise ConfigError(f"--every: must be at most --seconds ({seconds:g}), but got {every_s:g}")
    address = metrics_address(url)
    samples = sample(address, seconds, every_s, console.say)
    try:
        parts, whole = intervals(samples), interval(samples[0], samples[-1], samples[0].at_s)
    except ValueError as error:
        raise ConfigError(f"URL: {error}") from error
    queues, flying = [each.queue for each in samples], [each.in_flight for each in samples]
    report = ServerReport(
        url=url,
        whole=whole,
        queue_mean=sum(queues) / len(queues),
        queue_max=max(queues),
        in_flight_mean=sum(flying) / len(flying),
        in_flight_max=max(flying),
        intervals=parts,
        suggestions=_server_suggestions(whole),
    )
    write_json(report, out / SERVER_FILE)
    from search.report.report import write_figures

    values = {"found": report, "facts": server_facts(report), "hour_columns": ()}
    figures = {"server": server_figure(parts)}
    write_figures(out / PAGE, "observe.html.j2", figures, title=url, suggestions=report.suggestions, **values)
    return report


def _server_suggestions(whole: Interval) -> tuple[str, ...]:
    said = []
    if whole.p95_ms is not None:
        slo = _SLO_TIMES * whole.p95_ms
        said.append(f"slo: ms: {significant(slo, 2)} is twice the p95 of now, as a study takes it by default")
    if whole.rate_rps > 0:
        said.append(f"traffic: {rate(whole.rate_rps)} arrived; observe a log of a week to see its peaks")
    cores = cores_allowed()
    if whole.rate_rps > 0 and whole.cpu_cores > 0:
        busy = f"{significant(1000 * whole.cpu_cores / whole.rate_rps, 3)} ms of CPU time a request"
        said.append(f"{busy}: {cores} cores like these are busy at {rate(cores * whole.rate_rps / whole.cpu_cores)}")
    return tuple(said)


def server_facts(report: ServerReport) -> list[str]:
    """List the numbers of a server."""
    whole = report.whole
    latency = "no request was answered"
    if whole.mean_ms is not None:
        p95 = "above the largest bucket" if whole.p95_ms is None else milliseconds(whole.p95_ms)
        latency = f"latency {milliseconds(whole.mean_ms)} in the mean, p95 {p95}"
    return [
        f"{rate(whole.rate_rps)} for {significant(whole.seconds, 3)} s, {significant(whole.refused_rps, 3)} refused",
        latency,
        f"{significant(whole.cpu_cores)} cores busy",
        f"queue {significant(report.queue_mean)} in the mean, {report.queue_max:g} at most; in flight "
        f"{significant(report.in_flight_mean)} in the mean, {report.in_flight_max:g} at most",
    ]
