"""Screening of candidates that are not worth timing, by numbers made by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.records import Measurement, Quality, SimulatedRatios
from search.config.loss_limits import Limits
from search.expected_cost import expected_costs, refusal, simulated_values
from search.explore.screening import Rival, dominated
from search.trials import EndedTrial, sought
from spaces.candidate import Candidate
from tests.search_tests.measurements import complete_outcome

LIMITS = Limits(0.01)


OBJECTIVES = ("latency_p95", "throughput", "quality")
# Deviations of a simulation that is right.
EXACT = np.zeros((1, 2))


def measured(p95: float, throughput: float, loss: float) -> Measurement:
    found = complete_outcome(p95, throughput, loss).measurement
    assert found is not None
    return found


def why(p95: float, throughput: float, loss: float, front: Mapping[int, Measurement], resolution: float) -> str | None:
    rivals = [Rival(number, sought(m, OBJECTIVES[:2]), m.quality.loss) for number, m in front.items()]
    return dominated([p95, 1 / throughput], loss, rivals, OBJECTIVES, resolution, EXACT)


def quality(low: float, high: float) -> Quality:
    return Quality("auc", 0.8, 0.8, (low + high) / 2, (low, high), 1000, 100)


def test_what_cannot_be_on_the_front_for_its_loss_is_rejected() -> None:
    """The front has no point above a limit, however wide its interval."""
    assert LIMITS.violated(quality(0.0, 0.02)) is None
    for low, high in ((0.0, 0.021), (0.02, 0.04)):
        reason = LIMITS.violated(quality(low, high))
        assert reason is not None and not LIMITS.kept(quality(low, high))
        assert all(f"{number:.2%}" in reason for number in ((low + high) / 2, low, high, 0.01))


@pytest.mark.parametrize(
    ("service", "most", "stopped"),
    [(1.3, 0.7, True), (1.3, 0.9, False), (1.1, 0.2, False), (0.2, 9.0, False), (4.9, 1.4, False)],
)
def test_slower_than_the_baseline_is_slower_in_both(service: float, most: float, stopped: bool) -> None:
    assert (why(service, most, -0.1, {}, 0.0) is not None) == stopped


def test_a_rival_outruns_what_is_slower_and_loses_no_less() -> None:
    rivals = {7: measured(0.2, 5.0, 0.004)}
    told = why(0.4, 3.0, 0.005, rivals, 0.0)
    assert told is not None and "trial 7 is expected at 0.2x p95 and 5x throughput" in told
    assert why(0.4, 3.0, 0.003, rivals, 0.0) is None
    assert why(0.22, 3.0, 0.005, rivals, 0.0) is None
    assert why(0.4, 4.5, 0.005, rivals, 0.0) is None
    gains = why(0.4, 3.0, -0.02, {7: measured(0.2, 5.0, -0.001)}, 0.0)
    assert gains is not None, "a gain over the baseline is not searched for"


def test_a_rival_outruns_what_loses_less_than_it_by_no_more_than_the_data_can_show() -> None:
    rivals = {7: measured(0.2, 5.0, 0.004)}
    assert why(0.4, 3.0, 0.002, rivals, 0.0015) is None
    told = why(0.4, 3.0, 0.002, rivals, 0.0025)
    assert told is not None and "trial 7 is expected at 0.2x p95 and 5x throughput" in told


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(-0.1, 0.1))
def test_nothing_outruns_itself(service: float, most: float, loss: float) -> None:
    told = why(service, most, loss, {3: measured(service, most, loss)}, 0.0)
    assert told is None or "trial" not in told


@pytest.mark.parametrize(("better", "pruned"), [(0, True), (1, True), (2, False), (10, False)])
def test_what_may_be_better_is_kept(better: int, pruned: bool) -> None:
    """Some of ten earlier trials were measured at a third of the p95 that was expected: this one might be at 0.1."""
    seen = np.zeros((10, 2))
    seen[:better, 0] = -np.log(3.0)
    told = dominated([0.3, 0.4], 0.0, [Rival(7, (0.2, 0.2), 0.0)], OBJECTIVES, 0.0, seen)
    assert (told is not None) == pruned


@given(
    st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=30),
    st.lists(st.tuples(st.floats(0.05, 2), st.floats(0.05, 2)), max_size=4),
)
def test_it_is_pruned_where_it_is_worse_in_nine_of_ten_deviations(
    seen: list[tuple[float, float]], measured: list[tuple[float, float]]
) -> None:
    ours, theirs = (0.5, 0.5), [(1.0, 1.0), *measured]
    worse = [
        any(all(our * math.exp(d) > 1.15 * r for our, d, r in zip(ours, row, rival, strict=True)) for rival in theirs)
        for row in seen
    ]
    rivals = [Rival(number, values, 0.0) for number, values in enumerate(measured)]
    told = dominated(ours, 0.0, rivals, OBJECTIVES, 0.0, np.array(seen))
    assert (told is not None) == (sum(worse) / len(worse) >= 0.9)


def test_the_reason_names_the_rivals_that_are_better_together_only() -> None:
    """With each of two errors another rival is better in both objectives."""
    seen = np.log([[1.5, 0.7], [0.7, 1.5]])
    rivals = [Rival(3, (0.6, 0.25), 0.0), Rival(4, (0.25, 0.6), 0.0), Rival(5, (0.6, 0.6), 0.0)]
    told = dominated((0.5, 0.5), 0.0, rivals, OBJECTIVES, 0.0, seen)
    assert told is not None and "with 100% of the errors of simulations, trial 3 or trial 4 is better" in told
    assert dominated((0.5, 0.5), 0.0, rivals[1:], OBJECTIVES, 0.0, seen) is None


def test_two_that_were_simulated_have_a_deviation_each() -> None:
    """A measured rival has no deviation, and a simulated one has its own.

    Half of the earlier candidates were far slower than expected, so a simulated rival may be slow too where the
    candidate is not.
    """
    seen = np.repeat([[2.0, 2.0], [0.0, 0.0]], 5, axis=0)
    expected, values = (0.5, 0.5), (0.1, 0.1)
    assert dominated(expected, 0.0, [Rival(7, values, 0.0)], OBJECTIVES, 0.0, seen) is not None
    assert dominated(expected, 0.0, [Rival(7, values, 0.0, measured=False)], OBJECTIVES, 0.0, seen) is None
    assert dominated(expected, 0.0, [Rival(7, values, 0.0, measured=False)], OBJECTIVES, 0.0, EXACT) is not None


def test_each_objective_that_is_simulated_counts() -> None:
    """An objective may be a latency at another percentile alone, or one that nothing is simulated of."""
    assert dominated([1.3], 0.0, [], ("latency_p99", "quality"), 0.0, EXACT[:, :1]) is not None
    assert dominated([1.1], 0.0, [], ("latency_p99", "quality"), 0.0, EXACT[:, :1]) is None
    ratios = SimulatedRatios(0.1, 8.0, 0.2, 0.3, None, 5.0)
    assert simulated_values(ratios, OBJECTIVES) == (0.3, 0.2)
    assert simulated_values(ratios, ("latency_p50", "money_per_million")) == (0.2, 0.2)
    assert simulated_values(ratios, ("latency_p99", "quality")) == (10.0,), "it lies among the refused"
    assert refusal(ratios, ("latency_p99",)) == "simulated to refuse so many requests that p99 is among them"
    assert refusal(ratios, OBJECTIVES) is None
    assert simulated_values(replace(ratios, throughput_ratio=None), OBJECTIVES) is None
    assert simulated_values(ratios, ("latency_p95", "model_bytes")) is None, "of an earlier version"
    assert simulated_values(replace(ratios, model_bytes=500), ("model_bytes", "latency_p95")) == (500, 0.3)
    assert simulated_values(replace(ratios, model_bytes=500), ("model_bytes", "peak_memory_bytes")) is None
    assert simulated_values(ratios, ("quality",)) is None, "nothing to be dominated in"


def test_bytes_are_known_and_need_no_margin() -> None:
    """A file that is no smaller makes no candidate worse by itself, and one that is 2% smaller is better."""
    objectives, rivals = ("latency_p95", "model_bytes", "quality"), [Rival(7, (0.5, 0.8), 0.0)]
    told = dominated([0.6, 0.8], 0.0, rivals, objectives, 0.0, EXACT)
    assert told is not None and "trial 7 is expected at 0.5x p95 and 0.8x bytes at no higher loss" in told
    assert dominated([0.6, 0.78], 0.0, rivals, objectives, 0.0, EXACT) is None
    assert dominated([0.55, 0.8], 0.0, rivals, objectives, 0.0, EXACT) is None, "within the margin"
    assert dominated([0.55, 1.0], 0.0, rivals, objectives, 0.0, EXACT) is None, "which holds for the p95 as before"
    assert dominated([0.8], 0.0, [Rival(7, (0.8,), 0.0)], ("model_bytes", "quality"), 0.0, EXACT[:, :1]) is None
    assert dominated([1.0], 0.0, [Rival(7, (0.8,), 0.0)], ("model_bytes", "quality"), 0.0, EXACT[:, :1]) is not None
    assert expected_costs([], objectives).deviations.tolist() == [[-0.45, 0.0], [0.45, 0.0]], (
        "a file is as large as it is"
    )


def test_simulated_values_are_corrected_by_the_median_ratio_of_what_was_measured() -> None:
    trials = [
        EndedTrial(number, Candidate(), replace(complete_outcome(times * 0.1, 8.0), simulated=simulated), 0.0)
        for number, times in enumerate((1.0, 1.5, 4.0))
        for simulated in [SimulatedRatios(0.1, 8.0, 0.1, 0.1, 0.1, 10.0)]
    ]
    np.testing.assert_allclose(expected_costs(trials, OBJECTIVES).correction, [1.5, 1.25])
    np.testing.assert_allclose(expected_costs([], OBJECTIVES).correction, [1.0, 1.0])
    few = [[-0.45, -0.45], [0.45, 0.45]]
    np.testing.assert_allclose(
        expected_costs(trials, OBJECTIVES).deviations,
        [*np.log([[2 / 3, 1], [1, 1], [8 / 3, 1]]).tolist(), *few],
        rtol=5e-3,
    )
    assert expected_costs([], OBJECTIVES).deviations.tolist() == few
    assert len(expected_costs(trials[:2] * 5, OBJECTIVES).deviations) == 10, "ten speak for themselves"
    refused = replace(trials[0].outcome, simulated=SimulatedRatios(0.1, 8.0, 0.1, None, None, 10.0))
    refusing = [*trials, replace(trials[0], outcome=refused)]
    np.testing.assert_allclose(expected_costs(refusing, OBJECTIVES).correction, [1.5, 1.25])
