"""Files of a bundle: which ones may be in its folder, and their checksums. Nothing here opens a model."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Collection, Mapping
from pathlib import Path

from objectives.errors import InputError
from objectives.records import WEIGHTS
from objectives.serving.split_engine import DENSE, TABLES
from spaces.serialization import Json
from spaces.techniques.placement import Placement

MODEL = "model.onnx"
CANDIDATE = "candidate.json"
MEASUREMENT = "measurement.json"
MANIFEST = "manifest.json"
# Checksum of the manifest, as `sha256sum --check` reads it.
MANIFEST_SUM = "manifest.sha256"
CARD = "README.md"
# Format 1 had no checksum of the manifest.
FORMAT, UNSUMMED_FORMAT = 2, 1
# First byte of an ONNX file: the key of `ir_version`, which protocol buffers write first. A pickle begins otherwise.
_ONNX_START = b"\x08"


class BundleError(InputError):
    """A folder is no valid bundle, or its scores differ from the verified ones."""


def model_files(placement: Placement, folder: Path) -> tuple[str, ...]:
    """Return the names of the files in a folder that hold the model.

    There are two where it was split at its tables, and one more for the weights of a large model.
    """
    graphs = _graphs(placement)
    return (*graphs, WEIGHTS) if (folder / WEIGHTS).exists() else graphs


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Json) -> None:
    """Write a manifest and its checksum."""
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    (folder / MANIFEST_SUM).write_bytes(_sum_line(folder / MANIFEST))


def read_manifest(folder: Path) -> Json:
    """Read the manifest of a folder that holds nothing but plain files.

    Raises:
        BundleError: something in the folder is a link, a folder or a device, or the manifest was changed, is missing,
            or has another format.
    """
    held = _plain_files(folder)
    path = folder / MANIFEST
    if MANIFEST not in held:
        raise BundleError(f"BUNDLE: {folder} must hold a {MANIFEST}, but is no bundle")
    summed = MANIFEST_SUM in held
    if summed and (folder / MANIFEST_SUM).read_bytes() != _sum_line(path):
        raise BundleError(f"BUNDLE: {path} was changed: its SHA-256 must be that of {MANIFEST_SUM}")
    try:
        plain = json.loads(path.read_bytes())
        found = plain["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"BUNDLE: {path} must be a bundle's manifest, but got {error}") from error
    if found != (FORMAT if summed else UNSUMMED_FORMAT):
        but = f"{found!r} {'with' if summed else 'without'} one"
        raise BundleError(f"BUNDLE: {path} must have the format {FORMAT} and a {MANIFEST_SUM}, but got {but}")
    manifest: Json = plain
    return manifest


def check_sums(folder: Path, names: Collection[str], files: Mapping[str, str]) -> None:
    """Compare files with their SHA-256.

    Raises:
        BundleError: a file is missing or was changed.
    """
    for name in names:
        path = folder / name
        if name not in files or not path.exists():
            raise BundleError(f"BUNDLE: {path} must be in the folder and in its manifest, but is missing")
        if (found := sha256(path)) != files[name]:
            raise BundleError(f"BUNDLE: {path} was changed: its SHA-256 must be {files[name]}, but got {found}")


def check_model(folder: Path, placement: Placement, files: Mapping[str, str]) -> None:
    """Check the files of the model, and that a bundle holds no others.

    Raises:
        BundleError: a file is missing, was changed, is none of a bundle's, or holds no ONNX graph.
    """
    graphs = _graphs(placement)
    expected = {CANDIDATE, MEASUREMENT, CARD, *graphs} | ({WEIGHTS} & files.keys())
    if strange := sorted(files.keys() - expected):
        raise BundleError(f"BUNDLE: {folder / MANIFEST} must list {_listed(expected)}, but got {strange[0]!r}")
    check_sums(folder, sorted(expected), files)
    if extra := sorted(_plain_files(folder) - expected - {MANIFEST, MANIFEST_SUM}):
        raise BundleError(f"BUNDLE: {folder} must hold the files of its manifest alone, but got {extra[0]!r}")
    for name in graphs:
        with (folder / name).open("rb") as stream:
            if (start := stream.read(1)) != _ONNX_START:
                raise BundleError(f"BUNDLE: {folder / name} must be an ONNX graph, but begins with {start!r}")


def _plain_files(folder: Path) -> set[str]:
    """Return the names in a folder, all of plain files; a link could lead outside, or change the content later."""
    names = set()
    for path in folder.iterdir():
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise BundleError(f"BUNDLE: {path} must be a plain file, but is {_kind(status.st_mode)}")
        names.add(path.name)
    return names


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "a hard link"
    return "a symbolic link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "a device"


def _graphs(placement: Placement) -> tuple[str, ...]:
    return (MODEL,) if placement.embedding_device is None else (TABLES, DENSE)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))


def _sum_line(manifest: Path) -> bytes:
    return f"{sha256(manifest)}  {MANIFEST}\n".encode()
