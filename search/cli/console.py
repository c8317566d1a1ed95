"""What a person sees: lines, a live bar on a terminal, tables."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console as Terminal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from search.explore.explorer import TrialEvent
from search.format import MISSING
from search.results import Document


class Console:
    """Progress goes to standard error, results to standard output; with `json` only one document goes there."""

    def __init__(self, quiet: bool, as_json: bool) -> None:
        self.quiet, self.as_json = quiet, as_json
        self._progress = Terminal(stderr=True, highlight=False, soft_wrap=True)
        self._result = Terminal(highlight=False)

    @property
    def live(self) -> bool:
        return self._progress.is_terminal and not self.quiet

    def say(self, line: str) -> None:
        """A line of progress."""
        if not self.quiet:
            self._progress.print(line, markup=False)

    def warn(self, line: str) -> None:
        self._progress.print(f"warning: {line}", markup=False)

    def result(self, line: str) -> None:
        if not self.as_json:
            self._result.print(line, markup=False, soft_wrap=True)

    def document(self, document: Mapping[str, Any]) -> None:
        if self.as_json:
            sys.stdout.write(json.dumps(document, allow_nan=False) + "\n")

    def table(self, table: Table) -> None:
        if not self.as_json:
            # Not a terminal: as wide as the table needs, so that nothing is cut.
            terminal = self._result if self._result.is_terminal else Terminal(highlight=False, width=160)
            terminal.print(table)


class SearchBar:
    """The search while it runs: a bar with the live best on a terminal, a line for each trial elsewhere."""

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def tick(self, elapsed: float) -> None:
        if self._bar is not None:
            left = max(0, self._seconds - elapsed)
            self._bar.update(self._task, completed=elapsed, description=self.best or "searching", left=f"{left:.0f} s")

    def told(
        self, told: TrialEvent, hypervolume: float, best: Mapping[str, Any] | None, complete: int, spent: float
    ) -> None:
        """One trial ended."""
        self.best = f"{complete} trials, hypervolume {hypervolume:.3f}"
        if best is not None:
            self.best += (
                f", best {_ratio(best['latency_ms']['p95_ratio'])} of p95 at {_loss(best['quality']['loss'])} loss"
            )
        left = max(0.0, self._seconds - spent)
        self._console.say(f"{_line(told)} | {self.best} | {left:.0f} s left")


def _line(told: TrialEvent) -> str:
    m, origin = told.outcome.measurement, told.candidate.weights.origin
    head = f"trial {told.number:>3} {origin:<8}"
    if m is None:
        return f"{head} {told.outcome.state}: {told.outcome.reason}"
    return (
        f"{head} p95 {m.latency.candidate.p95_ms:.2f} ms ({_ratio(m.latency.p95_ratio)}), "
        f"throughput {m.throughput.ratio:.1f}x, capacity {m.throughput.capacity_ratio:.1f}x, "
        f"loss {_loss(m.quality.loss)}"
    )


def front_table(document: Document) -> Table:
    """The front with its intervals, the baseline first."""
    table = Table(title=f"Front of {document['study']}: {document['front_size']} points", title_justify="left")
    for name in (
        "trial",
        "weights",
        "p95 ms",
        "p95 ratio [95%]",
        "to tuned",
        "service p50 ratio",
        "throughput ratio [95%]",
        "capacity ratio [95%]",
    ):
        table.add_column(name, justify="right" if name != "weights" else "left", no_wrap=True)
    for name in ("loss [95%]", "kB", "choice"):
        table.add_column(name, justify="right" if name != "choice" else "left", no_wrap=name != "choice")
    members = sorted((r for r in document["rows"] if r["on_front"]), key=lambda r: r["latency_ms"]["p95_ratio"])
    baseline = document["baseline"]
    off = [r for r in document["reference_points"] if not r["on_front"]]
    for row in [*([baseline] if baseline else []), *off, *(r for r in members if r["trial"] != 0)]:
        table.add_row(*_cells(row))
    return table


def _cells(row: Mapping[str, Any]) -> Sequence[str]:
    latency, quality = row["latency_ms"], row["quality"]
    return (
        str(row["trial"]),
        row["origin"],
        f"{latency['p95']:.3f}",
        f"{latency['p95_ratio']:.3f} {_pair(latency['p95_ratio_interval'])}",
        MISSING if row["tuned"] is None else f"{row['tuned']['p95_ratio']:.3f}",
        f"{latency['service_p50_ratio']:.3f}",
        f"{row['throughput_ratio']:.2f} {_pair(row['throughput_ratio_interval'], 2)}",
        f"{row['capacity_ratio']:.2f} {_pair(row['capacity_ratio_interval'], 2)}",
        f"{_loss(quality['loss'])} [{_loss(quality['loss_interval'][0])}, {_loss(quality['loss_interval'][1])}]",
        f"{row['model_bytes'] / 1000:.0f}",
        "the baseline against itself" if row["trial"] == 0 else _named(row) + describe(row["knobs"]),
    )


def _named(row: Mapping[str, Any]) -> str:
    """A reference point by its name, and whether it is there for that alone."""
    if row["reference"] is None:
        return ""
    return f"{row['reference']}{'' if row['on_front'] else ' (off the front)'}: "


def describe(knobs: Mapping[str, Any]) -> str:
    """A candidate in a few words, the baseline's own values left out."""
    plain = {"fp32", "cpu"}
    words = [
        f"{name.split('.', 1)[1]}={value:.3g}" if isinstance(value, float) else f"{name.split('.', 1)[1]}={value}"
        for name, value in knobs.items()
        if value not in plain and not name.startswith(("weights.", "placement.", "distillation.epochs"))
    ]
    words.append(f"{knobs['placement.engine']} {knobs['placement.replicas']}x{knobs['placement.threads']}")
    return " ".join([*words, *_dispatch({k.removeprefix("placement."): v for k, v in knobs.items()})])


def _dispatch(placement: Mapping[str, Any]) -> Iterator[str]:
    """How requests reach the replicas, where it is not as they come; a front of an older version may lack a knob."""
    for flag in ("pinned", "inline", "user_once"):
        if placement.get(flag):
            yield flag.replace("_", "-")
    if placement.get("batch_rows"):
        yield f"batch<={placement['batch_rows']} rows, {placement['batch_wait_us']} us"
    if placement.get("split_rows"):
        yield f"split>{placement['split_rows']} rows"
    if placement.get("route_rows"):
        yield f"route>{placement['route_rows']} rows to {placement['route_engine']} {placement['route_layout']}"
    if placement.get("embedding_device", "same") != "same":
        yield f"tables on {placement['embedding_device']}"
    if placement.get("queue"):
        yield f"queue<={placement['queue']}"
    if placement.get("deadline_ms"):
        yield f"deadline {placement['deadline_ms']:g} ms"


def _pair(interval: Sequence[float], digits: int = 3) -> str:
    return f"[{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _ratio(value: float) -> str:
    return f"{value:.3f}x"


def _loss(value: float) -> str:
    return f"{value:+.2%}"
