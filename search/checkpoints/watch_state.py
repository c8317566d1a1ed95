"""Steps of a checkpoint on its way to be the champion, as a state machine that a file keeps.

Every step's outcome is written before the next begins, and every step may be done twice: a watch that is killed at any
moment continues where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from objectives.errors import InputError
from search.errors import LostJobError
from spaces.serialization import from_plain

# promote, refuse, leave and give up: decided, and to be carried out.
Step = Literal["build", "register", "shadow", "promote", "refuse", "leave", "give up"]
Outcome = Literal["promoted", "refused", "unchanged", "undecided"]
_OUTCOMES: dict[Step, Outcome] = {
    "promote": "promoted", "refuse": "refused", "leave": "unchanged", "give up": "undecided",
}  # fmt: skip
# Builds of one checkpoint that may be cut short before it is refused.
MOST_BUILDS = 3


@dataclass(frozen=True)
class Work:
    """A checkpoint that is not decided.

    checkpoint: hash of its content
    file: path where it was found
    builds: that were begun
    version: number in the registry, once it is registered
    since: seconds of the wall clock when its shadowing began
    reason: of what was decided
    champion: number of the version that it was compared with
    """

    checkpoint: str
    file: str
    step: Step = "build"
    builds: int = 0
    version: str | None = None
    since: float | None = None
    reason: str = ""
    champion: str | None = None


@dataclass(frozen=True)
class Decided:
    """A checkpoint that was decided.

    outcome: `unchanged` where the champion was made of it already, `undecided` where its time was over before there was
        a verdict
    at: seconds of the wall clock
    """

    checkpoint: str
    file: str
    outcome: Outcome
    reason: str
    version: str | None
    at: float


@dataclass(frozen=True)
class WatchState:
    """State of a watch: the checkpoint at work, and all that were decided."""

    work: Work | None = None
    decided: tuple[Decided, ...] = ()

    def knows(self, checkpoint: str) -> bool:
        """Return whether a checkpoint was decided."""
        return any(one.checkpoint == checkpoint for one in self.decided)


class Actions(Protocol):
    """The work of the steps. Each may be called again after it was cut short, or after it was done."""

    def build(self, work: Work) -> tuple[Step, str]:
        """Build and verify a bundle; return the next step, `register`, `refuse` or `leave`, and the reason."""
        ...

    def register(self, work: Work) -> str:
        """Register the bundle as the challenger, and return its version."""
        ...

    def shadow(self, work: Work) -> tuple[Step, str, str]:
        """Look at the shadowing; return `promote`, `refuse` or `give up` with the reason, or `shadow` to look again.

        The number of the champion comes third.
        """
        ...

    def promote(self, work: Work) -> bool:
        """Make the challenger the champion; False where that is no longer the one that it was compared with."""
        ...

    def withdraw(self, work: Work, outcome: Outcome) -> None:
        """Withdraw what may have been registered, for an outcome that leaves the champion."""
        ...

    def clear(self, work: Work) -> None:
        """Delete the files of a checkpoint that is decided."""
        ...


def advance(
    state: WatchState, actions: Actions, save: Callable[[WatchState], None], now: Callable[[], float]
) -> WatchState:
    """Do one step of the checkpoint at work, save and return the next state; the same state where there is none."""
    work = state.work
    if work is None:
        return state
    after = _decided(state, work, actions, now) if work.step in _OUTCOMES else _moved(state, work, actions, save, now)
    if after != state:
        save(after)
    return after


def _moved(
    state: WatchState, work: Work, actions: Actions, save: Callable[[WatchState], None], now: Callable[[], float]
) -> WatchState:
    """Do a step that leads to another."""
    if work.step == "register":
        return replace(state, work=replace(work, step="shadow", version=actions.register(work), since=now()))
    if work.step == "shadow":
        step, reason, champion = actions.shadow(work)
        return replace(state, work=replace(work, step=step, reason=reason, champion=champion))
    if work.builds >= MOST_BUILDS:
        reason = f"its build was cut short {work.builds} times"
        return replace(state, work=replace(work, step="refuse", reason=reason))
    begun = replace(work, builds=work.builds + 1)
    save(replace(state, work=begun))
    try:
        step, reason = actions.build(begun)
    except LostJobError:
        raise
    except BaseException:
        # Stopped on purpose, or something else is missing: this says nothing of the checkpoint.
        save(state)
        raise
    return replace(state, work=replace(begun, step=step, reason=reason))


def _decided(state: WatchState, work: Work, actions: Actions, now: Callable[[], float]) -> WatchState:
    """Carry out what was decided, and record it."""
    outcome = _OUTCOMES[work.step]
    if outcome == "promoted" and not actions.promote(work):
        return replace(state, work=replace(work, step="shadow"))
    if outcome in ("refused", "undecided"):
        actions.withdraw(work, outcome)
    actions.clear(work)
    record = Decided(work.checkpoint, work.file, outcome, work.reason, work.version, now())
    return WatchState(None, (*state.decided, record))


def read_watch(path: Path) -> WatchState:
    """Read the state of a watch; that of a new one where there is no file.

    Raises:
        InputError: the file holds something else.
    """
    try:
        return from_plain(WatchState, json.loads(path.read_text()))
    except FileNotFoundError:
        return WatchState()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: must be the state of a watch, but got {error}") from error
