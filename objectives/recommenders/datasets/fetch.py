"""Download of a known data set: fetched once, verified by checksums, and put in place completely or not at all."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from objectives.errors import ExplainedError

PIP_TIMEOUT_SECONDS = 300


class FetchError(ExplainedError):
    """A data set could not be fetched; the message has the reason and a remedy."""


@dataclass(frozen=True)
class KnownData:
    """Data set contained in a published Python wheel."""

    requirement: str  # as pip takes it, pinned
    archive_sha256: str
    inside: str  # folder of the files in the archive
    files: Mapping[str, str]  # name -> SHA-256
    notice: str  # source and terms; becomes the folder's README.md


KNOWN: Mapping[str, KnownData] = {
    "ml-100k": KnownData(
        requirement="recbole==1.2.1",
        archive_sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
        inside="recbole/dataset_example/ml-100k",
        files={
            "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
            "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
            "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
        },
        notice=(
            "# MovieLens 100K\n\n"
            "100,000 ratings of 1,682 films by 943 people, collected by the GroupLens Research Project at the\n"
            "University of Minnesota; in the atomic files of RecBole, taken from the wheel of recbole 1.2.1.\n\n"
            "Terms: for research. No redistribution without GroupLens's permission, no commercial use without it,\n"
            "no suggestion that the university or GroupLens endorses anything. Publications cite F. M. Harper and\n"
            "J. A. Konstan, The MovieLens Datasets: History and Context, ACM TiiS 5(4), 2015.\n"
        ),
    ),
}


def pip_download(requirement: str, into: Path) -> Path:
    """Download the requirement's only wheel to the folder `into`.

    Raises:
        OSError: pip failed, or left another number of wheels.
    """
    asked = ["download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", requirement]
    command = [sys.executable, "-m", "pip", *asked, "-d", str(into)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_SECONDS, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise OSError(f"pip stopped with status {done.returncode}: {lines[-1].strip()}")
    wheels = sorted(into.glob("*.whl"))
    if len(wheels) != 1:
        raise OSError(f"pip must leave one wheel, but got {[wheel.name for wheel in wheels]}")
    return wheels[0]


def fetch(
    name: str,
    folder: Path,
    download: Callable[[str, Path], Path] = pip_download,
    known: Mapping[str, KnownData] = KNOWN,
) -> Path:
    """Return the folder of the data set, folder/name; nothing is downloaded when it exists with the right checksums.

    Args:
        download: called with (requirement, into), leaves the archive in the folder `into` and returns its path

    Raises:
        ValueError: the name is unknown.
        FetchError: the download failed, or a checksum is wrong.
    """
    if name not in known:
        raise ValueError(f"a data set to fetch must be one of {', '.join(sorted(known))}, but got {name!r}")
    data, place = known[name], folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone_in(folder):
            for leftover in folder.glob(f"{name}.partial-*"):  # of a fetch that was killed
                shutil.rmtree(leftover, ignore_errors=True)
            found = {file: _sha256((place / file).read_bytes()) for file in data.files if (place / file).is_file()}
            if found != data.files:
                _replace(place, data, download)
    except (OSError, subprocess.SubprocessError, zipfile.BadZipFile) as error:
        raise FetchError(
            f"{name} could not be fetched ({' '.join(str(error).split())}): "
            f"check the network or the pip index, or put {', '.join(data.files)} by hand into {place}"
        ) from error
    return place


def _replace(place: Path, data: KnownData, download: Callable[[str, Path], Path]) -> None:
    # On the same file system, so that the last step is a rename.
    with tempfile.TemporaryDirectory(
        prefix=f"{place.name}.partial-", dir=place.parent, ignore_cleanup_errors=True
    ) as partial:
        ready = Path(partial, "ready")
        ready.mkdir()
        archive = download(data.requirement, Path(partial))
        _check(archive.name, archive.read_bytes(), data.archive_sha256)
        with zipfile.ZipFile(archive) as opened:
            for file, sha256 in data.files.items():
                if (path := f"{data.inside}/{file}") not in opened.namelist():
                    raise OSError(f"{archive.name} must hold {path}, but got none")
                content = opened.read(path)
                _check(file, content, sha256)
                (ready / file).write_bytes(content)
        (ready / "README.md").write_text(data.notice, encoding="utf-8")
        if place.exists():
            place.rename(Path(partial, "old"))  # a folder cannot be renamed onto one that is not empty
        ready.rename(place)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _check(what: str, content: bytes, sha256: str) -> None:
    if (found := _sha256(content)) != sha256:
        raise OSError(f"the SHA-256 of {what} must be {sha256[:12]}..., but got {found[:12]}...")


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Lock the folder, so that no other fetch removes partial files of this one. A kill releases the lock."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
