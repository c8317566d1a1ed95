"""Values that the report draws and lists: points and rows of the front, hypervolume curves, endings, slices."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from search.format import knob_value, metric_name, milliseconds, percent, size, times
from search.front import hypervolume_over_time, resolved_front, unit_objectives
from search.results import read_front
from search.verdict import alike_trials, subject
from spaces.serialization import to_plain

Document = Mapping[str, Any]
Row = Mapping[str, Any]
Interval = tuple[float, float]

HOVER_CHARACTERS = 68
_NUMBER = re.compile(r"[-+]?\d[\d.,]*%?")


@dataclass(frozen=True)
class FrontPoint:
    """One complete trial. Ratios against the baseline, loss as a share; `hover` is escaped HTML."""

    trial: int
    origin: str
    on_front: bool
    feasible: bool
    p95_ratio: float
    p95_ratio_interval: Interval
    p95_ms: float
    loss: float
    loss_interval: Interval
    throughput_ratio: float | None
    hover: str


@dataclass(frozen=True)
class FrontData:
    """All complete trials, the baseline's among them by trial number; `stairs` are trials, fastest first."""

    points: tuple[FrontPoint, ...]
    baseline: int
    chosen: int | None
    stairs: tuple[int, ...]
    max_loss: float
    metric: str

    def point(self, trial: int) -> FrontPoint | None:
        return next((point for point in self.points if point.trial == trial), None)


@dataclass(frozen=True)
class Curve:
    """The hypervolume that was reached by `x` (trial numbers or minutes); it stays until the next x."""

    x: tuple[float, ...]
    hypervolume: tuple[float, ...]


@dataclass(frozen=True)
class TableRow:
    """A row of the front's table beside the baseline's; `tags` name its role, such as chosen."""

    row: Row
    baseline: Row
    tags: tuple[str, ...] = ()

    @property
    def is_baseline(self) -> bool:
        return bool(self.row["trial"] == self.baseline["trial"])


@dataclass(frozen=True)
class Ending:
    """Trials that did not run to the end for the same reason."""

    state: str
    reason: str
    trials: tuple[int, ...]


def all_rows(document: Document) -> list[Row]:
    """The baseline first, whether or not it is listed among the rows, then every other trial."""
    baseline = document["baseline"]
    if baseline is None:
        return list(document["rows"])
    return [baseline, *(row for row in document["rows"] if row["trial"] != baseline["trial"])]


def baseline_trial(document: Document) -> int:
    """Trial 0, even before it has been measured."""
    return 0 if document["baseline"] is None else int(document["baseline"]["trial"])


def metric_of(document: Document) -> str:
    """Return the metric of quality, as far as any trial has it."""
    told = (row["quality"]["metric"] for row in all_rows(document))
    return next((str(metric) for metric in told if metric is not None), "quality")


def complete_rows(document: Document) -> list[Row]:
    return [row for row in all_rows(document) if row["state"] == "complete"]


def front_data(document: Document) -> FrontData:
    points = tuple(
        _front_point(row)
        for row in complete_rows(document)
        if row["latency_ms"]["p95_ratio"] is not None and row["quality"]["loss"] is not None
    )
    chosen = document.get("chosen")
    return FrontData(
        points=points,
        baseline=baseline_trial(document),
        chosen=chosen["row"]["trial"] if chosen and chosen.get("row") else None,
        stairs=_stairs([point for point in points if point.on_front], document["resolution"] or 0.0),
        max_loss=document["max_loss"],
        metric=metric_of(document),
    )


def _front_point(row: Row) -> FrontPoint:
    latency, quality = row["latency_ms"], row["quality"]
    ratio, loss = latency["p95_ratio"], quality["loss"]
    low, high = latency["p95_ratio_interval"] or (ratio, ratio)
    least, most = quality["loss_interval"] or (loss, loss)
    return FrontPoint(
        trial=row["trial"],
        origin=row["origin"],
        on_front=row["on_front"],
        feasible=row["feasible"],
        p95_ratio=ratio,
        p95_ratio_interval=(low, high),
        p95_ms=latency["p95"],
        loss=loss,
        loss_interval=(least, most),
        throughput_ratio=row["throughput_ratio"],
        hover=_hover(row),
    )


def _stairs(front: Sequence[FrontPoint], resolution: float) -> tuple[int, ...]:
    """The front has three objectives; seen from the side of two, only some of its points are on the edge."""
    if not front:
        return ()
    edge = resolved_front([[point.p95_ratio, point.loss] for point in front], 1, resolution)
    kept = [point for point, on_edge in zip(front, edge, strict=True) if on_edge]
    return tuple(point.trial for point in sorted(kept, key=lambda point: (point.p95_ratio, point.loss)))


def knobs_by_family(knobs: Mapping[str, Any]) -> dict[str, str]:
    """`pruning.mlp` and `pruning.cross` become one text under `pruning`."""
    families: dict[str, list[str]] = {}
    for name, value in knobs.items():
        family, _, rest = name.partition(".")
        families.setdefault(family, []).append(f"{(rest or family).replace('_', ' ')} {knob_value(value)}")
    return {family: ", ".join(parts) for family, parts in families.items()}


