"""Samplers on the recorded study: hypervolume by the minutes of a search, over many seeds.

    python tests/benchmarks/learning.py [--seeds 20] [--samplers auto,657676f,tpe,nsga3,random] [--minutes 10]
                                        [--processes 2] [--noise 0.4] [--picture docs/learning.svg] [--record DIR]

Each search is replayed as it is, with all its rules (`tests/recorded_study_tests/replay.py`), but for the final
benchmark. `657676f` is the search of that commit with its own rules (`tests/recorded_study_tests/earlier_version.py`),
while `tpe` is optuna's sampler within the rules of today.

Printed: the median hypervolume after 2, 5 and 10 minutes, in how many seeds the first sampler is above each other one
then, the candidates that were costed, evaluated and benchmarked, and after how many minutes the first has what another
has in the end, by its median; and what the first expects of the rest of its time beside what it gains then. The record
is the committed one, or that of `record_study.py --into DIR`. The picture needs kaleido and Chromium.

With `--noise`, each visit errs by a normal number of that deviation in the logarithm of each ratio, and what counts is
the recorded hypervolume of the front that the search expects, as a final benchmark without error would find it. That
may fall, so nothing is said of when it is reached. `657676f` is replayed without errors only, and left out then.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import get_args

import numpy as np
import optuna
import plotly.graph_objects as go
from optuna.storages import InMemoryStorage

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from search.config.sections import SamplerName
from search.explore.estimate import remaining_gain
from search.front import Floats
from tests.recorded_study_tests.earlier_version import EarlierVersion
from tests.recorded_study_tests.replay import Replay
from tests.recorded_study_tests.table import FOLDER, RecordedStudy, read_recorded_study

MOMENTS = (2.0, 5.0, 10.0)
# Minutes after which the expected gain of the rest is compared.
GAIN_MOMENTS = (3.0, 5.0, 7.5)
# Seconds of a proposal, about what `proposals.py` measures.
ASK_SECONDS = {"auto": 0.1}
_OTHERS_ASK_SECONDS = 0.02
EARLIER_VERSION = "657676f"
_COLOURS = {
    "auto": "#d62728",
    EARLIER_VERSION: "#8c564b",
    "tpe": "#1f77b4",
    "nsga3": "#2ca02c",
    "gp": "#9467bd",
    "random": "#7f7f7f",
}


@dataclass(frozen=True)
class Curve:
    """Hypervolume of one search by minute, and its numbers of costed, evaluated and benchmarked candidates."""

    sampler: str
    seed: int
    hypervolume: tuple[float, ...]
    counts: tuple[int, int, int]


@cache
def recorded(folder: Path) -> RecordedStudy:
    return read_recorded_study(folder)


def searched(sampler: SamplerName, seed: int, minutes: Sequence[float], noise: float | None, record: Path) -> Curve:
    """Replay a search of the study in a folder until the last of the minutes; `noise` as in `Replay`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ask_seconds = ASK_SECONDS.get(sampler, _OTHERS_ASK_SECONDS)
    replay = Replay(recorded(record), sampler, seed, InMemoryStorage(), ask_seconds, noise=noise)
    replay.run(minutes[-1])
    volume = replay.hypervolume if noise is None else replay.recorded_hypervolume
    outcomes = [trial.outcome for trial in replay.ended if trial.number > 0]
    counts = (
        sum(outcome.informative for outcome in outcomes),
        sum(outcome.evaluated is not None for outcome in outcomes),
        sum(outcome.measurement is not None for outcome in outcomes),
    )
    return Curve(sampler, seed, tuple(volume(minute) for minute in minutes), counts)


