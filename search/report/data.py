"""Values that the report draws and lists: edge and table of the front, hovers, hypervolume curves, endings, slices."""

from __future__ import annotations

import html
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import get_args

import numpy as np

from objectives.records import SliceQuality, State
from search.format import knob_value, metric_name, milliseconds, percent, size, span, times
from search.front import hypervolume_over_time, resolved_front, unit_objectives
from search.results import Front, Point, Row, Source
from search.verdict import alike_trials, subject
from spaces.domains import Scalar

HOVER_CHARACTERS = 68
_NO_REASON = "no reason was recorded"
_NUMBER = re.compile(r"[-+]?\d[\d.,]*%?")


@dataclass(frozen=True)
class Curve:
    """The hypervolume that was reached by `x` (trial numbers or minutes); it stays until the next x.

    by_source: the part of it that trials of each source gained, which sum to it; empty where that was not recorded
    """

    x: tuple[float, ...]
    hypervolume: tuple[float, ...]
    by_source: Mapping[Source, tuple[float, ...]] = field(default_factory=dict)

    @property
    def steps(self) -> Curve:
        """The same curve by its ends and the places where it rises, which are few in a long study."""
        values = self.hypervolume
        return self._at([at for at in range(len(values)) if at in (0, len(values) - 1) or values[at] != values[at - 1]])

    def until(self, x: float) -> Curve:
        """The same curve, continued to an x behind its last one."""
        longer = self._at([*range(len(self.x)), -1])
        return replace(longer, x=(*self.x, x))

    def _at(self, places: Sequence[int]) -> Curve:
        def taken(values: Sequence[float]) -> tuple[float, ...]:
            return tuple(values[place] for place in places)

        return Curve(taken(self.x), taken(self.hypervolume), {s: taken(of) for s, of in self.by_source.items()})


@dataclass(frozen=True)
class TableRow:
    """A row of the front's table beside the baseline's; `tags` name its role, such as chosen."""

    row: Point
    baseline: Point
    tags: tuple[str, ...] = ()

    @property
    def is_baseline(self) -> bool:
        return self.row.trial == self.baseline.trial


@dataclass(frozen=True)
class Ending:
    """Trials that did not run to the end for the same reason."""

    state: State
    reason: str
    trials: tuple[int, ...]


def metric_of(front: Front) -> str:
    """Return the metric of quality, as far as any trial has it."""
    return next((point.quality.metric for point in front.points), "quality")


def stairs(front: Front) -> list[Point]:
    """Points of the front that are on the edge where only p95 and loss are seen, the fastest first."""
    members = front.members
    if not members:
        return []
    edge = resolved_front([[point.p95_ratio, point.quality.loss] for point in members], 1, front.resolution or 0.0)
    kept = [point for point, on_edge in zip(members, edge, strict=True) if on_edge]
    return sorted(kept, key=lambda point: (point.p95_ratio, point.quality.loss))


def knobs_by_family(knobs: Mapping[str, Scalar]) -> dict[str, str]:
    """Join knobs by family: `pruning.mlp` and `pruning.cross` become one text under `pruning`."""
    families: dict[str, list[str]] = {}
    for name, value in knobs.items():
        family, _, rest = name.partition(".")
        families.setdefault(family, []).append(f"{(rest or family).replace('_', ' ')} {knob_value(value)}")
    return {family: ", ".join(parts) for family, parts in families.items()}


def hover(point: Point) -> str:
    """All that was measured of a point, as escaped HTML."""
    latency, quality = point.latency_ms, point.quality
    standing = "on the front" if point.on_front else "dominated" if point.feasible else "loses too much"
    lines = [
        f"p95: {times(latency.p95_ratio)} of the baseline's [{span(latency.p95_ratio_interval, times)}]",
        f"p50, p95: {milliseconds(latency.p50)}, {milliseconds(latency.p95)}",
        f"loss: {percent(quality.loss)} [{span(quality.loss_interval, percent)}]",
        f"throughput: {point.throughput_rps:,.0f} requests/s, "
        f"{times(point.throughput_ratio)} [{span(point.throughput_ratio_interval, times)}]",
        f"capacity: {times(point.capacity_ratio)} [{span(point.capacity_ratio_interval, times)}]",
        f"model: {size(point.model_bytes)}",
        *(f"{family}: {text}" for family, text in knobs_by_family(point.knobs).items()),
    ]
    wrapped = [piece for line in lines for piece in textwrap.wrap(line, HOVER_CHARACTERS, subsequent_indent="    ")]
    return "<br>".join([f"<b>trial {point.trial}</b>, {standing}", *map(html.escape, wrapped)])


