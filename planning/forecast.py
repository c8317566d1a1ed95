"""Forecast of the demand with quantiles: a model chosen by rolling-origin backtest, and the errors it made there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planning.count_scale import CountScale, fit_scale
from planning.demand import Floats
from planning.seasonal_models import (
    DecompositionETS,
    ExponentialSmoothing,
    PointForecaster,
    RecentMean,
    SeasonalNaive,
)

QUANTILES = (0.5, 0.8, 0.9, 0.95)
# Origins of a backtest: the most, the fewest, and the first of them whose errors only calibrate the quantiles.
_ORIGINS, _FEWEST_ORIGINS, _CALIBRATING = 10, 4, 2
# Decimals of a bound, which a count keeps on its way to the scale and back.
_DECIMALS = 3
# Mean of the last phases of a history without seasons.
_RECENT = 5


@dataclass(frozen=True)
class Score:
    """Errors of a model on the phases that it was not fitted on.

    mape: mean of |actual - forecast| / actual over phases with requests
    pinball: mean pinball loss over the quantiles, as a share of the mean count (Koenker and Bassett 1978)
    coverage: by quantile, share of the phases whose count is at most the forecast quantile
    origins: times from which it forecast
    """

    model: str
    mape: float
    pinball: float
    coverage: Mapping[float, float]
    origins: int


@dataclass(frozen=True, eq=False)
class Backtest:
    """Counts that a model forecast from some origins, and those that came, (origins, horizon) each."""

    expected: Floats
    actual: Floats

    def before(self, origin: int) -> Backtest:
        """Return that of the earlier origins."""
        return Backtest(self.expected[:origin], self.actual[:origin])

    def bound(self, expected: Floats, quantile: float) -> Floats:
        """Return a quantile of counts of which so many are expected.

        It is that of the backtest's errors, on a scale on which they are alike whether few or many are expected.
        Without errors it is what is expected.
        """
        if not self.actual.size:
            return expected
        scale = self._scale
        found = scale.counts(scale.scaled(expected) + _quantile(self._errors, quantile))
        # A count comes back from the scale with an error of rounding, by which it is not to exceed its own bound.
        return np.round(found, _DECIMALS)

    @cached_property
    def _scale(self) -> CountScale:
        return fit_scale(self.expected, self.actual)

    @cached_property
    def _errors(self) -> Floats:
        return (self._scale.scaled(self.actual) - self._scale.scaled(self.expected)).ravel()


@dataclass(frozen=True, eq=False)
class Selected:
    """The model with the least pinball loss in the backtest.

    backtest: its own, from which quantiles are taken
    scores: of all models that were tried, the best first
    reason: why seasonal models were left out, None where they were not
    """

    model: PointForecaster
    backtest: Backtest
    scores: tuple[Score, ...]
    reason: str | None


@dataclass(frozen=True, eq=False)
class Forecast:
    """Requests of the next phases: the expected count, (horizon,), and quantiles of the count, (horizon,) each."""

    expected: Floats
    quantiles: Mapping[float, Floats]


def candidates(per_day: int, phases: int, horizon: int) -> tuple[tuple[PointForecaster, ...], str | None]:
    """Return the models that a history of so many phases can be backtested with, and why others are left out.

    Args:
        per_day: phases of a day, 0 where they do not divide one
    """
    simple: tuple[PointForecaster, ...] = (RecentMean(1), RecentMean(_RECENT), ExponentialSmoothing())
    room = phases - _FEWEST_ORIGINS * horizon
    plain = tuple(model for model in simple if model.needed <= room) or simple[:1]
    if per_day == 0:
        return plain, "phases that do not divide a day have no season"
    day, week = per_day, 7 * per_day
    periods = (day, week) if day > 1 else (week,)
    seasonal: list[PointForecaster] = [SeasonalNaive("week", week), DecompositionETS(periods)]
    if day > 1:
        seasonal = [SeasonalNaive("day", day), DecompositionETS((day,)), *seasonal]
    fitting = tuple(model for model in seasonal if model.needed <= room)
    if len(fitting) == len(seasonal):
        return fitting, None
    missing = ", ".join(model.name for model in seasonal if model not in fitting)
    return fitting or plain, f"a history of {phases / day:.3g} days is too short to backtest {missing}"


def origins_of(phases: int, needed: int, horizon: int) -> list[int]:
    """Return the ends of the histories of a backtest, ascending.

    The horizons behind them do not overlap, and the last one ends with the history.
    """
    most = (phases - needed) // horizon
    return [phases - horizon * back for back in range(min(most, _ORIGINS), 0, -1)]


def backtest(model: PointForecaster, history: Floats, horizon: int, origins: Sequence[int]) -> Backtest:
    """Return what a model forecasts from each origin, fitted only on what lies before it."""
    expected = np.array([model.forecast(history[:at], horizon) for at in origins])
    return Backtest(np.maximum(expected, 0.0), np.array([history[at : at + horizon] for at in origins]))


def score(name: str, tested: Backtest) -> Score:
    """Score the forecasts of a backtest, whose quantiles are those of the errors of earlier origins."""
    expected, actual = tested.expected, tested.actual
    judged = range(min(_CALIBRATING, len(actual) - 1), len(actual))
    losses, covered = [], dict.fromkeys(QUANTILES, 0.0)
    for at in judged:
        earlier = tested.before(at)
        for quantile in QUANTILES:
            above = actual[at] - earlier.bound(expected[at], quantile)
            losses.append(float(np.maximum(quantile * above, (quantile - 1) * above).mean()))
            covered[quantile] += float((above <= 0).mean()) / len(judged)
    some = actual > 0
    relative = np.abs(actual[some] - expected[some]) / actual[some]
    mean = max(float(actual.mean()), 1e-300)
    mape = float(relative.mean()) if some.any() else 0.0
    return Score(name, mape, float(np.mean(losses)) / mean, covered, len(judged))


def select(history: Floats, per_day: int, horizon: int) -> Selected:
    """Return the best model of a history of counts, (n,), for forecasts so many phases ahead.

    Raises:
        ValueError: the history has fewer than 3 phases, or a horizon is longer than a third of it.
    """
    if len(history) < 3 or not 1 <= horizon <= len(history) // 3:
        raise ValueError(
            f"a forecast needs a history of 3 times its horizon or more, but got {len(history)} phases for {horizon}"
        )
    models, reason = candidates(per_day, len(history), horizon)
    # All models are judged on the same phases.
    origins = origins_of(len(history), max(model.needed for model in models), horizon)
    if not origins:
        raise ValueError(f"a forecast needs a longer history, but got {len(history)} phases for a horizon of {horizon}")
    tested = [backtest(model, history, horizon, origins) for model in models]
    scored = [score(model.name, found) for model, found in zip(models, tested, strict=True)]
    order = sorted(range(len(models)), key=lambda which: scored[which].pinball)
    best = order[0]
    return Selected(models[best], tested[best], tuple(scored[which] for which in order), reason)


def forecast(selected: Selected, history: Floats, horizon: int) -> Forecast:
    """Forecast the next phases of a history that the model is fitted on now."""
    expected = np.maximum(selected.model.forecast(history, horizon), 0.0)
    quantiles = {quantile: selected.backtest.bound(expected, quantile) for quantile in QUANTILES}
    return Forecast(expected, quantiles)


def _quantile(errors: Floats, quantile: float) -> float:
    """Return the smallest error that covers the quantile of one more error (split conformal; Vovk et al. 2005)."""
    rank = min(int(np.ceil((len(errors) + 1) * quantile)), len(errors))
    return float(np.sort(errors)[rank - 1])
