"""Observation of a running server by its metrics, over time and by hour and weekday."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from objectives.serving.devices import cores_allowed
from planning.hours_of_week import named_hours
from planning.observation.metrics_samples import MetricsSample
from planning.observation.weekly_service import SampledService, ServiceSamples
from search.cli.console import Console
from search.errors import ConfigError
from search.format import count, milliseconds, rate, significant
from search.home import write_json
from search.plan.columns import SERVICE_COLUMNS
from search.plan.figures import hours_figure, server_figure, week_figures
from search.plan.observe.log import PAGE
from search.plan.observe.samples_file import append_sample, check_appendable, read_samples
from search.plan.observe.scrape import metrics_address, sample
from search.plan.observe.suggestions import P95_TIMES, service_suggestions, unknown_hours

SERVER_FILE = "server.json"


@dataclass(frozen=True)
class ServerReport:
    """Observation of a server and what it suggests.

    samples_file: that the samples are from, None where they were not kept
    slo_ms: that was given
    """

    url: str
    samples_file: str | None
    slo_ms: float | None
    service: SampledService
    suggestions: tuple[str, ...]


def observe_server(
    url: str,
    seconds: float,
    every_s: float,
    samples: Path | None,
    slo_ms: float | None,
    out: Path,
    console: Console,
) -> ServerReport:
    """Observe a running server for so many seconds, and write server.json and observe.html into `out`.

    Args:
        samples: file that each sample is appended to as soon as it is read, and whose samples are all shown
        slo_ms: that the p95 of the hours is held against; None: a multiple of the p95 of all

    Raises:
        ConfigError: no `leanrec serve` answers there, or the file is none of its samples.
    """
    if every_s > seconds:
        raise ConfigError(f"--every: must be at most --seconds ({seconds:g}), but got {every_s:g}")
    address = metrics_address(url)
    if samples is None:
        found = ServiceSamples()
        sample(address, seconds, every_s, found.add, console.say)
        return _report(url, None, found, slo_ms, out, "URL")
    check_appendable(samples, address)

    def keep(one: MetricsSample) -> None:
        append_sample(samples, address, one)

    sample(address, seconds, every_s, keep, console.say)
    _, found = _read(samples, "--samples")
    return _report(url, samples, found, slo_ms, out, "URL")


def observe_samples(samples: Path, slo_ms: float | None, out: Path) -> ServerReport:
    """Show the samples of a file, as `observe_server` does.

    Raises:
        ConfigError: the file has no two samples of a server.
    """
    address, found = _read(samples, "LOG")
    return _report(address.removesuffix("/metrics"), samples, found, slo_ms, out, "LOG")


def _read(samples: Path, option: str) -> tuple[str, ServiceSamples]:
    found, address = ServiceSamples(), ""
    for address, one in read_samples(samples, option):  # noqa: B007  # the same of all
        found.add(one)
    return address, found


def _report(
    url: str, samples: Path | None, found: ServiceSamples, slo_ms: float | None, out: Path, option: str
) -> ServerReport:
    try:
        service = found.summary()
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from error
    said = _suggestions(service, slo_ms)
    report = ServerReport(url, None if samples is None else str(samples), slo_ms, service, said)
    write_json(report, out / SERVER_FILE)
    _write_page(report, out / PAGE)
    return report


def _write_page(report: ServerReport, path: Path) -> None:
    from search.report.report import write_figures

    service = report.service
    weeks = week_figures((), service.hours)
    write_figures(
        path,
        "observe.html.j2",
        {**weeks, "hours": hours_figure((), service.hours), "server": server_figure(service)},
        title=report.url,
        facts=server_facts(report),
        suggestions=report.suggestions,
        clock="UTC",
        weeks=list(weeks),
        tables=[("By hour", SERVICE_COLUMNS, service.hours)],
    )


def _suggestions(service: SampledService, slo_ms: float | None) -> tuple[str, ...]:
    said, whole, cores = [], service.whole, cores_allowed()
    if whole.p95_ms is not None and slo_ms is None:
        slo = P95_TIMES * whole.p95_ms
        said.append(f"slo: ms: {significant(slo, 2)} is twice the p95 of all, as a study takes it by default")
    if whole.rate_rps > 0:
        known = {hour.number: hour.rate_rps for hour in service.hours if hour.rate_rps is not None}
        busiest = max(known, key=known.__getitem__, default=None)
        peak = "" if busiest is None else f", {rate(known[busiest])} in the busiest hour ({named_hours([busiest])})"
        said.append(f"traffic: {rate(whole.rate_rps)} arrived in the mean{peak}")
    if unknown := unknown_hours(service.hours):
        said.append(
            f"nothing is known of {len(unknown)} hours of the week: observe for a week with --samples to see its peaks"
        )
    if whole.rate_rps > 0 and whole.cpu_cores > 0:
        busy = f"{significant(1000 * whole.cpu_cores / whole.rate_rps, 3)} ms of CPU time a request"
        most = rate(cores * whole.rate_rps / whole.cpu_cores)
        said.append(f"{busy}: {cores} cores, as this machine has, are busy at {most}")
    return (*said, *service_suggestions(service.hours, whole.p95_ms, slo_ms, cores))


def server_facts(report: ServerReport) -> list[str]:
    """List the numbers of a server."""
    service, whole = report.service, report.service.whole
    latency = "no request was answered"
    if whole.mean_ms is not None:
        p95 = "above the largest bucket" if whole.p95_ms is None else milliseconds(whole.p95_ms)
        latency = f"latency {milliseconds(whole.mean_ms)} in the mean, p95 {p95}"
    facts = [
        f"{rate(whole.rate_rps)} for {_duration(whole.seconds)}, {significant(whole.refused_rps, 3)} refused",
        latency,
        f"{significant(whole.cpu_cores)} cores busy",
        f"queue {significant(whole.queue)} in the mean, {service.queue_max:g} at most; in flight "
        f"{significant(whole.in_flight)} in the mean, {service.in_flight_max:g} at most",
        f"{count(service.samples, 'sample')} in {_duration(service.end_s - service.start_s)}; the server was started "
        f"again {count(service.restarts, 'time')}",
    ]
    if service.unassigned_seconds:
        facts.append(
            f"{_duration(service.unassigned_seconds)} between samples of different hours count for the whole only"
        )
    return facts


def _duration(seconds: float) -> str:
    return f"{significant(seconds, 3)} s" if seconds < 2 * 3600 else f"{significant(seconds / 3600, 3)} hours"
