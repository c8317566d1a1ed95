"""Each shape of MovieLens, written by hand, reads to the same rows; the real one is read a second time with csv."""

import csv
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from objectives.recommenders.datasets.click_log import SEPARATOR, ClickLog
from objectives.recommenders.datasets.movielens import read_movielens

# user, item, stars, seconds; out of order, with a tie, one user and one item without features.
RATINGS = [(7, 2, 5, 7200), (1, 1, 3, 3600), (1, 2, 4, 3600), (9, 3, 1, 90000), (7, 4, 4, 100)]
# What any reader must make of them: user, item, seconds, label, year, genres, hour.
ROWS = [
    (7, 4, 100, 1, "unknown", "unknown", 0),
    (1, 1, 3600, 0, "1995-1999", SEPARATOR.join(["Animation", "Children's", "Comedy"]), 1),
    (1, 2, 3600, 1, "1965-1969", "Drama", 1),
    (7, 2, 7200, 1, "1965-1969", "Drama", 2),
    (9, 3, 90000, 0, "unknown", "unknown", 1),
]
USERS = {
    1: ("20-29", "M", "technician", "8"),
    7: ("50-59", "F", "other", "unknown"),
    9: ("unknown", "unknown", "unknown", "unknown"),
}


def _rows(log: ClickLog, *columns: str) -> list[tuple[object, ...]]:
    arrays: list[NDArray[Any]] = [
        log.user,
        log.item,
        log.timestamp,
        log.label,
        *(log.columns[name] for name in columns),
    ]
    return [tuple(row) for row in zip(*(array.tolist() for array in arrays), strict=True)]


def _recbole(folder: Path) -> None:
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    lines += ["\t".join(map(str, row)) for row in RATINGS]
    (folder / "any-name.inter").write_text("\n".join(lines) + "\n")
    (folder / "any-name.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n"
        "1\t24\tM\ttechnician\t85711\n7\t57\tF\tother\tV3N4P\n"
    )
    (folder / "any-name.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        "1\tToy Story (1995)\tV\tChildren's Animation Comedy\n2\t2001: A Space Odyssey\t1968\tDrama\n"
        "3\tunkonwn\tunkonwn\tunknown\n"
    )


def _hundred_thousand(folder: Path) -> None:
    (folder / "u.data").write_text("".join("\t".join(map(str, row)) + "\n" for row in RATINGS))
    (folder / "u.user").write_text("1|24|M|technician|85711\n7|57|F|other|V3N4P\n", encoding="latin-1")
    flags = {1: {3, 4, 5}, 2: {8}, 3: {0}}

    def item(number: int, title: str, date: str) -> str:
        bits = "|".join(str(int(bit in flags[number])) for bit in range(19))
        return f"{number}|{title}|{date}||http://somewhere|{bits}\n"

    (folder / "u.item").write_text(
        item(1, "Toy Stóry (1995)", "01-Jan-1995") + item(2, "2001 (1968)", "") + item(3, "unknown", ""),
        encoding="latin-1",
    )


def _million(folder: Path) -> None:
    (folder / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in RATINGS))
    (folder / "users.dat").write_text("1::M::25::technician::85711\n7::F::56::other::V3N4P\n", encoding="latin-1")
    (folder / "movies.dat").write_text(
        '1::Toy Stóry: the "one" (1995)::Animation|Children\'s|Comedy\n2::2001 (1968)::Drama\n', encoding="latin-1"
    )


def _latest(folder: Path) -> None:
    lines = ["userId,movieId,rating,timestamp"] + [",".join(map(str, row)) for row in RATINGS]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    (folder / "movies.csv").write_text(
        'movieId,title,genres\n1,"Toy, Story (1995)",Children\'s|Animation|Comedy\n'
        "2,2001 (1901) (1968–1970),Drama\n3,Nobody knows,(no genres listed)\n",
        encoding="utf-8",
    )


