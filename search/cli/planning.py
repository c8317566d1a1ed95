"""Commands about traffic: observe, plan, manifests, replay, fleet, balance, and what a server does of a plan."""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from objectives.errors import ExplainedError, InputError
from search.cli.commands import DONE, _bundle_folder, _config, _console, _existing, _home, _out

if TYPE_CHECKING:
    from objectives.serving.control.elastic import ElasticSettings
    from search.session import Session


# Policies in front of several servers, as search/plan/haproxy.py names them.
HAPROXY_POLICIES = ("two-choices", "least-outstanding", "round-robin")
# Policies of a replay, in the words of the command line.
REPLAY_POLICIES = ("mean", "peak", "reactive", "elastic")
# Defaults of the observation of a server, and the options that one kind of source takes alone.
OBSERVED_SECONDS, EVERY_SECONDS = 60.0, 2.0
_LOG_OPTIONS = ("rows_column", "latency_column", "cpu_column", "queue_column", "seed")
_URL_OPTIONS = ("seconds", "every", "samples")


def observe(options: argparse.Namespace) -> int:
    """Observe a request log, a running server, or the samples of one."""
    from search.plan.observe.samples_file import SUFFIX

    is_url = re.match(r"[a-z]+://", options.source) is not None
    is_log = not is_url and Path(options.source).suffix != SUFFIX
    kinds = (("a request log", _LOG_OPTIONS, is_log), ("the URL of a server", _URL_OPTIONS, is_url))
    for kind, names, is_kind in kinds:
        if given := [name for name in names if not is_kind and getattr(options, name) is not None]:
            option = f"--{given[0].replace('_', '-')}"
            raise InputError(f"{option}: must come with {kind}, but got {options.source!r}")
    if options.set and options.study is None:
        raise InputError("--set: must come with --study, but there is none")
    session = None if options.study is None else _existing(options)
    return _observe_log(options, session) if is_log else _observe_server(options, session, is_url)


def _observe_log(options: argparse.Namespace, session: Session | None) -> int:
    from search.plan.columns import HOUR_COLUMNS, SERVICE_COLUMNS
    from search.plan.observe.log import PAGE, LogColumns, log_facts, observe_log
    from search.report.columns import console_table

    console, out = _console(options), _observed(options)
    columns = LogColumns(options.rows_column, options.latency_column, options.cpu_column, options.queue_column)
    seed = (options.seed or 0) if session is None else session.config.seed
    found = observe_log(Path(options.source), columns, session, options.slo_ms, out, seed, console)
    clock = found.observation.clock
    tables = [console_table(f"By hour ({clock})", HOUR_COLUMNS, found.observation.hours)]
    if found.service:
        tables.append(console_table(f"Latency, CPU time and queue by hour ({clock})", SERVICE_COLUMNS, found.service))
    console.result(found, *log_facts(found), *tables, *_listed(found.suggestions), f"page: {out / PAGE}")
    return DONE


def _observe_server(options: argparse.Namespace, session: Session | None, is_url: bool) -> int:
    from search.plan.columns import SERVICE_COLUMNS
    from search.plan.observe.log import PAGE
    from search.plan.observe.server import observe_samples, observe_server, server_facts
    from search.report.columns import console_table

    console, out, slo_ms = _console(options), _observed(options), options.slo_ms
    if session is not None and slo_ms is None and (slo_ms := session.front().slo_ms) is None:
        raise InputError(f"--study: must be a study with a measured SLO, but {session.config.name!r} has none")
    if is_url:
        samples = None if options.samples is None else Path(options.samples)
        seconds, every = options.seconds or OBSERVED_SECONDS, options.every or EVERY_SECONDS
        found = observe_server(options.source, seconds, every, samples, slo_ms, out, console)
    else:
        found = observe_samples(Path(options.source), slo_ms, out)
    table = console_table("By hour (utc)", SERVICE_COLUMNS, found.service.hours)
    console.result(found, *server_facts(found), table, *_listed(found.suggestions), f"page: {out / PAGE}")
    return DONE


def _observed(options: argparse.Namespace) -> Path:
    return _out(options, _home(options).reports("observe"))


def _bundles(options: argparse.Namespace) -> tuple[Path, ...]:
    return tuple(_bundle_folder(argparse.Namespace(**vars(options), bundle=one)) for one in options.with_bundle)


def _listed(sentences: tuple[str, ...]) -> list[str]:
    return [f"- {sentence}" for sentence in sentences]


def plan(options: argparse.Namespace) -> int:
    """Plan which points of a front serve when, and on how many machines."""
    from search.plan.columns import POLICY_COLUMNS, plan_columns, stretches
    from search.plan.page import headline
    from search.plan.run import FILE, PAGE, Request
    from search.plan.run import plan as run_plan
    from search.report.columns import console_table

    if options.trace and importlib.util.find_spec("statsmodels") is None:
        raise ExplainedError("a forecast needs statsmodels: pip install 'leanrec[plan]'")
    console, session = _console(options), _existing(options)
    name = session.config.name
    request = Request(
        trace=Path(options.trace) if options.trace else None,
        profile=Path(options.profile) if options.profile else None,
        machines=Path(options.machines) if options.machines else None,
        rows_column=options.rows_column,
        phase_s=60 * options.phase_minutes,
        horizon_s=None if options.horizon_hours is None else 3600 * options.horizon_hours,
        slo_ms=options.slo_ms,
        max_loss=options.max_loss,
        max_money=options.max_money,
        headroom=options.headroom,
        held_out=options.held_out,
        simulated=options.requests,
        seed=_config(options).seed,
        bundles=_bundles(options),
    )
    out = _out(options, session.home.reports(name))
    found = run_plan(session, request, out, console)
    console.warn(*found.warnings)
    console.result(
        found,
        headline(found),
        console_table(f"Plan of {name}", plan_columns(found), stretches(found.phases, found.phase_seconds)),
        console_table("Policies on the held-out phases", POLICY_COLUMNS, found.policies),
        f"written: {out / FILE}, {out / PAGE}",
        f"next: leanrec bundle {shlex.join([*console.study_arguments, '--plan', str(out / FILE)])}",
    )
    return DONE


