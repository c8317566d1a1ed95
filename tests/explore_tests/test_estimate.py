"""The estimated number of trials in a budget, against studies that were run."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from objectives.records import Outcome, SimulatedRatios
from search.explore.estimate import StageSeconds, observed, remaining_gain, stages_reached, trials_in
from tests.search_tests.measurements import complete_outcome


def test_the_range_holds_the_trials_of_the_first_long_study() -> None:
    """The range holds the 114 trials of the first study, which took 10 minutes on two cores.

    Eight of them were measured. Of 984 worker-seconds, 42% were fits of 78 weights, 11% exports, 10% evaluation and 36%
    benchmarks. The former estimate had every trial benchmarked.
    """
    timing, cost = 0.36 * 984, 2.0
    stages = StageSeconds(
        fit=0.42 * 984 / 78, export=0.11 * 984 / 114, evaluate=0.10 * 984 / 114, cost=cost,
        time=(timing - 106 * cost) / 8,
    )  # fmt: skip
    found = trials_in(600, stages, builders=2)
    assert found.fewest <= 114 <= found.most < 7 * found.fewest
    former = 600 / (stages.time + (stages.fit + stages.export) / 2)
    assert former < 114 / 3
    assert found.sentence == f"{found.fewest} to {found.most} trials"


def test_the_remaining_gain_is_exact_of_a_logarithm_and_no_more_than_the_cube_has() -> None:
    """The hypervolume 0.1 + 0.05 ln t after t seconds ends, after 600, where the rest of the curve does."""

    def curve(seconds: float) -> float:
        return 0.1 + 0.05 * math.log(seconds)

    for spent in (151.0, 300.0, 599.0):
        gain = remaining_gain(curve(spent), curve(spent / 2), spent, 600.0)
        assert gain is not None and curve(spent) + gain == pytest.approx(curve(600.0))
    assert remaining_gain(0.4, 0.4, 200.0, 600.0) == 0.0, "nothing was found since"
    assert remaining_gain(0.9, 0.0, 200.0, 600.0) == pytest.approx(0.1)
    assert remaining_gain(0.4, 0.2, 700.0, 600.0) == 0.0, "the time is over"
    assert remaining_gain(0.4, 0.2, 149.0, 600.0) is None, "too early"
    assert remaining_gain(0.4, 0.2, 0.0, 0.0) is None


def simulated(seconds: float, stages: StageSeconds, stopped: float, seed: int) -> tuple[int, list[Outcome]]:
    """Run one builder and one meter by turns: trials that end in so many seconds, and their outcomes."""
    random, clock, ended = np.random.default_rng(seed), 0.0, list[Outcome]()
    complete = complete_outcome()
    while clock < seconds:
        drawn = {name: float(getattr(stages, name) * random.uniform(0.5, 1.5)) for name in vars(stages)}
        out = random.random() < stopped
        spent = {"fit": drawn["fit"], "export": drawn["export"], "judge": drawn["evaluate"]}
        spent |= {"cost": drawn["cost"], "time": 0.0 if out else drawn["time"]}
        clock += max(spent["fit"] + spent["export"], spent["judge"]) + spent["cost"] + spent["time"]
        ended.append(
            Outcome("stopped", "outrun", None, complete.artifact, spent) if out else replace(complete, seconds=spent)
        )
    return len(ended), ended


@pytest.mark.parametrize("stopped", [0.2, 0.6, 0.9])
def test_what_a_study_has_shown_narrows_the_range(stopped: float) -> None:
    stages = StageSeconds(fit=8.0, export=1.0, evaluate=0.5, cost=2.0, time=12.0)
    wide = trials_in(1200, stages, 1)
    later = float(np.median([simulated(1200, stages, stopped, 1000 + seed)[0] for seed in range(40)]))
    held = 0
    for seed in range(40):
        seen = observed(simulated(600, stages, stopped, seed)[1])
        assert seen is not None and seen.stages.time == pytest.approx(12, rel=0.6)
        narrow = trials_in(1200, seen.stages, 1, seen.stopped_interval)
        assert narrow.most / narrow.fewest < wide.most / wide.fewest
        held += narrow.fewest <= later <= narrow.most
    assert held >= 30


def test_a_few_trials_show_nothing() -> None:
    assert observed([complete_outcome()] * 30) is None, "none was stopped"
    assert observed([complete_outcome(), Outcome("stopped", "x", None, complete_outcome().artifact)]) is None


def test_candidates_are_counted_by_how_far_they_came() -> None:
    complete = complete_outcome()
    assert complete.measurement is not None
    cost = SimulatedRatios(2.0, 0.5, 2.0, 2.0, 2.0, 0.5)
    evaluated = replace(
        complete, state="stopped", reason="it lost", measurement=None, quality=complete.measurement.quality
    )
    outcomes = [complete, complete, evaluated, Outcome("stopped", "slow", simulated=cost), Outcome("failed", "x")]
    assert stages_reached(outcomes) == "4 costed, 3 evaluated, 2 benchmarked"
