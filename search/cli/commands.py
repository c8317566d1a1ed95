"""Commands: each calls, prints, and returns an exit status.

Imports are made when a command runs, so that a bundle is served with few packages.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.errors import ExplainedError, InputError

if TYPE_CHECKING:
    from search.cli.console import Console
    from search.config.sections import StudyConfig
    from search.home import Home
    from search.results import Front
    from search.session import Session

DONE, FAILED = 0, 1


def _console(options: argparse.Namespace) -> Console:
    from search.cli.console import Console

    return Console(options.quiet, options.json, _study_arguments(options))


def _study_arguments(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the arguments that name the same study in another command; none for a command without a study."""
    if not hasattr(options, "study"):
        return ()
    given = [] if options.seed is None else ["--seed", str(options.seed)]
    given += [part for override in options.set for part in ("--set", _without_secret(override))]
    return (options.study, *given, *(["--home", options.home] if options.home else []))


def _without_secret(override: str) -> str:
    """Return an override that may be shown: the address of a database or server may hold a password."""
    key, *_ = override.partition("=")
    return f"{key}=..." if key in ("storage", "tracking_uri") else override


def _out(options: argparse.Namespace, default: Path) -> Path:
    from search.home import out_folder

    return out_folder(options.out, default)


def _home(options: argparse.Namespace) -> Home:
    from search.home import Home

    return Home.find(options.home)


def _bundle_folder(options: argparse.Namespace) -> Path:
    from search.choose.bundles import bundle_folder

    return bundle_folder(options.bundle, _home(options))


def _config(options: argparse.Namespace) -> StudyConfig:
    from search.config.study_file import load
    from search.config.yaml_reader import show

    given = {"budget.minutes": getattr(options, "minutes", None), "budget.trials": getattr(options, "trials", None)}
    given |= {"seed": options.seed, "space.focus": 0 if getattr(options, "all_groups", False) else None}
    last = [f"{key}={show(value)}" for key, value in given.items() if value is not None]
    return load(options.study, [*options.set, *last])


def _existing(options: argparse.Namespace) -> Session:
    """A study that was run before, with the settings that it was begun with; InputError if there is none."""
    from search.session import open_session
    from search.study import exists

    config, home = _config(options), _home(options)
    if not exists(config.name, home.storage(config.storage)):
        raise InputError(f"STUDY: {config.name!r} was not run in {home.root}; leanrec run {options.study} does that")
    return open_session(config, home)


def data(options: argparse.Namespace) -> int:
    from objectives.recommenders.datasets.fetch import KNOWN, fetch

    if options.name not in KNOWN:
        raise InputError(f"NAME: {options.name!r} is not a known data set; there are {', '.join(sorted(KNOWN))}")
    home = _home(options)
    home.claim()
    folder = fetch(options.name, home.data_sets)
    said = f"{options.name} lies in {folder}, checksums verified"
    _console(options).result({"name": options.name, "folder": str(folder)}, said)
    return DONE


def run(options: argparse.Namespace) -> int:
    from search.explore import run as explore_run

    console = _console(options)
    session, found = explore_run.run(_config(options), _home(options), console)
    home = f" --home {options.home}" if options.home else ""
    after = f"next: leanrec choose {shlex.join(_study_arguments(options))}, leanrec ui{home}"
    return _show_front(session, found, console, after)


def _show_front(session: Session, front: Front, console: Console, *after: str) -> int:
    from search.cli.console import front_table
    from search.results import front_json
    from search.verdict import verdict

    said, report = verdict(front), session.home.reports(session.config.name) / "report.html"
    sentences = (f"- {sentence}" for sentence in said.sentences)
    console.result(front_json(front), front_table(front), said.headline, *sentences, f"report: {report}", *after)
    return DONE


def profile(options: argparse.Namespace) -> int:
    from search.errors import ConfigError
    from search.explore import run as explore_run
    from search.report.profile import headline, operator_table, profile_table, user_once
    from search.session import open_session

    if options.trial is not None:
        return _profile_trial(options)
    if options.floor:
        raise ConfigError("--floor: must come with --trial, whose placement it is of, but got none")
    console = _console(options)
    session = open_session(_config(options), _home(options))
    found = explore_run.profile(session, console)
    chart = f"chart: {session.home.reports(session.config.name) / 'profile.html'}"
    console.result(found, profile_table(found), operator_table(found), headline(found), user_once(found), chart)
    return DONE


def _profile_trial(options: argparse.Namespace) -> int:
    from search.profile.trial_profile import profile_trial
    from search.profile.trial_tables import trial_headline, trial_tables

    console = _console(options)
    found = profile_trial(_existing(options), options.trial, console, options.floor)
    console.result(found, *trial_tables(found), trial_headline(found))
    return DONE


def bench(options: argparse.Namespace) -> int:
    from objectives.serving.bundle import read_bundle
    from search.bench.bench import Plan
    from search.bench.bench import bench as run_bench
    from search.bench.requests import parse_rows
    from search.report.bench import doubts, facts, headline

    folder = _bundle_folder(options)
    log = Path(options.log) if options.log else None
    pattern = options.pattern or ("poisson" if log is None else "replay")
    rows = parse_rows(options.rows) if options.rows else None
    plan = Plan(pattern, options.rate, options.load, options.seconds, rows, log, options.seed, options.url)
    console, bundle = _console(options), read_bundle(folder)
    console.warn(*bundle.warnings)
    out = _out(options, _home(options).reports(f"bench-{bundle.name}"))
    found = run_bench(bundle, plan, out, console)
    console.warn(*doubts(found))
    console.result(found, headline(found), "; ".join(facts(found)), f"timeline: {out / 'bench.html'}")
    return DONE if found.valid else FAILED