@pytest.mark.parametrize("write", [_recbole, _hundred_thousand, _million, _latest])
def test_each_shape_reads_to_the_same_rows(write: object, tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path)
    log = read_movielens(tmp_path)
    assert log.name == tmp_path.name
    assert {name for name, kind in log.kinds.items() if kind != "categorical"} == {"genres"}
    assert log.kinds["genres"] == "multi"
    assert _rows(log, "year", "genres", "hour") == ROWS
    assert {name: log.sides[name] for name in ("year", "genres", "hour")} == {
        "year": "item",
        "genres": "item",
        "hour": "context",
    }
    if write is not _latest:
        names = ("age", "gender", "occupation", "zip")
        assert list(log.columns) == [*names, "year", "genres", "hour"]
        assert {log.sides[name] for name in names} == {"user"}
        found = [tuple(log.columns[name][row] for name in names) for row in range(len(ROWS))]
        assert found == [USERS[int(user)] for user in log.user]


@pytest.mark.parametrize(
    ("write", "sides"), [(_hundred_thousand, ("u.user", "u.item")), (_million, ("users.dat", "movies.dat"))]
)
def test_side_files_are_optional(write: object, sides: tuple[str, ...], tmp_path: Path) -> None:
    assert callable(write)
    write(tmp_path)
    for name in sides:
        (tmp_path / name).unlink()
    assert _rows(read_movielens(tmp_path), "hour") == [(*row[:4], row[6]) for row in ROWS]


def test_a_folder_without_ratings_is_refused_with_what_is_expected(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"ratings\.csv.*but got .*notes\.txt") as caught:
        read_movielens(tmp_path)
    assert str(tmp_path) in str(caught.value)
    with pytest.raises(ValueError, match="nowhere"):
        read_movielens(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("ratings.csv", ""),
        ("ratings.csv", "userId,movieId,stars,timestamp\n1,1,4,5\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,1,4,5\n1,1\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\n1,1,4,5\n1,1,nan,6\n"),
        ("ratings.csv", "userId,movieId,rating,timestamp\nann,1,4,5\n"),
        ("u.data", "1\t1\t4\t5\n2\t2\t3\t6\t7\n"),
        ("ratings.dat", "1::1::4::5\n2::2::three::6\n"),
        ("x.inter", "user_id:token\titem_id:token\n1\t1\n"),
    ],
)
def test_a_malformed_file_is_named_in_one_line(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=name) as caught:
        read_movielens(tmp_path)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_item_described_twice_is_refused(tmp_path: Path) -> None:
    _latest(tmp_path)
    with (tmp_path / "movies.csv").open("a") as file:
        file.write("2,Again (1999),Drama\n")
    with pytest.raises(ValueError, match="MovieLens"):
        read_movielens(tmp_path)


def test_the_real_one_reads_as_the_csv_module_reads_it() -> None:
    data = os.environ.get("LEANREC_TEST_DATA")
    if not data or not (folder := Path(data) / "movielens-latest-small").is_dir():
        pytest.skip("LEANREC_TEST_DATA names no folder with movielens-latest-small")
    log = read_movielens(folder)
    with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
        movies = {int(row["movieId"]): row for row in csv.DictReader(file)}
    expected = []
    with (folder / "ratings.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            movie = movies[int(row["movieId"])]
            years = re.findall(r"\((\d{4})[^()]*\)", movie["title"])
            year = int(years[-1]) - int(years[-1]) % 5 if years else None
            genres = SEPARATOR.join(sorted(movie["genres"].split("|")))
            seconds = int(row["timestamp"])
            expected.append(
                (
                    int(row["userId"]),
                    int(row["movieId"]),
                    seconds,
                    float(float(row["rating"]) >= 4),
                    "unknown" if year is None else f"{year}-{year + 4}",
                    "unknown" if genres.startswith("(no") else genres,
                    datetime.fromtimestamp(seconds, UTC).hour,
                )
            )
    expected.sort(key=lambda row: (row[2], row[0], row[1]))
    assert _rows(log, "year", "genres", "hour") == expected
    assert np.all(np.diff(log.timestamp) >= 0)