def manifests(options: argparse.Namespace) -> int:
    """Write the manifests of a plan."""
    from search.plan.manifests.run import write_manifests
    from search.plan.manifests.settings import Cluster

    console, plan = _console(options), Path(options.plan)
    out = _out(options, plan.parent / "manifests")
    cluster = Cluster(
        image=options.image,
        namespace=options.namespace,
        bundles=PurePosixPath(options.bundles),
        prometheus=options.prometheus,
    )
    found = write_manifests(plan, options.start, cluster, out.resolve())
    console.warn(*found.warnings)
    console.result(found, f"{found.study}: {', '.join(found.offers)}", *found.files)
    return DONE


def replay(options: argparse.Namespace) -> int:
    """Replay a trace on one machine of a plan: on the virtual clock, and on real servers."""
    from objectives.serving.control.windows import KPA
    from planning.elastic import ELASTIC, REACTIVE, STATIC_MEAN, STATIC_PEAK
    from search.plan.replay.page import REPLAY_COLUMNS, headline
    from search.plan.replay.request import ReplayRequest
    from search.plan.replay.run import FILE, PAGE
    from search.plan.replay.run import replay as run_replay
    from search.plan.run import FILE as PLAN_FILE
    from search.report.columns import console_table

    policies = dict(zip(REPLAY_POLICIES, (STATIC_MEAN, STATIC_PEAK, REACTIVE, ELASTIC), strict=True))
    console, session = _console(options), _existing(options)
    name = session.config.name
    reports = session.home.reports(name)
    request = ReplayRequest(
        trace=Path(options.trace),
        plan=Path(options.plan) if options.plan else reports / PLAN_FILE,
        rows_column=options.rows_column,
        machine=options.machine,
        bundles=_bundles(options),
        policies=tuple(policies[policy] for policy in options.policy),
        speed=options.speed,
        windows=options.windows or KPA,
        seed=_config(options).seed,
    )
    out = _out(options, reports)
    found = run_replay(session, request, out, console)
    title = f"Policies on {found.machine}, {found.speed:g} times as fast as the trace"
    console.result(
        found,
        headline(found),
        console_table(title, REPLAY_COLUMNS, found.rows),
        f"written: {out / FILE}, {out / PAGE}",
    )
    return DONE


def fleet(options: argparse.Namespace) -> int:
    """Simulate a fleet of machines that fail, slow down and are deployed to."""
    from search.plan.fleet.page import SCENARIO_COLUMNS, headline, hour_columns, worst_hours
    from search.plan.fleet.run import FILE, PAGE, FleetRequest, simulate
    from search.report.columns import console_table

    console, session = _console(options), _existing(options)
    name = session.config.name
    request = FleetRequest(
        fleet=Path(options.fleet),
        trace=Path(options.trace) if options.trace else None,
        profile=Path(options.profile) if options.profile else None,
        machines=Path(options.machines) if options.machines else None,
        rows_column=options.rows_column,
        phase_s=60 * options.phase_minutes,
        rate_rps=options.rate,
        trial=options.trial,
        slo_ms=options.slo_ms,
        tolerated=options.find,
        exact=options.exact,
        seed=_config(options).seed,
    )
    out = _out(options, session.home.reports(name))
    found = simulate(session, request, out, console)
    console.warn(*found.warnings)
    console.result(
        found,
        headline(found),
        console_table("What each kind of incident costs", SCENARIO_COLUMNS, found.scenarios),
        console_table("The worst hours", hour_columns(found), worst_hours(found)),
        f"written: {out / FILE}, {out / PAGE}",
    )
    return DONE


def balance(options: argparse.Namespace) -> int:
    """Write an HAProxy configuration for several servers, to a file or to standard output."""
    from objectives.store import written_whole
    from search.plan.haproxy import configuration, read_servers

    text = configuration(read_servers(options.urls), options.policy, options.host, options.port, options.timeout)
    if options.out is None:
        sys.stdout.write(json.dumps({"configuration": text}) + "\n" if options.json else text)
        return DONE
    path = Path(options.out)
    with written_whole(path) as partial:
        partial.write_text(text)
    _console(options).result({"written": str(path)}, f"written: {path}")
    return DONE


def elastic_settings(options: argparse.Namespace) -> ElasticSettings | None:
    """Return what an elastic server is to do; None where one model serves, and InputError where the plan is missing."""
    from objectives.serving.control.elastic import ElasticSettings
    from objectives.serving.control.windows import KPA
    from search.choose.bundles import is_alias

    if options.plan is None:
        for name in ("variant", "machine", "windows", "timeline"):
            if getattr(options, name):
                raise InputError(f"--{name}: must come with --plan, but there is none")
        return None
    if options.challenger is not None:
        raise InputError("--challenger: must come without --plan, whose variants serve in turn, but got both")

    def bundles() -> list[Path]:
        given = [options.bundle, *options.variant]
        return [_bundle_folder(argparse.Namespace(**{**vars(options), "bundle": bundle})) for bundle in given]

    timeline = Path(options.timeline) if options.timeline else None
    follow = options.follow_seconds if any(map(is_alias, (options.bundle, *options.variant))) else None
    return ElasticSettings(Path(options.plan), options.machine, bundles, options.windows or KPA, timeline, follow)
