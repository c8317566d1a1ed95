"""Request logs read back against the standard library, and every refusal in one line with its place."""

from __future__ import annotations

import csv
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from objectives.measurement.request_log import (
    RequestLog,
    RequestLogError,
    read_request_log,
    read_trace,
    write_trace,
)

START = datetime(2026, 3, 1, 23, 59, 58, tzinfo=UTC)
OFFSETS = np.array([0.0, 0.25, 0.25, 1.5, 90.0])


def _csv(folder: Path, text: str) -> Path:
    path = folder / "log.csv"
    path.write_text(text)
    return path


def _lines(header: str, values: list[str]) -> str:
    return "\n".join([header, *values]) + "\n"


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
@pytest.mark.parametrize("name", ["timestamp", "Time", "TS", "DateTime"])
def test_numbers_are_read_in_the_unit_that_their_magnitude_tells(tmp_path: Path, name: str, per_second: int) -> None:
    offsets = OFFSETS if per_second > 1 else np.array([0, 1, 2, 3, 90])
    start = int(START.timestamp()) * per_second
    values = [str(start + int(seconds * per_second)) for seconds in offsets]
    log = read_request_log(_csv(tmp_path, _lines(name, values)))
    assert log.seconds.tolist() == offsets.tolist() and log.rows is None


def test_fractions_of_seconds_are_read(tmp_path: Path) -> None:
    values = [f"{START.timestamp() + seconds:.6f}" for seconds in OFFSETS]
    np.testing.assert_allclose(read_request_log(_csv(tmp_path, _lines("ts", values))).seconds, OFFSETS, atol=1e-6)


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S.%f0", "%Y-%m-%dT%H:%M:%S.%f", "%Y-%m-%dT%H:%M:%S.%f+01:00"])
def test_iso_text_is_read(tmp_path: Path, form: str) -> None:
    values = [(START + timedelta(seconds=seconds)).strftime(form) for seconds in OFFSETS.tolist()]
    assert read_request_log(_csv(tmp_path, _lines("timestamp", values))).seconds.tolist() == OFFSETS.tolist()


def test_a_whole_second_may_lack_its_fraction(tmp_path: Path) -> None:
    values = [(START + timedelta(seconds=seconds)).isoformat(" ") for seconds in OFFSETS.tolist()]
    assert read_request_log(_csv(tmp_path, _lines("timestamp", values))).seconds.tolist() == OFFSETS.tolist()


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_parquet_is_read(tmp_path: Path, unit: str) -> None:
    moments = [START + timedelta(seconds=seconds) for seconds in OFFSETS.tolist()]
    frame = pl.DataFrame({"time": moments, "rows": [3, 1, 4, 1, 5]})
    frame.with_columns(pl.col("time").dt.cast_time_unit(unit)).write_parquet(tmp_path / "log.parquet")
    log = read_request_log(tmp_path / "log.parquet")
    assert log.seconds.tolist() == OFFSETS.tolist()
    assert log.rows is not None and log.rows.tolist() == [3, 1, 4, 1, 5] and log.rows.dtype == np.int64


def test_rows_come_from_the_column_that_is_named(tmp_path: Path) -> None:
    path = _csv(tmp_path, "ts,rows,count\n1,10,7\n2,20,8\n")
    for column, rows in ((None, [10, 20]), ("count", [7, 8])):
        log = read_request_log(path, column)
        assert log.rows is not None and log.rows.tolist() == rows


@pytest.mark.parametrize("name", ["second", "timestamp"])
def test_counts_are_spread_within_their_second(tmp_path: Path, name: str) -> None:
    counts = {100: 500, 101: 0, 103: 2000, 104: 1}
    path = _csv(tmp_path, _lines(f"{name},count", [f"{second},{count}" for second, count in counts.items()]))
    log = read_request_log(path, seed=1)
    assert log.seconds[0] == 0 and np.all(np.diff(log.seconds) >= 0)
    # The first arrival is the least of 500 within its second, so the seconds are known to 1%.
    within, edges = np.histogram(log.seconds, bins=[-1, 1, 2, 3, 4, 5])
    assert abs(within - [500, 0, 0, 2000, 1]).max() <= 40
    inside = log.seconds[(log.seconds > 2.99) & (log.seconds < 4)]
    assert inside.mean() == pytest.approx(3.5, abs=0.04) and len(edges) == 6
    assert np.array_equal(read_request_log(path, seed=1).seconds, log.seconds)
    assert not np.array_equal(read_request_log(path, seed=2).seconds, log.seconds)