def doctor(options: argparse.Namespace) -> int:
    from search.cli.doctor import diagnose, lines, tables
    from spaces.serialization import to_plain

    # Works in a light install too: no home is claimed, and nothing but the standard library is needed to print.
    found = diagnose(_home(options).root)
    if options.json:
        sys.stdout.write(json.dumps(to_plain(found), allow_nan=False) + "\n")
    elif importlib.util.find_spec("rich") is None:
        sys.stdout.write("\n".join(lines(found)) + "\n")
    else:
        _console(options).result(found, *tables(found))
    return DONE


def status(options: argparse.Namespace) -> int:
    console, session = _console(options), _existing(options)
    front = session.front()
    budget, counts, size = session.config.budget.minutes, front.counts, len(front.members)
    weights = len({point.weights for point in front.points})
    document = {
        "study": front.study,
        "minutes": front.minutes,
        "budget_minutes": budget,
        "trials": counts,
        "weights": weights,
        "front_size": size,
        "hypervolume": front.hypervolume,
        "chosen": None if front.chosen is None else front.chosen.row.trial,
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.result(
        document,
        f"{front.study}: {front.minutes:.1f} of {budget:g} minutes; trials: {told}",
        f"{weights} different weights, {size} points on the front, hypervolume {front.hypervolume:.3f}",
    )
    return DONE


def front(options: argparse.Namespace) -> int:
    session = _existing(options)
    return _show_front(session, session.front(), _console(options))


def report(options: argparse.Namespace) -> int:
    from search.locking import StudyRunningError, locked

    console, session = _console(options), _existing(options)
    home, name = session.home, session.config.name
    try:
        with locked(home, name):
            found = session.level(console)
    except StudyRunningError:
        found = session.level(console, runs=False)
    folder = home.reports(name)
    front, picture = folder / "front.json", folder / "front.png"
    files = [folder / "report.html", front]
    if options.png:
        from search.report.report import write_png

        write_png(found, picture)
        files.append(picture)
    written = [str(file) for file in files]
    console.result({"files": written}, *written)
    return DONE


def verify(options: argparse.Namespace) -> int:
    from objectives.serving.bundle import verify

    folder = _bundle_folder(options)
    bundle, difference = verify(folder)
    if options.json:
        found = {"bundle": str(folder), "name": bundle.name, "verified": True, "largest_difference": difference}
        found |= {"slower_here": bundle.slower_here, "warnings": bundle.warnings}
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        groups, files = bundle.candidate.placement.instance_groups, len(bundle.manifest.files)
        engines = " and ".join(dict.fromkeys(group.engine for group in groups))
        gives = "gives" if engines == groups[0].engine else "give"
        sys.stdout.write(
            f"{folder} is whole: {files} files as made; {engines} {gives} the example's scores within {difference:.2g} "
            "of their standard deviation\n"
        )
        sys.stdout.writelines(f"{line}\n" for line in bundle.warnings)
    return DONE


def serve(options: argparse.Namespace) -> int:
    from objectives.serving.http import PACKAGES

    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ExplainedError(f"serve needs {', '.join(missing)}: pip install 'leanrec[serve]'")
    from objectives.serving.control.elastic import Elastic
    from objectives.serving.http.limits import MEBIBYTE, Limits
    from objectives.serving.http.server import Started
    from objectives.serving.http.server import serve as serve_bundle
    from search.choose.bundles import is_alias
    from search.cli.checkpoints import shadow
    from search.cli.planning import elastic_settings

    limits = Limits(
        body_bytes=options.max_body_mb * MEBIBYTE,
        rows=options.max_rows,
        in_flight=options.max_in_flight,
        drain_seconds=options.drain_seconds,
        deadline_ms=options.deadline_ms,
    )

    def say(line: str) -> None:
        if not options.quiet and sys.stderr is not None:
            with suppress(OSError):  # a log that cannot be written stops nothing
                sys.stderr.write(f"leanrec: {line}\n")

    def started(found: Started) -> None:
        line = f"{found.name}, version {found.version}, is served at {found.url}/v2/models/{found.name}"
        sys.stdout.write((json.dumps(vars(found)) if options.json else line) + "\n")
        sys.stdout.flush()

    settings = elastic_settings(options)
    elastic = None if settings is None else Elastic(settings, say)
    mirror = None if options.challenger is None else shadow(options, say)
    drained = serve_bundle(
        partial(_bundle_folder, options),
        options.host,
        options.port,
        options.name,
        limits,
        say,
        started,
        options.follow_seconds if is_alias(options.bundle) and elastic is None else None,
        mirror,
        elastic,
        options.balance,
    )
    return DONE if drained else FAILED


def ui(options: argparse.Namespace) -> int:
    from search.cli.ui import open_dashboard, open_ui

    home = _home(options)
    home.claim()
    serve_ui = open_dashboard if options.optuna else open_ui
    return serve_ui(home, options.host, options.port, _console(options).say)


def init(options: argparse.Namespace) -> int:
    from search.config.study_file import write_template

    write_template(Path(options.file))
    said = f"{options.file} is written; next: leanrec validate {options.file}"
    _console(options).result({"file": options.file}, said)
    return DONE


def validate(options: argparse.Namespace) -> int:
    console, config = _console(options), _config(options)
    plain = config.model_dump(mode="json")
    if options.only_file:
        console.result({**plain, "preflight": None}, f"{config.name} is valid; next: leanrec validate {options.study}")
        return DONE
    from search.cli.validation import conclusion, tables, validated

    found = validated(config, _home(options), console)
    console.warn(*found.warnings)
    after = f"{config.name} is valid; next: leanrec run {options.study}"
    console.result({**plain, "preflight": found}, *tables(found), *conclusion(found), after)
    return DONE