def hypervolume_curves(front: Front) -> tuple[Curve, Curve]:
    """The curves by trial number and by minutes of search, the second without rows whose end has no time."""
    ends = [(0.0 if row.trial == 0 else row.minutes, row) for row in front.rows]
    by_minutes = _curve([(minutes, row) for minutes, row in ends if minutes is not None], front.max_loss)
    if by_minutes.x and front.minutes > by_minutes.x[-1]:
        by_minutes = by_minutes.until(front.minutes)
    return _curve([(float(row.trial), row) for row in front.rows], front.max_loss), by_minutes


def _curve(ends: Sequence[tuple[float, Row]], max_loss: float) -> Curve:
    """Return the hypervolume over x; a row that cannot be on the front or was not measured adds nothing."""
    points = np.zeros((len(ends), 3))
    for place, (_, row) in enumerate(ends):
        if isinstance(row, Point) and row.feasible and not row.passed_over:
            points[place] = unit_objectives(row.p95_ratio, row.throughput_ratio, row.quality.loss, max_loss)[0]
    order = sorted(range(len(ends)), key=lambda place: ends[place][0])
    reached = hypervolume_over_time(points, order)
    sources, gains = [ends[place][1].source for place in order], np.diff(reached, prepend=0.0)
    by_source = {
        source: tuple(np.cumsum(np.where([of == source for of in sources], gains, 0.0)).tolist())
        for source in get_args(Source)
        if None not in sources and source in sources
    }
    return Curve(tuple(ends[place][0] for place in order), tuple(reached.tolist()), by_source)


def gains_sentence(front: Front) -> str:
    """Say what share of the hypervolume each source gained; empty where that is not known."""
    curve, _ = hypervolume_curves(front)
    gained = {source: of[-1] / curve.hypervolume[-1] for source, of in curve.by_source.items() if of[-1] > 0}
    shares = [f"{share:.0%} by {source.removesuffix('s')}s" for source, share in gained.items()]
    return f"Of the hypervolume, {', '.join(shares[:-1])}{' and ' if shares[1:] else ''}{shares[-1]}." if shares else ""


def table_rows(front: Front) -> list[TableRow]:
    """The baseline, the reference points off the front, the front by p95; empty before the baseline is measured."""
    baseline, chosen = front.baseline, front.chosen and front.chosen.row
    if baseline is None:
        return []
    alike = alike_trials(front, chosen) if chosen else []

    def tags(point: Point) -> tuple[str, ...]:
        is_chosen = chosen and point.trial == chosen.trial
        choice = "chosen" if is_chosen else "≈ chosen" if point.trial in alike else None
        return tuple(filter(None, (point.reference, choice)))

    off = [point for point in front.reference_points if not point.on_front and point.trial != 0]
    members = sorted((point for point in front.members if point.trial != 0), key=lambda point: point.p95_ratio)
    return [
        TableRow(baseline, baseline, ("baseline",)),
        *(TableRow(point, baseline, (point.reference or "",)) for point in off),
        *(TableRow(point, baseline, tags(point)) for point in members),
    ]


def brief_reason(row: Row) -> str:
    """Return why a trial did not run to the end, with dots for the numbers."""
    return _NUMBER.sub("…", row.reason or _NO_REASON)


def endings(front: Front) -> list[Ending]:
    """Return the trials that did not run to the end, by reason, failures first, then the most frequent.

    Reasons that differ by numbers alone are one, with dots for the numbers.
    """
    groups: dict[tuple[State, str], list[tuple[int, str]]] = {}
    for row in front.rows:
        if row.state != "complete":
            groups.setdefault((row.state, brief_reason(row)), []).append((row.trial, row.reason or _NO_REASON))
    found = [
        Ending(state, form if len({reason for _, reason in trials}) > 1 else trials[0][1], tuple(t for t, _ in trials))
        for (state, form), trials in groups.items()
    ]
    return sorted(found, key=lambda ending: (ending.state != "failed", -len(ending.trials)))


def slices_of(front: Front) -> tuple[str, tuple[SliceQuality, ...]]:
    """Title and slices of the chosen trial on test, else of the best compromise on validation."""
    point = subject(front)
    if point is None:
        return "", ()
    part, quality = ("validation", point.quality) if front.chosen is None else ("test", front.chosen.confirmed)
    return f"{metric_name(point.quality.metric)} of trial {point.trial} on parts of the {part} rows", quality.slices