@pytest.mark.parametrize("whole", ["2026-03-01T12:00:{:02d}Z", "17725248{:02d}"])
def test_requests_of_whole_seconds_are_spread_within_them(whole: str, tmp_path: Path) -> None:
    """As a server's log has them: no one knows when in its second a request came. Rows stay in their order."""
    seconds = np.repeat([0, 1, 5], [300, 1, 500])
    values = [f"{whole.format(second)},{number + 1}" for number, second in enumerate(seconds.tolist())]
    log = read_request_log(_csv(tmp_path, _lines("time,rows", values)), seed=1)
    assert log.rows is not None and log.rows.tolist() == list(range(1, 802))
    assert log.start_s is not None and log.start_s % 60 == pytest.approx(0, abs=0.02)
    at = log.seconds + log.start_s % 60
    assert np.array_equal(np.floor(at), seconds) and (np.diff(at) > 0).all()
    assert (at[:300] % 1).mean() == pytest.approx(0.5, abs=0.06) and (at[-500:] % 1).mean() == pytest.approx(
        0.5, abs=0.05
    )
    finer = read_request_log(_csv(tmp_path, _lines("time", ["0", "1", "1", "2.5"])))
    assert finer.seconds.tolist() == [0, 1, 1, 2.5], "a log that tells fractions tells a burst"
    shifted = read_request_log(_csv(tmp_path, _lines("time", [f"2026-03-01T12:00:0{n}.250Z" for n in (0, 1, 1)])))
    assert shifted.seconds.tolist() == [0, 1, 1], "as this one does"


REFUSED = {
    "no header": ("", "2 requests .*empty"),
    "no request": ("ts\n", "2 requests .*0"),
    "one request": ("ts\n5\n", "2 requests .*1"),
    "one counted": ("second,count\n5,1\n6,0\n", "2 requests .*1"),
    "unsorted": ("ts,rows\n1,1\n3,1\n2,1\n1,1\n", "'2' after '3' in line 4"),
    "no time column": ("when,rows\n1,1\n2,1\n", r"times.*\['when', 'rows'\]"),
    "no row": ("ts,rows\n1,5\n2,0\n", "1 row .*'0' in line 3"),
    "less than no row": ("ts,rows\n1,-5\n2,1\n", "1 row .*'-5' in line 2"),
    "half a row": ("ts,rows\n1,1\n2,1.5\n", "1 row .*'1.5' in line 3"),
    "no number of rows": ("ts,rows\n1,1\n2,many\n", "1 row .*'many' in line 3"),
    "less than no request": ("second,count\n1,3\n2,-1\n", "0 requests .*'-1' in line 3"),
    "no time": ("ts\n1\nsoon\n3\n", "'soon' in line 3"),
    "no date": ("ts\n2026-01-01 00:00:00\n2026-13-01 00:00:00\n", "'2026-13-01 00:00:00' in line 3"),
    "a time left out": ("ts,rows\n1,1\n,2\n", "None in line 3"),
    "not a number": ("ts\n1.5\nnan\n", "'nan' in line 3"),
    "one moment": ("ts\n7\n7\n7\n", "2 moments .*3"),
    "ragged": ("ts\n1\n2,3\n", "found more fields"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_log_that_cannot_be_played_is_refused(tmp_path: Path, case: str) -> None:
    text, message = REFUSED[case]
    path = _csv(tmp_path, text)
    with pytest.raises(RequestLogError, match=message) as caught:
        read_request_log(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_no_file_and_no_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestLogError, match=r"none\.csv: "):
        read_request_log(tmp_path / "none.csv")
    with pytest.raises(RequestLogError, match=r"'items'.*\['ts', 'rows'\]"):
        read_request_log(_csv(tmp_path, "ts,rows\n1,1\n2,1\n"), "items")
    (tmp_path / "log.parquet").write_bytes(b"PAR1 it is not")
    with pytest.raises(RequestLogError, match=r"log\.parquet: "):
        read_request_log(tmp_path / "log.parquet")


def test_a_parquet_row_is_counted_from_1(tmp_path: Path) -> None:
    pl.DataFrame({"ts": [3.0, 2.0]}).write_parquet(tmp_path / "log.parquet")
    with pytest.raises(RequestLogError, match=r"but got 2\.0 after 3\.0 in line 2"):
        read_request_log(tmp_path / "log.parquet")


@pytest.mark.parametrize(
    ("seconds", "rows"), [([0.0], None), ([1.0, 2.0], None), ([0.0, 2.0, 1.0], None), ([0.0, 1.0], [1])]
)
def test_a_log_that_is_none_is_refused(seconds: list[float], rows: list[int] | None) -> None:
    with pytest.raises(RequestLogError, match="but got"):
        RequestLog(np.array(seconds), None if rows is None else np.array(rows))


@pytest.mark.parametrize("rows", [None, np.array([3, 1, 4, 1, 5])])
def test_a_trace_reads_as_it_was_written(
    tmp_path: Path, rows: np.ndarray[tuple[int], np.dtype[np.int64]] | None
) -> None:
    write_trace(RequestLog(OFFSETS, rows), tmp_path / "trace")
    log = read_trace(tmp_path / "trace")
    assert log.seconds.tolist() == OFFSETS.tolist()
    assert (log.rows is None) if rows is None else np.array_equal(log.rows, rows)
    with np.load(tmp_path / "trace") as stored:
        assert stored["gaps_ns"].tolist() == [250_000_000, 0, 1_250_000_000, 88_500_000_000]


@pytest.mark.parametrize("content", [None, b"", b"text", b"PK\x03\x04 cut off"])
def test_another_file_is_no_trace(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "trace.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RequestLogError, match="write_trace"):
        read_trace(path)
    np.savez(path, x=np.arange(3))
    with pytest.raises(RequestLogError, match="write_trace"):
        read_trace(path)
    np.save(tmp_path / "one.npy", np.arange(3))
    with pytest.raises(RequestLogError, match="write_trace"):
        read_trace(tmp_path / "one.npy")


@pytest.mark.parametrize(("name", "requests", "variation"), [("code", 8819, 13.2), ("conv", 19366, 1.09)])
def test_the_real_traces_read_as_the_csv_module_reads_them(name: str, requests: int, variation: float) -> None:
    data = os.environ.get("LEANREC_TEST_DATA")
    if not data or not (path := Path(data) / "arrivals" / f"azure_llm_2023_{name}.csv").is_file():
        pytest.skip(f"LEANREC_TEST_DATA names no folder with arrivals/azure_llm_2023_{name}.csv")
    log = read_request_log(path, rows_column="ContextTokens")
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file))
    moments = [datetime.fromisoformat(line["TIMESTAMP"][:-1]) for line in lines]  # Python reads six digits
    assert len(log.seconds) == len(lines) == requests
    assert log.rows is not None and log.rows.tolist() == [int(line["ContextTokens"]) for line in lines]
    np.testing.assert_allclose(log.seconds, [(m - moments[0]).total_seconds() for m in moments], rtol=0, atol=1.1e-6)
    gaps = np.diff(log.seconds)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, rel=0.005)


