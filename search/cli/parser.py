"""The command line: what may be asked, which command does it, and what is said of an error."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn, TypeAlias

from objectives.errors import ExplainedError, InputError
from search.cli import checkpoints, choosing, commands, planning
from search.cli.argument_types import above_zero, seed, share
from search.cli.checkpoint_options import add_promotion_options, add_shadowing_options, add_watch_options
from search.cli.commands import FAILED
from search.cli.planning_options import (
    add_balance_options,
    add_fleet_options,
    add_manifest_options,
    add_plan_options,
    add_replay_options,
)
from search.cli.serving_options import add_serving_options
from search.errors import RenamedKeyWarning

WRONG, INTERRUPTED = 2, 130
_Command: TypeAlias = Callable[[argparse.Namespace], int]
# Name, what it does, and the function that runs it.
_Add: TypeAlias = Callable[[str, str, _Command], argparse.ArgumentParser]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see {self.prog} --help)")


def run_command(arguments: Sequence[str]) -> int:
    """Run one command and give its exit status: 0 done, 1 the work failed, 2 the input was wrong, 130 interrupted."""
    warnings.formatwarning = _format_warning
    try:
        options = _parser().parse_args(arguments)
        command: _Command = options.command
        return command(options)
    except KeyboardInterrupt:
        sys.stderr.write("leanrec: interrupted; what was finished is kept\n")
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        wrong, line = _explained(error)
        sys.stderr.write(f"leanrec: {line}\n")
        return WRONG if wrong else FAILED


_PYTHONS_FORMAT = warnings.formatwarning


def _format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Return one line for what the user should change, and Python's own text for any other warning."""
    ours = issubclass(category, RenamedKeyWarning)
    return f"leanrec: {message}\n" if ours else _PYTHONS_FORMAT(message, category, filename, lineno, line)


