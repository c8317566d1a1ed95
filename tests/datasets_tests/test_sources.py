"""Logs of every source that a task can name, compared with the reader's own, and refused sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from objectives.recommenders.datasets import sources
from objectives.recommenders.datasets.click_log import ClickLog
from objectives.recommenders.datasets.criteo import read_criteo
from objectives.recommenders.datasets.sources import least_count, read_log
from objectives.recommenders.datasets.synthetic import synthetic_log
from objectives.task import Task

SIZES = {"rows": 300, "users": 20, "items": 15, "fields": 4}


def _task(home: Path, source: str, **given: Any) -> Task:
    return Task(str(home), "dcn-v2", source, "auc", 20, 0.5, 60, 7, **given)


def _same(log: ClickLog, other: ClickLog) -> bool:
    columns = all(np.array_equal(log.columns[name], other.columns[name]) for name in other.columns)
    plain = [(a.name, a.sides, a.kinds, a.bayes_auc) for a in (log, other)]
    arrays = [(a.user, a.item, a.timestamp, a.label) for a in (log, other)]
    return columns and plain[0] == plain[1] and all(np.array_equal(a, b) for a, b in zip(*arrays, strict=True))


@pytest.mark.parametrize("shares", [{}, {"user_turnover": 1, "order": 0.5}, {"zipf": 0.5, "positive_rate": 0.2}])
def test_a_synthetic_log_is_that_of_the_tasks_seed(tmp_path: Path, shares: Mapping[str, Any]) -> None:
    """Numbers may come as floats, as they do from JSON."""
    given = {**{name: float(value) for name, value in SIZES.items()}, **shares}
    log = read_log(_task(tmp_path, "synthetic", synthetic=given))
    assert _same(log, synthetic_log(**SIZES, seed=7, **shares))
    assert not _same(log, synthetic_log(**SIZES, seed=8, **shares))


def test_a_table_is_read_by_its_columns(tmp_path: Path) -> None:
    file = tmp_path / "clicks.csv"
    table = {"at": [3, 1, 2], "clicked": [1, 0, 1], "age": [20, 30, 40], "tags": ["a|b", "", "b"], "who": [5, 5, 6]}
    pl.DataFrame(table).write_csv(file)
    columns = {"label": "clicked", "timestamp": "at", "user": "who", "numeric": ["age"], "multi": ["tags"]}
    log = read_log(_task(tmp_path, f"table:{file}", columns={**columns, "of_user": ["age"], "positive_from": None}))
    assert (log.timestamp.tolist(), log.label.tolist()) == ([1, 2, 3], [0, 1, 1])
    assert log.user is not None and log.user.tolist() == [5, 6, 5] and log.item is None
    assert log.columns["age"].tolist() == [30, 40, 20] and log.sides == {"age": "user", "tags": "context"}
    assert log.kinds == {"age": "numeric", "tags": "multi"}


def test_a_file_of_criteos_form_is_read_as_such(tmp_path: Path) -> None:
    file = tmp_path / "train.txt"
    rows = [[str(n % 2), *map(str, range(n, n + 13)), *(f"{n:08x}" for _ in range(26))] for n in range(30)]
    file.write_text("\n".join("\t".join(row) for row in rows) + "\n")
    assert _same(read_log(_task(tmp_path, f"criteo:{file}")), read_criteo(file))


def test_ratings_are_read_from_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "ratings"
    folder.mkdir()
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,10,4.0,100\n2,10,1.0,90\n2,11,5.0,95\n")
    (folder / "movies.csv").write_text("movieId,title,genres\n10,A (1990),Drama\n11,B (1991),Comedy|Drama\n")
    log = read_log(_task(tmp_path, f"movielens:{folder}"))
    assert log.timestamp.tolist() == [90, 95, 100]
    assert log.user is not None and log.user.tolist() == [2, 2, 1]


def test_a_known_data_set_is_fetched_into_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Path]] = []

    def fetch(name: str, folder: Path) -> Path:
        asked.append((name, folder))
        return folder / name

    monkeypatch.setattr(sources, "fetch", fetch)
    monkeypatch.setattr(sources, "read_movielens", lambda folder: folder)
    read: Any = read_log(_task(tmp_path, "ml-100k"))
    folder = tmp_path / "mlruns" / "data"
    assert asked == [("ml-100k", folder)] and read == folder / "ml-100k"


@pytest.mark.parametrize(("source", "least"), [("criteo:day_0", 10), ("table:criteo.csv", 1), ("synthetic", 1)])
def test_values_need_more_rows_where_they_are_hashed(source: str, least: int) -> None:
    assert least_count(source) == least


SOURCES = r"^data\.source .*'ml-100k'.*movielens:DIR, table:FILE, criteo:FILE .*"


@pytest.mark.parametrize(
    ("source", "given", "line"),
    [
        ("netflix", {}, SOURCES + "'netflix'"),
        ("table:", {}, SOURCES + "'table:'"),
        ("movielens", {}, SOURCES + "'movielens'"),
        ("synthetic", {}, SOURCES + "'synthetic'"),
        ("table:clicks.csv", {}, r"^data\.columns "),
        ("table:gone.csv", {"columns": {"label": "a", "timestamp": "b", "user": "c"}}, r"gone\.csv"),
        ("table:gone.csv", {"columns": {"label": "a"}}, r"^Schema .*timestamp"),
        ("table:gone.csv", {"columns": {"label": "a", "timestamp": "a", "user": "c"}}, r"'a'"),
        ("criteo:gone.txt", {}, r"gone\.txt"),
        ("movielens:gone", {}, r"gone"),
        ("synthetic", {"synthetic": {**SIZES, "order": 2}}, r"^order .*2"),
    ],
)
def test_what_is_no_source_is_said_in_one_line(
    tmp_path: Path, source: str, given: Mapping[str, Any], line: str
) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        read_log(_task(tmp_path, source, **given))
    assert len(str(caught.value).splitlines()) == 1
