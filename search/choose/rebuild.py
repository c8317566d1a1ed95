"""Tomorrow's checkpoint: a bundle's recipe applied to it without a search, and held to the bundle's policy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from objectives.records import Artifact, Interval, Latency, Measurement, OverheadRatios, Prepared, Quality, Through
from objectives.serving.bundle import Bundle, check_free, read_bundle
from objectives.serving.bundle_files import MEASUREMENT, MODEL, BundleError, model_files
from objectives.serving.devices import describe, int8_weight_bits
from objectives.store import make_once
from search.choose.choose import Confirmed
from search.choose.looks import ALPHA, confidence_of
from search.choose.policy import LIMITED, Policy, measured_bounds
from search.choose.run import bundle_up, made_of
from search.cli.console import Console
from search.config.sections import StudyConfig
from search.config.study_file import parse
from search.errors import JobError, LostJobError
from search.format import percent, ranged, span
from search.home import Home, write_json
from search.results import numbers_of
from search.session import jobs_of, prepared_by
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from search.workers.processes import open_workers
from spaces.serialization import Json, digest, fields_in, from_plain, to_plain

# Codes are ranks by count in the data, so that other data give the same code to another value.
_RECODED = "its codes stand for other values than those of these data, so that it would look up other rows"
_LATER_LIMITS = LIMITED.keys() - {"p95_ms", "p95_ratio"}


@dataclass(frozen=True)
class Recipe:
    """Recipe in a bundle: its candidate and settings, the policy it must keep, and the evaluations on test so far.

    encoding: as in `Prepared`, of what the bundle was made of; empty where that is not known
    """

    bundle: Bundle
    config: StudyConfig
    policy: Policy
    looks: int = 1
    encoding: str = ""


@dataclass(frozen=True)
class BesideOld:
    """Comparison with the bundle that would be replaced, on the same rows and requests, as far as possible.

    trouble: why not all of it was possible: the old bundle may not know today's items, take other inputs, or the same
        inputs in another encoding, or a benchmark was disturbed
    """

    quality: Quality | None = None
    latency: Latency | None = None
    trouble: str | None = None


@dataclass(frozen=True)
class Rebuilt:
    """The recipe on another checkpoint, measured against that checkpoint and against the old bundle.

    confirmed: its looks are those of all builds of the recipe
    """

    artifact: Artifact
    confirmed: Confirmed
    old: BesideOld


@dataclass(frozen=True, kw_only=True)
class RebuildResult:
    """Result of a build, as `leanrec build --json` prints it.

    Numbers are None where nothing was built. Those beside the old bundle are also None where the two could not be
    compared.

    unchanged: the bundle was made of this checkpoint already
    margins: by limit of the policy, below zero where it is broken, None where it cannot be told
    not_compared: why not
    through, with_overhead: as in `Latency`
    """

    bundle: str
    recommender: str
    accepted: bool
    unchanged: bool
    reason: str
    policy: Policy
    margins: Mapping[str, float | None] = field(default_factory=dict)
    loss: float | None = None
    loss_interval: Interval | None = None
    confidence: float | None = None
    look: int | None = None
    loss_to_old: float | None = None
    loss_to_old_interval: Interval | None = None
    p95_ratio: float | None = None
    p95_ratio_interval: Interval | None = None
    p95_ms: float | None = None
    p95_ratio_to_old: float | None = None
    p95_ratio_to_old_interval: Interval | None = None
    not_compared: str | None = None
    through: Through | None = None
    with_overhead: OverheadRatios | None = None
    throughput_ratio: float | None = None
    capacity_ratio: float | None = None
    model_bytes: int | None = None


def read_recipe(folder: Path, model: str | None) -> Recipe:
    """Read the recipe of a bundle.

    Args:
        model: `package.module:factory` of the checkpoint; None for the bundle's own recommender

    Raises:
        BundleError: the folder is no bundle, or one without a recipe.
        ConfigError: the recommender is invalid.
    """
    bundle = read_bundle(folder)
    kept = json.loads((folder / MEASUREMENT).read_text()).get("recipe")
    if kept is None:
        raise BundleError(f"BUNDLE: {folder} must keep a recipe, but was written by an older leanrec; choose again")
    settings = kept["settings"]
    if model is not None:
        settings = {**settings, "recommender": model, "data": None, "sizes": {}}
    policy = from_plain(Policy, kept["policy"])
    return Recipe(bundle, parse(settings), policy, kept.get("looks", 1), kept.get("encoding", ""))


def rebuild(recipe: Recipe, home: Home, out: Path, console: Console) -> RebuildResult:
    """Build, verify, evaluate on test and benchmark a new bundle; it is written only if the policy is satisfied.

    Nothing is built from the checkpoint that the bundle was made of.

    Raises:
        BundleError: `out` holds something that is no bundle.
        ConfigError: the factory, or its result, is invalid.
        JobError: the candidate cannot be built, evaluated or benchmarked.
    """
    config, candidate = recipe.config, recipe.bundle.candidate
    check_free(out)
    with open_workers(home.logs(config.name)) as workers:
        prepared = prepared_by(workers.builder, config, home, console)
        bits = int8_weight_bits() if candidate.precision.rounds_products else None
        made = made_of(prepared, candidate, bits)
        if _holds(out, made, recipe.policy):
            return _result(recipe, out, None, None, "unchanged: the bundle was made of this checkpoint already")
        pairs = PairedComparison(jobs_of(config, home, prepared), workers.builder, workers.meter, console)
        name = [config.name, candidate.id, _asked(recipe.policy)]
        look = _number_look(home, name, recipe.looks, made)
        found = _measured(recipe, pairs, home, look)
    refused = _broken(recipe.policy, found)
    if refused is None:
        why = f"The recipe of {recipe.bundle.name} on another checkpoint; on test {_told(found, recipe.policy)}."
        bundle_up(out, pairs.jobs, (found.artifact, candidate), found.confirmed, why, describe(), recipe.policy)
    return _result(recipe, out, found, refused, f"refused: {refused}" if refused else _told(found, recipe.policy))


def _asked(policy: Policy) -> Json:
    """Return the policy by which looks are counted.

    It has a limit on throughput or memory only where that is set, since policies had none before, and their looks still
    count.
    """
    plain: Json = to_plain(policy)
    return {key: value for key, value in plain.items() if value is not None or key not in _LATER_LIMITS}


def _number_look(home: Home, recipe: object, before: int, model: str) -> int:
    """Return the number of a model's evaluation on test among those by one recipe, recorded at the first call.

    Every build of a new checkpoint is one more chance for the bound of a loss to hold by luck, so the k-th evaluation's
    interval is at `confidence_of(k)`. A refused build leaves no bundle, but counts as well: that is why the evaluations
    are recorded in the home and not in the bundle only.

    Args:
        before: number of evaluations that the bundle reports until it was made, here or in another home
    """
    file = home.mlruns / "looks" / f"{digest(recipe)[:20]}.json"
    known: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    if model not in known:
        known[model] = 1 + max(before, *known.values(), 0)
        write_json(known, file)
    return known[model]


def _holds(folder: Path, made: str, policy: Policy) -> bool:
    """Return whether a folder has a whole bundle made of the same, which was confirmed for the same policy."""
    kept = _kept(folder)
    if kept.get("made_of") != made:
        return False
    try:
        read_bundle(folder)
    except BundleError:
        return False
    return from_plain(Policy, kept["policy"]) == policy


def recoded(encoding: str, prepared: Prepared) -> str | None:
    """Return why a bundle of that encoding cannot score a study's rows; None where it can, or one is not known."""
    return _RECODED if encoding and prepared.encoding and encoding != prepared.encoding else None


