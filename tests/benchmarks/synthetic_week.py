"""Weeks of made-up traffic: days and weekdays, noise that lasts, and surges when something is launched."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planning.demand import Floats

_MINUTES_OF_DAY = 1440
# Share of the mean rate by weekday, from Monday.
_WEEKDAYS = np.array([0.95, 0.95, 1.0, 1.0, 1.1, 1.05, 0.95])


@dataclass(frozen=True)
class WeekSettings:
    """Settings of the generator.

    mean_rps: mean rate without surges
    launches_per_week: surges, whose times no history shows
    surge: factor of the rate at a launch, which halves its excess every `surge_minutes`
    noise: standard deviation of the logarithm of the rate, correlated over about `noise_minutes`
    """

    weeks: int = 4
    mean_rps: float = 4.0
    launches_per_week: float = 3.0
    surge: float = 3.0
    surge_minutes: float = 20.0
    noise: float = 0.1
    noise_minutes: float = 60.0


def minute_rates(settings: WeekSettings, seed: int) -> Floats:
    """Return the rate of each minute from Monday 0:00, (minutes,) requests per second."""
    random = np.random.default_rng(seed)
    count = 7 * settings.weeks * _MINUTES_OF_DAY
    minute = np.arange(count)
    hour = minute % _MINUTES_OF_DAY / 60
    # Low at 4 in the morning, a plateau at noon and a peak at 8 in the evening.
    day = 1 + 0.55 * np.sin(2 * np.pi * (hour - 10) / 24) + 0.25 * np.sin(4 * np.pi * (hour - 9) / 24)
    week = _WEEKDAYS[minute // _MINUTES_OF_DAY % 7]
    keep = np.exp(-1 / settings.noise_minutes)
    steps = random.normal(0, settings.noise * np.sqrt(1 - keep**2), count)
    noise = np.empty(count)
    level = random.normal(0, settings.noise)
    for at, step in enumerate(steps.tolist()):
        level = keep * level + step
        noise[at] = level
    surges = np.zeros(count)
    for launch in random.integers(0, count, random.poisson(settings.launches_per_week * settings.weeks)).tolist():
        after = np.arange(count - launch)
        surges[launch:] += (settings.surge - 1) * 0.5 ** (after / settings.surge_minutes)
    return np.asarray(settings.mean_rps * np.maximum(day, 0.05) * week * np.exp(noise) * (1 + surges), np.float64)


def arrivals(rates: Floats, seed: int) -> Floats:
    """Return Poisson arrivals at the rates of minutes, (n,) seconds ascending from 0."""
    random = np.random.default_rng((seed, 1))
    counts = random.poisson(60 * rates)
    seconds = np.sort(60 * (np.repeat(np.arange(len(rates)), counts) + random.random(counts.sum())))
    return np.asarray(seconds - seconds[0], np.float64)
