"""Observation of a request log: rate, burstiness and rows by hour and weekday, and what they suggest to start with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planning.demand import Counts, Floats, unit_gaps
from planning.hours_of_week import EPOCH_SECONDS, HOUR_SECONDS, hour_of_week

# Length of the bins whose rates have a mean and a p95 within an hour of the week, and of those that are dispersed.
_BIN_SECONDS = 60.0
_DISPERSION_SECONDS = 1.0


@dataclass(frozen=True)
class HourOfWeek:
    """One hour of the week over all weeks of a log.

    hours: hours, or parts of one, that the log has of it
    mean_rps, p95_rps: of the rates of its minutes
    dispersion: variance over mean of the requests of a second, 1 for Poisson arrivals; None without requests
    mean_rows: None where the log has no rows, or no requests
    """

    weekday: int
    hour: int
    hours: float
    requests: int
    mean_rps: float
    p95_rps: float
    dispersion: float | None
    mean_rows: float | None


@dataclass(frozen=True)
class RowsSummary:
    """Rows of a request: median and p95, the largest, and the sigma of a log-normal with these quartiles."""

    median: float
    p95: float
    max: int
    sigma: float


@dataclass(frozen=True)
class Observation:
    """Statistics of a request log.

    clock: "utc", or "since the first request" where the log does not tell the date, which then counts as Monday 0:00
    peak_rps: rate of the busiest minute
    peak_to_mean: its ratio to the mean rate
    gap_cv: coefficient of variation of the gaps between arrivals, 1 for Poisson arrivals
    gap_cv_within: the same on a clock that runs at the rate of each minute: burstiness that no plan can follow
    rows: None where the log has none
    """

    requests: int
    seconds: float
    start_s: float | None
    clock: str
    mean_rps: float
    p95_rps: float
    peak_rps: float
    peak_to_mean: float
    gap_cv: float
    gap_cv_within: float
    dispersion: float
    rows: RowsSummary | None
    hours: tuple[HourOfWeek, ...]


def observe(seconds: Floats, rows: Counts | None, start_s: float | None) -> Observation:
    """Summarise arrivals, (n,) seconds ascending from 0, and their rows, (n,).

    Bins that the log ends within are left out of the p95 and of the busiest minute, unless the log is shorter.
    """
    offset = 0.0 if start_s is None else start_s
    gaps, length = np.diff(seconds), float(seconds[-1])
    width = min(_BIN_SECONDS, length)
    rates = _binned(seconds, width)[0] / width
    counts, _ = _binned(seconds, min(_DISPERSION_SECONDS, length))
    mean, peak = len(seconds) / length, float(rates.max())
    return Observation(
        requests=len(seconds),
        seconds=length,
        start_s=start_s,
        clock="since the first request" if start_s is None else "utc",
        mean_rps=mean,
        p95_rps=float(np.percentile(rates, 95)),
        peak_rps=peak,
        peak_to_mean=peak / mean,
        gap_cv=float(gaps.std() / gaps.mean()),
        gap_cv_within=_variation(unit_gaps(seconds, _BIN_SECONDS)),
        dispersion=_dispersion(counts) or 0.0,
        rows=None if rows is None else _rows(rows),
        hours=_hours_of_week(seconds, rows, offset, start_s is None),
    )


def _variation(gaps: Floats) -> float:
    return float(gaps.std() / gaps.mean())


def _dispersion(counts: Counts) -> float | None:
    return float(counts.var() / counts.mean()) if len(counts) and counts.any() else None


def _rows(rows: Counts) -> RowsSummary:
    low, median, high, p95 = np.percentile(rows, [25, 50, 75, 95])
    # A normal variable's quartiles lie 0.6745 standard deviations from its mean.
    sigma = float(np.log(max(high, 1) / max(low, 1)) / (2 * 0.67449))
    return RowsSummary(float(median), float(p95), int(rows.max()), sigma)


def _binned(seconds: Floats, width: float) -> tuple[Counts, NDArray[np.int64]]:
    """Return the requests of each whole bin from second 0, and the bin of each request.

    The only bin of a log that is no longer holds all requests.
    """
    bins = (seconds / width).astype(np.int64) if seconds[-1] > width else np.zeros(len(seconds), np.int64)
    whole = max(1, int(seconds[-1] / width))
    return np.bincount(bins, minlength=whole)[:whole].astype(np.int64), bins


def _hours_of_week(seconds: Floats, rows: Counts | None, offset: float, relative: bool) -> tuple[HourOfWeek, ...]:
    """Return the hours of the week that the log has, in the order of the week."""
    start = 0.0 if relative else offset + EPOCH_SECONDS
    width, fine = (min(each, float(seconds[-1])) for each in (_BIN_SECONDS, _DISPERSION_SECONDS))
    minutes, minute_of = _binned(seconds, width)
    seconds_counts, _ = _binned(seconds, fine)
    at = hour_of_week(start + (np.arange(len(minutes)) + 0.5) * width)
    second_at = hour_of_week(start + (np.arange(len(seconds_counts)) + 0.5) * fine)
    request_at = hour_of_week(start + (minute_of + 0.5) * width)
    found = []
    for hour in np.unique(at).tolist():
        rates = minutes[at == hour] / width
        inside = (request_at == hour) & (minute_of < len(minutes))
        sizes = None if rows is None or not inside.any() else float(rows[inside].mean())
        found.append(
            HourOfWeek(
                weekday=hour // 24,
                hour=hour % 24,
                hours=len(rates) * width / HOUR_SECONDS,
                requests=int(inside.sum()),
                mean_rps=float(rates.mean()),
                p95_rps=float(np.percentile(rates, 95)),
                dispersion=_dispersion(seconds_counts[second_at == hour]),
                mean_rows=sizes,
            )
        )
    return tuple(found)
