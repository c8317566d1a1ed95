"""Console output: lines, a live bar on a terminal, tables."""

from __future__ import annotations

import json
import sys

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from objectives.records import Measurement
from search.report.columns import FRONT_COLUMNS, console_table
from search.report.data import table_rows
from search.results import Front
from search.trials import EndedTrial
from spaces.serialization import to_plain


class Console:
    """Progress goes to standard error, results to standard output; with `json` only one document goes there.

    study_arguments: those that name the study in another command, to tell the user what comes next
    """

    def __init__(self, quiet: bool, as_json: bool, study_arguments: tuple[str, ...] = ()) -> None:
        self.quiet, self.as_json, self.study_arguments = quiet, as_json, study_arguments
        # A factory's name, such as shop:factory:, is no emoji.
        self._progress = Terminal(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._result = Terminal(highlight=False, emoji=False)

    @property
    def live(self) -> bool:
        return self._progress.is_terminal and not self.quiet

    def say(self, line: str) -> None:
        """A line of progress."""
        if not self.quiet:
            self._progress.print(line, markup=False)

    def warn(self, *lines: str) -> None:
        for line in lines:
            self._progress.print(f"warning: {line}", markup=False)

    def result(self, document: object, *parts: str | Table) -> None:
        """Print a command's result: with `json` the document, a record or a mapping, else the lines and tables."""
        if self.as_json:
            sys.stdout.write(json.dumps(to_plain(document), allow_nan=False) + "\n")
            sys.stdout.flush()  # a command that goes on prints further ones
            return
        # Not a terminal: as wide as the table needs, so that nothing is cut.
        terminal = self._result if self._result.is_terminal else Terminal(highlight=False, width=160, emoji=False)
        for part in parts:
            if isinstance(part, str):
                self._result.print(part, markup=False, soft_wrap=True)
            else:
                terminal.print(part)


class SearchBar:
    """The search while it runs: a bar with the live best on a terminal, a line for each trial elsewhere.

    Args:
        seconds: of the budget, 0 before it begins
    """

    def __init__(self, console: Console, seconds: float) -> None:
        self._console, self._seconds = console, seconds
        self._bar: Progress | None = None
        self.best = ""

    def __enter__(self) -> SearchBar:
        if self._console.live:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]} left"),
                console=self._console._progress,
            )
            self._task = self._bar.add_task("searching", total=self._seconds, left="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tick(self, elapsed: float) -> None:
        if self._bar is not None:
            left = max(0, self._seconds - elapsed)
            self._bar.update(self._task, completed=elapsed, description=self.best or "searching", left=f"{left:.0f} s")

    def told(
        self,
        told: EndedTrial,
        hypervolume: float,
        gain: float | None,
        best: Measurement | None,
        counts: str,
        spent: float,
    ) -> None:
        """Report a trial that ended.

        Args:
            gain: hypervolume that is expected of the time left, None where that is not known
            counts: how far the candidates came
            spent: seconds of the budget
        """
        self.best = f"{counts}, hypervolume {hypervolume:.3f}"
        if best is not None:
            self.best += f", best {best.latency.p95_ratio:.3f}x of p95 at {best.quality.loss:+.2%} loss"
        left = max(0.0, self._seconds - spent)
        if gain is not None and left > 0:
            self.best += f", about {gain:+.3f} to gain"
        time_left = f" | {left:.0f} s left" if self._seconds else ""
        self._console.say(f"{_line(told)} | {self.best}{time_left}")


def _line(told: EndedTrial) -> str:
    m, origin = told.outcome.measurement, told.candidate.weights.origin
    head = f"trial {told.number:>3} {origin:<8}"
    if m is None:
        return f"{head} {told.outcome.state}: {told.outcome.reason}"
    return (
        f"{head} p95 {m.latency.candidate.p95_ms:.2f} ms ({m.latency.p95_ratio:.3f}x), "
        f"throughput {m.throughput.ratio:.1f}x, capacity {m.throughput.capacity_ratio:.1f}x, "
        f"loss {m.quality.loss:+.2%}"
    )


def front_table(front: Front) -> Table:
    """The front with its intervals, the baseline first, in the columns of the report's table."""
    title = f"Front of {front.study}: {len(front.members)} points"
    return console_table(title, FRONT_COLUMNS, table_rows(front))
