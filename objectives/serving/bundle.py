"""Bundle: a folder with one model file and everything needed to run and verify it. No torch, no optuna."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from objectives.arrays import Arrays
from objectives.errors import one_line
from objectives.int8_weights import Int8WeightBits
from objectives.parity import LIMIT, ParityError, compare_scores
from objectives.records import InputSpec
from objectives.serving.bundle_files import (
    CANDIDATE,
    CARD,
    FORMAT,
    MANIFEST,
    MEASUREMENT,
    MODEL,
    BundleError,
    check_model,
    check_sums,
    model_files,
    read_manifest,
    sha256,
    write_manifest,
)
from objectives.serving.devices import ENGINES, cpu_features, cpu_model, engine_version, int8_weight_bits
from objectives.serving.engines import EngineError
from objectives.serving.pool import Pool
from objectives.serving.pool.balancing import LEAST_ROWS, POLICIES, Cost
from objectives.serving.pool.pending_result import cut_rows, rows_of
from objectives.serving.pool.scheduler import group_of
from objectives.serving.preparation import preparation
from objectives.serving.split_engine import Engine
from objectives.serving.warm_up import warm_up
from spaces.candidate import Candidate
from spaces.serialization import digest, from_plain, to_plain
from spaces.techniques.placement import Admission, InstanceGroup, Placement

# Rows of an example, enough for the spread of the scores.
EXAMPLE_ROWS = 64
# What a measurement has of the rows of requests.
ROW_QUANTILES = "row_quantiles"
# And of the cost of a request on a replica of each instance group, from its service curve.
COSTS = "costs"
# Rows alone count where no service curve is known.
_ROW_COST = Cost(0.0, 1.0)
# Digits of a version; 48 bits tell the bundles of one server apart.
_VERSION_DIGITS = 12
# Difference of scores, in standard deviations, from which those of an engine are wrong that rounds otherwise.
_ANOTHER = 1.0


@dataclass(frozen=True)
class Output:
    """The scores that a bundle gives; `columns` are the names of several outputs, the main one first."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifiedOn:
    """The machine on which a bundle was made and verified."""

    cpu: str
    features: tuple[str, ...]
    versions: Mapping[str, str]


