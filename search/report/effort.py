"""Time of a study by stage, and simulated ratios beside measured ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from objectives.records import Interval
from search.format import count, percent, times
from search.report.axes import log_steps
from search.report.columns import Cell, Column, number
from search.report.front import FAINT, GRID, HOVER, INK, LEGEND, LOOK, MUTED, PALETTE, Description
from search.results import Front

# Stages by the worker that runs them, in the order of a trial.
_STAGES = {
    "cost": "cost: untrained export, service curve",
    "network": "training of elastic networks",
    "fit": "training",
    "export": "export",
    "judge": "evaluation",
    "time": "benchmarks of the search",
}
_FINAL = "final benchmark"
# Marks of a ratio that are drawn at most, spread evenly over the trials; sentences are of all.
_MOST_MARKS = 1000


# Ratios of which a figure is drawn, besides the table of all.
_DRAWN = "p95 ratio", "throughput ratio"


@dataclass(frozen=True)
class Simulation:
    """Simulated and measured values of one ratio, (trials,) each.

    intervals: of the measured ones, where there are any
    """

    name: str
    trials: tuple[int, ...]
    simulated: tuple[float, ...]
    measured: tuple[float, ...]
    intervals: tuple[Interval, ...] = ()

    @property
    def drawn(self) -> Simulation:
        """The values of so many trials that a figure stays readable."""
        step = -(-len(self.trials) // _MOST_MARKS) or 1
        drawn = self.trials[::step], self.simulated[::step], self.measured[::step]
        return Simulation(self.name, *drawn)

    @property
    def uncertainty(self) -> float | None:
        """Median reach of a measured value's interval to each side; None where there is none."""
        reach = [math.sqrt(high / low) - 1 for low, high in self.intervals if low > 0]
        return median(reach) if reach else None

    @property
    def correction(self) -> float:
        """Median ratio of measured over simulated values."""
        return median(ours / theirs for ours, theirs in zip(self.measured, self.simulated, strict=True))

    @property
    def error(self) -> float:
        """Median relative error of the simulated values, after their correction."""
        pairs = zip(self.measured, self.simulated, strict=True)
        return median(abs(math.log(ours / (self.correction * theirs))) for ours, theirs in pairs)


def seconds_by_stage(front: Front) -> dict[str, float]:
    """Return the seconds of the workers, by stage, over all trials; stages that took none are left out."""
    found = {
        words: sum(seconds for row in front.rows if (seconds := row.seconds.get(stage)) is not None)
        for stage, words in _STAGES.items()
    }
    return {words: seconds for words, seconds in {**found, _FINAL: front.final_seconds}.items() if seconds > 0}


def simulations(front: Front) -> tuple[Simulation, ...]:
    """Return the ratios of the trials that were both simulated and measured.

    The ratios of p95 and throughput, which are drawn, come before the others.
    """
    values: dict[str, list[tuple[int, float | None, float | None, Interval | None]]] = {}
    for point in front.points:
        if (simulated := point.simulated) is None:
            continue
        of = point.latency_ms
        for name, ours, theirs, interval in (
            ("p95 ratio", simulated.p95_ratio, of.p95_ratio, of.p95_ratio_interval),
            (
                "throughput ratio",
                simulated.throughput_ratio,
                point.throughput_ratio,
                point.throughput_ratio_interval,
            ),
            ("p50 ratio", simulated.p50_ratio, of.p50_ratio, of.p50_ratio_interval),
            ("p99 ratio", simulated.p99_ratio, of.p99_ratio, of.p99_ratio_interval),
            ("service p50 ratio", simulated.service_p50_ratio, of.service_p50_ratio, of.service_p50_ratio_interval),
            ("capacity ratio", simulated.capacity_ratio, point.capacity_ratio, point.capacity_ratio_interval),
        ):
            values.setdefault(name, []).append((point.trial, ours, theirs, interval))
    found = []
    for name, known in values.items():
        kept = [(trial, ours, theirs, interval) for trial, ours, theirs, interval in known if ours and theirs]
        if kept:
            trials, simulated_ratios, measured, intervals = zip(*kept, strict=True)
            known_to = tuple(interval for interval in intervals if interval is not None)
            found.append(Simulation(name, trials, simulated_ratios, measured, known_to))
    return tuple(found)


