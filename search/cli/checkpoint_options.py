"""Options of promote, watch, and the shadowing of serve."""

from __future__ import annotations

import argparse

from search.cli.argument_types import above_zero, count, not_negative, share, share_or_all, tolerated


def add_promotion_options(judging: argparse.ArgumentParser) -> None:
    """Add the policy of a promotion, and where its evidence lies."""
    judging.add_argument("--state", metavar="DIR", help="of the shadowing (default: mlruns/shadow/STUDY)")
    judging.add_argument("--min-requests", type=count, metavar="N", help="requests shadowed (default 1000)")
    judging.add_argument("--min-seconds", type=not_negative, metavar="S", help="of shadowing (default 600)")
    judging.add_argument(
        "--max-p95-ratio", type=above_zero, metavar="R", help="upper bound, to the champion (default 1.2)"
    )
    judging.add_argument(
        "--max-difference", type=above_zero, metavar="D", help="mean, of scores over their spread (default 0.8)"
    )
    judging.add_argument("--min-agreement", type=share, metavar="A", help="share of the top 10 rows in common")
    judging.add_argument(
        "--max-loss", type=tolerated, help="on the study's rows of validation, if they are here (default: the study's)"
    )


def add_watch_options(watching: argparse.ArgumentParser) -> None:
    """Add what is watched, and how long, and the policy of a promotion."""
    watching.add_argument(
        "--checkpoint", metavar="PATH", required=True, help="a file that is replaced, or a folder: its newest file"
    )
    watching.add_argument(
        "--model", metavar="PACKAGE.MODULE:FACTORY", help="of the checkpoint (default: the recommender of the study)"
    )
    watching.add_argument("--once", action="store_true", help="one checkpoint, if there is a new one; for cron")
    watching.add_argument("--every", type=above_zero, default=30.0, metavar="S", help="between looks (default 30)")
    watching.add_argument(
        "--settle", type=above_zero, default=2.0, metavar="S", help="that a file must stay the same (default 2)"
    )
    watching.add_argument(
        "--patience-minutes", type=above_zero, default=60.0, metavar="M", help="longest shadowing (default 60)"
    )
    add_promotion_options(watching)


def add_shadowing_options(serving: argparse.ArgumentParser) -> None:
    """Add the challenger of a server, and how an alias is followed."""
    serving.add_argument(
        "--follow-seconds",
        type=above_zero,
        default=10.0,
        metavar="S",
        help="between looks at the alias of a registered model (default 10)",
    )
    serving.add_argument(
        "--challenger", metavar="BUNDLE", help="compared on a share of the requests; its answers are never sent"
    )
    serving.add_argument(
        "--shadow-share", type=share_or_all, default=0.1, metavar="SHARE", help="of the requests (default 0.1)"
    )
    serving.add_argument(
        "--shadow-state", metavar="DIR", help="where the comparison is kept (default: mlruns/shadow/NAME)"
    )
    serving.add_argument(
        "--shadow-window",
        type=above_zero,
        default=5.0,
        metavar="S",
        help="shortest window in which latencies are compared; a verdict needs 32 of them (default 5)",
    )
