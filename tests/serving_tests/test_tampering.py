"""A hundred seeded corruptions of a bundle, all refused before an engine opens a model."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from objectives.records import InputSpec
from objectives.serving.bundle import open_verified, write_bundle
from objectives.serving.bundle_files import BundleError
from spaces.candidate import Candidate
from tests.serving_tests.dot import write_dot

FILES = ("README.md", "candidate.json", "manifest.json", "manifest.sha256", "measurement.json", "model.onnx")
Random = np.random.Generator


class Payload:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    inputs, example = (InputSpec("item", "int64", (), 30),), {"item": np.arange(5, dtype=np.int64)}
    write_bundle(
        folder / "bundle", "toy", write_dot(folder / "model.onnx"), Candidate(), {}, inputs, "# toy\n", example
    )
    return folder / "bundle"


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The models of which a session was asked for; none is opened."""
    asked: list[object] = []

    def refuse(model: object, *options: object, **more: object) -> None:
        asked.append(model)
        raise AssertionError("a session was opened")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    return asked


def sign(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and write its checksum anew, as an attacker would."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest)
    data = json.dumps(manifest).encode()
    (bundle / "manifest.json").write_bytes(data)
    (bundle / "manifest.sha256").write_text(f"{hashlib.sha256(data).hexdigest()}  manifest.json\n")


def listed(bundle: Path, name: str, file: Path) -> None:
    checksum = hashlib.sha256(file.read_bytes()).hexdigest()
    sign(bundle, lambda manifest: manifest["files"].update({name: checksum}))


def flip_a_bit(bundle: Path, rng: Random) -> None:
    file = bundle / rng.choice(FILES)
    data = bytearray(file.read_bytes())
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def truncate(bundle: Path, rng: Random) -> None:
    file = bundle / rng.choice(FILES)
    os.truncate(file, int(rng.integers(file.stat().st_size)))


def append(bundle: Path, rng: Random) -> None:
    with (bundle / rng.choice(FILES)).open("ab") as stream:
        stream.write(rng.bytes(int(rng.integers(1, 20))))


def swap(bundle: Path, rng: Random) -> None:
    one, other = (bundle / name for name in rng.choice(FILES, size=2, replace=False))
    one.rename(bundle.parent / "aside")
    other.rename(one)
    (bundle.parent / "aside").rename(other)


def remove(bundle: Path, rng: Random) -> None:
    (bundle / rng.choice(FILES)).unlink()


def link(bundle: Path, rng: Random) -> None:
    """The same content at the end of a symbolic or a hard link."""
    file, outside = bundle / rng.choice(FILES), bundle.parent / "outside"
    file.rename(outside)
    (file.symlink_to if rng.random() < 0.5 else file.hardlink_to)(outside)


def add(bundle: Path, rng: Random) -> None:
    kind, place = rng.choice(["file", "hidden", "folder", "pipe", "link"]), bundle / "more"
    if kind in ("file", "hidden"):
        (place if kind == "file" else bundle / ".hidden").write_bytes(rng.bytes(3))
    elif kind == "folder":
        place.mkdir()
    elif kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(bundle / "model.onnx")


def traverse(bundle: Path, rng: Random) -> None:
    """A manifest, with its own checksum right, that names a file elsewhere."""
    outside = bundle.parent / "outside"
    shutil.copy(bundle / "model.onnx", outside)
    names = ("../outside", str(outside), "./model.onnx", f"../{bundle.name}/model.onnx", "..", "", "a\0b")
    listed(bundle, str(rng.choice(names)), outside)


def place_a_pickle(bundle: Path, rng: Random) -> None:
    """A pickle beside the model, in the manifest or not, or in the model's place with its checksum right."""
    name = str(rng.choice(["model.pkl", "weights.pt", "model.onnx"]))
    data = pickle.dumps(Payload(bundle.parent / "executed"), protocol=int(rng.integers(0, 6)))
    (bundle / name).write_bytes(data)
    if name == "model.onnx" or rng.random() < 0.5:
        listed(bundle, name, bundle / name)


CORRUPTIONS = (flip_a_bit, truncate, append, swap, remove, link, add, traverse, place_a_pickle, flip_a_bit)


@pytest.mark.parametrize("seed", range(100))
def test_a_corrupt_bundle_is_refused_before_a_session_opens(
    seed: int, whole: Path, tmp_path: Path, sessions: list[object]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(whole, bundle)
    CORRUPTIONS[seed % len(CORRUPTIONS)](bundle, np.random.default_rng(seed))
    with pytest.raises(BundleError, match=r"^BUNDLE: .*must "):
        open_verified(bundle)
    assert sessions == [] and not (tmp_path / "executed").exists()


def test_a_whole_bundle_gets_as_far_as_the_session(whole: Path, tmp_path: Path, sessions: list[object]) -> None:
    """The check on sessions can fail; a bundle at the end of a link that is given, and one signed anew, are whole."""
    (tmp_path / "current").symlink_to(whole)
    shutil.copytree(whole, tmp_path / "bundle")
    sign(tmp_path / "bundle", lambda manifest: None)
    for number, bundle in enumerate((whole, tmp_path / "current", tmp_path / "bundle"), start=1):
        with pytest.raises(BundleError, match="a session was opened"):
            open_verified(bundle)
        assert len(sessions) == number


def test_a_bundle_without_the_checksum_of_its_manifest_is_of_the_format_before(whole: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(whole, bundle)
    sign(bundle, lambda manifest: manifest.update(format=1))
    with pytest.raises(BundleError, match=r"must have the format 2 .*but got 1"):
        open_verified(bundle)
    (bundle / "manifest.sha256").unlink()
    open_verified(bundle)[1].close()
    sign(bundle, lambda manifest: manifest.update(format=3))
    with pytest.raises(BundleError, match="but got 3"):
        open_verified(bundle)
