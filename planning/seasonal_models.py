"""Point forecasts of counts per phase. The only file that imports statsmodels."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from planning.demand import Floats

# Seasons that a decomposition needs, and those of which the last ones are used.
_FEWEST_SEASONS = 3
_MOST_SEASONS = 8


class PointForecaster(Protocol):
    """A model that is fitted anew on each history.

    needed: phases of history without which it cannot be fitted
    """

    @property
    def name(self) -> str: ...

    @property
    def needed(self) -> int: ...

    def forecast(self, history: Floats, horizon: int) -> Floats:
        """Return the expected values of the next phases, (horizon,), from those before, (n,), n at least `needed`."""
        ...


@dataclass(frozen=True)
class SeasonalNaive:
    """The value of one season before."""

    label: str
    period: int

    @property
    def name(self) -> str:
        return f"seasonal naive ({self.label})"

    @property
    def needed(self) -> int:
        return self.period

    def forecast(self, history: Floats, horizon: int) -> Floats:
        return np.resize(history[-self.period :], horizon)


@dataclass(frozen=True)
class RecentMean:
    """The mean of the last phases."""

    phases: int

    @property
    def name(self) -> str:
        return f"mean of the last {self.phases}" if self.phases > 1 else "last value"

    @property
    def needed(self) -> int:
        return self.phases

    def forecast(self, history: Floats, horizon: int) -> Floats:
        return np.full(horizon, history[-self.phases :].mean())


@dataclass(frozen=True)
class ExponentialSmoothing:
    """ETS(A, N, N) of the logarithm: a level that moves (Hyndman et al. 2008)."""

    name: str = "ETS"
    needed: int = 10

    def forecast(self, history: Floats, horizon: int) -> Floats:
        return np.expm1(_ets(np.log1p(history), horizon))


@dataclass(frozen=True)
class DecompositionETS:
    """MSTL of the logarithm, whose seasons are repeated, and ETS of the seasonally adjusted series.

    With one period MSTL is STL (Bandara, Hyndman and Bergmeir 2021; Cleveland et al. 1990).
    """

    periods: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{'STL' if len(self.periods) == 1 else 'MSTL'} + ETS"

    @property
    def needed(self) -> int:
        return max(_FEWEST_SEASONS * min(self.periods), 2 * max(self.periods) + 1)

    @property
    def _jumps(self) -> dict[str, int]:
        """Steps at which local regressions are computed; between them they are interpolated.

        They are about a tenth of the windows of the shortest period, and less of any other (Cleveland et al. 1990,
        3.6).
        """
        step = max(1, min(self.periods) // 10)
        return {"seasonal_jump": 2, "trend_jump": step, "low_pass_jump": step}

    def forecast(self, history: Floats, horizon: int) -> Floats:
        from statsmodels.tsa.seasonal import MSTL

        recent = history[-max(_MOST_SEASONS * min(self.periods), 4 * max(self.periods)) :]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = MSTL(np.log1p(recent), periods=self.periods, stl_kwargs=self._jumps).fit()
        seasons = np.reshape(found.seasonal, (len(recent), -1))
        level = _ets(np.log1p(recent) - seasons.sum(axis=1), horizon)
        repeated = [np.resize(seasons[-period:, at], horizon) for at, period in enumerate(sorted(self.periods))]
        return np.asarray(np.maximum(np.expm1(level + np.sum(repeated, axis=0)), 0.0), np.float64)


def _ets(values: Floats, horizon: int) -> Floats:
    """Forecast a level; values that never change are continued, since no smoothing can be estimated from them."""
    from statsmodels.tsa.exponential_smoothing.ets import ETSModel

    if math.isclose(float(np.ptp(values)), 0.0, abs_tol=1e-12):
        return np.full(horizon, values[-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = ETSModel(values, error="add", trend=None).fit(disp=False)
    return np.asarray(found.forecast(horizon), np.float64)
