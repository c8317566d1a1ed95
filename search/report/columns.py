"""Tables as lists of columns, so that a console and a page show the same columns in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from objectives.records import Interval, SliceQuality
from search.format import MISSING, column_milliseconds, column_percent, column_ratio, pairs, size, span
from search.report.data import Ending, TableRow, knobs_by_family
from search.results import Point, PointLatency

R = TypeVar("R")


@dataclass(frozen=True)
class Cell:
    """A value as text, with the interval that stands below it, tags beside it, and details that a page opens."""

    text: str
    interval: str = ""
    tags: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Column(Generic[R]):
    """A column of a table whose rows are made of `R`."""

    header: str
    cell: Callable[[R], Cell]
    justify: Literal["left", "right"] = "right"


def number(value: float | None, word: Callable[[float], str], interval: Interval | None = None) -> Cell:
    """A number in words with its interval."""
    if value is None:
        return Cell(MISSING)
    return Cell(word(value), span(interval, word) if interval else "")


def console_table(title: str, columns: Sequence[Column[R]], rows: Iterable[R]) -> Table:
    """The columns as a table of a terminal; tags and interval stand below their number."""
    table = Table(title=escape(title), title_justify="left")
    for column in columns:
        table.add_column(column.header, justify=column.justify)
    for row in rows:
        cells = [column.cell(row) for column in columns]
        table.add_row(*(Text("\n".join(filter(None, (cell.text, *cell.tags, cell.interval)))) for cell in cells))
    return table


def _recipe(of: TableRow) -> Cell:
    """Knobs that differ from the baseline's; in the details all knobs, and the widths that the file itself has."""
    if of.is_baseline:
        return Cell("the model as it was given")
    row, standard = of.row, of.baseline.knobs
    changed = {name: value for name, value in row.knobs.items() if standard.get(name) != value}
    # How it was taught is detail, and the origin is said by what was reshaped or pruned.
    said = {name: value for name, value in changed.items() if not name.startswith(LEFT_TO_DETAILS)}
    brief = "; ".join(PREFIXES.get(family, "") + text for family, text in knobs_by_family(said).items())
    return Cell(brief or "as the baseline", details=recipe_details(row))


def recipe_details(point: Point) -> dict[str, str]:
    """All knobs by family, and the widths and units that the file itself has."""
    units = {group: "-".join(map(str, left)) for group, left in point.units.items()}
    read = {"widths in the file": pairs(point.widths), "units that are left": pairs(units)}
    return {**knobs_by_family(point.knobs), **read}


# The page's recipes are made of the same (search/report/templates/trials.js).
LEFT_TO_DETAILS = ("distillation.", "weights.origin")
PREFIXES = {"architecture": "student: ", "pruning": "pruned: ", "low_rank": "low rank: ", "tables": "tables: "}


FRONT_COLUMNS: tuple[Column[TableRow], ...] = (
    Column("trial", lambda of: Cell(str(of.row.trial), tags=of.tags), "left"),
    Column("recipe", _recipe, "left"),
    Column("p95", lambda of: number(of.row.latency_ms.p95, column_milliseconds)),
    Column("p95 ratio", lambda of: _ratio(of, of.row.p95_ratio, of.row.p95_ratio_interval)),
    Column("to tuned", lambda of: number(None if of.row.tuned is None else of.row.tuned.p95_ratio, column_ratio)),
    Column("service p50 ratio", lambda of: _service(of, of.row.latency_ms)),
    Column("throughput", lambda of: number(of.row.throughput_rps, "{:,.0f}/s".format)),
    Column("throughput ratio", lambda of: _ratio(of, of.row.throughput_ratio, of.row.throughput_ratio_interval)),
    Column("capacity ratio", lambda of: _ratio(of, of.row.capacity_ratio, of.row.capacity_ratio_interval)),
    Column("quality loss", lambda of: _ratio(of, of.row.quality.loss, of.row.quality.loss_interval, column_percent)),
    Column("model", lambda of: number(of.row.model_bytes, size)),
)


_MOST_TRIALS = 30


def _some(trials: Sequence[int]) -> str:
    """The first of the trials; the page's own table has all."""
    more = len(trials) - _MOST_TRIALS
    return ", ".join(map(str, trials[:_MOST_TRIALS])) + (f" and {more:,} more" if more > 0 else "")


ENDING_COLUMNS: tuple[Column[Ending], ...] = (
    Column("", lambda ending: Cell(ending.state)),
    Column("reason", lambda ending: Cell(ending.reason)),
    Column("how many", lambda ending: Cell(str(len(ending.trials)))),
    Column("trials", lambda ending: Cell(_some(ending.trials))),
)
LEFT_ALONE_COLUMNS: tuple[Column[tuple[str, str]], ...] = (
    Column("", lambda module_and_reason: Cell(module_and_reason[0])),
    Column("why", lambda module_and_reason: Cell(module_and_reason[1])),
)


def _service(of: TableRow, latency: PointLatency) -> Cell:
    return _ratio(of, latency.service_p50_ratio, latency.service_p50_ratio_interval)


def _ratio(of: TableRow, value: float, interval: Interval, word: Callable[[float], str] = column_ratio) -> Cell:
    """A number against the baseline; the baseline against itself is exact."""
    return number(value, word, None if of.is_baseline else interval)


def _standing(part: SliceQuality) -> str:
    """Reason for a missing loss, else the conclusion from the loss's interval."""
    if part.loss_interval is None:
        return part.reason or ""
    low, high = part.loss_interval
    return "loses" if low > 0 else "gains" if high < 0 else "no loss that this data can show"


SLICE_COLUMNS: tuple[Column[SliceQuality], ...] = (
    Column("rows", lambda part: Cell(part.name), "left"),
    Column("of them", lambda part: Cell(f"{part.rows:,}")),
    Column("users or requests", lambda part: Cell(f"{part.groups:,}")),
    Column("baseline", lambda part: number(part.baseline, "{:.4f}".format)),
    Column("this model", lambda part: number(part.value, "{:.4f}".format)),
    Column("loss", lambda part: number(part.loss, column_percent, part.loss_interval)),
    Column("", lambda part: Cell(_standing(part)), "left"),
)