@dataclass(frozen=True)
class Example:
    """A request of a few rows, and the pool's scores for it, as nested lists."""

    inputs: Mapping[str, list[object]]
    scores: list[object]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a bundle.

    int8_weight_bits: bits of the weights in int8 products, None where it has none
    files: SHA-256 of each file
    """

    format: int
    name: str
    inputs: tuple[InputSpec, ...]
    output: Output
    int8_weight_bits: Int8WeightBits | None = None
    files: Mapping[str, str]
    verified_on: VerifiedOn
    example: Example


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and whose files match their checksums."""

    folder: Path
    candidate: Candidate
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def version(self) -> str:
        """A digest of the manifest, and so of every file's content."""
        return _version(self.manifest)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        return self.manifest.inputs

    @property
    def slower_here(self) -> str | None:
        """Reason why int8 products are exact but slower here than on the machine the bundle was made for, or None."""
        bits = self.manifest.int8_weight_bits
        if bits is None or bits <= int8_weight_bits():
            return None
        return (
            f"weights of its int8 products have {bits} bits, for CPUs with VNNI; this CPU has none, where kernels that "
            "do not saturate are slower; leanrec build makes it anew for this CPU"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Differences of this machine from the one that the bundle was verified on."""
        lacking = [name for name in self.manifest.verified_on.features if name not in cpu_features()]
        features = (
            f"verified on {self.manifest.verified_on.cpu} with {', '.join(lacking)}, which this CPU lacks: the "
            "measured numbers do not hold here"
        )
        return (*([features] if lacking else []), *([] if self.slower_here is None else [self.slower_here]))

    def example(self, rows: int = 0) -> Arrays:
        """Return the request whose scores the manifest holds, repeated until it has at least so many rows."""
        inputs = self.manifest.example.inputs
        request = {spec.name: np.asarray(inputs[spec.name], dtype=spec.dtype) for spec in self.inputs}
        given = rows_of(request)
        repeats = max(1, -(-rows // given))
        return {n: np.concatenate([v] * repeats) if len(v) == given else v for n, v in request.items()}

    @property
    def row_quantiles(self) -> list[int]:
        """Quantiles of the rows of the requests that it was measured with; none where it does not tell."""
        kept: list[int] = json.loads((self.folder / MEASUREMENT).read_text()).get(ROW_QUANTILES, [])
        return kept

    @property
    def costs(self) -> list[Cost]:
        """Cost of a request on a replica of each instance group."""
        kept = json.loads((self.folder / MEASUREMENT).read_text()).get(COSTS, [])
        groups = self.candidate.placement.instance_groups
        return [Cost(**cost) for cost in kept] if len(kept) == len(groups) else [_ROW_COST] * len(groups)

    def open(self, warm: bool = False, policy: str = LEAST_ROWS, differences: list[float] | None = None) -> Pool:
        """Open the pool that serves the bundle, with the measured placement.

        It takes bags padded, or flat with offsets. An id that training has not seen becomes the one that the manifest
        defines for it, or `submit` raises UnseenIdError.

        Args:
            warm: whether each engine first runs requests of the sizes that the bundle was measured with
            policy: of balancing over the replicas of an instance group, one of `balancing.POLICIES`
            differences: gets the largest difference of the example's scores of each engine, which are compared; 0 of
                one that gives others than those that were kept

        Raises:
            BundleError: the scores of an engine differ.
            EngineError: an engine cannot be opened, or runs no request.
        """
        model, candidate, prepare = self.folder / MODEL, self.candidate, preparation(self.inputs)
        placement, quantiles = candidate.placement, self.row_quantiles if warm else []

        largest = max([*quantiles, 0 if placement.batching is None else placement.batching.rows])
        example = self.example(largest) if quantiles else {}

        def request(rows: int) -> Arrays:
            return prepare(cut_rows(example, 0, rows))

        def opened(engine: Engine, group: InstanceGroup) -> None:
            try:
                warm_up(engine, group, placement, quantiles, request)
            except MemoryError:
                raise
            except Exception as error:
                raise EngineError(f"{self.folder}: no request of a usual size can be run: {one_line(error)}") from error
            if differences is not None:
                # Each engine, past the pool, whose admission may refuse on a busy machine and whose routes are by size.
                differences.append(_compare_example(self, engine, prepare, group.place))

        balances = [
            POLICIES[policy]([cost] * group.replicas)
            for group, cost in zip(placement.instance_groups, self.costs, strict=True)
        ]
        return Pool.open(model, placement, candidate.precision.compute, prepare, opened, balances)


def check_free(folder: Path) -> None:
    """Check that a bundle can be written to a folder: there is none, an empty one, or an older bundle.

    Raises:
        BundleError: it is taken by something else.
    """
    if folder.exists() and not folder.is_dir():
        raise BundleError(f"{folder} is a file; give a folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / MANIFEST).exists():
        raise BundleError(f"{folder} holds something that is no bundle; give another folder.")


def write_bundle(
    folder: Path,
    name: str,
    model: Path,
    candidate: Candidate,
    measurement: Mapping[str, object],
    inputs: Sequence[InputSpec],
    card: str,
    example: Arrays,
    columns: Sequence[str] = (),
    weight_bits: Int8WeightBits | None = None,
) -> None:
    """Write a bundle completely or not at all; an existing bundle is replaced.

    Args:
        model: the model's file; a split model has its two files next to it
        example: one request of a few rows; the pool's scores for it go into the manifest, for `verify`
        columns: names of the outputs of a model with several, the main one first
        weight_bits: bits of the weights in its int8 products, None where it has none

    Raises:
        BundleError: `folder` is taken by something else.
    """
    check_free(folder)
    partial, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    _clean_up(folder, partial, old)
    partial.mkdir(parents=True)
    try:
        names = model_files(candidate.placement, model.parent)
        for file in names:
            shutil.copyfile(model.with_name(file), partial / file)
        (partial / CANDIDATE).write_text(json.dumps(to_plain(candidate), indent=2) + "\n")
        (partial / MEASUREMENT).write_text(json.dumps(measurement, indent=2) + "\n")
        (partial / CARD).write_text(card)
        unlimited = replace(candidate.placement, admission=Admission())
        with Pool.open(partial / MODEL, unlimited, candidate.precision.compute) as pool:
            scores = pool.submit(example).result()
        engines = {engine: version for engine in ENGINES if (version := engine_version(engine)) is not None}
        versions = {"python": platform.python_version(), "numpy": np.__version__} | engines
        manifest = Manifest(
            format=FORMAT,
            name=name,
            inputs=tuple(inputs),
            output=Output("scores", "float32", scores.shape[1:], tuple(columns)),
            int8_weight_bits=weight_bits,
            files={file: sha256(partial / file) for file in (*names, CANDIDATE, MEASUREMENT, CARD)},
            verified_on=VerifiedOn(cpu_model(), tuple(cpu_features()), versions),
            example=Example({key: value.tolist() for key, value in example.items()}, scores.tolist()),
        )
        write_manifest(partial, to_plain(manifest))
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    finally:
        _clean_up(folder, partial, old)


def _clean_up(folder: Path, partial: Path, old: Path) -> None:
    """Restore the bundle that was to be replaced where no new one took its place, and remove what else is left."""
    if old.exists() and not folder.exists():
        old.rename(folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle and check all of its folder, before any engine opens a model.

    Raises:
        BundleError: a file is missing, was changed, is a link or none of a bundle's.
    """
    manifest = _manifest(folder)
    check_sums(folder, (CANDIDATE,), manifest.files)
    try:
        candidate = from_plain(Candidate, json.loads((folder / CANDIDATE).read_text()))
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"BUNDLE: {folder / CANDIDATE} must be a candidate, but got {error}") from error
    check_model(folder, candidate.placement, manifest.files)
    return Bundle(folder, candidate, manifest)


