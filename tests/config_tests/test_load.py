"""The study file's traffic as the meter and a builder get it: patterns, and traces of a user's own logs."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.request_log import RequestLog, read_request_log, read_trace
from objectives.recommenders import requests as drawing
from objectives.recommenders.datasets.features import encode
from objectives.recommenders.datasets.sources import read_log
from objectives.recommenders.datasets.split import split_in_time
from objectives.recommenders.families.pointwise import PointwiseRecommender
from search.config import load as module
from search.config.load import check_server_packages, rows_trace, traffic_of
from search.config.sections import StudyConfig
from search.config.study_file import parse
from search.errors import ConfigError
from search.home import Home
from search.session import task_of

SYNTHETIC = {"source": "synthetic", "rows": 800, "users": 40, "items": 60, "fields": 4}
SIZES = (3, 40, 12, 500, 7)
MOMENTS = (0.0, 0.5, 0.75, 3.0, 3.25)


def study(**traffic: Any) -> StudyConfig:
    return parse({"name": "s", "data": SYNTHETIC, "traffic": traffic})


def logged(path: Path, moments: Sequence[float] = MOMENTS, rows: Sequence[int] | None = None) -> Path:
    """A CSV as a user has it: one request a line."""
    start = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
    lines = [(start + timedelta(seconds=each)).isoformat() for each in moments]
    if rows is not None:
        lines = [f"{line},{size}" for line, size in zip(lines, rows, strict=True)]
    path.write_text("\n".join(["timestamp" if rows is None else "timestamp,rows", *lines, ""]))
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


def traces(home: Home) -> list[Path]:
    return sorted((home.mlruns / "cache" / "traces").glob("*"))


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ({}, Traffic()),
        ({"pattern": "poisson", "depth": 0.1, "quiet": 0.5}, Traffic("poisson")),
        ({"pattern": "deterministic", "load": 0.3}, Traffic("deterministic")),
        ({"pattern": "bursts"}, Traffic("bursts", 0.5, 0.5, 0.0)),
        (
            {"pattern": "bursts", "on_seconds": 0.25, "off_seconds": 2, "quiet": 0.125},
            Traffic("bursts", on_seconds=0.25, off_seconds=2.0, quiet=0.125),
        ),
        ({"pattern": "diurnal"}, Traffic("diurnal", period_seconds=60.0, depth=0.8)),
        (
            {"pattern": "diurnal", "period_seconds": 7, "depth": 1, "quiet": 0.5},
            Traffic("diurnal", period_seconds=7.0, depth=1.0),
        ),
    ],
)
def test_each_pattern_becomes_its_traffic(written: dict[str, Any], expected: Traffic, home: Home) -> None:
    assert traffic_of(study(**written).traffic, home) == expected
    assert traces(home) == [], "nothing is written for what is drawn"


def test_a_log_is_replayed_in_its_own_gaps(tmp_path: Path, home: Home) -> None:
    """The trace is stretched to a mean of 10 a second and repeats from any place in it."""
    found = traffic_of(study(pattern=f"log:{logged(tmp_path / 'own.csv')}").traffic, home)
    assert found.pattern == "replay" and found.trace is not None
    assert read_trace(Path(found.trace)).seconds == pytest.approx(MOMENTS)
    played = gaps(found, 10.0, 8, seed=0) / 1e9
    recorded = np.diff(MOMENTS) * 0.1 / np.mean(np.diff(MOMENTS))
    assert any(played == pytest.approx(np.resize(np.roll(recorded, -start), 8)) for start in range(4))


def test_a_trace_is_named_by_the_logs_content_and_made_once(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def reading(path: Path) -> RequestLog:
        read.append(path)
        return read_request_log(path)

    monkeypatch.setattr(module, "read_request_log", reading)
    first, copy = logged(tmp_path / "own.csv"), logged(tmp_path / "copy.csv")
    one = traffic_of(study(pattern=f"log:{first}").traffic, home)
    assert traffic_of(study(pattern=f"log:{first}").traffic, home) == one
    assert traffic_of(study(pattern=f"log:{copy}").traffic, home) == one
    assert read == [first]
    logged(first, moments=(0.0, 1.0, 9.0))
    other = traffic_of(study(pattern=f"log:{first}").traffic, home)
    assert other.trace != one.trace and read == [first, first]
    assert sorted(map(str, traces(home))) == sorted([str(one.trace), str(other.trace)]), "and nothing half written"


def _broken(folder: Path) -> dict[str, Path]:
    """Logs that cannot be played, by the start of their error."""
    files = {
        "No such file": folder / "gone.csv",
        "directory": folder,
        "empty": folder / "empty.csv",
        "order": logged(folder / "unsorted.csv", (5.0, 1.0, 2.0)),
        "2 requests": logged(folder / "short.csv", (0.0,)),
        "column": folder / "no-time.csv",
        "1 row": logged(folder / "no-rows.csv", rows=(3, 40, 0, 2, 1)),
    }
    files["empty"].touch()
    files["column"].write_text("user,rows\n1,2\n2,3\n")
    return files


@pytest.mark.parametrize("field", ["traffic.pattern", "traffic.rows.file"])
@pytest.mark.parametrize(
    "fault",
    ["No such file", "directory", "empty", "order", "2 requests", "column", "1 row"],
)
def test_a_log_that_cannot_be_played_is_an_error_of_its_field(
    field: str, fault: str, tmp_path: Path, home: Home
) -> None:
    log = _broken(tmp_path)[fault]
    config = study(pattern=f"log:{log}") if field == "traffic.pattern" else study(rows={"file": str(log)})
    with pytest.raises(ConfigError, match=fault) as caught:
        task_of(config, home)
    assert str(caught.value).startswith(f"{field}: ") and len(str(caught.value).splitlines()) == 1
    assert str(log) in str(caught.value)
    if field == "traffic.pattern":
        with pytest.raises(ConfigError, match=f"^{field}: "):
            traffic_of(config.traffic, home)
    assert traces(home) == []


def test_a_file_of_rows_without_rows_is_an_error(tmp_path: Path, home: Home) -> None:
    log = logged(tmp_path / "own.csv")
    with pytest.raises(ConfigError, match=r"^traffic\.rows\.file: .*own\.csv .*rows"):
        rows_trace(study(rows={"file": str(log)}), home)


def test_rows_come_from_their_file_else_from_the_log_that_is_replayed(tmp_path: Path, home: Home) -> None:
    plain, sized = logged(tmp_path / "plain.csv"), logged(tmp_path / "sized.csv", rows=SIZES)
    other = logged(tmp_path / "other.csv", rows=(9, 9, 9, 9, 9))

    def rows(**traffic: Any) -> Any:
        trace = rows_trace(study(**traffic), home)
        if trace is None:
            return None
        found = read_trace(Path(trace)).rows
        assert found is not None
        return found.tolist()

    assert rows() is None
    assert rows(pattern="bursts") is None
    assert rows(pattern=f"log:{plain}") is None, "a log without rows leaves them log-normal"
    assert rows(pattern=f"log:{sized}") == list(SIZES)
    assert rows(rows={"file": str(sized)}) == list(SIZES)
    assert rows(pattern=f"log:{other}", rows={"file": str(sized)}) == list(SIZES)
    assert rows(pattern=f"log:{plain}", rows={"file": str(sized)}) == list(SIZES)


def test_the_rows_of_a_log_are_those_of_the_requests(
    tmp_path: Path, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come in the log's order, repeat, and are cut at the most."""
    monkeypatch.setattr(drawing, "REQUESTS", 12)
    log = logged(tmp_path / "own.csv", rows=SIZES)
    task = task_of(study(rows={"file": str(log), "median": 20, "max": 50}), home)
    assert task.rows_trace == str(traces(home)[0])
    clicks = read_log(task)
    dataset = encode(clicks, split_in_time(clicks))
    recommender = PointwiseRecommender(task, cast(Any, None), dataset)
    requests = list(recommender.requests(seed=4))
    assert [len(request["item"]) for request in requests] == [3, 40, 12, 50, 7, 3, 40, 12, 50, 7, 3, 40]
    assert all(len(set(map(len, request.values()))) == 1 for request in requests)
    drawn = list(replace(recommender, task=replace(task, rows_trace=None)).requests(seed=4))
    assert [len(request["item"]) for request in drawn] != [len(request["item"]) for request in requests]


def test_what_follows_from_a_task_is_named_by_the_rows_of_its_requests(tmp_path: Path, home: Home) -> None:
    """The name follows the content of the log, wherever it and the home lie."""
    log = logged(tmp_path / "own.csv", rows=SIZES)
    moved = logged(tmp_path / "moved.csv", rows=SIZES)
    other = logged(tmp_path / "other.csv", rows=SIZES[::-1])

    def key(at: Home, **traffic: Any) -> str:
        return task_of(study(**traffic), at).key()

    assert key(home, rows={"file": str(log)}) == key(Home(tmp_path / "else"), rows={"file": str(moved)})
    assert key(home, rows={"file": str(log)}) == key(home, pattern=f"log:{log}")
    assert len({key(home), key(home, rows={"file": str(log)}), key(home, rows={"file": str(other)})}) == 3


def test_http_needs_the_packages_of_the_server(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    """A missing package is told before any worker starts."""
    through = study(through="http")
    check_server_packages(through.traffic)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else True)
    check_server_packages(study().traffic)
    with pytest.raises(ConfigError, match=r"^traffic\.through: must be pool .*'http' and no uvicorn: pip install"):
        task_of(through, home)