def earlier_version(seed: int, minutes: Sequence[float], record: Path) -> Curve:
    """Replay a search by the rules of commit 657676f, as `searched` does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    replay = EarlierVersion(recorded(record), seed, _OTHERS_ASK_SECONDS)
    replay.run(minutes[-1])
    ended = [trial for trial in replay.ended if trial.number > 0]
    benchmarked = sum(trial.benchmarked for trial in ended)
    counts = sum(trial.quick_benchmarked or trial.benchmarked for trial in ended), len(ended), benchmarked
    return Curve(EARLIER_VERSION, seed, tuple(replay.hypervolume(minute) for minute in minutes), counts)


def gain_sentence(sampler: str, curves: Floats, minutes: Sequence[float], at: int) -> str:
    """Compare the gain that a search expects of the rest of its time with what it gains.

    Args:
        curves: (seeds, minutes) hypervolume
        at: place of the minute
    """
    half, now = minutes.index(minutes[at] / 2), minutes[at]
    expected = np.array([remaining_gain(row[at], row[half], now, minutes[-1]) for row in curves], dtype=np.float64)
    gained = curves[:, -1] - curves[:, at]
    apart, end = np.abs(expected - gained), minutes[-1]
    return (
        f"{sampler} after {now:g} min: {np.median(expected):+.3f} expected of the rest and {np.median(gained):+.3f} "
        f"gained by minute {end:g} in the median; apart by {np.median(apart):.3f}, nine in ten by at most "
        f"{np.quantile(apart, 0.9):.3f}"
    )


def picture(found: dict[str, Floats], minutes: Sequence[float], file: Path) -> None:
    """Draw the median of each sampler with the quartiles of its seeds."""
    figure = go.Figure()
    for name, table in found.items():
        low, middle, high = np.quantile(table, (0.25, 0.5, 0.75), axis=0)
        colour = _COLOURS[name]
        area = go.Scatter(
            x=[*minutes, *reversed(minutes)],
            y=[*high, *low[::-1]],
            fill="toself",
            fillcolor=colour,
            opacity=0.15,
            line_width=0,
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_traces([area, go.Scatter(x=list(minutes), y=middle, name=name, line_color=colour)])
    figure.update_layout(
        template="plotly_white",
        width=760,
        height=420,
        margin={"l": 60, "r": 20, "t": 20, "b": 50},
        xaxis_title="minutes of search",
        yaxis_title=f"hypervolume: median and quartiles of {len(next(iter(found.values())))} seeds",
        yaxis_rangemode="tozero",
    )
    figure.write_image(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--samplers")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--noise", type=float)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--record", type=Path, default=FOLDER)
    options = parser.parse_args()
    if options.picture is not None and find_spec("kaleido") is None:
        parser.error("--picture needs kaleido, which is not installed")
    if options.samplers is None:
        options.samplers = (
            f"auto,{EARLIER_VERSION},tpe,nsga3,random" if options.noise is None else "auto,tpe,nsga3,random"
        )
    samplers = options.samplers.split(",")
    offered = (*get_args(SamplerName), EARLIER_VERSION)
    if unknown := set(samplers) - set(offered):
        parser.error(f"--samplers must be among {', '.join(offered)}, but got {', '.join(unknown)}")
    if options.noise is not None and EARLIER_VERSION in samplers:
        parser.error(f"--noise must be left out with {EARLIER_VERSION}, whose visits are replayed without errors")
    minutes = [step / 4 for step in range(1, int(4 * options.minutes) + 1)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=context) as pool:
        jobs = [
            pool.submit(earlier_version, seed, minutes, options.record)
            if name == EARLIER_VERSION
            else pool.submit(searched, name, seed, minutes, options.noise, options.record)
            for seed in range(options.seeds)
            for name in samplers
        ]
        curves = []
        for job in jobs:
            curves.append(job.result())
            print(f"{len(curves)} of {len(jobs)}", end="\r", file=sys.stderr, flush=True)
    found = {name: np.array([c.hypervolume for c in curves if c.sampler == name]) for name in samplers}
    moments = [minutes.index(moment) for moment in MOMENTS if moment in minutes]
    print(
        f"{'sampler':<10}"
        + "".join(f"{f'{minutes[at]:g} min':>10}" for at in moments)
        + "   costed, evaluated, benchmarked"
    )
    for name, table in found.items():
        counts = np.median([c.counts for c in curves if c.sampler == name], axis=0)
        values = "".join(f"{np.median(table[:, at]):>10.3f}" for at in moments)
        print(f"{name:<10}{values}   {', '.join(f'{count:.0f}' for count in counts)}")
    for name in samplers[1:]:
        ours, theirs = found[samplers[0]], found[name]
        above = ", ".join(
            f"{(ours[:, at] > theirs[:, at]).sum()} of {options.seeds} after {minutes[at]:g} min" for at in moments
        )
        aim = np.median(theirs[:, -1])
        reached = [next((m for m, v in zip(minutes, row, strict=True) if v >= aim), np.inf) for row in ours]
        when = "" if options.noise is not None else f"; has its last median after {median(reached):g} min in the median"
        print(f"{samplers[0]} above {name}: {above}{when}")
    for moment in GAIN_MOMENTS:
        if options.noise is None and options.minutes / 4 < moment < options.minutes:
            print(gain_sentence(samplers[0], found[samplers[0]], minutes, minutes.index(moment)))
    if options.picture is not None:
        picture(found, minutes, options.picture)


if __name__ == "__main__":
    main()
