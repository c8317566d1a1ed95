"""Batch means against brute force, their interval against SciPy and by its coverage on correlated series."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from objectives.measurement.statistics import Floats
from objectives.shadow.batch_means import BATCHES, BatchMeans, mean_interval, t_quantile

# Simulated shadowings, looks at each, requests of a window.
RUNS, LOOKS, REQUESTS = 150, 5, 40
WINDOWS = BATCHES * 2 ** (LOOKS - 1)


def batched(values: Floats) -> BatchMeans:
    found = BatchMeans()
    for value in values.tolist():
        found = found.with_value(value)
    return found


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 12, 31, 80])
@pytest.mark.parametrize("beyond", [0.5, 0.05, 0.0025, 1e-4])
def test_quantiles_of_students_t_are_scipys(degrees: int, beyond: float) -> None:
    assert t_quantile(beyond, degrees) == pytest.approx(stats.t.isf(beyond / 2, degrees), rel=1e-6)


@given(st.integers(0, 20 * BATCHES), st.integers(0, 1000))
def test_means_are_those_of_equal_batches_from_the_start(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=count)
    found = batched(values)
    assert found.values == count
    length = 1
    while count >= 2 * BATCHES * length:
        length *= 2
    full = count // length
    assert found.length == length
    assert found.means == pytest.approx(values[: full * length].reshape(full, length).mean(axis=1))
    assert found.rest == tuple(values[full * length :])
    assert found.looks == (0 if count < BATCHES else 1 + int(math.log2(count / BATCHES)))


def test_the_interval_stays_until_the_number_of_values_has_doubled() -> None:
    values = np.random.default_rng(0).normal(size=4 * BATCHES)
    found = [mean_interval([batched(values[:count])]) for count in range(4 * BATCHES + 1)]
    assert found[:BATCHES] == [None] * BATCHES
    assert len(set(found[BATCHES : 2 * BATCHES])) == 1 and len(set(found[2 * BATCHES : 4 * BATCHES])) == 1
    for look in range(3):
        one = found[BATCHES * 2**look]
        assert one is not None and one[0] == pytest.approx(values[: BATCHES * 2**look].mean())


def test_a_series_without_variance_is_known_exactly() -> None:
    assert mean_interval([batched(np.full(BATCHES, 0.5))]) == (0.5, (0.5, 0.5))


def test_each_look_costs_confidence() -> None:
    """Series without correlation at successive looks: the quantile is that of alpha / (k (k + 1))."""
    values = np.random.default_rng(1).normal(size=8 * BATCHES)
    values[1::2] = -values[::2]  # neighbours oppose each other, so that no correlation widens the first interval
    first = mean_interval([batched(values[:BATCHES])])
    assert first is not None
    half = stats.t.isf(0.05 / 2 / 2, BATCHES - 1) * values[:BATCHES].std(ddof=1) / math.sqrt(BATCHES)
    assert first[1] == pytest.approx((first[0] - half, first[0] + half))


def drift(random: np.random.Generator, runs: int, spread: float, correlation: float) -> Floats:
    """Stationary autoregressive series of order 1, (runs, windows)."""
    steps = random.normal(size=(runs, WINDOWS))
    series = np.empty((runs, WINDOWS))
    series[:, 0] = steps[:, 0]
    for window in range(1, WINDOWS):
        series[:, window] = correlation * series[:, window - 1] + math.sqrt(1 - correlation**2) * steps[:, window]
    return spread * series


@cache
def shadowings(slower: float) -> tuple[Floats, Floats]:
    """Latencies of a champion and of a challenger that takes `slower` times as long, (runs, windows, requests).

    Both have the same requests, on a machine that drifts for both, and each drifts by itself, too.
    """
    random = np.random.default_rng(0)
    requests = random.normal(0, 0.4, (RUNS, WINDOWS, REQUESTS)) + drift(random, RUNS, 0.3, 0.9)[..., None]
    champion, challenger = (
        np.exp(requests + drift(random, RUNS, 0.08, 0.6)[..., None] + random.normal(0, 0.2, requests.shape))
        for _ in range(2)
    )
    return champion, slower * challenger


def ratios(slower: float) -> Floats:
    """Logarithms of the ratio of p95 of each window, (runs, windows)."""
    champion, challenger = (np.percentile(one, 95, axis=2, method="inverted_cdf") for one in shadowings(slower))
    return np.array(np.log(challenger / champion))


def intervals(slower: float) -> Floats:
    """Intervals of the ratio at each look, (runs, looks, 2)."""
    found = np.empty((RUNS, LOOKS, 2))
    for run, values in enumerate(ratios(slower)):
        means = BatchMeans()
        for window, value in enumerate(values.tolist(), 1):
            means = means.with_value(value)
            if means.looks and window == BATCHES * 2 ** (means.looks - 1):
                known = mean_interval([means])
                assert known is not None
                found[run, means.looks - 1] = np.exp(known[1])
    return found


def most(share: float, runs: int = RUNS) -> float:
    """The share that three standard deviations of a binomial add."""
    return share + 3 * math.sqrt(share * (1 - share) / runs)


def test_equal_models_are_called_equal_at_every_look_and_at_all_together() -> None:
    """A/A under correlated latencies, in which intervals that take windows as independent miss far too often."""
    found = intervals(1.0)
    missed = (found[..., 0] > 1) | (found[..., 1] < 1)
    assert (missed.mean(axis=0) <= most(0.05)).all(), missed.mean(axis=0)
    assert missed.any(axis=1).mean() <= most(0.05), "whenever somebody stops"
    naive = []
    for look in range(LOOKS):
        values = ratios(1.0)[:, : BATCHES * 2**look]
        naive.append(np.abs(values.mean(axis=1)) > 1.96 * values.std(axis=1) / math.sqrt(values.shape[1]))
    assert np.mean(np.any(naive, axis=0)) > 0.3


def test_equal_models_are_told_to_be_and_a_slow_one_is_found() -> None:
    """Half an hour of windows of 5 s is enough, at a limit of 1.2."""
    equal, slow = intervals(1.0), intervals(1.5)
    assert (equal[:, :4, 1] <= 1.2).any(axis=1).mean() > 0.95 and not (equal[:, :4, 0] > 1.2).any()
    assert (slow[:, :4, 0] > 1.2).any(axis=1).mean() > 0.95 and not (slow[:, :4, 1] <= 1.2).any()


def test_servers_together_hold_too() -> None:
    """Three series of different lengths and spreads, whose mean is 0, and which may have the same causes."""
    random, missed, width = np.random.default_rng(3), 0, []
    for run in range(RUNS):
        shared = random.normal(size=130)
        parts = [
            batched(spread * (shared[:n] if run % 2 else random.normal(size=n)))
            for n, spread in ((40, 1.0), (130, 3.0), (10, 9.0))
        ]
        found = mean_interval(parts)
        assert found is not None
        missed += not found[1][0] <= 0 <= found[1][1]
        width.append(found[1][1] - found[1][0])
    assert missed / RUNS <= most(0.05)
    # A look at 32 and three at 128: weights 1/5 and 4/5 of means with these variances.
    assert np.median(width) > 2 * 1.96 * math.hypot(0.2 / math.sqrt(32), 0.8 * 3 / math.sqrt(128))
