"""Commands that choose among what a study measured: choose, bundle, ablate, remeasure, build."""

from __future__ import annotations

import argparse
from pathlib import Path

from objectives.errors import InputError
from search.cli.commands import DONE, FAILED, _bundle_folder, _console, _existing, _home, _out


def choose(options: argparse.Namespace) -> int:
    from search.choose import run as choose_run
    from search.choose.policy import LIMITED, Policy
    from search.request_path import path_sentences
    from search.results import choice_json

    console, session = _console(options), _existing(options)
    tolerated = session.config.quality.max_loss if options.max_loss is None else options.max_loss
    limits = {name: getattr(options, name) for name in LIMITED}
    policy = Policy(tolerated, prefer=options.prefer, slices=dict(session.config.quality.slices), **limits)
    out = _out(options, session.home.reports(session.config.name) / "bundle")
    chosen = choose_run.choose(session, policy, out, console)
    confirmed = chosen.confirmed
    console.warn(*confirmed.warnings)
    console.result(
        choice_json(chosen),
        chosen.reason,
        f"p95 {confirmed.p95_ratio:.3f} of the baseline's, service p50 {confirmed.service_p50_ratio:.3f}, "
        f"throughput {confirmed.throughput_ratio:.2f}x, capacity {confirmed.capacity_ratio:.2f}x",
        *path_sentences(confirmed.through, confirmed.with_overhead),
        *([] if chosen.control is None else [chosen.control.sentence]),
        f"bundle: {chosen.bundle}",
        f"next: leanrec verify {chosen.bundle}",
    )
    return DONE


def bundle(options: argparse.Namespace) -> int:
    """Write a bundle of each point that is named, on the front, or served by a plan."""
    from objectives.serving.control.plan_file import read_plan
    from search.choose.point_bundles import bundle_points, planned_trials
    from search.choose.policy import Policy
    from spaces.serialization import to_plain

    if not options.trial and not options.front and options.plan is None:
        raise InputError("--trial: must be given where there is no --front and no --plan, but none of them is")
    console, session = _console(options), _existing(options)
    planned = set() if options.plan is None else planned_trials(read_plan(Path(options.plan)), session.config.name)
    members = {point.trial for point in session.front().members} if options.front else set()
    trials = sorted({*options.trial, *planned, *members})
    tolerated = session.config.quality.max_loss if options.max_loss is None else options.max_loss
    policy = Policy(tolerated, slices=dict(session.config.quality.slices))
    out = _out(options, session.home.reports(session.config.name) / "bundles")
    found = bundle_points(session, trials, policy, out, console)
    lines = [
        f"bundle: {one.bundle}" if one.bundle else f"no bundle of trial {one.trial}: {one.reason}" for one in found
    ]
    console.result({"bundles": to_plain(found)}, *lines)
    return DONE if all(one.bundle for one in found) else FAILED


def ablate(options: argparse.Namespace) -> int:
    from search.ablation import ablation
    from search.ablation.records import FACT, FACT_FILE
    from search.locking import locked, stoppable
    from search.report.ablation import ablation_table
    from search.workers.processes import open_workers

    console, session = _console(options), _existing(options)
    name, home = session.config.name, session.home
    with locked(home, name), stoppable():
        try:
            with open_workers(home.logs(name)) as workers:
                found = ablation.ablate(session, options.trial, workers, console)
        finally:
            if FACT in session.study.facts:
                session.level(console)
    verdicts = [f"- {part.label}: {part.verdict}" for part in found.techniques]
    control = [] if found.control is None else [found.control.sentence]
    written = f"written: {home.reports(name) / FACT_FILE}, {home.reports(name) / 'report.html'}"
    console.result(found, ablation_table(found), *verdicts, *control, written)
    return FAILED if ablation.nothing_measured(found) else DONE


def remeasure(options: argparse.Namespace) -> int:
    from search.choose.remeasure import all_failed, conclusion, file_of, remeasured_table
    from search.choose.remeasure import remeasure as time_again
    from search.locking import locked, stoppable
    from search.workers.processes import open_workers

    console, session = _console(options), _existing(options)
    name, home = session.config.name, session.home
    with locked(home, name), stoppable(), open_workers(home.logs(name)) as workers:
        found = time_again(session, workers, console, options.trial, options.through)
    console.result(found, remeasured_table(found), conclusion(found), f"written: {home.reports(name) / file_of(found)}")
    return FAILED if all_failed(found) else DONE


def build(options: argparse.Namespace) -> int:
    from search.choose.bundles import is_registered
    from search.choose.rebuild import read_recipe, rebuild
    from search.locking import locked, stoppable

    console, home = _console(options), _home(options)
    recipe = read_recipe(_bundle_folder(options).resolve(), options.model)
    in_place = home.reports(recipe.config.name) / "bundle" if is_registered(options.bundle) else recipe.bundle.folder
    out = _out(options, in_place)
    home.claim()
    with locked(home, recipe.config.name), stoppable():
        found = rebuild(recipe, home, out, console)
    console.result(found, found.reason, *([f"bundle: {out}"] if found.accepted else []))
    return DONE if found.accepted else FAILED
