"""Commands about new checkpoints while serving: promote and watch, and the shadowing of serve."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.errors import InputError
from search.cli.commands import DONE, FAILED, _config, _console, _home

if TYPE_CHECKING:
    from objectives.shadow.shadow import Shadow
    from search.checkpoints.promotion import Promotion
    from search.cli.console import Console
    from search.home import Home


def shadow(options: argparse.Namespace, say: Callable[[str], None]) -> Shadow:
    """Prepare the shadowing of a server.

    Raises:
        InputError: the challenger is neither there nor an alias of a model, or the folder of the states holds something
            else.
    """
    from objectives.shadow.shadow import Shadow
    from objectives.shadow.state_files import read_states
    from search.choose.bundles import challenger_folder

    home = _home(options)
    find = partial(challenger_folder, options.challenger, home)
    find()
    given = None if options.shadow_state is None else Path(options.shadow_state).resolve()
    if given is None:
        home.claim()
    elif given.is_file() or not os.access(given if given.exists() else given.parent, os.W_OK):
        raise InputError(f"--shadow-state: must be a folder that can be written, but got {options.shadow_state!r}")
    else:
        read_states(given)

    def states(name: str) -> Path:
        return given or home.shadow_states(name)

    return Shadow(find, options.shadow_share, states, options.follow_seconds, options.shadow_window, say)


def promote(options: argparse.Namespace) -> int:
    """Promote the challenger, or say why not."""
    from search.checkpoints.promotion import CONDITION_COLUMNS
    from search.report.columns import console_table

    if options.state is not None and not Path(options.state).is_dir():
        raise InputError(f"--state: must be a folder that leanrec serve --challenger wrote, but got {options.state!r}")
    console = _console(options)
    found = _promotion(options, console, _home(options)).promote()
    verdict = f"version {found.challenger} is the champion" if found.promoted else found.reason
    title = f"{found.name}: version {found.challenger} in place of version {found.champion}"
    console.result(found, console_table(title, CONDITION_COLUMNS, found.conditions), f"{found.outcome}: {verdict}")
    return DONE if found.promoted else FAILED


def watch(options: argparse.Namespace) -> int:
    """Take new checkpoints through all steps, once or until it is stopped."""
    from search.checkpoints.steps import Steps
    from search.checkpoints.watch import Watch, WatchIntervals
    from search.checkpoints.watch_state import Decided
    from search.locking import locked, stoppable

    console, home = _console(options), _home(options)
    home.claim()
    judge = _promotion(options, console, home)
    patience_s = 60 * options.patience_minutes
    steps = Steps(judge.aliases, judge, home, options.model, patience_s, console)

    def show(found: Decided) -> None:
        console.result(found, f"{found.file} ({found.checkpoint}) is {found.outcome}: {found.reason}")

    with locked(home, f"{judge.aliases.name}.watch"), stoppable():
        intervals = WatchIntervals(options.every, options.settle)
        watching = Watch(Path(options.checkpoint).absolute(), steps, intervals, console)
        if not options.once:
            while True:
                show(watching.next())
        if (found := watching.once()) is None:
            console.result({"outcome": None}, "there is no new checkpoint")
            return DONE
    show(found)
    return FAILED if found.outcome in ("refused", "undecided") else DONE


def _promotion(options: argparse.Namespace, console: Console, home: Home) -> Promotion:
    """Read the policy, and open the study's registered model."""
    from search.checkpoints.held_out_loss import held_out_loss
    from search.checkpoints.promotion import Promotion
    from search.checkpoints.promotion_policy import PromotionPolicy
    from search.ledger.aliases import Aliases

    config = _config(options)
    states = home.shadow_states(config.name) if options.state is None else Path(options.state).resolve()
    names = ("min_requests", "min_seconds", "max_p95_ratio", "max_difference", "min_agreement", "max_loss")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    policy = PromotionPolicy(**{"max_loss": config.quality.max_loss, **given})
    aliases = Aliases.open(config.name, home.tracking_uri(config.tracking_uri), home)
    evaluate = partial(held_out_loss, config, home, console=console)
    return Promotion(aliases, states, policy, "max_loss" in given, evaluate)
