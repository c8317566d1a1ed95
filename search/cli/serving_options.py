"""Options of the server: its address, its limits, and the plan that it follows."""

from __future__ import annotations

import argparse

from search.cli.argument_types import above_zero, count, windows

# Policies within a server, as objectives/serving/pool/balancing.py names them; the first is the default.
POOL_POLICIES = ("least-rows", "two-choices", "least-outstanding", "round-robin", "shortest-delay")


def add_serving_options(serving: argparse.ArgumentParser) -> None:
    """Add address, limits, and the group of elastic serving."""
    serving.add_argument("--host", default="127.0.0.1")
    serving.add_argument("--port", type=int, default=8000, help="0 takes a free one")
    serving.add_argument("--name", help="of the model in the paths of requests (default: the bundle's)")
    serving.add_argument("--max-body-mb", type=count, default=16, metavar="MIB", help="largest body of a request")
    serving.add_argument("--max-rows", type=count, default=10_000, metavar="N", help="most rows of a request")
    serving.add_argument("--max-in-flight", type=count, default=256, metavar="N", help="most requests at once")
    serving.add_argument(
        "--deadline-ms",
        type=above_zero,
        metavar="MS",
        help="refuse a request that cannot be answered within it (default: the bundle's deadline)",
    )
    serving.add_argument(
        "--drain-seconds", type=count, default=30, metavar="SECONDS", help="longest wait for answers after SIGTERM"
    )
    serving.add_argument(
        "--balance",
        choices=POOL_POLICIES,
        default=POOL_POLICIES[0],
        help="which replica gets a request: the one with the fewest outstanding rows (default), or another policy",
    )
    elastic = serving.add_argument_group("elastic", "variants and replicas that follow a plan and the requests")
    elastic.add_argument("--plan", metavar="FILE", help="a plan.json of leanrec plan; BUNDLE is one of its points")
    elastic.add_argument(
        "--variant", action="append", default=[], metavar="BUNDLE", help="a bundle of another point; may be repeated"
    )
    elastic.add_argument("--machine", metavar="KIND", help="kind of this machine in the plan (default: its only one)")
    elastic.add_argument(
        "--windows",
        type=windows,
        metavar="STABLE,PANIC,TICK",
        help="seconds of the stable window, of the panic window, and between decisions (default 60,6,2)",
    )
    elastic.add_argument(
        "--timeline", metavar="FILE", help="decisions and their reasons are added to it, as JSON lines"
    )
