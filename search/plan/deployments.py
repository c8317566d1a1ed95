"""Deployments of a study that a plan chooses among: the front and its baselines, with curves and load times."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from objectives.errors import FullDiskError
from objectives.held_out_rows import read_requests
from objectives.measurement.load_generator import Request
from objectives.measurement.service_curve import ServiceCurve
from objectives.records import InputSpec, rows_of
from objectives.serving.bundle import EXAMPLE_ROWS, ROW_QUANTILES, write_bundle
from objectives.serving.bundle_files import BundleError
from objectives.serving.control.plan_file import identity_in, model_identity
from objectives.serving.devices import cores_allowed, describe
from objectives.serving.http.model import Model
from objectives.serving.pool.pending_result import cut_rows
from objectives.serving.warm_up import row_quantiles
from planning.demand import Counts
from planning.fleet import Deployment, cores_of
from search.cli.console import Console
from search.errors import ConfigError, JobError
from search.explore.cost_model import CostModel
from search.format import count as count_of
from search.home import write_json
from search.results import Point
from search.session import Session
from search.workers.meter_jobs import MeterJobs, Side, curve_parts
from search.workers.processes import Worker, call, open_workers
from spaces.serialization import Json, digest, from_plain, to_plain
from spaces.techniques.placement import Placement

# Times that a model is opened, of which the median counts.
_OPENED = 3
# Most blocks by which service curves are measured, and the number of the way in which they are: a change of it makes
# known ones unknown.
_BLOCKS, _STAGE = 12, 3


@dataclass(frozen=True, eq=False)
class Menu:
    """Deployments that a study offers a plan.

    left_out: reasons by trial
    rows: (n,) rows of the study's own requests
    slo_ms, percent: the study's SLO
    measured_on: machine of the curves, None where it is this one
    """

    deployments: tuple[Deployment, ...]
    left_out: Mapping[int, str]
    rows: Counts
    slo_ms: float
    percent: int
    measured_on: str | None = None


def menu_of(session: Session, console: Console) -> Menu:
    """Collect the deployments of a study.

    Their models are opened where it is not known how long that takes, or, on the study's machine, how long runs take.

    Raises:
        ConfigError: the study has no measured point with a service curve, or its requests are gone.
    """
    front = session.front()
    jobs = session.jobs(front)
    requests = read_requests(Path(jobs.prepared.holdout))
    costs = CostModel(jobs, session.home.service_curves(session.config.name))
    if costs.baseline_ms is None:
        raise ConfigError(
            f"STUDY: {session.config.name!r} has no service curve of its baseline, by which the rate of its requests "
            "is known; leanrec run first"
        )
    sides, loads = session.sides(), _LoadTimes(session, jobs.prepared.inputs, requests, console.say)
    found: list[Deployment] = []
    left_out: dict[int, str] = {}
    with open_workers(session.home.logs(session.config.name)) as workers:
        curves = PlanCurves(session, jobs, costs, workers.meter, console.say)
        for point in _points(front.members, front.baseline, front.tuned_baseline):
            side = sides[point.trial]
            if curves.measured_on is not None and costs.missing(side[1]):
                left_out[point.trial] = "its service curve was not measured"
                continue
            try:
                found.append(_deployment(point, side, curves.of(point.trial, side), loads))
            except JobError as error:
                left_out[point.trial] = f"its service curve cannot be measured here: {error}"
            except FullDiskError:
                raise
            except (OSError, RuntimeError, BundleError) as error:
                left_out[point.trial] = f"its model cannot be opened here: {error}"
    if not found or front.slo_ms is None:
        raise ConfigError(
            f"STUDY: {session.config.name!r} has no measured point with a service curve; leanrec run first"
        )
    rows = np.array([rows_of(request) for request in requests])
    return Menu(tuple(found), left_out, rows, front.slo_ms, session.config.slo.percentile, curves.measured_on)


def with_bundles(menu: Menu, bundles: Sequence[Path]) -> Menu:
    """Return the deployments that bundles can serve; all of them where no bundle is given.

    Raises:
        BundleError: a bundle is not whole.
        ConfigError: it is of no measured point of the study.
    """
    if not bundles:
        return menu
    held = {identity_in(folder): folder for folder in bundles}
    identities = {each.trial: model_identity(each.variant, each.placement) for each in menu.deployments}
    for identity, folder in held.items():
        if identity not in identities.values():
            raise ConfigError(f"--with-bundle: must be of a measured point of the study, but {folder} is of none")
    kept = tuple(each for each in menu.deployments if identities[each.trial] in held)
    lacking = {trial: "no bundle of it is given" for trial, identity in identities.items() if identity not in held}
    return replace(menu, deployments=kept, left_out={**menu.left_out, **lacking})


def _points(members: Sequence[Point], *others: Point | None) -> list[Point]:
    """Return the points without repetition, by trial."""
    points = {point.trial: point for point in (*members, *others) if point is not None}
    return [points[trial] for trial in sorted(points)]


def _deployment(point: Point, side: Side, curves: tuple[ServiceCurve, ...], loads: _LoadTimes) -> Deployment:
    placement = side[1].placement
    return Deployment(
        trial=point.trial,
        name=f"trial {point.trial}",
        placement=placement,
        curves=curves,
        cores=cores_of(placement, cores_allowed()),
        loss=point.quality.loss,
        load_seconds=(load := loads.of(side)).seconds,
        memory_bytes=point.peak_memory_bytes,
        variant=side[1].variant_id,
        replica_seconds=load.replica_seconds,
    )


class PlanCurves:
    """Service curves from more runs than a study takes for a candidate, measured once and kept beside those.

    A candidate has some hundred runs, of which only six lie above the 95th percentile, and its times are scaled by the
    machine's pace of one moment: enough to compare it with others, not to count machines by. These are times of the
    machine as it was when it was measured.
    """

    def __init__(
        self, session: Session, jobs: MeterJobs, costs: CostModel, meter: Worker, say: Callable[[str], None]
    ) -> None:
        """Read the curves that are known."""
        self._jobs, self._costs, self._meter, self._say = jobs, costs, meter, say
        self._limit_s = session.config.workers.job_seconds
        # On another machine, on which the home lies now, curves would be none of the study's.
        self._machine, of_study = describe(), str(session.study.facts.get("machine", "unknown"))
        self.measured_on = None if of_study == self._machine else of_study
        self._file = session.home.service_curves(session.config.name).with_name("plan_curves.json")
        self._known: dict[str, Json] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def of(self, trial: int, side: Side) -> tuple[ServiceCurve, ...]:
        """Return the curve of each instance group of a deployment; on another machine than the study's, the study's.

        Raises:
            JobError: it cannot be measured.
        """
        if self.measured_on is not None:
            return self._costs.curves(side[1])  # `menu_of` left out those that are missing
        found, times = [], (self._costs.baseline_ms, self._costs.transport_ms)
        for part in curve_parts(side[1].placement):
            asked = self._jobs.service_curve(side, part, *times, blocks=_BLOCKS)
            key = digest(_STAGE, self._machine, asked)[:16]
            if key not in self._known:
                self._say(f"service curve: measuring that of trial {trial}")
                self._known[key] = to_plain(call(self._meter, asked, self._limit_s, self._say).curve)
                write_json(self._known, self._file)
            found.append(from_plain(ServiceCurve, self._known[key]))
        return tuple(found)


@dataclass(frozen=True)
class _Load:
    """Seconds that a server takes to open a bundle until it serves, and by which each further replica prolongs them."""

    seconds: float
    replica_seconds: float


class _LoadTimes:
    """Seconds that servers take to open bundles, measured once a machine and kept beside the curves."""

    def __init__(
        self, session: Session, inputs: Sequence[InputSpec], requests: Sequence[Request], say: Callable[[str], None]
    ) -> None:
        self._root, self._inputs, self._requests, self._say = session.home.root, inputs, requests, say
        self._machine = describe()
        self._file = session.home.service_curves(session.config.name).with_name("open_seconds.json")
        self._known: dict[str, float] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def of(self, side: Side) -> _Load:
        """Return the seconds of a deployment, and of a further replica, by those with one more, or with one less.

        Of a replica that cannot be opened nothing is known, and it counts as none.
        """
        (artifact, candidate), seconds = side, self._seconds(side)
        other, count = other_count(candidate.placement), candidate.placement.instance_group.replicas
        if other is None:
            return _Load(seconds, 0.0)
        try:
            apart = self._seconds((artifact, replace(candidate, placement=candidate.placement.with_replicas(other))))
        except FullDiskError:
            raise
        except (OSError, RuntimeError, BundleError):
            return _Load(seconds, 0.0)
        # Each takes as long as the others, and all of them no longer than the whole.
        return _Load(seconds, min(max((apart - seconds) / (other - count), 0.0), seconds / count))

    def _seconds(self, side: Side) -> float:
        artifact, candidate = side
        key = digest(artifact.key, candidate.placement, candidate.precision.compute, self._machine)[:16]
        if key not in self._known:
            path = self._root / artifact.path
            self._file.parent.mkdir(parents=True, exist_ok=True)
            # Beside the models, not in a folder that may lie in memory: a bundle is as large as its model.
            with tempfile.TemporaryDirectory(dir=self._file.parent) as scratch:
                found = opening_seconds(Path(scratch), path, side, self._inputs, self._requests)
            self._known[key] = found
            replicas = count_of(candidate.placement.replicas, "replica")
            self._say(f"load: {path} with {replicas} serves after {found:.2f} s")
            write_json(self._known, self._file)
        return self._known[key]


def other_count(placement: Placement) -> int | None:
    """Return another number of replicas that can be opened here; None where a route or pinned cores allow none."""
    group = placement.instance_group
    if placement.route is not None:
        return None
    more = group.replicas + 1
    if not group.pinned or more * (group.threads or 1) <= cores_allowed():
        return more
    return group.replicas - 1 or None


def opening_seconds(
    scratch: Path, model: Path, side: Side, inputs: Sequence[InputSpec], requests: Sequence[Request]
) -> float:
    """Measure the seconds in which a server opens the bundle of a model: checksums, engines, example and warm-up.

    Args:
        scratch: folder for the bundle

    Raises:
        OSError, RuntimeError, BundleError: it cannot be opened.
    """
    (artifact, candidate), folder = side, scratch / "bundle"
    example, known = cut_rows(requests[0], 0, EXAMPLE_ROWS), {ROW_QUANTILES: row_quantiles(requests)}
    write_bundle(folder, "opened", model, candidate, known, inputs, "", example, (), artifact.int8_weight_bits)
    return float(np.median([_opening_seconds(folder) for _ in range(_OPENED)]))


def _opening_seconds(bundle: Path) -> float:
    began = time.perf_counter()
    model = Model.open(bundle)
    seconds = time.perf_counter() - began
    model.close()
    return seconds
