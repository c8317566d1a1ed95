"""Machines and profiles read from files, and the line that says what is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from planning.fleet import MachineKind
from planning.observation.traffic import observe
from search.errors import ConfigError
from search.plan.inputs import read_profile, write_profile
from search.plan.machines import read_machines


def test_machines_are_read(tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text(
        "machines:\n  - {name: small, cores: 2, price_per_hour: 0.1}\n"
        "  - {name: large, cores: 8, speed: 1.5, price_per_hour: 1, start_seconds: 30, most: 4, memory_gb: 16}\n"
    )
    assert read_machines(file) == (
        MachineKind("small", 2, price_per_hour=0.1),
        MachineKind("large", 8, 1.5, 1.0, 30.0, 4, 16 * 10**9),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "machines"),
        ("machines: []", "machines: must be a list of 1 to 20"),
        ("machines: 3", "machines: must be a list of 1 to 20"),
        ("machines: [{name: a, cores: 0, price_per_hour: 1}]", "cores: must be a whole number, at least 1, but got 0"),
        ("machines: [{name: a, cores: two, price_per_hour: 1}]", "cores: must be a whole number"),
        ("machines: [{name: a, cores: 2}]", "price_per_hour: missing; must be a number above 0"),
        ("machines: [{name: a, cores: 2, price_per_hour: -1}]", "price_per_hour: must be a number above 0, but got -1"),
        ("machines: [{name: a, cores: 2, price_per_hour: .inf}]", "price_per_hour: must be a number above 0"),
        ("machines: [{name: a, cores: 2, price_per_hour: 1, gpu: 1}]", "gpu: unknown key"),
        ("machines: [{name: a, cores: 2, price_per_hour: 1}, {name: a, cores: 4, price_per_hour: 2}]", "'a' twice"),
        ("machines: [", "not valid YAML"),
    ],
)
def test_wrong_machines_are_explained(text: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "machines.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_machines(file)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_missing_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--machines: must be a YAML file"):
        read_machines(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="--profile: must be a CSV file"):
        read_profile(tmp_path / "none.csv")


def week() -> list[str]:
    days = ("Monday", "tue", "Wednesday", "thu", "Friday", "Sat", "sunday")
    return [f"{day},{hour},{1 + number},{2 + hour}" for number, day in enumerate(days) for hour in range(24)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_profile_is_read_by_hour(encoding: str, tmp_path: Path) -> None:
    """Spreadsheets write a byte order mark."""
    file = tmp_path / "profile.csv"
    file.write_text("\n".join(["weekday,hour,mean_rps,p95_rps", *reversed(week())]), encoding)
    found = read_profile(file)
    assert found.mean_rps.reshape(7, 24)[:, 0].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found.p95_rps[24 * 6 : 24 * 6 + 8].tolist() == [7, 7, 7, 7, 7, 7, 8, 9], "a p95 is at least the mean"


def test_what_observe_writes_is_read_again(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    seconds = np.sort(random.uniform(0, 8 * 86400, 100_000))
    found = observe(seconds - seconds[0], None, 1.7e9)
    write_profile(found.hours, tmp_path / "profile.csv")
    profile = read_profile(tmp_path / "profile.csv")
    assert profile.mean_rps.tolist() == [hour.mean_rps for hour in found.hours]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda lines: lines[:-1], "must have all 168 hours of the week, but lacks 1: Sunday 23:00 to 24:00"),
        (
            lambda lines: [line for line in lines if not line.startswith(("Monday,5", "tue", "Wednesday,0", "Sat,23"))],
            "but lacks 27: Monday 5:00 to 6:00, Tuesday 0:00 to Wednesday 1:00, Saturday 23:00 to 24:00",
        ),
        (
            lambda lines: [line for number, line in enumerate(lines) if number % 2],
            "but lacks 84: Monday 0:00 to 1:00, Monday 2:00 to 3:00, Monday 4:00 to 5:00, Monday 6:00 to 7:00 and 80",
        ),
        (lambda lines: [*lines, lines[-1]], "must be another hour"),
        (lambda lines: ["Someday,3,1,1", *lines[1:]], "line 2: weekday must be one of Monday"),
        (lambda lines: ["Monday,24,1,1", *lines[1:]], "line 2: hour must be a whole number from 0 to 23, but got '24'"),
        (lambda lines: ["Monday,0,-1,1", *lines[1:]], "line 2: mean_rps must be a number, at least 0, but got '-1'"),
        (lambda lines: ["Monday,0,1,nan", *lines[1:]], "line 2: p95_rps must be a number"),
        (lambda lines: ["Monday,0,1", *lines[1:]], "line 2: p95_rps must be a number, at least 0, but got None"),
        (lambda lines: [f"{line.rsplit(',', 2)[0]},0,0" for line in lines], "must have an hour with requests"),
    ],
)
def test_wrong_profiles_are_explained(change: object, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "profile.csv"
    file.write_text("\n".join(["weekday,hour,mean_rps,p95_rps", *change(week())]))  # type: ignore[operator]
    with pytest.raises(ConfigError) as error:
        read_profile(file)
    assert expected in str(error.value) and str(error.value).startswith("--profile: ")
    file.write_text("weekday,hour\nMonday,0\n")
    with pytest.raises(ConfigError, match="must have the columns"):
        read_profile(file)