LATENCIES = """timestamp,latency_ms,Queue_Length,took,rows
10.0,1.5,3,0.1,7
11.0,,0,0.2,8
12.0, 4 ,1,,9
"""


def test_measures_are_read_from_columns_of_their_name_or_the_one_given(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LATENCIES)
    assert read_request_log(path).measures == {}
    found = read_request_log(path, None, 0, {"latency_ms": None, "cpu_ms": None, "queue_length": None})
    assert {name: values.tolist() for name, values in found.measures.items()} == {
        "latency_ms": pytest.approx([1.5, float("nan"), 4.0], nan_ok=True),
        "queue_length": [3.0, 0.0, 1.0],
    }
    assert found.rows is not None and found.rows.tolist() == [7, 8, 9]
    given = read_request_log(path, None, 0, {"latency_ms": "took"}).measures["latency_ms"]
    assert given.tolist() == pytest.approx([0.1, 0.2, float("nan")], nan_ok=True)
    typed = pl.DataFrame({"ts": [1.0, 2.0, 3.0], "latency_ms": [1, None, 5], "queue_length": [0.5, float("nan"), None]})
    typed.write_parquet(tmp_path / "log.parquet")
    found = read_request_log(tmp_path / "log.parquet", None, 0, {"latency_ms": None, "queue_length": None})
    assert found.measures["latency_ms"].tolist() == pytest.approx([1.0, float("nan"), 5.0], nan_ok=True)
    assert found.measures["queue_length"].tolist() == pytest.approx([0.5, float("nan"), float("nan")], nan_ok=True)


@pytest.mark.parametrize(
    ("old", "new", "measures", "expected"),
    [
        ("1.5", "-1", {"latency_ms": None}, "latency_ms of a request is a number of 0 or more, but got '-1' in line 2"),
        (" 4 ", "slow", {"latency_ms": None}, "but got 'slow' in line 4"),
        (" 4 ", "inf", {"latency_ms": None}, "but got 'inf' in line 4"),
        ("0.2", "x", {"cpu_ms": "took"}, "The cpu_ms of a request is a number of 0 or more, but got 'x' in line 3"),
        ("", "", {"latency_ms": "none"}, "The latency_ms is in the column 'none'"),
        ("rows", "count", {"latency_ms": "took"}, "has a line for each request"),
    ],
)
def test_wrong_measures_are_explained(
    old: str, new: str, measures: dict[str, str | None], expected: str, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    path.write_text(LATENCIES.replace(old, new))
    with pytest.raises(RequestLogError) as error:
        read_request_log(path, None, 0, measures)
    assert expected in str(error.value)


def test_a_measure_beside_counts_is_left_out_and_a_measure_is_one_per_request(tmp_path: Path) -> None:
    path = _csv(tmp_path, "second,count,latency_ms\n0,3,1.5\n1,2,2.5\n3,4,2.0\n")
    found = read_request_log(path, None, 0, {"latency_ms": None})
    assert len(found.seconds) == 9 and found.measures == {}
    with pytest.raises(RequestLogError, match=r"2 requests has a cpu_ms, but got 3"):
        RequestLog(np.array([0.0, 1.0]), measures={"cpu_ms": np.ones(3)})
