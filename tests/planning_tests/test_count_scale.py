"""Counts on a scale of one spread, against scipy's distributions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from planning.count_scale import CountScale, fit_scale


@given(st.floats(1e-12, 1e3), st.floats(0, 1e6))
def test_a_count_comes_back_from_the_scale(dispersion: float, count: float) -> None:
    scale, counts = CountScale(dispersion), np.array([count])
    assert scale.counts(scale.scaled(counts)) == pytest.approx(counts, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dispersion", [0.0, 0.02, 0.1])
@pytest.mark.parametrize("mean", [10.0, 100.0, 10_000.0])
def test_the_spread_is_one_for_few_and_many_requests(mean: float, dispersion: float) -> None:
    law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean)) if dispersion else stats.poisson(mean)
    counts = law.rvs(20_000, random_state=np.random.default_rng(0)).astype(float)
    assert CountScale(max(dispersion, 1e-12)).scaled(counts).std() == pytest.approx(1.0, abs=0.06)


def test_the_dispersion_is_found_in_errors() -> None:
    mean = np.resize([50.0, 2000.0], 40_000)
    random = np.random.default_rng(0)
    planted = stats.nbinom(50, 1 / (1 + 0.02 * mean)).rvs(random_state=random).astype(float)
    assert fit_scale(mean, planted).dispersion == pytest.approx(0.02, rel=0.1)
    alike = stats.nbinom(50, 1 / (1 + 0.02 * 500.0)).rvs(40_000, random_state=random).astype(float)
    assert fit_scale(np.full(40_000, 500.0), alike).dispersion == pytest.approx(0.02, rel=0.1), "by the law of arrivals"
    assert fit_scale(mean, mean) == CountScale(), "counts without errors have no dispersion"


def test_counts_where_none_were_expected_have_a_scale() -> None:
    scale = fit_scale(np.zeros(4), np.array([0.0, 0.0, 3.0, 1e6]))
    assert np.isfinite(scale.scaled(np.array([0.0, 1e6]))).all()
    assert scale.counts(np.array([-5.0])).tolist() == [0.0]