def encoding_of(folder: Path) -> str:
    """Return the encoding that the bundle in the folder was made of; empty where that is not known."""
    return str(_kept(folder).get("encoding", ""))


def made_by(folder: Path) -> str | None:
    """Return the hash that the bundle in the folder was made of, if there is one."""
    found: str | None = _kept(folder).get("made_of")
    return found


def _kept(folder: Path) -> Json:
    """Return what the bundle in the folder keeps of its recipe; nothing where there is none."""
    try:
        kept: Json = json.loads((folder / MEASUREMENT).read_text())["recipe"]
    except (OSError, ValueError, KeyError):
        return {}
    return kept


def _measured(recipe: Recipe, pairs: PairedComparison, home: Home, look: int) -> Rebuilt:
    candidate, say = recipe.bundle.candidate, pairs.console.say
    say("build: fitting and exporting")
    ours = (pairs.built(candidate), candidate)
    say(f"build: evaluating on test (evaluation {look})")
    quality = pairs.evaluate(ours, "test", confidence_of(look))
    say("build: timing beside the checkpoint's own baseline")
    timed = pairs.benchmark(ours, "confirm", pairs.jobs.recording("build"))
    confirmed = Confirmed(Measurement(quality, timed.latency, timed.throughput, timed.footprint), look)
    return Rebuilt(ours[0], confirmed, _beside_old(recipe, pairs, ours, home))


