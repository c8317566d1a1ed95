"""Observation of a request log by hour and weekday."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from objectives.measurement.request_log import MEASURES
from objectives.serving.devices import cores_allowed
from planning.capacity import Objective, capacity_table
from planning.demand import Workload, unit_gaps
from planning.fleet import MachineKind, offers_of
from planning.hours_of_week import HOURS, named_hours
from planning.observation.traffic import Observation, observe
from planning.observation.weekly_service import ServiceHour, logged_service
from search.cli.console import Console
from search.errors import ConfigError
from search.format import milliseconds, percent, rate, significant
from search.home import write_json
from search.plan.columns import HOUR_COLUMNS, SERVICE_COLUMNS
from search.plan.deployments import Menu, menu_of
from search.plan.figures import hours_figure, week_figures
from search.plan.inputs import read_log, write_profile
from search.plan.observe.suggestions import service_suggestions
from search.session import Session

LOG_FILE, PAGE, PROFILE = "observe.json", "observe.html", "profile.csv"
# A phase of the workload that capacities are simulated with, and the most of its gaps.
_PHASE_SECONDS = 60.0
_GAPS = 200_000
# Above these, a log is called bursty, and a plan by phases is worth its switches.
_BURSTY, _PEAKED = 1.5, 1.5


@dataclass(frozen=True)
class LogColumns:
    """Columns of a log that were named; None: the default's name, where the log has it."""

    rows: str | None = None
    latency: str | None = None
    cpu: str | None = None
    queue: str | None = None


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
    """Observation of a log with what it suggests: settings of a study, sentences, and machines by trial.

    mean_ms, p95_ms: latency of all requests, None where the log has none
    service: latency, CPU time and queue by hour of the week; empty where the log has none of them
    """

    log: str
    observation: Observation
    mean_ms: float | None
    p95_ms: float | None
    service: tuple[ServiceHour, ...]
    traffic: Mapping[str, object]
    slo_ms: float | None
    sizing: tuple[Sizing, ...]
    suggestions: tuple[str, ...]


def observe_log(
    path: Path,
    columns: LogColumns,
    session: Session | None,
    slo_ms: float | None,
    out: Path,
    seed: int,
    console: Console,
) -> LogReport:
    """Observe a log, and write observe.json, observe.html and profile.csv into `out`.

    Args:
        slo_ms: that latencies are held against; None: the study's, else a multiple of the p95 of all

    Raises:
        ConfigError: the log cannot be read, or the study was not measured.
    """
    measures = dict(zip(MEASURES, (columns.latency, columns.cpu, columns.queue), strict=True))
    log = read_log(path, "LOG", columns.rows, seed, measures)
    found = observe(log.seconds, log.rows, log.start_s)
    menu = None if session is None else menu_of(session, console)
    sizing: tuple[Sizing, ...] = ()
    if menu is not None:
        rows = menu.rows if log.rows is None else log.rows
        sizing = _sizing(menu, Workload(unit_gaps(log.seconds, _PHASE_SECONDS)[-_GAPS:], rows), found, seed)
    traffic: dict[str, object] = {"pattern": f"log:{path}"}
    if found.rows is not None:
        traffic["rows"] = {
            "median": round(found.rows.median),
            "sigma": round(found.rows.sigma, 2),
            "max": found.rows.max,
        }
    latency = log.measures.get("latency_ms", np.zeros(0))
    latency = latency[~np.isnan(latency)]
    p95_ms = float(np.percentile(latency, 95)) if len(latency) else None
    service = logged_service(log.seconds, log.start_s, log.measures) if log.measures else ()
    slo_ms = slo_ms or (None if menu is None else menu.slo_ms)
    said = (*_log_suggestions(found, path, sizing), *service_suggestions(service, p95_ms, slo_ms, cores_allowed()))
    report = LogReport(
        log=str(path),
        observation=found,
        mean_ms=float(latency.mean()) if len(latency) else None,
        p95_ms=p95_ms,
        service=service,
        traffic=traffic,
        slo_ms=slo_ms,
        sizing=sizing,
        suggestions=said,
    )
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

    found = report.observation
    weeks = week_figures(found.hours, report.service)
    tables: list[tuple[str, Sequence[object], Sequence[object]]] = [("By hour", HOUR_COLUMNS, found.hours)]
    if report.service:
        tables.append(("Latency, CPU time and queue by hour", SERVICE_COLUMNS, report.service))
    write_figures(
        path,
        "observe.html.j2",
        {**weeks, "hours": hours_figure(found.hours, report.service)},
        title=report.log,
        facts=log_facts(report),
        suggestions=report.suggestions,
        clock="UTC" if found.clock == "utc" else found.clock,
        weeks=list(weeks),
        tables=tables,
    )


def log_facts(report: LogReport) -> list[str]:
    """List the numbers of a log."""
    found = report.observation
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
    if report.mean_ms is not None and report.p95_ms is not None:
        facts.append(f"latency {milliseconds(report.mean_ms)} in the mean, p95 {milliseconds(report.p95_ms)}")
    return facts