def read_version(folder: Path) -> str:
    """Return the version that a bundle's manifest gives it, whether or not its other files are what the manifest says.

    Raises:
        BundleError: the manifest cannot be read.
    """
    return _version(_manifest(folder))


def _manifest(folder: Path) -> Manifest:
    plain = read_manifest(folder)
    try:
        return from_plain(Manifest, plain)
    except ValueError as error:
        raise BundleError(f"BUNDLE: {folder / MANIFEST} must be a bundle's manifest, but got {error}") from error


def _version(manifest: Manifest) -> str:
    return digest(manifest)[:_VERSION_DIGITS]


def open_verified(
    folder: Path,
    placed: Callable[[Placement], Placement] | None = None,
    warm: bool = False,
    policy: str = LEAST_ROWS,
) -> tuple[Bundle, Pool, float]:
    """Read a bundle, open it with the pool that serves, and compare the example's scores of each of its engines.

    Args:
        placed: returns the placement that takes the place of the one that was measured; None for that one
        warm, policy: as in `Bundle.open`

    Returns:
        The bundle, its open pool, and the largest difference of scores as in `compare_scores`.

    Raises:
        BundleError: a file is missing or was changed, the engine is missing, or the scores differ.
    """
    bundle = read_bundle(folder)
    if placed is not None:
        candidate = bundle.candidate
        bundle = replace(bundle, candidate=replace(candidate, placement=placed(candidate.placement)))
    differences: list[float] = []
    try:
        pool = bundle.open(warm, policy, differences)
    except EngineError as error:
        raise BundleError(str(error)) from error
    return bundle, pool, max(differences)


def verify(folder: Path) -> tuple[Bundle, float]:
    """Verify a bundle as `open_verified` does, and close it.

    Returns:
        The bundle, and the largest difference of scores as in `compare_scores`.

    Raises:
        BundleError: a file is missing or was changed, the engine is missing, or the scores differ.
    """
    bundle, pool, difference = open_verified(folder)
    pool.close()
    return bundle, difference


def _compare_example(bundle: Bundle, engine: Engine, prepare: Callable[[Arrays], Arrays], place: str) -> float:
    """Return the largest difference of an engine's scores for the example.

    Those of the manifest are of the engine that requests of its size go to; another one may round otherwise.
    """
    example, placement = bundle.example(), bundle.candidate.placement
    verified = placement.instance_groups[group_of(placement, rows_of(example))].place
    try:
        scores = engine.run(prepare(example))
    except MemoryError:
        raise
    except Exception as error:
        raise EngineError(f"{bundle.folder}: the example cannot be run: {one_line(error)}") from error
    expected = np.asarray(bundle.manifest.example.scores, dtype=np.float32)
    try:
        sides = ("bundle here", "bundle as verified")
        found = compare_scores([scores], [expected], LIMIT if place == verified else _ANOTHER, sides)
        return found if place == verified else 0.0
    except ParityError as error:
        here, there = ", ".join(cpu_features()), ", ".join(bundle.manifest.verified_on.features)
        raise BundleError(f"{error} It was verified on {there}, this CPU has {here}.") from error
