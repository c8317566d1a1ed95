"""Deployments of a study that a plan chooses among: the front and its baselines, with curves and load times."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from objectives.held_out_rows import read_requests
from objectives.measure import deployment as measured
from objectives.measurement.load_generator import Request
from objectives.measurement.service_curve import ServiceCurve
from objectives.records import rows_of
from objectives.serving.control.plan_file import identity_in, model_identity
from objectives.serving.devices import cores_allowed
from planning.demand import Counts
from planning.fleet import Deployment, cores_of
from search.cli.console import Console
from search.errors import ConfigError
from search.explore.cost_model import CostModel
from search.home import write_json
from search.results import Point
from search.session import Session
from search.workers.meter_jobs import Side
from spaces.serialization import digest

# Times that a model is opened, of which the median counts.
_OPENED = 3


@dataclass(frozen=True, eq=False)
class Menu:
    """Deployments that a study offers a plan.

    left_out: reasons by trial
    rows: (n,) rows of the study's own requests
    slo_ms, percent: the study's SLO
    """

    deployments: tuple[Deployment, ...]
    left_out: Mapping[int, str]
    rows: Counts
    slo_ms: float
    percent: int


def menu_of(session: Session, console: Console) -> Menu:
    """Collect the deployments of a study; their models are opened where it is not known how long that takes.

    Raises:
        ConfigError: the study has no measured point with a service curve, or its requests are gone.
    """
    front = session.front()
    jobs = session.jobs(front)
    requests = read_requests(Path(jobs.prepared.holdout))
    costs = CostModel(jobs, session.home.service_curves(session.config.name))
    sides, loads = session.sides(), _LoadTimes(session, requests, console)
    found: list[Deployment] = []
    left_out: dict[int, str] = {}
    for point in _points(front.members, front.baseline, front.tuned_baseline):
        try:
            curves = costs.curves(sides[point.trial][1])
            found.append(_deployment(point, sides[point.trial], curves, loads))
        except KeyError:
            left_out[point.trial] = "its service curve was not measured"
        except (OSError, RuntimeError) as error:
            left_out[point.trial] = f"its model cannot be opened here: {error}"
    if not found or front.slo_ms is None:
        raise ConfigError(
            f"STUDY: {session.config.name!r} has no measured point with a service curve; leanrec run first"
        )
    rows = np.array([rows_of(request) for request in requests])
    return Menu(tuple(found), left_out, rows, front.slo_ms, session.config.slo.percentile)


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
        load_seconds=loads.seconds(side),
        memory_bytes=point.peak_memory_bytes,
        variant=side[1].variant_id,
    )


class _LoadTimes:
    """Seconds from opening a model to its first warm answers, measured once and kept beside the service curves."""

    def __init__(self, session: Session, requests: Sequence[Request], console: Console) -> None:
        self._root, self._requests, self._say = session.home.root, requests, console.say
        self._file = session.home.service_curves(session.config.name).with_name("load_seconds.json")
        self._known: dict[str, float] = json.loads(self._file.read_text()) if self._file.exists() else {}

    def seconds(self, side: Side) -> float:
        artifact, candidate = side
        key = digest(artifact.key, candidate.placement, candidate.precision.compute)[:16]
        if key not in self._known:
            path = str(self._root / artifact.path)
            one = measured.Deployment(artifact, path, candidate.placement, candidate.precision.compute)
            self._known[key] = float(np.median([self._open(one) for _ in range(_OPENED)]))
            self._say(f"load: {path} answers after {self._known[key]:.2f} s")
            write_json(self._known, self._file)
        return self._known[key]

    def _open(self, one: measured.Deployment) -> float:
        if not Path(one.model).exists():
            raise FileNotFoundError(f"{one.model} is gone")
        began = time.perf_counter()
        with measured.open_deployment(one) as pool:
            measured.warm_up(pool.submit, self._requests, one.placement)
            return time.perf_counter() - began
