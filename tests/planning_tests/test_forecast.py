"""Forecasts of planted series, and a backtest that never sees what it is judged on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy import stats
from statsmodels.tsa.api import ETSModel
from statsmodels.tsa.forecasting.stl import STLForecast

from planning.demand import Floats
from planning.forecast import Backtest, backtest, candidates, forecast, origins_of, score, select
from planning.seasonal_models import DecompositionETS, ExponentialSmoothing, RecentMean, SeasonalNaive

DAY = 24


def days(count: int, noise: float = 0.0, trend: float = 0.0, seed: int = 0) -> Floats:
    """Counts of hours with a daily season, a trend by day, and log-normal noise."""
    hours = np.arange(count * DAY)
    level = 1000 * (1 + 0.7 * np.sin(2 * np.pi * hours / DAY)) * (1 + trend) ** (hours / DAY)
    return np.asarray(level * np.exp(np.random.default_rng(seed).normal(0, noise, len(hours))), np.float64)


def test_a_season_that_repeats_is_forecast_exactly() -> None:
    history = days(10)
    assert SeasonalNaive("day", DAY).forecast(history, 40) == pytest.approx(np.resize(history[-DAY:], 40))
    assert DecompositionETS((DAY,)).forecast(history, 40) == pytest.approx(np.resize(history[-DAY:], 40), rel=0.02)
    assert RecentMean(3).forecast(history, 2).tolist() == [history[-3:].mean()] * 2


def test_stl_with_ets_agrees_with_statsmodels_own_combination() -> None:
    """MSTL with one period repeats STL, so the two differ by little."""
    history = days(8, noise=0.05, trend=0.01)
    ours = DecompositionETS((DAY,)).forecast(history, DAY)
    theirs = STLForecast(
        np.log1p(history), ETSModel, model_kwargs={"error": "add"}, period=DAY
    ).fit(fit_kwargs={"disp": False}).forecast(DAY)  # fmt: skip
    assert ours == pytest.approx(np.expm1(theirs), rel=0.05)


def test_constant_counts_are_continued() -> None:
    for model in (ExponentialSmoothing(), DecompositionETS((4,))):
        assert model.forecast(np.full(40, 7.0), 5) == pytest.approx(np.full(5, 7.0))


@dataclass
class Spy:
    """A forecaster that notes the histories that it is given."""

    name: str = "spy"
    needed: int = 5
    seen: list[Floats] = field(default_factory=list)

    def forecast(self, history: Floats, horizon: int) -> Floats:
        self.seen.append(history)
        return np.full(horizon, 3.0)


def test_a_backtest_fits_on_what_lies_before_each_origin() -> None:
    history, spy = np.arange(30.0), Spy()
    origins = origins_of(30, spy.needed, 4)
    tested = backtest(spy, history, 4, origins)
    assert origins[-1] == 26 and origins[0] >= spy.needed and set(np.diff(origins)) == {4}
    assert [seen.tolist() for seen in spy.seen] == [history[:at].tolist() for at in origins]
    assert tested.actual.tolist() == [history[at : at + 4].tolist() for at in origins]
    assert (tested.expected == 3.0).all() and tested.expected.shape == tested.actual.shape


def test_quantiles_cover_what_they_promise() -> None:
    """Errors of one distribution, 400 horizons: the coverage is nominal but for the noise of a binomial."""
    random = np.random.default_rng(0)
    errors = random.normal(0, 0.3, (40, 50))
    actual = 1000 * np.exp(errors)
    found = score("planted", Backtest(np.full((40, 50), 1000.0), actual))
    assert found.coverage == pytest.approx({0.5: 0.5, 0.8: 0.8, 0.9: 0.9, 0.95: 0.95}, abs=0.04)
    assert found.mape == pytest.approx(np.abs(1 - np.exp(-errors)).mean(), rel=0.02)
    assert found.origins == 38, "the first two only calibrate"
    wrong = score("biased", Backtest(np.full((40, 50), 1000 * np.exp(-0.5)), actual))
    assert wrong.pinball == pytest.approx(found.pinball, rel=0.1), "a bias that lasts is calibrated away"
    noisy = score("noisy", Backtest(np.full((40, 50), 1000.0), 1000 * np.exp(2 * errors)))
    assert noisy.pinball > 1.3 * found.pinball


@pytest.mark.parametrize("dispersion", [0.0, 0.01])
def test_quantiles_cover_few_and_many_requests_alike(dispersion: float) -> None:
    """Counts of scipy's Poisson and negative binomial distributions, 50 a phase by night and 2000 by day."""
    mean = np.resize([50.0, 2000.0], 100)
    random = np.random.default_rng(0)
    law = stats.nbinom(1 / dispersion, 1 / (1 + dispersion * mean)) if dispersion else stats.poisson(mean)
    tested = Backtest(np.tile(mean, (40, 1)), law.rvs((40, 100), random_state=random).astype(float))
    for quantile in (0.5, 0.9, 0.95):
        covered = law.cdf(np.floor(tested.bound(mean, quantile)))
        assert covered[::2].mean() == pytest.approx(quantile, abs=0.05), "one count is 0.056 at 50"
        assert covered[1::2].mean() == pytest.approx(quantile, abs=0.05)


