"""Fetching gives the whole data set or nothing, whatever goes wrong on the way."""

import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from objectives.recommenders.datasets import fetch as fetching
from objectives.recommenders.datasets.fetch import FetchError, KnownData, fetch, pip_download
from objectives.recommenders.datasets.movielens import read_movielens

CONTENT = {"tiny.a": b"first file\n", "tiny.b": b"second file\n" * 100}


def _archive(path: Path, content: Mapping[str, bytes] = CONTENT) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            # A fixed date, so that equal content is equal bytes.
            archive.writestr(zipfile.ZipInfo(f"inside/{name}", (2020, 1, 1, 0, 0, 0)), data)
        archive.writestr(zipfile.ZipInfo("inside/not-wanted", (2020, 1, 1, 0, 0, 0)), b"x")
    return path


@pytest.fixture
def known(tmp_path: Path) -> dict[str, KnownData]:
    archive = _archive(tmp_path / "reference.whl").read_bytes()
    files = {name: hashlib.sha256(data).hexdigest() for name, data in CONTENT.items()}
    return {"tiny": KnownData("tiny==1", hashlib.sha256(archive).hexdigest(), "inside", files, "Source and terms.\n")}


def _works(requirement: str, into: Path) -> Path:
    assert requirement == "tiny==1"
    return _archive(into / "tiny.whl")


def _corrupts(requirement: str, into: Path) -> Path:
    path = _works(requirement, into)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return path


def _is_another_release(requirement: str, into: Path) -> Path:
    return _archive(into / "tiny.whl", {**CONTENT, "new": b"the wanted files are the same"})


def _fails(requirement: str, into: Path) -> Path:
    (into / "half").write_bytes(b"half")
    raise OSError("the network\nis down")


def _times_out(requirement: str, into: Path) -> Path:
    raise subprocess.TimeoutExpired("pip", 300)


def _is_interrupted(requirement: str, into: Path) -> Path:
    (into / "half").write_bytes(b"half")
    raise KeyboardInterrupt


def _never(requirement: str, into: Path) -> Path:
    raise AssertionError("nothing should be downloaded")


def _check_complete(place: Path) -> None:
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.name != "README.md"} == CONTENT
    assert (place / "README.md").read_text() == "Source and terms.\n"
    assert [path.name for path in place.parent.iterdir()] == ["tiny"]


def test_a_fetch_leaves_the_wanted_files_and_is_not_repeated(known: dict[str, KnownData], tmp_path: Path) -> None:
    folder = tmp_path / "home" / "data"
    assert fetch("tiny", folder, _works, known) == folder / "tiny"
    _check_complete(folder / "tiny")
    assert fetch("tiny", folder, _never, known) == folder / "tiny"


def test_files_put_there_by_hand_are_taken(known: dict[str, KnownData], tmp_path: Path) -> None:
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    for name, data in CONTENT.items():
        (tmp_path / "data" / "tiny" / name).write_bytes(data)
    assert fetch("tiny", tmp_path / "data", _never, known) == tmp_path / "data" / "tiny"


@pytest.mark.parametrize("damage", ["changed", "removed"])
def test_a_damaged_data_set_is_replaced(damage: str, known: dict[str, KnownData], tmp_path: Path) -> None:
    place = fetch("tiny", tmp_path / "data", _works, known)
    if damage == "changed":
        (place / "tiny.a").write_bytes(b"First file\n")
    else:
        (place / "tiny.b").unlink()
    _check_complete(fetch("tiny", tmp_path / "data", _works, known))


@pytest.mark.parametrize("download", [_corrupts, _is_another_release, _fails, _times_out])
def test_a_failure_leaves_nothing_and_says_what_to_do(
    download: object, known: dict[str, KnownData], tmp_path: Path
) -> None:
    assert callable(download)
    with pytest.raises(FetchError, match=r"tiny\.a, tiny\.b") as caught:
        fetch("tiny", tmp_path / "data", download, known)
    assert "\n" not in str(caught.value) and str(tmp_path / "data" / "tiny") in str(caught.value)
    assert list((tmp_path / "data").iterdir()) == []
    _check_complete(fetch("tiny", tmp_path / "data", _works, known))


def test_a_member_whose_sum_is_wrong_is_refused(known: dict[str, KnownData], tmp_path: Path) -> None:
    data = known["tiny"]
    wrong = KnownData("tiny==1", data.archive_sha256, "inside", {"tiny.a": "0" * 64}, "")
    with pytest.raises(FetchError, match=r"SHA-256 of tiny\.a must be 0000"):
        fetch("tiny", tmp_path / "data", _works, {"tiny": wrong})
    missing = KnownData("tiny==1", data.archive_sha256, "inside", {"tiny.c": "0" * 64}, "")
    with pytest.raises(FetchError, match=r"tiny\.c"):
        fetch("tiny", tmp_path / "data", _works, {"tiny": missing})
    assert list((tmp_path / "data").iterdir()) == []


def test_an_interrupt_leaves_nothing(known: dict[str, KnownData], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fetch("tiny", tmp_path / "data", _is_interrupted, known)
    assert list((tmp_path / "data").iterdir()) == []


def test_what_a_killed_fetch_left_is_swept_by_the_next(known: dict[str, KnownData], tmp_path: Path) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\n"
        "from objectives.recommenders.datasets.fetch import KnownData, fetch\n"
        "def hangs(requirement, into):\n"
        "    (into / 'half.whl').write_bytes(b'half'); print('downloading', flush=True); time.sleep(60)\n"
        "fetch('tiny', Path(sys.argv[1]), hangs, {'tiny': KnownData('tiny==1', '', '', {'a': ''}, '')})\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "data")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [Path(fetching.__file__).parents[3]]))},
    )
    assert child.stdout is not None and child.stdout.readline() == "downloading\n"
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=10)
    child.stdout.close()
    assert [path.name.partition("-")[0] for path in (tmp_path / "data").iterdir()] == ["tiny.partial"]
    _check_complete(fetch("tiny", tmp_path / "data", _works, known))


def test_two_fetches_at_once_download_once(known: dict[str, KnownData], tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    downloads = []

    def slow(requirement: str, into: Path) -> Path:
        downloads.append(into)
        time.sleep(0.2)
        return _works(requirement, into)

    with ThreadPoolExecutor(2) as pool:
        places = list(pool.map(lambda _: fetch("tiny", tmp_path / "data", slow, known), range(2)))
    assert len(downloads) == 1
    for place in places:
        _check_complete(place)


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ml-100k.*'ml-1b'"):
        fetch("ml-1b", tmp_path)


def test_pip_that_fails_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(OSError, match=r"status 1: ERROR: "):
        pip_download("recbole==1.2.1", tmp_path)


def test_a_folder_that_cannot_be_made_is_reported(known: dict[str, KnownData], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="tiny"):
        fetch("tiny", tmp_path / "file", _works, known)


@pytest.mark.network
def test_the_real_one_is_fetched_and_read(tmp_path: Path) -> None:
    log = read_movielens(fetch("ml-100k", tmp_path))
    assert len(log.label) == 100_000 and log.label.sum() == 55_375
    assert len(set(log.user.tolist())) == 943 and len(set(log.item.tolist())) == 1682