def drawn_simulations(found: Sequence[Simulation]) -> list[Simulation]:
    """Return those of p95 and throughput."""
    return [one for one in found if one.name in _DRAWN]


SIMULATION_COLUMNS: tuple[Column[Simulation], ...] = (
    Column("ratio to the baseline", lambda of: Cell(of.name), "left"),
    Column("trials", lambda of: Cell(str(len(of.trials)))),
    Column("measured over simulated, median", lambda of: number(of.correction, times)),
    Column("so corrected, half of the simulations are within", lambda of: number(of.error, percent)),
    Column("and half of the measured are known to", lambda of: number(of.uncertainty, percent)),
)


def early_sentence(front: Front) -> str:
    """Say how many trainings were stopped after their first epochs, and how often that would have been wrong."""
    prunable = {row.weights for row in front.rows if row.early is not None and row.early.prunable}
    if not prunable:
        return ""
    exported = {row.weights for row in front.rows if row.widths}  # at the end of their training
    entered = {row.weights for row in front.rows if row.on_front}
    on = prunable & exported
    stopped = len(prunable - on)
    return (
        f"After their first epochs {count(stopped, 'training')} {_were(stopped)} stopped; {len(on)} of no better "
        f"prospects went on, to see whether stopping is wrong, and {len(on & entered)} of them entered the front."
    )


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def effort_figure(front: Front) -> Description:
    """Describe a bar of the workers' seconds for each stage."""
    seconds = seconds_by_stage(front)
    names = [*seconds][::-1]
    texts = [f"{seconds[name]:,.0f} s" for name in names]
    trace = {
        "type": "bar",
        "orientation": "h",
        "x": [seconds[name] for name in names],
        "y": names,
        "text": texts,
        "textposition": "outside",
        "cliponaxis": False,
        "marker": {"color": PALETTE[3]},
        "hoverinfo": "skip",
    }
    layout = {
        **LOOK,
        "height": 60 + 34 * len(names),
        "margin": {"l": 230, "r": 64, "t": 8, "b": 44},
        "xaxis": {**GRID, "title": {"text": "seconds of the workers"}},
        "yaxis": {"automargin": True},
    }
    return {"data": [trace], "layout": layout}


def simulation_figure(found: Sequence[Simulation]) -> Description:
    """Describe measured over simulated values of one or two ratios on logarithmic axes.

    A line shows where both are equal.
    """
    ends = [value for one in found for value in (*one.simulated, *one.measured)]
    low, high = 0.8 * min(ends), 1.25 * max(ends)
    line = {
        "type": "scatter", "mode": "lines", "x": [low, high], "y": [low, high], "name": "equal", "hoverinfo": "skip",
        "line": {"color": MUTED, "dash": "dot", "width": 1.3},
    }  # fmt: skip
    marks = [
        {
            "type": "scatter", "mode": "markers", "name": one.name, "x": one.drawn.simulated, "y": one.drawn.measured,
            "hovertext": [f"trial {trial}" for trial in one.drawn.trials], "hoverinfo": "text+x+y",
            "marker": {"size": 10, "symbol": symbol, "color": colour, "line": {"width": 1, "color": INK}},
        }
        for one, symbol, colour in zip(found, ("circle", "diamond"), (PALETTE[1], PALETTE[3]), strict=False)
    ]  # fmt: skip
    steps = log_steps(low, high)
    axis = {**GRID, "type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": steps,
            "ticktext": [times(step) for step in steps], "gridcolor": FAINT}  # fmt: skip
    layout = {
        **LOOK,
        "height": 420,
        "margin": {"l": 64, "r": 16, "t": 40, "b": 56},
        "xaxis": {**axis, "title": {"text": "simulated"}},
        "yaxis": {**axis, "title": {"text": "measured"}},
        "legend": LEGEND,
        "hoverlabel": HOVER,
    }
    return {"data": [line, *marks], "layout": layout}
