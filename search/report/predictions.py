"""Losses that the search expected beside those that were found, and what further cycles of training gained."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from statistics import fmean, median

from search.config.loss_limits import WORST_LOSS
from search.format import count, percent
from search.report.front import FAINT, GRID, HOVER, INK, LEGEND, LOOK, MUTED, PALETTE, Description
from search.results import Front, Row
from spaces.weights import CYCLES

_SERVING = "placement."
# Fewest losses of which a median says something.
_FEWEST = 3


@dataclass(frozen=True)
class LossPredictions:
    """Losses on validation that were expected before a candidate was built, and those found, (trials,) each.

    Losses beyond `most` count as that, in the search's model and here.
    """

    trials: tuple[int, ...]
    expected: tuple[float, ...]
    found: tuple[float, ...]
    most: float

    @property
    def error(self) -> float:
        """Median distance of the expected losses to those that were found."""
        return median(abs(ours - theirs) for ours, theirs in zip(self.expected, self.found, strict=True))

    @property
    def spread(self) -> float:
        """Median distance of the found losses to their median: the error of a search that expects the same of all."""
        middle = median(self.found)
        return median(abs(loss - middle) for loss in self.found)

    @property
    def excess(self) -> float:
        """Mean of the found losses less that of the expected ones."""
        return fmean(self.found) - fmean(self.expected)

    @property
    def sentence(self) -> str:
        """Return the errors in words."""
        return (
            f"Half of the {len(self.trials)} expected losses are within {percent(self.error)} of what was found; the "
            f"median loss of all, had it been expected of each, is within {percent(self.spread)} of half of them. "
            f"Candidates are chosen for what is expected of them: on average, the found loss less the "
            f"expected one is {self.excess:+.2%}. Losses above {percent(self.most)} count as that."
        )


def loss_predictions(front: Front) -> LossPredictions | None:
    """Return the losses that were expected and found; None where they are too few."""
    most = WORST_LOSS * front.max_loss
    pairs = [
        (row.trial, row.expected_loss, min(row.loss, most))
        for row in front.rows
        if row.expected_loss is not None and row.loss is not None
    ]
    if len(pairs) < _FEWEST:
        return None
    trials, expected, found = zip(*pairs, strict=True)
    return LossPredictions(trials, expected, found, most)


def loss_figure(found: LossPredictions, tolerated: float) -> Description:
    """Describe found over expected losses in percent, with the line where both are equal and the tolerated loss."""
    expected, losses = ([100 * loss for loss in of] for of in (found.expected, found.found))
    ends = [min(*expected, *losses), max(*expected, *losses)]
    lines = [
        {"x": ends, "y": ends, "name": "equal", "line": {"color": MUTED, "dash": "dot", "width": 1.3}},
        {"x": ends, "y": [100 * tolerated] * 2, "name": "tolerated", "line": {"color": PALETTE[3], "width": 1.3}},
    ]
    marks = {
        "type": "scatter", "mode": "markers", "name": "loss", "x": expected, "y": losses, "hoverinfo": "text+x+y",
        "hovertext": [f"trial {trial}" for trial in found.trials],
        "marker": {"size": 10, "color": PALETTE[1], "line": {"width": 1, "color": INK}},
    }  # fmt: skip
    axis = {**GRID, "gridcolor": FAINT, "ticksuffix": "%"}
    layout = {
        **LOOK,
        "height": 380,
        "margin": {"l": 64, "r": 16, "t": 40, "b": 56},
        "xaxis": {**axis, "title": {"text": "expected loss"}},
        "yaxis": {**axis, "title": {"text": "loss on validation"}},
        "legend": LEGEND,
        "hoverlabel": HOVER,
    }
    return {"data": [*({"type": "scatter", "mode": "lines", "hoverinfo": "skip", **of} for of in lines), marks],
            "layout": layout}  # fmt: skip


def longer_sentence(front: Front) -> str:
    """Return how many trainings went on for another cycle, how that changed the loss, and how many are on the front."""
    losses: dict[Hashable, dict[int, float]] = {}
    longer: set[str] = set()
    for row in front.rows:
        cycles = row.knobs.get(CYCLES)
        if row.loss is None or not isinstance(cycles, int):
            continue
        losses.setdefault(_other_knobs(row), {}).setdefault(cycles, row.loss)
        longer.update([row.weights] if cycles > 1 else [])
    if not longer:
        return ""
    changes = [loss - of[n - 1] for of in losses.values() for n, loss in of.items() if n - 1 in of]
    entered = {row.weights for row in front.rows if row.on_front} & longer
    changed = f" each further cycle changed the loss by {median(changes):+.2%} in the median of {len(changes)};"
    return (
        f"{count(len(longer), 'training')} of more than one cycle {'was' if len(longer) == 1 else 'were'} evaluated:"
        f"{changed if changes else ''} {len(entered)} of them {'is' if len(entered) == 1 else 'are'} on the front."
    )


def _other_knobs(row: Row) -> Hashable:
    """Return all knobs that a row's loss depends on, but for the cycles of its training."""
    return tuple((name, value) for name, value in sorted(row.knobs.items()) if not name.startswith((_SERVING, CYCLES)))
