"""Options of the commands about traffic over time."""

from __future__ import annotations

import argparse

from search.cli import planning
from search.cli.argument_types import (
    above_zero,
    at_least_one,
    count,
    moment,
    port,
    share,
    tolerated,
    windows,
    within_a_day,
)


def add_balance_options(balancing: argparse.ArgumentParser) -> None:
    """Add the options of a balancer in front of servers."""
    balancing.add_argument(
        "urls", nargs="+", metavar="URL", help="http://HOST:PORT of a leanrec serve; URL=SPEED where speeds differ"
    )
    balancing.add_argument("--policy", choices=planning.HAPROXY_POLICIES, default="two-choices")
    balancing.add_argument("--host", default="127.0.0.1", help="address to listen on")
    balancing.add_argument("--port", type=port, default=8080, help="port to listen on")
    balancing.add_argument(
        "--timeout",
        type=within_a_day,
        default=5.0,
        help="seconds without an answer, then another server is asked (default 5)",
    )
    balancing.add_argument("--out", metavar="FILE", help="where the configuration goes (default: standard output)")


def add_manifest_options(made: argparse.ArgumentParser) -> None:
    """Add the options of manifests of a plan."""
    made.add_argument("plan", metavar="PLAN", help="a plan.json of leanrec plan")
    made.add_argument("--image", default="leanrec:latest", help="container image with leanrec[serve] and the bundles")
    made.add_argument(
        "--bundles", metavar="DIR", default="/bundles", help="folder in it that has a bundle for each point: trial-N"
    )
    made.add_argument("--namespace", default="default", help="of Kubernetes")
    made.add_argument(
        "--prometheus",
        metavar="URL",
        default="http://prometheus.monitoring:9090",
        help="server that reads the metrics, as KEDA reaches it",
    )
    made.add_argument("--start", type=moment, metavar="TIME", help="when the plan starts, as 2026-11-28T08:00, in UTC")
    made.add_argument("--out", metavar="DIR", help="where the files go (default: manifests beside the plan)")


def add_plan_options(planned: argparse.ArgumentParser) -> None:
    """Add the options of a plan."""
    demand = planned.add_mutually_exclusive_group(required=True)
    demand.add_argument("--trace", metavar="FILE", help="a request log, CSV or Parquet, whose end is held out")
    demand.add_argument("--profile", metavar="FILE", help="rates by hour and weekday, as leanrec observe writes them")
    planned.add_argument("--machines", metavar="FILE", help="YAML table of machines (default: this one)")
    planned.add_argument("--rows-column", metavar="NAME", help="column of the trace's rows (default: rows)")
    planned.add_argument("--phase-minutes", type=above_zero, default=15.0, help="length of a phase (default 15)")
    planned.add_argument(
        "--horizon-hours",
        type=above_zero,
        help="planned at a time, at most a day (default: a tenth of the trace, of a profile a day)",
    )
    planned.add_argument("--slo-ms", type=above_zero, help="milliseconds within which requests are answered")
    planned.add_argument("--max-loss", type=tolerated, help="mean loss of a day's requests (default: the study's)")
    planned.add_argument(
        "--max-money",
        type=above_zero,
        help="of a day, of which a shorter horizon has its share; the loss is minimised within it and --max-loss",
    )
    planned.add_argument(
        "--headroom",
        type=float,
        choices=(0.5, 0.8, 0.9, 0.95),
        metavar="QUANTILE",
        help="of the forecast that machines suffice for: 0.5, 0.8, 0.9 or 0.95 (default 0.9)",
    )
    planned.add_argument("--held-out", type=share, help="share of the trace to judge on (default 0.3)")
    planned.add_argument(
        "--requests",
        type=count,
        default=100_000,
        metavar="N",
        help="most requests simulated of a policy (default 100000)",
    )
    planned.add_argument(
        "--with-bundle",
        action="append",
        default=[],
        metavar="BUNDLE",
        help="plan the points of these bundles alone, so that leanrec serve can follow; may be repeated",
    )
    planned.add_argument("--out", metavar="DIR", help="where the plan goes (default: reports/STUDY)")


def add_replay_options(replayed: argparse.ArgumentParser) -> None:
    """Add the options of a replay."""
    replayed.add_argument("--trace", required=True, metavar="FILE", help="a request log, CSV or Parquet")
    replayed.add_argument("--rows-column", metavar="NAME", help="column of the trace's rows (default: rows)")
    replayed.add_argument("--plan", metavar="FILE", help="a plan.json (default: that of reports/STUDY)")
    replayed.add_argument("--machine", metavar="KIND", help="kind of the machine in the plan (default: its only one)")
    replayed.add_argument(
        "--with-bundle",
        action="append",
        default=[],
        metavar="BUNDLE",
        help="of each point that the plan serves, for real servers beside the virtual clock; may be repeated",
    )
    replayed.add_argument(
        "--policy",
        action="append",
        default=[],
        choices=planning.REPLAY_POLICIES,
        help="static for the mean or the peak of the plan, reactive, or elastic; may be repeated (default: all)",
    )
    replayed.add_argument(
        "--speed",
        type=at_least_one,
        default=1.0,
        metavar="TIMES",
        help="how many times faster than the trace; one request of so many is sent (default 1)",
    )
    replayed.add_argument(
        "--windows", type=windows, metavar="STABLE,PANIC,TICK", help="of the trace's own time (default 60,6,2)"
    )
    replayed.add_argument("--out", metavar="DIR", help="where the page goes (default: reports/STUDY)")


def add_fleet_options(fleet: argparse.ArgumentParser) -> None:
    """Add the options of a fleet."""
    fleet.add_argument("--fleet", required=True, metavar="FILE", help="YAML description of the fleet and its incidents")
    traffic = fleet.add_mutually_exclusive_group(required=True)
    traffic.add_argument("--trace", metavar="FILE", help="a request log, CSV or Parquet")
    traffic.add_argument("--profile", metavar="FILE", help="rates by hour and weekday, as leanrec observe writes them")
    fleet.add_argument("--machines", metavar="FILE", help="YAML table of machines (default: this one)")
    fleet.add_argument("--rows-column", metavar="NAME", help="column of the trace's rows (default: rows)")
    fleet.add_argument("--phase-minutes", type=above_zero, default=15.0, help="length of a phase (default 15)")
    fleet.add_argument("--rate", type=above_zero, metavar="RPS", help="mean rate that the traffic is scaled to")
    what = "that every machine serves (default: the chosen one, else the best compromise on the front)"
    fleet.add_argument("--trial", type=int, metavar="N", help=what)
    fleet.add_argument("--slo-ms", type=above_zero, help="milliseconds within which requests are answered")
    what = "find the fewest machines whose share of late requests is at most this"
    how = fleet.add_mutually_exclusive_group()
    how.add_argument("--find", type=share, metavar="SHARE", help=what)
    how.add_argument("--exact", action="store_true", help="simulate every request, of a small fleet")
    fleet.add_argument("--out", metavar="DIR", help="where the page goes (default: reports/STUDY)")