def _explained(error: Exception) -> tuple[bool, str]:
    """Return whether the input is at fault, and the error in one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, InputError):
        return True, text
    if isinstance(error, ModuleNotFoundError):
        return False, f"{text}: this command needs more than a light install: pip install 'leanrec[study]'"
    known = isinstance(error, ExplainedError) or type(error) is RuntimeError
    return False, text if known else f"{type(error).__name__}: {text} (--debug shows where)"


def _parser() -> argparse.ArgumentParser:
    shared = _Parser(add_help=False)
    shared.add_argument("--home", help="where mlruns/ and reports/ lie (default: LEANREC_HOME, else here)")
    shared.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    shared.add_argument("--quiet", action="store_true", help="no progress")
    shared.add_argument("--debug", action="store_true", help="tracebacks")
    study = _Parser(add_help=False, parents=[shared])
    study.add_argument("study", metavar="STUDY", help="a preset's name, such as ml-100k, or a YAML file")
    study.add_argument("--seed", type=int, help="overrides the study's seed")
    study.add_argument("--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="overrides one setting")
    bundle = _Parser(add_help=False, parents=[shared])
    bundle.add_argument("bundle", metavar="BUNDLE", help="a folder, models:/NAME@ALIAS or models:/NAME/VERSION")
    parser = _Parser(
        prog="leanrec", description="Make a trained recommender smaller and run it better, by measurement."
    )
    known = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(parent: _Parser, name: str, what: str, run: _Command) -> argparse.ArgumentParser:
        command = known.add_parser(name, help=what, description=what, parents=[parent])
        command.set_defaults(command=run)
        return command

    _of_no_study(partial(add, shared))
    _of_a_study(partial(add, study))
    _of_a_bundle(partial(add, bundle))
    return parser


def _of_no_study(add: _Add) -> None:
    offers = (
        "what this machine offers a study, what it lacks and how to get it; keeps cores busy for some seconds, so not "
        "beside a study"
    )
    add("doctor", offers, commands.doctor)
    add("data", "fetch a known data set and verify its checksum", commands.data).add_argument("name", metavar="NAME")
    add("init", "write a study file with every setting explained", commands.init).add_argument("file", metavar="FILE")
    showing = add("ui", "MLflow's UI on the study home, or Optuna's dashboard", commands.ui)
    showing.add_argument("--optuna", action="store_true", help="Optuna's dashboard on the same studies")
    showing.add_argument("--port", type=int, help="default 5000; 8080 for Optuna's dashboard")
    showing.add_argument("--host", default="127.0.0.1")

    observing = add("observe", "a log or a running server by hour and weekday", planning.observe)
    what = "a request log (CSV or Parquet), http://HOST:PORT, or a file of its samples"
    observing.add_argument("source", metavar="LOG|URL", help=what)
    observing.add_argument("--rows-column", metavar="NAME", help="of a log, the rows of a request (default: rows)")
    observing.add_argument("--latency-column", metavar="NAME", help="of a log, in milliseconds (default: latency_ms)")
    what = "CPU time of a request in a log, in milliseconds (default: cpu_ms)"
    observing.add_argument("--cpu-column", metavar="NAME", help=what)
    what = "length of the queue that a request of a log met (default: queue_length)"
    observing.add_argument("--queue-column", metavar="NAME", help=what)
    what = "milliseconds that the p95 of an hour is held against (default: the study's, or twice that of all)"
    observing.add_argument("--slo-ms", type=above_zero, help=what)
    what = "its SLO; for a log also how many machines its front needs for the rates"
    observing.add_argument("--study", metavar="STUDY", help=what)
    observing.add_argument(
        "--set", action="append", default=[], metavar="KEY.PATH=VALUE", help="overrides one setting of the study"
    )
    what = f"for which a URL is observed (default {planning.OBSERVED_SECONDS:g})"
    observing.add_argument("--seconds", type=above_zero, help=what)
    what = f"seconds between samples of a URL (default {planning.EVERY_SECONDS:g})"
    observing.add_argument("--every", type=above_zero, help=what)
    what = "a .jsonl file that the samples of a URL are appended to, and whose samples are all shown"
    observing.add_argument("--samples", metavar="FILE", help=what)
    what = "of a log: of capacities that are simulated and arrivals that are counts (default: the study's, or 0)"
    observing.add_argument("--seed", type=seed, help=what)
    observing.add_argument("--out", metavar="DIR", help="where the page goes (default: reports/observe)")
    add_balance_options(add("balance", "an HAProxy configuration in front of several leanrec serve", planning.balance))
    what = "a plan as manifests of Kubernetes and KEDA, Ray Serve, Prometheus and Grafana"
    add_manifest_options(add("manifests", what, planning.manifests))


def _of_a_study(add: _Add) -> None:
    checking = add("validate", "check a study file and dry-run every stage on its model", commands.validate)
    checking.add_argument("--only-file", action="store_true", help="check the file only, not the model")
    profiling = add("profile", "where the baseline's time goes, and what is worth compressing", commands.profile)
    what = "where the time of this trial goes, beside the baseline's"
    profiling.add_argument("--trial", type=int, metavar="N", help=what)
    what = "with --trial: also benchmark it, and a graph that computes nothing in its place; takes minutes"
    profiling.add_argument("--floor", action="store_true", help=what)
    running = add("run", "launch or resume a study", commands.run)
    running.add_argument(
        "--minutes",
        type=float,
        help="minutes of search and final benchmark in all, without dry run and the baseline's training",
    )
    running.add_argument("--trials", type=int, help="trials of the search in all, however they end")
    running.add_argument("--all-groups", action="store_true", help="search every layer group, however little it takes")
    add("status", "how far a study is", commands.status)
    add("front", "the Pareto front of a study", commands.front)
    reporting = add("report", "write a study's report, one HTML file", commands.report)
    reporting.add_argument("--png", action="store_true", help="the front as a picture too (needs kaleido and Chrome)")
    chooser = add("choose", "confirm finalists on test, write and register a bundle", choosing.choose)
    chooser.add_argument("--p95-ms", type=above_zero, help="the highest p95 that is good enough, in milliseconds")
    chooser.add_argument("--p95-ratio", type=above_zero, help="the same as a share of the baseline's")
    chooser.add_argument(
        "--throughput-rps", type=above_zero, help="the lowest throughput that is good enough, in requests per second"
    )
    chooser.add_argument("--throughput-ratio", type=above_zero, help="the same as a multiple of the baseline's")
    chooser.add_argument("--memory-mb", type=above_zero, help="the highest peak memory of a process, in 10^6 bytes")
    chooser.add_argument("--max-loss", type=share, help="the loss that is tolerated (default: the study's)")
    chooser.add_argument("--prefer", choices=("knee", "latency", "throughput", "memory"), default="knee")
    chooser.add_argument("--out", metavar="DIR", help="where the bundle goes (default: reports/STUDY/bundle)")
    _bundle(add("bundle", "confirm given points on test, and write a bundle of each", choosing.bundle))
    what = "what helped: each technique of a trial taken back, and alone, measured in pairs"
    add("ablate", what, choosing.ablate).add_argument(
        "--trial", type=int, metavar="N", help="default: the chosen one, else the best compromise on the front"
    )
    add_plan_options(add("plan", "which points of the front serve when, on how many machines", planning.plan))
    what = "a trace on one machine of a plan, policy by policy: simulated, and served"
    add_replay_options(add("replay", what, planning.replay))
    what = "a fleet whose machines fail, slow down and are deployed to, at any rate"
    add_fleet_options(add("fleet", what, planning.fleet))
    _remeasure(add("remeasure", "time the front, or trials that are named, again on this machine", choosing.remeasure))
    promoting = "make the challenger the champion, if its shadowing keeps a policy"
    add_promotion_options(add("promote", promoting, checkpoints.promote))
    add_watch_options(add("watch", "build, shadow and promote each new checkpoint, or refuse it", checkpoints.watch))


def _trials(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument(
        "--trial",
        type=int,
        nargs="+",
        action="extend",
        default=[],
        metavar="N",
        help=f"measured trials, on the front or not{default}",
    )


def _remeasure(timing: argparse.ArgumentParser) -> None:
    _trials(timing, " (default: those on the front)")
    ways = "send requests to the pools or through the HTTP server (default: the study's traffic.through)"
    timing.add_argument("--through", choices=["pool", "http"], help=ways)


def _bundle(bundling: argparse.ArgumentParser) -> None:
    _trials(bundling, "")
    bundling.add_argument("--front", action="store_true", help="every point on the front")
    bundling.add_argument("--plan", metavar="FILE", help="a plan.json of leanrec plan: every point that it serves")
    bundling.add_argument("--max-loss", type=share, help="the loss that is tolerated (default: the study's)")
    bundling.add_argument("--out", metavar="DIR", help="gets a folder trial-N each (default: reports/STUDY/bundles)")


def _of_a_bundle(add: _Add) -> None:
    add("verify", "check that a bundle is whole and answers as it should", commands.verify)
    benching = add("bench", "one bundle under one pattern of traffic, with a timeline", commands.bench)
    benching.add_argument("--pattern", help="closed, poisson (default), deterministic, bursts, diurnal or replay")
    benching.add_argument("--log", metavar="FILE", help="a request log, CSV or Parquet, whose arrivals are replayed")
    speed = benching.add_mutually_exclusive_group()
    speed.add_argument("--rate", type=float, metavar="RPS", help="requests per second")
    speed.add_argument("--load", type=float, default=0.6, metavar="SHARE", help="of what it can answer (default 0.6)")
    benching.add_argument("--seconds", type=float, default=20.0, help="of the pattern (default 20)")
    benching.add_argument(
        "--rows", metavar="N", help="rows of a request: N, or MEDIAN,SIGMA,MAX (default: the study's)"
    )
    benching.add_argument("--seed", type=seed, default=0)
    benching.add_argument(
        "--url",
        help="http://HOST:PORT/v2/models/NAME: send the requests to a server (Open Inference Protocol V2) of the model",
    )
    benching.add_argument("--out", metavar="DIR", help="where the page goes (default: reports/bench-NAME)")
    serving = add("serve", "serve a bundle over HTTP (Open Inference Protocol V2)", commands.serve)
    add_serving_options(serving)
    add_shadowing_options(serving)
    building = add("build", "a bundle's recipe on a newer checkpoint, held to its policy", choosing.build)
    building.add_argument(
        "--model", metavar="PACKAGE.MODULE:FACTORY", help="of the checkpoint (default: the recommender of the study)"
    )
    building.add_argument(
        "--out",
        metavar="DIR",
        help="where the new bundle goes (default: in the old one's place; reports/STUDY/bundle for a registered one)",
    )
