"""Data of a study's page, as its scripts read it: policy, trials by column, and the points of the front in full.

Numbers of the front and of the reference points are exact, since the page's policy has to choose what `leanrec choose`
does; those of other trials are rounded, and texts and knobs are coded, so that ten thousand trials fit.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from search.choose.policy import DISTANCE_DECIMALS, LIMITED, MOST_LOOKS, PREFERENCES
from search.format import metric_name
from search.front import BEST_P95_RATIO, BEST_THROUGHPUT_RATIO
from search.report.axes import Axis, Knob, knobs_of, measure_axis
from search.report.columns import FRONT_COLUMNS, LEFT_TO_DETAILS, PREFIXES, recipe_details
from search.report.data import TableRow, brief_reason, metric_of, table_rows
from search.report.front import ORIGINS, SYMBOLS, loss_window
from search.report.measures import decisive_measures, measures_of, objective_measures
from search.results import Front, Point, Row, TunedRatios
from search.run_pages import RunPages
from search.verdict import alike_trials
from spaces.serialization import Json

# Codes of up to so many values are one character each.
CODES = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
STANDINGS = ("front", "dominated", "infeasible", "stopped", "failed")
# Digits of the numbers of trials off the front.
_DIGITS = 4


@dataclass(frozen=True)
class Links:
    """References of the page: the arguments that name the study on a command line, and the pages of its runs."""

    study_arguments: Sequence[str] = ()
    runs: RunPages = field(default_factory=RunPages)


def page_data(front: Front, links: Links) -> Json:
    """Return the data of a study's page, ready for JSON."""
    measures = measures_of(front)
    return {
        "command": shlex.join(["leanrec", "choose", *(links.study_arguments or (front.study,))]),
        "max_loss": front.max_loss,
        "prefer": next(iter(PREFERENCES)),
        "preferences": PREFERENCES,
        "limited": {name: asdict(limit) for name, limit in LIMITED.items()},
        "decisive": decisive_measures(front),
        "overhead_ms": front.overhead_ms,
        "best": {"p95_ratio": BEST_P95_RATIO, "throughput_ratio": BEST_THROUGHPUT_RATIO},
        "distance_decimals": DISTANCE_DECIMALS,
        "most_looks": MOST_LOOKS,
        "resolution": front.resolution,
        "metric": metric_name(metric_of(front)),
        "loss_window": loss_window(front),
        "tuned_baseline": None if front.tuned_baseline is None else front.tuned_baseline.trial,
        "chosen": None if front.chosen is None else front.chosen.row.trial,
        "measures": {
            name: {"words": one.words, "logarithmic": one.logarithmic, "better": one.better}
            for name, one in measures.items()
        },
        "objectives": objective_measures(front),
        "columns": [column.header for column in FRONT_COLUMNS],
        "recipe": {"left_out": LEFT_TO_DETAILS, "prefixes": PREFIXES},
        "origins": ORIGINS,
        "symbols": SYMBOLS,
        "records": [_record(of, front, links) for of in _in_trial_order(front)],
        "trials": _trials(front),
        "knobs": [_coded_knob(knob) for knob in knobs_of(front)],
        "uprights": _uprights(front),
    }


def _in_trial_order(front: Front) -> list[TableRow]:
    return sorted(table_rows(front), key=lambda of: of.row.trial)


def _record(of: TableRow, front: Front, links: Links) -> Json:
    """A point of the front or a reference point in full, with the trials that cannot be told apart from it."""
    point = of.row
    alike = [trial for trial in alike_trials(front, point) if trial != point.trial] if point.on_front else []
    return {
        "trial": point.trial,
        "on_front": point.on_front,
        "tags": of.tags,
        **{name: measure.read(point) for name, measure in measures_of(front).items()},
        "tuned": None if point.tuned is None else _tuned(point.tuned),
        "alike": alike,
        "details": {} if of.is_baseline else recipe_details(point),
        "warnings": point.warnings,
        "run": links.runs.trials.get(point.trial),
    }


def _tuned(ratios: TunedRatios) -> Json:
    """Ratios to the tuned baseline with their intervals, under the names of the measures."""
    names = [part.name for part in fields(TunedRatios) if part.name.endswith("_ratio")]
    return {name: (getattr(ratios, name), *(getattr(ratios, f"{name}_interval") or (None, None))) for name in names}


def _trials(front: Front) -> Json:
    """All trials by column; the measures are of the measured ones, in the same order."""
    reasons: dict[str, int] = {}
    ended = [None if isinstance(row, Point) else brief_reason(row) for row in front.rows]
    codes = [None if reason is None else reasons.setdefault(reason, len(reasons)) for reason in ended]
    return {
        "numbers": [row.trial for row in front.rows],
        "standings": "".join(CODES[STANDINGS.index(standing(row))] for row in front.rows),
        "standing_names": STANDINGS,
        "reasons": list(reasons),
        "reason_codes": [code for code in codes if code is not None],
        "origins": _coded([point.origin for point in front.points]),
        "measured": {
            name: [_rounded(measure.read(point)[0]) for point in front.points]
            for name, measure in measures_of(front).items()
        },
    }


def standing(row: Row) -> str:
    """Return how a trial stands, one of `STANDINGS`."""
    if not isinstance(row, Point):
        return row.state
    return "front" if row.on_front else "dominated" if row.feasible else "infeasible"


def _rounded(value: float | None) -> float | int | None:
    if value is None:
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded.is_integer() else rounded


def _coded(column: Sequence[str]) -> Json:
    values = list(dict.fromkeys(column))
    return {"values": values, "codes": _codes([values.index(value) for value in column], len(values))}


def _codes(places: Sequence[int], count: int) -> str | list[int]:
    return "".join(CODES[place] for place in places) if count <= len(CODES) else list(places)


def _coded_knob(knob: Knob) -> Json:
    return {
        "name": knob.name,
        "values": knob.values,
        "codes": _codes(knob.codes, len(knob.values)),
        "axis": None if knob.axis is None else {**_drawn(knob.axis), "heights": knob.axis.values},
    }


def _drawn(axis: Axis) -> Json:
    return {"label": axis.label, "places": axis.places, "texts": axis.texts, "range": axis.ends}


def _uprights(front: Front) -> Mapping[str, Json]:
    """The uprights of the objectives, without one that has no height for some trial."""
    found = {}
    for name in (pair[0] for pair in objective_measures(front)):
        measure = measures_of(front)[name]
        column = [value for point in front.points if (value := measure.read(point)[0]) is not None]
        if len(column) == len(front.points) > 0 and (min(column) > 0 or not measure.logarithmic):
            label = measure.words.replace(" ", "<br>", 1)
            found[name] = _drawn(measure_axis(label, column, measure.logarithmic, measure.word))
    return found
