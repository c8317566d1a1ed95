"""Inputs of a plan: a request log, or a profile of the week in CSV."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from objectives.measurement.request_log import RequestLog, RequestLogError, read_request_log
from objectives.store import written_whole
from planning.hours_of_week import HOURS, WEEKDAYS, named_hours
from planning.observation.traffic import HourOfWeek
from planning.weekly_profile import WeeklyProfile
from search.errors import ConfigError

_COLUMNS = ("weekday", "hour", "mean_rps", "p95_rps")


def read_log(
    path: Path, option: str, rows_column: str | None, seed: int, measures: Mapping[str, str | None] | None = None
) -> RequestLog:
    """Read a request log; ConfigError, with the option's name, where it cannot be read."""
    try:
        return read_request_log(path, rows_column, seed, measures)
    except RequestLogError as error:
        raise ConfigError(f"{option}: {error}") from error


def write_profile(hours: Sequence[HourOfWeek], path: Path) -> None:
    """Write the hours of an observation as a profile of the week."""
    with written_whole(path) as partial, partial.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(_COLUMNS)
        lines.writerows([WEEKDAYS[hour.weekday], hour.hour, hour.mean_rps, hour.p95_rps] for hour in hours)


def read_profile(path: Path) -> WeeklyProfile:
    """Read a profile of the week: a CSV with the columns weekday, hour, mean_rps and p95_rps, a line for each hour.

    Raises:
        ConfigError: the file cannot be read, an hour is missing or given twice, or a rate is none.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            lines = csv.DictReader(file)
            if missing := [name for name in _COLUMNS if name not in (lines.fieldnames or ())]:
                raise ConfigError(f"--profile: {path} must have the columns {', '.join(_COLUMNS)}, but lacks {missing}")
            rates: dict[int, tuple[float, float]] = {}
            for number, line in enumerate(lines, 2):
                hour = _hour(line, number)
                if hour in rates:
                    raise ConfigError(f"--profile: line {number}: must be another hour, but got one twice")
                rates[hour] = _rates(line, number)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"--profile: must be a CSV file, but {error}") from error
    if len(rates) < HOURS:
        lacking = [hour for hour in range(HOURS) if hour not in rates]
        raise ConfigError(
            f"--profile: must have all {HOURS} hours of the week, but lacks {len(lacking)}: {named_hours(lacking)}"
        )
    means, p95s = np.array([rates[hour] for hour in range(HOURS)]).T
    if not means.any():
        raise ConfigError("--profile: must have an hour with requests, but got none")
    return WeeklyProfile(means, p95s)


def _hour(line: Mapping[str, str | None], number: int) -> int:
    weekday, hour = (str(line[name]).strip() for name in ("weekday", "hour"))
    names = [name.lower() for name in WEEKDAYS]
    day = next((at for at, name in enumerate(names) if weekday.lower() in (name, name[:3])), None)
    if day is None:
        raise ConfigError(
            f"--profile: line {number}: weekday must be one of {', '.join(WEEKDAYS)}, but got {weekday!r}"
        )
    if not (hour.isascii() and hour.isdecimal() and int(hour) < 24):
        raise ConfigError(f"--profile: line {number}: hour must be a whole number from 0 to 23, but got {hour!r}")
    return 24 * day + int(hour)


def _rates(line: Mapping[str, str | None], number: int) -> tuple[float, float]:
    found = []
    for name in _COLUMNS[2:]:
        try:
            value = float(str(line[name]))
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--profile: line {number}: {name} must be a number, at least 0, but got {line[name]!r}")
        found.append(value)
    mean, p95 = found
    return mean, max(mean, p95)