@pytest.mark.parametrize(("phase", "count"), [(0, 1500.0), (1, 0.0), (1, 6000.0)], ids=["night", "outage", "surge"])
def test_a_single_incident_leaves_the_quantiles_of_the_other_phases_alone(phase: int, count: float) -> None:
    mean = np.resize([50.0, 2000.0], 24)
    counts = stats.poisson(mean).rvs((10, 24), random_state=np.random.default_rng(0)).astype(float)
    counts[4, phase] = count
    covered = stats.poisson(mean).cdf(np.floor(Backtest(np.tile(mean, (10, 1)), counts).bound(mean, 0.9)))
    assert covered[::2].mean() == pytest.approx(0.9, abs=0.06)
    assert covered[1::2].mean() == pytest.approx(0.9, abs=0.06)


@pytest.mark.parametrize("counts", [[7.0], [100.0], [7.0, 300.0]])
def test_counts_that_are_always_as_expected_lie_within_their_bounds(counts: list[float]) -> None:
    found = select(np.resize(counts, 400), 24, 24)
    assert min(found.scores[0].coverage.values()) == pytest.approx(1.0)


def test_forecasts_from_few_counts_cover_few_and_many_requests_alike() -> None:
    """The forecast is the mean of two Poisson counts, so that errors have one and a half times the counts' variance."""
    mean, random = np.resize([50.0, 2000.0], 100), np.random.default_rng(0)

    def drawn(days: int) -> Backtest:
        counts = stats.poisson(mean).rvs((3, days, 100), random_state=random).astype(float)
        return Backtest(counts[:2].mean(axis=0), counts[2])

    known, new = drawn(40), drawn(200)
    for quantile in (0.5, 0.9, 0.95):
        covered = new.actual <= known.bound(new.expected, quantile)
        assert covered[:, ::2].mean() == pytest.approx(quantile, abs=0.02)
        assert covered[:, 1::2].mean() == pytest.approx(quantile, abs=0.02)


def test_the_seasonal_model_is_chosen_where_there_is_a_season_and_its_coverage_is_kept() -> None:
    history = days(30, noise=0.1)
    chosen = select(history[: 20 * DAY], DAY, DAY)
    assert chosen.reason is None and {one.model for one in chosen.scores} == {
        "seasonal naive (day)", "seasonal naive (week)", "STL + ETS", "MSTL + ETS",
    }  # fmt: skip
    assert [one.pinball for one in chosen.scores] == sorted(one.pinball for one in chosen.scores)
    assert chosen.model.name.endswith("ETS"), "an average over days beats the last one"
    hits = []
    for day in range(20, 30):
        found = forecast(chosen, history[: day * DAY], DAY)
        hits.append((history[day * DAY : (day + 1) * DAY] <= found.quantiles[0.9]).mean())
        assert (found.quantiles[0.95] >= found.quantiles[0.5]).all()
    assert np.mean(hits) == pytest.approx(0.9, abs=0.06)


def test_a_short_history_falls_back_and_says_why() -> None:
    models, reason = candidates(DAY, 60, 3)
    assert {model.name for model in models} == {"seasonal naive (day)"} and "2.5 days is too short" in str(reason)
    models, reason = candidates(1440, 60, 5)
    assert "seasonal" not in models[0].name and "seasonal naive (day)" in str(reason)
    found = select(np.random.default_rng(0).poisson(50, 60).astype(float), 1440, 5)
    assert found.reason is not None and len(found.scores) == 3
    models, reason = candidates(0, 1000, 5)
    assert len(models) == 3 and "do not divide a day" in str(reason), "a season of 50 minutes is off by 10 a day"
    models, reason = candidates(1, 60, 3)
    assert [model.name for model in models] == ["seasonal naive (week)", "STL + ETS"] and reason is None
    for history, horizon in ((np.ones(2), 1), (np.ones(30), 11)):
        with pytest.raises(ValueError, match="forecast needs"):
            select(history, DAY, horizon)