def _beside_old(recipe: Recipe, pairs: PairedComparison, ours: Side, home: Home) -> BesideOld:
    """Compare the new bundle with the old one; a lost job is raised, since it tells nothing of the old bundle."""
    if recipe.encoding and (reason := recoded(recipe.encoding, pairs.jobs.prepared)) is not None:
        return BesideOld(trouble=reason)
    old = bundle_side(recipe.bundle, home)
    pairs.console.say("build: timing beside the old bundle")
    quality = None
    try:
        quality = pairs.evaluate(ours, "test", 1 - ALPHA, old)
        timed = pairs.benchmark(ours, "confirm", pairs.jobs.recording("build-old"), old)
    except LostJobError:
        raise
    except JobError as error:
        return BesideOld(quality, None, str(error))
    return BesideOld(quality, timed.latency)


def bundle_side(bundle: Bundle, home: Home) -> Side:
    """Return a bundle's files and candidate, as the meter finds those of an artifact."""
    names = model_files(bundle.candidate.placement, bundle.folder)
    key = digest([bundle.manifest.files[name] for name in names])[:20]
    folder = home.mlruns / "cache" / "bundles" / key

    def copy(into: Path) -> None:
        for name in names:
            shutil.copyfile(bundle.folder / name, into / name)

    make_once(folder, copy)
    size = sum((folder / name).stat().st_size for name in names)
    widths = dict(bundle.candidate.precision.widths)
    return Artifact(key, str((folder / MODEL).relative_to(home.root)), widths, size, 0.0), bundle.candidate


def _broken(policy: Policy, found: Rebuilt) -> str | None:
    """The first part of the policy that does not hold, with the margin; None where all do."""
    measured, of = found.confirmed.measurement, found.old.quality
    if (unproved := policy.limits.unproved(measured.quality)) is not None:
        return f"on test {unproved}"
    # However well it was compressed, a checkpoint that is surely worse than what it would replace breaks the policy.
    if of is not None and of.loss_interval[0] > policy.max_loss:
        return (
            f"on the same rows it loses {percent(of.loss)} ({span(of.loss_interval)}) to the old bundle, "
            f"surely more than the tolerated {percent(policy.max_loss)}: the checkpoint itself is worse"
        )
    return policy.broken(measured_bounds(measured.latency, measured.throughput, measured.footprint))


def _told(found: Rebuilt, policy: Policy) -> str:
    measured, old = found.confirmed.measurement, found.old
    quality, latency = measured.quality, measured.latency
    if old.latency is None:
        unknown = "its quality and speed" if old.quality is None else "its speed"
        beside = f"; {unknown} cannot be compared with the old bundle's: {old.trouble}"
    else:
        beside = f" and {old.latency.p95_ratio:.3f} to the old bundle"
    return (
        f"its loss is {percent(quality.loss)} ({span(quality.loss_interval)} at {quality.confidence:.1%}, "
        f"look {found.confirmed.looks}) of the tolerated {percent(policy.max_loss)}, "
        f"its p95 ratio {ranged(latency.p95_ratio, latency.p95_ratio_interval)} to this checkpoint's baseline{beside}"
    )


def _result(recipe: Recipe, out: Path, found: Rebuilt | None, refused: str | None, reason: str) -> RebuildResult:
    numbers: Json = {}
    if found is not None:
        numbers = fields_in(RebuildResult, numbers_of(found.confirmed.measurement))
        numbers |= {"margins": _margins(recipe.policy, found), "look": found.confirmed.looks}
        numbers |= {"model_bytes": found.artifact.model_bytes, "not_compared": found.old.trouble}
        if (quality := found.old.quality) is not None:
            numbers |= {"loss_to_old": quality.loss, "loss_to_old_interval": quality.loss_interval}
        if (latency := found.old.latency) is not None:
            numbers |= {"p95_ratio_to_old": latency.p95_ratio, "p95_ratio_to_old_interval": latency.p95_ratio_interval}
    return RebuildResult(
        bundle=str(out),
        recommender=recipe.config.recommender,
        accepted=refused is None,
        unchanged=found is None,
        reason=reason,
        policy=recipe.policy,
        **numbers,
    )


def _margins(policy: Policy, found: Rebuilt) -> dict[str, float | None]:
    """The margins of `RebuildResult`: to the upper end of an interval, of the loss to the old bundle to the lower."""
    measured = found.confirmed.measurement
    margins = policy.limits.margins(measured.quality)
    if found.old.quality is not None:
        margins["loss to the old bundle"] = policy.max_loss - found.old.quality.loss_interval[0]
    return margins | policy.margins(measured_bounds(measured.latency, measured.throughput, measured.footprint))
