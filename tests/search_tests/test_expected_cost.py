"""What is expected of measured trials: a measurement and a simulation, each with an error, against the known truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from objectives.records import Interval, SimulatedRatios
from search.expected_cost import expected_costs
from search.trials import EndedTrial, log_deviations
from spaces.candidate import Candidate
from spaces.techniques.quantization import Precision
from tests.search_tests.measurements import complete_outcome

OBJECTIVES = ("latency_p95", "throughput", "quality")
# Deviations of the logarithms: of what a visit measures, and of what is simulated.
VISIT, SIMULATION = 0.4, 0.3


def around(ratio: float, deviation: float) -> Interval:
    return ratio * math.exp(-1.96 * deviation), ratio * math.exp(1.96 * deviation)


def trial(number: int, p95: float, simulated: float | None, deviation: float = VISIT) -> EndedTrial:
    """A trial of as much throughput as its p95 is low."""
    candidate = Candidate() if number == 0 else Candidate(precision=Precision((("mlp", "int8-dynamic"),)))
    outcome = complete_outcome(p95, 1 / p95)
    measured = outcome.measurement
    assert measured is not None
    latency = replace(measured.latency, p95_ratio_interval=around(p95, deviation))
    throughput = replace(measured.throughput, ratio_interval=around(1 / p95, deviation))
    told = None
    if simulated is not None:
        told = SimulatedRatios(simulated, 1 / simulated, simulated, simulated, simulated, 1 / simulated)
    outcome = replace(outcome, measurement=replace(measured, latency=latency, throughput=throughput), simulated=told)
    return EndedTrial(number, candidate, outcome, 0.0)


def drawn(count: int, seed: int) -> tuple[list[EndedTrial], dict[int, float]]:
    """Draw trials and their true p95 ratios; simulations are all too low by a fifth besides their errors."""
    random = np.random.default_rng(seed)
    truth = random.uniform(0.2, 0.8, count)
    measured = truth * np.exp(random.normal(0, VISIT, count))
    simulated = 0.8 * truth * np.exp(random.normal(0, SIMULATION, count))
    trials = [trial(n, *each) for n, each in enumerate(zip(measured.tolist(), simulated.tolist(), strict=True), 1)]
    return trials, dict(enumerate(truth.tolist(), 1))


def errors(found: dict[int, float], truth: dict[int, float]) -> Sequence[float]:
    return [math.log(found[number] / truth[number]) for number in truth]


def test_what_is_expected_is_as_close_to_the_truth_as_can_be() -> None:
    """With known variances the mean squared error of the best estimate is the inverse of the sum of their inverses."""
    trials, truth = drawn(4000, 0)
    expected = {number: float(values[0]) for number, values in expected_costs(trials, OBJECTIVES).measured.items()}
    best = 1 / (1 / VISIT**2 + 1 / SIMULATION**2)
    assert np.square(errors(expected, truth)).mean() == pytest.approx(best, rel=0.1)


def test_the_best_of_many_is_not_expected_to_be_as_lucky_as_it_was() -> None:
    """The lowest of forty measured values is far too low on average; the lowest of what is expected by half of that."""
    measured_bias, expected_bias = [], []
    for seed in range(100):
        trials, truth = drawn(40, seed)
        measured = {one.number: one.measurement.latency.p95_ratio for one in trials if one.measurement}
        expected = {number: float(values[0]) for number, values in expected_costs(trials, OBJECTIVES).measured.items()}
        for bias, found in ((measured_bias, measured), (expected_bias, expected)):
            best = min(found, key=lambda number: found[number])
            bias.append(math.log(found[best] / truth[best]))
    assert np.mean(measured_bias) < -0.5 and np.mean(expected_bias) == pytest.approx(
        np.mean(measured_bias) / 2, abs=0.1
    )


def test_the_errors_of_simulations_are_told_without_those_of_the_measurements() -> None:
    trials, _ = drawn(4000, 1)
    assert expected_costs(trials, OBJECTIVES).deviations.std(axis=0) == pytest.approx([SIMULATION] * 2, rel=0.1)


def test_a_precise_measurement_stays_as_it_is() -> None:
    """A measurement of several visits has a narrow interval; one without an interval, as of bytes, counts as exact."""
    trials = [trial(number, p95, 0.5, deviation=1e-4) for number, p95 in enumerate((0.2, 0.4, 0.8), 1)]
    found = expected_costs(trials, OBJECTIVES).measured
    np.testing.assert_allclose([found[number][0] for number in (1, 2, 3)], [0.2, 0.4, 0.8], rtol=1e-4)
    bytes_too = expected_costs([trial(1, 0.2, None)], ("latency_p95", "model_bytes")).measured
    assert bytes_too[1].tolist() == pytest.approx([0.2, 1000.0])


def test_one_that_was_not_simulated_is_expected_between_its_measurement_and_the_median() -> None:
    trials = [trial(number, p95, None) for number, p95 in enumerate((0.2, 0.7, 0.8, 0.9), 1)]
    found = expected_costs(trials, OBJECTIVES).measured
    median = math.sqrt(0.7 * 0.8)
    assert 0.2 < found[1][0] < median < found[4][0] < 0.9
    few = expected_costs(trials[:2], OBJECTIVES).measured
    assert [few[1][0], few[2][0]] == pytest.approx([0.2, 0.7]), "two say nothing of a third"


def disturbed(number: int, p95: float, simulated: float | None) -> EndedTrial:
    """A trial during whose measurement other processes took a whole core."""
    one = trial(number, p95, simulated)
    assert one.measurement is not None
    busy = replace(one.measurement, latency=replace(one.measurement.latency, busy_share=0.97))
    return replace(one, outcome=replace(one.outcome, measurement=busy))


def test_what_was_measured_beside_a_busy_process_is_expected_where_it_was_simulated() -> None:
    """The others are expected as without it."""
    trials = [trial(number, p95, p95) for number, p95 in enumerate((0.2, 0.4, 0.8), 1)]
    alone = expected_costs(trials, OBJECTIVES)
    for simulated, expected in ((0.07, 0.07), (None, 0.4)):
        found = expected_costs([*trials, disturbed(4, 0.011, simulated)], OBJECTIVES)
        assert found.measured[4] == pytest.approx([expected] * 2)
        for number in (1, 2, 3):
            np.testing.assert_allclose(found.measured[number], alone.measured[number])
        np.testing.assert_allclose(found.correction, alone.correction)
        np.testing.assert_allclose(found.deviations, alone.deviations)


def test_on_a_machine_that_is_always_busy_the_measurements_count() -> None:
    pairs = [(number, p95, p95 / 2) for number, p95 in enumerate((0.2, 0.4, 0.8), 1)]
    found, calm = (expected_costs([make(*pair) for pair in pairs], OBJECTIVES) for make in (disturbed, trial))
    for number in (1, 2, 3):
        np.testing.assert_allclose(found.measured[number], calm.measured[number])
    few = expected_costs([trial(1, 0.5, None), disturbed(2, 0.1, None)], OBJECTIVES).measured
    assert few[2] == pytest.approx([0.1, 0.1]), "nothing else is known of it"


def test_the_baseline_is_as_fast_as_itself() -> None:
    found = expected_costs([trial(0, 1.3, 1.1), trial(1, 0.5, 0.5)], OBJECTIVES).measured
    assert found[0].tolist() == [1.0, 1.0]
    bytes_too = expected_costs([trial(0, 1.3, None)], ("latency_p95", "model_bytes")).measured
    assert bytes_too[0].tolist() == pytest.approx([1, 1000])


def test_one_that_keeps_the_slo_at_no_rate_says_nothing_of_the_others() -> None:
    """Its ratio of throughput is 0, so far from its simulation that a mean of squares would be of nothing else."""
    trials, _ = drawn(20, 2)
    measured = trials[0].measurement
    assert measured is not None
    none = replace(measured, throughput=replace(measured.throughput, ratio=0.0, ratio_interval=(0.0, 0.0)))
    trials[0] = replace(trials[0], outcome=replace(trials[0].outcome, measurement=none))
    found, without = (expected_costs(some, OBJECTIVES).measured for some in (trials, trials[1:]))
    assert found[1][1] == pytest.approx(1000.0)
    for number, values in without.items():
        assert found[number] == pytest.approx(values, rel=0.2)


def test_nothing_measured_is_nothing_expected() -> None:
    assert expected_costs([], OBJECTIVES).measured == {}
    assert expected_costs([trial(1, 0.5, 0.5)], ("quality",)).measured[1].tolist() == []


def test_a_ratio_of_zero_has_no_deviation() -> None:
    """At no rate did it keep the SLO; the lower end of an interval may be 0 where a visit's ratio was."""
    measured = trial(1, 0.5, None).measurement
    assert measured is not None
    assert log_deviations(measured, OBJECTIVES[:2]) == pytest.approx([VISIT, VISIT])
    none = replace(measured, throughput=replace(measured.throughput, ratio=0.0, ratio_interval=(0.0, 0.0)))
    some = replace(measured, throughput=replace(measured.throughput, ratio=1.0, ratio_interval=(0.0, math.e)))
    assert log_deviations(none, ("throughput",)) == [0.0]
    assert log_deviations(some, ("money_per_million",)) == pytest.approx([1 / 1.96])
