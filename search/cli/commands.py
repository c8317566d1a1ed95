"""Commands: each calls, prints, and returns an exit status. Imports are made when a command runs, so that a bundle is
served with few packages.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from objectives.errors import InputError

if TYPE_CHECKING:
    from search.cli.console import Console
    from search.config.sections import StudyConfig
    from search.home import Home
    from search.session import Session

DONE, FAILED = 0, 1


def _console(options: argparse.Namespace) -> Console:
    from search.cli.console import Console

    return Console(options.quiet, options.json)


def _home(options: argparse.Namespace) -> Home:
    from search.home import Home

    return Home.find(options.home)


def _bundle_folder(options: argparse.Namespace) -> Path:
    folder = Path(options.bundle)
    if not folder.is_dir():
        raise InputError(f"BUNDLE: {options.bundle!r} is no folder")
    return folder


def _config(options: argparse.Namespace) -> StudyConfig:
    from search.config.study_file import load

    minutes, trials = getattr(options, "minutes", None), getattr(options, "trials", None)
    overrides = [*options.set, *(["space.focus=0"] if getattr(options, "all_groups", False) else [])]
    return load(options.study, overrides, seed=options.seed, minutes=minutes, trials=trials)


def _existing(options: argparse.Namespace) -> Session:
    """A study that was run before, with the settings that it was begun with.

    Raises:
        InputError: there is none.
    """
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
    home, console = _home(options), _console(options)
    home.claim()
    folder = fetch(options.name, home.data_sets)
    console.result(f"{options.name} lies in {folder}, checksums verified")
    console.document({"name": options.name, "folder": str(folder)})
    return DONE


def run(options: argparse.Namespace) -> int:
    from search import session as launch

    console = _console(options)
    session, document = launch.run(_config(options), _home(options), console)
    _show_front(session, document, console)
    console.result(f"next: leanrec choose {options.study}{_home_option(options)}, leanrec ui{_home_option(options)}")
    return DONE


def _show_front(session: Session, document: dict[str, Any], console: Console) -> None:
    from search.cli.console import front_table
    from search.verdict import verdict

    console.table(front_table(document))
    said = verdict(document)
    console.result(said.headline)
    for sentence in said.sentences:
        console.result(f"- {sentence}")
    console.result(f"report: {session.home.reports(session.config.name) / 'report.html'}")
    console.document(document)


def _home_option(options: argparse.Namespace) -> str:
    return f" --home {options.home}" if options.home else ""


def profile(options: argparse.Namespace) -> int:
    from search import session as launch
    from search.explore.profiling import user_once
    from search.report.profile import headline, operator_table, profile_table

    console = _console(options)
    session = launch.open_session(_config(options), _home(options))
    document = launch.profile(session, console)
    console.document(document)
    console.table(profile_table(document))
    console.table(operator_table(document))
    console.result(headline(document))
    console.result(user_once(document))
    console.result(f"chart: {session.home.reports(session.config.name) / 'profile.html'}")
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
    plan = Plan(pattern, options.rate, options.load, options.seconds, rows, log, options.seed)
    console, bundle = _console(options), read_bundle(folder)
    out = Path(options.out).resolve() if options.out else _home(options).reports(f"bench-{bundle.name}")
    document = run_bench(bundle, plan, out, console)
    console.document(document)
    console.result(headline(document))
    console.result("; ".join(facts(document)))
    for doubt in doubts(document):
        console.warn(doubt)
    console.result(f"timeline: {out / 'bench.html'}")
    return DONE if document["valid"] else FAILED


def remeasure(options: argparse.Namespace) -> int:
    from search.choose.remeasure import FILE, all_failed, conclusion, remeasured_table
    from search.choose.remeasure import remeasure as time_again
    from search.session import locked, stoppable
    from search.workers.processes import Worker

    console, session = _console(options), _existing(options)
    name, home = session.config.name, session.home
    meter = Worker("meter", home.logs(name) / "meter.log")
    with locked(home, name), stoppable():
        try:
            document = time_again(session, meter, console)
        finally:
            meter.kill()
    console.document(document)
    console.table(remeasured_table(document))
    console.result(conclusion(document))
    console.result(f"written: {home.reports(name) / FILE}")
    return FAILED if all_failed(document) else DONE


def ablate(options: argparse.Namespace) -> int:
    from search.ablation.ablation import ablate as take_back
    from search.ablation.ablation import nothing_measured
    from search.ablation.records import FACT, FACT_FILE
    from search.report.ablation import ablation_table
    from search.session import locked, stoppable
    from search.workers.processes import Worker

    console, session = _console(options), _existing(options)
    name, home = session.config.name, session.home
    builder = Worker("builder", home.logs(name) / "builder-0.log")
    meter = Worker("meter", home.logs(name) / "meter.log")
    with locked(home, name), stoppable():
        try:
            document = take_back(session, options.trial, builder, meter, console)
        finally:
            builder.kill()
            meter.kill()
            if FACT in session.study.facts:
                session.level(console)
    console.document(document)
    console.table(ablation_table(document))
    for part in document["techniques"]:
        console.result(f"- {part['label']}: {part['verdict']}")
    if document["control"]:
        console.result(document["control"]["sentence"])
    console.result(f"written: {home.reports(name) / FACT_FILE}, {home.reports(name) / 'report.html'}")
    return FAILED if nothing_measured(document) else DONE


def build(options: argparse.Namespace) -> int:
    from search.choose.rebuild import read_recipe, rebuild
    from search.session import locked, stoppable

    console, home = _console(options), _home(options)
    recipe = read_recipe(_bundle_folder(options).resolve(), options.model)
    out = Path(options.out).resolve() if options.out else recipe.bundle.folder
    home.claim()
    with locked(home, recipe.config.name), stoppable():
        document = rebuild(recipe, home, out, console)
    console.document(document)
    console.result(document["reason"])
    if not document["accepted"]:
        return FAILED
    console.result(f"bundle: {out}")
    return DONE


def doctor(options: argparse.Namespace) -> int:
    from search.cli.doctor import diagnose, document, lines, tables

    # Works in a light install too: no home is claimed, and nothing but the standard library is needed to print.
    found = diagnose(Path(options.home or os.environ.get("LEANREC_HOME") or ".").resolve())
    if options.json:
        sys.stdout.write(json.dumps(document(found), allow_nan=False) + "\n")
    elif importlib.util.find_spec("rich") is None:
        sys.stdout.write("\n".join(lines(found)) + "\n")
    else:
        console = _console(options)
        for table in tables(found):
            console.table(table)
    return DONE


def status(options: argparse.Namespace) -> int:
    console, session = _console(options), _existing(options)
    document = session.document()
    budget = session.config.budget.minutes
    counts = document["counts"]
    found = {
        "study": document["study"],
        "minutes": document["minutes"],
        "budget_minutes": budget,
        "trials": counts,
        "weights": len({r["weights"] for r in document["rows"] if r["state"] == "complete"}),
        "front_size": document["front_size"],
        "hypervolume": document["hypervolume"],
        "chosen": None if document["chosen"] is None else document["chosen"]["row"]["trial"],
    }
    console.document(found)
    told = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.result(f"{document['study']}: {document['minutes']:.1f} of {budget:g} minutes; trials: {told}")
    console.result(
        f"{found['weights']} different weights, {document['front_size']} points on the front, "
        f"hypervolume {document['hypervolume']:.3f}"
    )
    return DONE


def front(options: argparse.Namespace) -> int:
    session = _existing(options)
    _show_front(session, session.document(), _console(options))
    return DONE


def report(options: argparse.Namespace) -> int:
    console, session = _console(options), _existing(options)
    document = session.level(console)
    folder = session.home.reports(session.config.name)
    files = [folder / "report.html"]
    (folder / "front.json").write_text(json.dumps(document, indent=1) + "\n")
    files.append(folder / "front.json")
    if options.png:
        from search.report.report import write_png

        write_png(document, folder / "front.png")
        files.append(folder / "front.png")
    for file in files:
        console.result(str(file))
    console.document({"files": [str(file) for file in files]})
    return DONE


def choose(options: argparse.Namespace) -> int:
    from search import session as launch
    from search.choose.choose import Policy

    console, session = _console(options), _existing(options)
    tolerated = session.config.quality.max_loss if options.max_loss is None else options.max_loss
    policy = Policy(tolerated, options.p95_ms, options.p95_ratio, options.prefer, dict(session.config.quality.slices))
    out = Path(options.out).resolve() if options.out else None
    chosen = launch.choose(session, policy, out, console)
    console.document(chosen)
    console.result(chosen["reason"])
    confirmed = chosen["confirmed"]
    console.result(
        f"p95 {confirmed['p95_ratio']:.3f} of the baseline's, service p50 {confirmed['service_p50_ratio']:.3f}, "
        f"throughput {confirmed['throughput_ratio']:.2f}x, capacity {confirmed['capacity_ratio']:.2f}x"
    )
    for warning in confirmed["warnings"]:
        console.warn(warning)
    if chosen["control"]:
        console.result(chosen["control"]["sentence"])
    console.result(f"bundle: {chosen['bundle']}")
    console.result(f"next: leanrec verify {chosen['bundle']}")
    return DONE


def verify(options: argparse.Namespace) -> int:
    from objectives.serving.bundle import verify

    folder = _bundle_folder(options)
    bundle, difference = verify(folder)
    if options.json:
        found = {"bundle": str(folder), "name": bundle.name, "verified": True, "largest_difference": difference}
        found |= {"slower_here": bundle.slower_here}
        sys.stdout.write(json.dumps(found) + "\n")
    else:
        engine, files = bundle.candidate.placement.instance_group.engine, len(bundle.manifest["files"])
        sys.stdout.write(
            f"{folder} is whole: {files} files as made; {engine} gives the example's scores within {difference:.2g} "
            "of their standard deviation\n"
        )
        if bundle.slower_here is not None:
            sys.stdout.write(f"{bundle.slower_here}\n")
    return DONE


def ui(options: argparse.Namespace) -> int:
    from search.cli.ui import open_ui

    home = _home(options)
    home.claim()
    return open_ui(home, options.host, options.port, _console(options).say)


def init(options: argparse.Namespace) -> int:
    from search.config.study_file import write_template

    console = _console(options)
    write_template(Path(options.file))
    console.document({"file": options.file})
    console.result(f"{options.file} is written; next: leanrec validate {options.file}")
    return DONE


def validate(options: argparse.Namespace) -> int:
    console, config = _console(options), _config(options)
    plain = config.model_dump(mode="json")
    if options.only_file:
        console.document({**plain, "preflight": None})
        console.result(f"{config.name} is valid; next: leanrec validate {options.study}")
        return DONE
    from search.cli.validation import conclusion, tables, validated

    found = validated(config, _home(options), console)
    console.document({**plain, "preflight": found})
    for table in tables(found):
        console.table(table)
    for line in conclusion(found):
        console.result(line)
    console.result(f"{config.name} is valid; next: leanrec run {options.study}")
    return DONE
