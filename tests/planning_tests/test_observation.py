"""Observation of logs whose rates are planted by hour and weekday."""

from __future__ import annotations

import datetime

import numpy as np
import pytest

from planning.demand import Floats
from planning.hours_of_week import WEEKDAYS
from planning.observation.traffic import observe

HOUR = 3600
# Monday.
START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC).timestamp()


def planted(rates: Floats, seed: int = 0) -> Floats:
    """Poisson arrivals of hours at given rates; the first is at second 0, the last in the last second."""
    random = np.random.default_rng(seed)
    counts = random.poisson(HOUR * rates)
    seconds = np.sort(HOUR * (np.repeat(np.arange(len(rates)), counts) + random.random(counts.sum())))
    return np.concatenate([[0.0], seconds, [HOUR * len(rates) - 1e-3]])


def test_hours_of_two_weeks_have_their_rates() -> None:
    rates = 0.2 + 0.002 * (np.arange(14 * 24) % (7 * 24))
    rates[7 * 24 :] *= 2
    seconds = planted(rates)
    found = observe(seconds, None, START)
    assert found.clock == "utc" and len(found.hours) == 7 * 24
    for number, hour in enumerate(found.hours):
        assert (hour.weekday, hour.hour) == divmod(number, 24)
        assert hour.hours == pytest.approx(2, abs=0.04)
        at = datetime.datetime.fromtimestamp(START + number * HOUR, datetime.UTC)
        assert WEEKDAYS[hour.weekday] == f"{at:%A}"
        assert hour.mean_rps == pytest.approx((rates[number] + rates[number + 7 * 24]) / 2, rel=0.2)
        assert hour.mean_rps < hour.p95_rps
    assert sum(hour.requests for hour in found.hours) == pytest.approx(len(seconds), abs=400), (
        "the last minute is not whole"
    )
    assert found.mean_rps == pytest.approx(rates.mean(), rel=0.01)
    assert found.peak_to_mean > 2


@pytest.mark.parametrize("length_s", [0.5, 10.0, 60.0])
def test_a_log_of_less_than_a_minute_has_the_rate_of_its_length(length_s: float) -> None:
    """Arrivals at 100 requests/s; the only minute, or part of one, is the busiest."""
    found = observe(np.linspace(0.0, length_s, round(100 * length_s) + 1), None, START)
    rates = found.mean_rps, found.peak_rps, found.p95_rps, found.hours[0].mean_rps
    assert rates == pytest.approx([100.0] * 4, rel=0.025) and found.peak_to_mean == pytest.approx(1, rel=0.025)
    assert found.hours[0].hours == pytest.approx(length_s / 3600)


def test_a_log_that_begins_on_a_friday_evening() -> None:
    friday = START + (4 * 24 + 22) * HOUR
    found = observe(planted(np.ones(4)), None, friday)
    assert [(hour.weekday, hour.hour) for hour in found.hours] == [(4, 22), (4, 23), (5, 0), (5, 1)]
    relative = observe(planted(np.ones(2)), None, None)
    assert [(hour.weekday, hour.hour) for hour in relative.hours] == [(0, 0), (0, 1)]
    assert relative.clock == "since the first request"


def test_burstiness_is_told_from_a_rate_that_changes() -> None:
    """Poisson arrivals have 1 in each measure; a rate that changes from hour to hour raises that of the whole only."""
    steady = observe(planted(np.full(4, 5.0)), None, START)
    assert (steady.gap_cv, steady.gap_cv_within, steady.dispersion) == pytest.approx((1, 1, 1), abs=0.05)
    changing = observe(planted(np.array([0.3, 30.0] * 2)), None, START)
    assert changing.gap_cv > 2 and changing.gap_cv_within == pytest.approx(1, abs=0.05)
    assert [hour.dispersion for hour in changing.hours] == pytest.approx([1] * 4, abs=0.1)
    bursty = observe(np.repeat(planted(np.full(2, 2.0)), 5)[2:] - 0.0, None, START)
    assert bursty.dispersion == pytest.approx(5, abs=0.3) and bursty.gap_cv_within > 2


def test_rows_are_summarised() -> None:
    random = np.random.default_rng(0)
    seconds = planted(np.full(3, 3.0))
    rows = np.maximum(1, np.rint(200 * np.exp(0.6 * random.normal(size=len(seconds))))).astype(np.int64)
    found = observe(seconds, rows, START).rows
    assert found is not None
    assert (found.median, found.sigma) == (pytest.approx(200, rel=0.03), pytest.approx(0.6, abs=0.03))
    assert found.max == rows.max() and found.p95 == pytest.approx(np.percentile(rows, 95))
