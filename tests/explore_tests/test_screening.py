"""Screening of candidates that are not worth timing, by numbers made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.records import Measurement, Quality, QuickBenchmark
from search.config.loss_limits import Limits
from search.explore.screening import dominated
from tests.search_tests.measurements import complete_outcome

LIMITS = Limits(0.01)


def measured(service: float, most: float, loss: float) -> Measurement:
    found = complete_outcome(loss=loss).measurement
    assert found is not None
    return replace(
        found,
        latency=replace(found.latency, service_p50_ratio=service),
        throughput=replace(found.throughput, capacity_ratio=most),
    )


def quality(low: float, high: float) -> Quality:
    return Quality("auc", 0.8, 0.8, (low + high) / 2, (low, high), 1000, 100)


def test_only_a_whole_interval_beyond_the_tolerated_loss_loses() -> None:
    assert LIMITS.lost(quality(0.0, 0.1)) is None
    assert LIMITS.lost(quality(0.01, 0.1)) is None
    reason = LIMITS.lost(quality(0.02, 0.04))
    assert reason is not None and all(number in reason for number in ("3.00%", "2.00%", "4.00%", "1.00%"))


@pytest.mark.parametrize(
    ("service", "most", "stopped"),
    [(1.3, 0.7, True), (1.3, 0.9, False), (1.2, 0.2, False), (0.2, 9.0, False), (4.9, 1.4, False)],
)
def test_slower_than_the_baseline_is_slower_in_both(service: float, most: float, stopped: bool) -> None:
    assert (dominated(QuickBenchmark(service, most), -0.1, {}, 0.0) is not None) == stopped


def test_a_rival_outruns_what_is_slower_and_loses_no_less() -> None:
    rivals = {7: measured(0.2, 5.0, 0.004)}
    told = dominated(QuickBenchmark(0.4, 3.0), 0.005, rivals, 0.0)
    assert told is not None and "trial 7 has 0.2x and 5x" in told
    assert dominated(QuickBenchmark(0.4, 3.0), 0.003, rivals, 0.0) is None
    assert dominated(QuickBenchmark(0.24, 3.0), 0.005, rivals, 0.0) is None
    assert dominated(QuickBenchmark(0.4, 4.5), 0.005, rivals, 0.0) is None
    gains = dominated(QuickBenchmark(0.4, 3.0), -0.02, {7: measured(0.2, 5.0, -0.001)}, 0.0)
    assert gains is not None, "a gain over the baseline is not searched for"


def test_a_rival_outruns_what_loses_less_than_it_by_no_more_than_the_data_can_show() -> None:
    rivals = {7: measured(0.2, 5.0, 0.004)}
    assert dominated(QuickBenchmark(0.4, 3.0), 0.002, rivals, 0.0015) is None
    told = dominated(QuickBenchmark(0.4, 3.0), 0.002, rivals, 0.0025)
    assert told is not None and "trial 7 has 0.2x and 5x" in told


@given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(-0.1, 0.1))
def test_nothing_outruns_itself(service: float, most: float, loss: float) -> None:
    told = dominated(QuickBenchmark(service, most), loss, {3: measured(service, most, loss)}, 0.0)
    assert told is None or "trial" not in told
