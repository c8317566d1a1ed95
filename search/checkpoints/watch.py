"""Watch over checkpoints: each new one is taken through the steps, until it is promoted or refused."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from objectives.errors import ExplainedError, InputError
from search.checkpoints.checkpoint_files import CheckpointFile, hash_of, newest, settled, take
from search.checkpoints.steps import Steps
from search.checkpoints.watch_state import Decided, Work, advance, read_watch
from search.cli.console import Console
from search.home import write_json

STATE = "state.json"


@dataclass(frozen=True)
class WatchIntervals:
    """Times of a watch in seconds.

    every_s: between two looks for a checkpoint
    settle_s: that a file has to stay the same before it is taken
    look_s: between two looks at the shadowing
    """

    every_s: float = 30.0
    settle_s: float = 2.0
    look_s: float = 5.0


class Watch:
    """A watch over one file or folder, whose state is kept in a file beside its work."""

    def __init__(self, checkpoint: Path, steps: Steps, intervals: WatchIntervals, console: Console) -> None:
        """Read the state.

        Raises:
            InputError: the state's file holds something else, or the checkpoint's folder does not exist.
        """
        self._where, self._steps, self._intervals, self._console = checkpoint, steps, intervals, console
        self._file = steps.home.watch(steps.aliases.name) / STATE
        self._save = partial(write_json, path=self._file)
        self._state = read_watch(self._file)
        self._seen: CheckpointFile | None = None
        newest(checkpoint)

    def once(self) -> Decided | None:
        """Take the checkpoint at work, or a new one, through the remaining steps, and return the decision.

        Return None where there is no new checkpoint.

        Raises:
            ExplainedError: a step cannot be done now; the next call continues there.
            InputError: the same, where a setting is the reason.
        """
        self._state = read_watch(self._file)
        if self._state.work is None:
            self._take()
        while self._state.work is not None:
            before = self._state.work
            self._state = advance(self._state, self._steps, self._save, time.time)
            self._tell(before)
            if self._state.work == before:
                time.sleep(self._intervals.look_s)
            elif self._state.work is None:
                return self._state.decided[-1]
        return None

    def next(self) -> Decided:
        """Wait for the next decision; steps that cannot be done now are said, and tried again later."""
        while True:
            try:
                if (found := self.once()) is not None:
                    return found
            except (ExplainedError, InputError, OSError) as error:
                self._console.warn(f"watch: {error}")
            time.sleep(self._intervals.every_s)

    def _take(self) -> None:
        """Take the newest checkpoint, if it is new and no longer being written."""
        found = newest(self._where)
        if found is None or found == self._seen or not settled(found, self._intervals.settle_s):
            return
        try:
            checkpoint = hash_of(found.path)
            known = self._state.knows(checkpoint)
            if known or take(found, self._steps.copy_of(checkpoint, str(found.path))):
                self._seen = found
        except FileNotFoundError:
            return
        if not known and self._seen == found:
            self._state = replace(self._state, work=Work(checkpoint, str(found.path)))
            self._save(self._state)
            self._console.say(f"watch: {found.path} is new ({checkpoint})")

    def _tell(self, before: Work) -> None:
        work, said = self._state.work, self._console.say
        if work is None:
            last = self._state.decided[-1]
            said(f"watch: {Path(last.file).name} is {last.outcome}: {last.reason}")
        elif work.step != before.step:
            said(f"watch: {Path(work.file).name}: {work.step}")