def _hover(row: Row) -> str:
    latency, quality = row["latency_ms"], row["quality"]
    standing = "on the front" if row["on_front"] else "dominated" if row["feasible"] else "loses too much"
    lines = [f"p95: {times(latency['p95_ratio'])} of the baseline's{_brackets(latency['p95_ratio_interval'], times)}"]
    if latency["p95"] is not None:
        lines.append(f"p50, p95: {', '.join(milliseconds(latency[k]) for k in ('p50', 'p95') if latency[k])}")
    lines.append(f"loss: {percent(quality['loss'])}{_brackets(quality['loss_interval'], percent)}")
    if row["throughput_ratio"] is not None:
        served = f"{row['throughput_rps']:,.0f} requests/s, " if row["throughput_rps"] is not None else ""
        ratio = times(row["throughput_ratio"])
        lines.append(f"throughput: {served}{ratio}{_brackets(row['throughput_ratio_interval'], times)}")
    if row.get("capacity_ratio") is not None:
        interval = _brackets(row["capacity_ratio_interval"], times)
        lines.append(f"capacity: {times(row['capacity_ratio'])}{interval}")
    if row["model_bytes"] is not None:
        lines.append(f"model: {size(row['model_bytes'])}")
    lines += [f"{family}: {text}" for family, text in knobs_by_family(row["knobs"]).items()]
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, HOVER_CHARACTERS, subsequent_indent="    ")]
    return "<br>".join([f"<b>trial {row['trial']}</b>, {standing}", *map(html.escape, wrapped)])


def _brackets(interval: Sequence[float] | None, word: Callable[[float], str]) -> str:
    return f" [{word(interval[0])} to {word(interval[1])}]" if interval else ""


def hypervolume_curves(document: Document) -> tuple[Curve, Curve]:
    """Return the curves by trial number and by minutes of search. Rows whose end has no time are left out of the second
    only.
    """
    rows, baseline = all_rows(document), baseline_trial(document)
    minutes = [0.0 if row["trial"] == baseline else row["minutes"] for row in rows]
    timed = [(row, minute) for row, minute in zip(rows, minutes, strict=True) if minute is not None]
    by_minutes = _curve([row for row, _ in timed], [minute for _, minute in timed], document["max_loss"])
    end = document["minutes"]
    if end is not None and by_minutes.x and end > by_minutes.x[-1]:
        by_minutes = Curve((*by_minutes.x, end), (*by_minutes.hypervolume, by_minutes.hypervolume[-1]))
    return _curve(rows, [row["trial"] for row in rows], document["max_loss"]), by_minutes


def _curve(rows: Sequence[Row], x: Sequence[float], max_loss: float) -> Curve:
    """Return the hypervolume over x; a row that is infeasible, or lacks one of the three objectives, adds nothing."""
    points = np.zeros((len(rows), 3))
    for place, row in enumerate(rows):
        ratios = row["latency_ms"]["p95_ratio"], row["throughput_ratio"]
        if row["state"] == "complete" and row["feasible"] and None not in ratios:
            points[place] = unit_objectives(*ratios, row["quality"]["loss"], max_loss)[0]
    order = np.argsort(np.asarray(x, dtype=np.float64), kind="stable")
    reached = hypervolume_over_time(points, order)
    return Curve(tuple(float(x[place]) for place in order), tuple(reached.tolist()))


def table_rows(document: Document) -> list[TableRow]:
    """The baseline, the reference points off the front, the front by p95; empty before the baseline is measured."""
    baseline, chosen = document["baseline"], (document.get("chosen") or {}).get("row")
    if baseline is None:
        return []
    found = read_front(document)
    alike = alike_trials(found, found.chosen.row) if found.chosen else []

    def tags(row: Row) -> tuple[str, ...]:
        is_chosen = chosen and row["trial"] == chosen["trial"]
        choice = "chosen" if is_chosen else "≈ chosen" if row["trial"] in alike else None
        return tuple(filter(None, (row.get("reference"), choice)))

    off = [row for row in document.get("reference_points") or () if not row["on_front"] and row["trial"] != 0]
    front = [row for row in all_rows(document)[1:] if row["on_front"]]
    front.sort(key=lambda row: float(row["latency_ms"]["p95_ratio"]))
    return [
        TableRow(baseline, baseline, ("baseline",)),
        *(TableRow(row, baseline, (row["reference"],)) for row in off),
        *(TableRow(row, baseline, tags(row)) for row in front),
    ]


def endings(document: Document) -> list[Ending]:
    """Trials that did not run to the end, by reason, failures first, then the most frequent; reasons that differ by
    numbers alone are one, with dots for the numbers."""
    groups: dict[tuple[str, str], list[tuple[int, str]]] = {}
    for row in document["rows"]:
        if row["state"] != "complete":
            reason = row["reason"] or "no reason was recorded"
            groups.setdefault((row["state"], _NUMBER.sub("…", reason)), []).append((row["trial"], reason))
    found = [
        Ending(state, form if len({reason for _, reason in trials}) > 1 else trials[0][1], tuple(t for t, _ in trials))
        for (state, form), trials in groups.items()
    ]
    return sorted(found, key=lambda ending: (ending.state != "failed", -len(ending.trials)))


def slices_of(document: Document) -> tuple[str, Sequence[Row]]:
    """Title and slices of the chosen trial on test, else of the best compromise on validation."""
    point = subject(read_front(document))
    if point is None:
        return "", ()
    confirmed = (document.get("chosen") or {}).get("confirmed") or {}
    part = "test" if "slices" in confirmed else "validation"
    metric = metric_name(point.quality.metric)
    found = confirmed.get("slices", to_plain(point.quality.slices)) or ()
    return f"{metric} of trial {point.trial} on parts of the {part} rows", found
