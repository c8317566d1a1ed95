"""Demand and burstiness of logs whose rates are planted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from objectives.measurement.request_log import RequestLog
from planning.demand import Demand, Workload, demand_of, unit_gaps


def test_whole_phases_are_counted() -> None:
    log = RequestLog(np.array([0.0, 1.0, 9.9, 10.0, 25.0, 31.0]), start_s=1.7e9)
    found = demand_of(log, 10.0)
    assert found.counts.tolist() == [3, 1, 1]
    assert found.rates_rps.tolist() == [0.3, 0.1, 0.1]
    before, after = found.split(2)
    assert (before.counts.tolist(), after.counts.tolist(), after.start_s) == ([3, 1], [1], 1.7e9 + 20)
    with pytest.raises(ValueError, match="one phase"):
        demand_of(log, 60.0)


def test_a_demand_at_a_rate_has_that_rate() -> None:
    """The rate may be far below a request in a phase, where whole numbers of requests would be none."""
    found = Demand(np.array([0.0, 1.0, 3.0]), 60.0, 5.0).at_rate(1e-6)
    assert found.rates_rps.tolist() == pytest.approx([0.0, 0.75e-6, 2.25e-6]) and found.start_s == 5.0


def test_a_rate_that_changes_by_phase_leaves_poisson_gaps() -> None:
    """Time-rescaling: gaps of a Poisson process on the clock of its own rate are exponential."""
    random = np.random.default_rng(0)
    counts = random.poisson(np.tile([50, 400, 2000], 20))
    seconds = np.sort(60 * (np.repeat(np.arange(60), counts) + random.random(counts.sum())))
    gaps = unit_gaps(seconds - seconds[0], 60.0)
    assert gaps.mean() == pytest.approx(1, abs=0.01)
    assert kstest(gaps, "expon").pvalue > 0.01
    raw = np.diff(seconds)
    assert kstest(raw / raw.mean(), "expon").pvalue < 1e-6, "on the wall clock they are not"


def test_bursts_within_phases_are_kept() -> None:
    """Planted: pairs of requests at one moment."""
    seconds = np.repeat(np.arange(1000.0), 2)
    gaps = unit_gaps(seconds, 100.0)
    assert gaps[::2].max() == pytest.approx(0, abs=1e-9) and gaps[1::2].mean() == pytest.approx(2, rel=0.01)
    played, rows = Workload(gaps, np.array([7])).draw(10.0, 1001, 3)
    assert (np.diff(played) < 1e-9).sum() == pytest.approx(500, abs=1)
    assert len(played) / played[-1] == pytest.approx(10, rel=0.01) and set(rows.tolist()) == {7}


def test_a_phase_that_ends_with_the_log_has_gaps_of_its_own_rate() -> None:
    """Poisson arrivals at one rate, of which the last phase holds a fifth of its length."""
    seconds = np.random.default_rng(0).exponential(0.01, 100_000).cumsum()
    seconds = seconds[seconds < 840.0]
    gaps = unit_gaps(seconds, 200.0)
    assert gaps[-3000:].mean() == pytest.approx(1, abs=0.06) and gaps[:3000].mean() == pytest.approx(1, abs=0.06)


def test_phases_of_a_day_are_a_whole_number_or_none() -> None:
    per_day = {seconds: Demand(np.ones(3), seconds).per_day for seconds in (86_400.0, 3600.0, 0.1, 3000.0, 7.0)}
    assert per_day == {86_400.0: 1, 3600.0: 24, 0.1: 864_000, 3000.0: 0, 7.0: 0}


def test_wrong_demands_are_refused() -> None:
    for counts, phase_s in ((np.array([], int), 1.0), (np.array([-1]), 1.0), (np.array([1]), 0.0)):
        with pytest.raises(ValueError):
            Demand(counts, phase_s)
    with pytest.raises(ValueError):
        Workload(np.array([1.0]), np.array([0]))
