"""Log of a user's requests: the arrival time and rows of each, read once and kept as a trace."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import polars as pl

_TIME_NAMES = ("timestamp", "time", "ts", "datetime", "second")
# Upper limits of a number since the epoch in seconds, milliseconds and microseconds, until the year 5138.
_UNITS = ((1e11, 1), (1e14, 10**3), (1e17, 10**6), (float("inf"), 10**9))
_ISO_FORMATS = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%+")  # the last is RFC 3339, with an offset
_PARQUET = (".parquet", ".pq")
# Measures of a request, by the names of their columns: milliseconds until the answer, milliseconds of CPU time, and the
# length of the queue that it met.
MEASURES = ("latency_ms", "cpu_ms", "queue_length")
# A time below this many seconds is taken for one since the start of something else than the epoch.
_EARLIEST_S = 1e8


class RequestLogError(ValueError):
    """A log of requests, or a trace made from one, is invalid."""


@dataclass(frozen=True, eq=False)
class RequestLog:
    """The n requests in the order of arrival; several may arrive at the same time."""

    seconds: NDArray[np.float64]  # (n,) from 0, ascending
    rows: NDArray[np.int64] | None = None  # (n,) 1 or more; None: not recorded
    start_s: float | None = None  # seconds since the epoch of the first request; None: not known
    measures: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)  # (n,) of MEASURES; NaN: not recorded

    def __post_init__(self) -> None:
        seconds, rows = self.seconds, self.rows
        if seconds.ndim != 1 or len(seconds) < 2:
            raise RequestLogError(f"A log holds 2 requests or more, but got {seconds.size}.")
        if seconds[0] != 0 or not np.all(np.diff(seconds) >= 0):
            raise RequestLogError(f"The seconds of a log ascend from 0, but got {seconds[:4]}...")
        if seconds[-1] == 0:
            raise RequestLogError(f"Requests arrive at 2 moments or more, but got all {len(seconds)} at one.")
        if rows is not None and (rows.shape != seconds.shape or rows.min() < 1):
            raise RequestLogError(f"Each of {len(seconds)} requests has 1 row or more, but got {rows[:4]}...")
        for name, values in self.measures.items():
            if values.shape != seconds.shape:
                raise RequestLogError(f"Each of {len(seconds)} requests has a {name}, but got {values.size}.")


def read_request_log(
    path: Path, rows_column: str | None = None, seed: int = 0, measures: Mapping[str, str | None] | None = None
) -> RequestLog:
    """Read a CSV or Parquet file with one request per line, or with requests per second.

    A column timestamp, time, ts, datetime or second, in any case, holds ISO text or a number since the epoch, whose
    unit (seconds, milli-, micro- or nanoseconds) is inferred from its magnitude. Rows are read from rows_column, else
    from a column `rows` if there is one. Without rows, a column `count` holds the number of requests that arrive within
    the second that begins at the line's time, uniformly at random by the seed. So do the requests of a log with a line
    for each whose times are whole seconds, several of which are equal.

    Of a log with one request per line, `measures` are read too: each of MEASURES from the column that is given, else
    from one of its own name if there is one; a value may be empty. Of counts, a column of such a name is left out.

    Raises:
        RequestLogError: the log is invalid; the message has the path and the line (in a Parquet file: the row, from 1).
    """
    import polars as pl  # a light installation does not have it

    try:
        frame, first_line = _read_table(path)
        return _log(frame, first_line, rows_column, seed, measures or {})
    except (RequestLogError, pl.exceptions.PolarsError, OSError) as error:
        raise RequestLogError(f"{path}: {' '.join(str(error).split())}") from error


def write_trace(log: RequestLog, path: Path) -> None:
    """Write the gaps in nanoseconds, (n - 1,), and the rows to path, an .npz file, under exactly that name."""
    times_ns = np.rint(log.seconds * 1e9).astype(np.int64)
    arrays = {"gaps_ns": times_ns[1:] - times_ns[:-1]} | ({} if log.rows is None else {"rows": log.rows})
    with path.open("wb") as file:  # given a name, NumPy would append .npz to it
        np.savez(file, allow_pickle=False, **arrays)


def read_trace(path: Path) -> RequestLog:
    """Read the log that `write_trace` wrote, to the nanosecond, with NumPy only.

    Raises:
        RequestLogError: no such file, or another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            gaps, rows = stored["gaps_ns"], stored["rows"] if "rows" in stored.files else None
    except (OSError, ValueError, TypeError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise RequestLogError(f"{path}: A trace is a file that write_trace wrote, but got: {error}") from error
    return RequestLog(np.append(0, np.cumsum(gaps)) / 1e9, rows)


def _read_table(path: Path) -> tuple[pl.DataFrame, int]:
    """Read the table, as text in the case of a CSV, and return it with the number of its first line."""
    import polars as pl

    if not path.is_file():
        raise RequestLogError("A request log is a CSV or Parquet file, but got no such file.")
    if path.suffix.lower() in _PARQUET:
        return pl.read_parquet(path), 1
    if path.stat().st_size == 0:
        raise RequestLogError("A log holds 2 requests or more, but got an empty file.")
    return pl.read_csv(path, infer_schema=False), 2


def _log(
    frame: pl.DataFrame, first_line: int, rows_column: str | None, seed: int, measures: Mapping[str, str | None]
) -> RequestLog:
    names = {name.strip().lower(): name for name in frame.columns}
    time = next((names[name] for name in _TIME_NAMES if name in names), None)
    if time is None:
        raise RequestLogError(f"A log has a column of times, one of {_TIME_NAMES}, but got {frame.columns}.")
    if rows_column is not None and rows_column not in frame.columns:
        raise RequestLogError(f"The rows are in the column {rows_column!r}, but got {frame.columns}.")
    seconds, start_s = _seconds(frame[time], first_line)
    sizes = rows_column or names.get("rows")
    rows = None if sizes is None else _whole(frame[sizes], 1, "A request has {} row or more", first_line)
    if rows is None and "count" in names:
        if given := [name for name, column in measures.items() if column is not None]:
            raise RequestLogError(f"A log with {given[0]} has a line for each request, but got counts of seconds.")
        counts = _whole(frame[names["count"]], 0, "A second has {} requests or more", first_line)
        seconds, start_s = _within(np.repeat(seconds, counts), start_s, seed)
        return RequestLog(seconds, None, start_s)
    kept = _measures(frame, first_line, measures)
    whole = (seconds == np.floor(seconds)).all() and (start_s is None or start_s.is_integer())
    if whole and seconds[-1:].any() and (np.diff(seconds) == 0).any():
        seconds, start_s = _within(seconds, start_s, seed)
    return RequestLog(seconds, rows, start_s, kept)


def _within(seconds: NDArray[np.float64], start_s: float | None, seed: int) -> tuple[NDArray[np.float64], float | None]:
    """Draw the moments of requests within whole seconds, (n,) ascending; return them, from 0 on, and their start."""
    drawn = np.sort(seconds + np.random.default_rng(seed).random(len(seconds)))
    begins = None if start_s is None or not len(drawn) else start_s + float(drawn[0])
    return drawn - drawn[:1], begins


def _measures(frame: pl.DataFrame, first_line: int, asked: Mapping[str, str | None]) -> dict[str, NDArray[np.float64]]:
    names = {name.strip().lower(): name for name in frame.columns}
    found = {}
    for name, column in asked.items():
        if column is not None and column not in frame.columns:
            raise RequestLogError(f"The {name} is in the column {column!r}, but got {frame.columns}.")
        if (source := column or names.get(name)) is not None:
            found[name] = _amounts(frame[source], f"The {name} of a request is a number of 0 or more", first_line)
    return found


def _amounts(column: pl.Series, rule: str, first_line: int) -> NDArray[np.float64]:
    """Return numbers, (n,), of 0 or more, NaN where the value is empty; another value is an error by `rule`."""
    import polars as pl

    empty = column.is_null() | (column.cast(pl.String).str.strip_chars() == "").fill_null(True)
    text = column.str.strip_chars() if column.dtype == pl.String else column
    numbers = text.cast(pl.Float64, strict=False)
    wrong = ~empty & (numbers.is_null() | (numbers < 0) | numbers.is_infinite()).fill_null(True)
    _check(wrong.to_numpy(), rule, column, first_line)
    return numbers.fill_null(float("nan")).to_numpy()


def _seconds(column: pl.Series, first_line: int) -> tuple[NDArray[np.float64], float | None]:
    """Return the seconds since the first time, (n,), and those of the first time since the epoch.

    The latter is None where the times do not count from the epoch. Integers are subtracted as integers, so that no
    digit is lost.
    """
    times, per_second = _times(column)
    wrong = (times.is_null() | ~times.cast(float).is_finite()).fill_null(True).to_numpy()
    _check(wrong, "A time is ISO text or a number since the epoch", column, first_line)
    values = times.to_numpy()
    unsorted = np.flatnonzero(values[1:] < values[:-1])
    if len(unsorted):
        at = int(unsorted[0]) + 1
        raise RequestLogError(
            f"Requests are in the order of time, but got {column[at]!r} after {column[at - 1]!r} in line "
            f"{at + first_line}."
        )
    start_s = float(values[0]) / per_second if len(values) else 0.0
    seconds = np.asarray((values - values[:1]) / per_second, dtype=np.float64)
    return seconds, start_s if start_s >= _EARLIEST_S else None


def _times(column: pl.Series) -> tuple[pl.Series, int]:
    """Parse times as numbers, null where a value is no time, and return them with the number of units per second."""
    import polars as pl

    if column.dtype == pl.Datetime:
        return column.dt.cast_time_unit("ns").to_physical(), 10**9
    if column.dtype.is_numeric():
        return column, _per_second(column)
    text = column.cast(pl.String).str.strip_chars()
    numbers = [text.cast(kind, strict=False) for kind in (pl.Int64, pl.Float64)]
    moments = [text.str.to_datetime(form, time_unit="ns", strict=False).to_physical() for form in _ISO_FORMATS]
    readings = [(n, _per_second(n)) for n in numbers] + [(m, 10**9) for m in moments]
    # The format that fits most of the column, so that a stray value is reported.
    return min(readings, key=lambda reading: reading[0].null_count())


def _per_second(numbers: pl.Series) -> int:
    largest = numbers.cast(float).abs().max()
    return next((unit for below, unit in _UNITS if isinstance(largest, float) and largest < below), 1)


def _whole(column: pl.Series, least: int, rule: str, first_line: int) -> NDArray[np.int64]:
    """Return integers, (n,), from `least`; another value is an error by `rule`, with a placeholder for `least`."""
    import polars as pl

    numbers = column.cast(pl.Float64, strict=False).fill_null(float("nan")).to_numpy()
    wrong = ~((numbers >= least) & (numbers < 2**53) & (numbers == np.floor(numbers)))
    _check(wrong, rule.format(least), column, first_line)
    return numbers.astype(np.int64)


def _check(wrong: NDArray[np.bool_], rule: str, column: pl.Series, first_line: int) -> None:
    if wrong.any():
        at = int(wrong.argmax())
        raise RequestLogError(f"{rule}, but got {column[at]!r} in line {at + first_line}.")
