"""Bundles of points that a user names, such as those of a plan: each is confirmed and written, none is registered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from objectives.serving.bundle import check_free
from search.choose import choose as choosing
from search.choose.choose import Confirmed
from search.choose.policy import Policy
from search.choose.run import bundle_up, looks_of
from search.cli.console import Console
from search.errors import ConfigError, JobError
from search.format import count, ranged
from search.locking import locked, stoppable
from search.results import Confirmation, Front, Point
from search.session import Session
from search.workers.processes import open_workers
from spaces.serialization import Json


@dataclass(frozen=True)
class PointBundle:
    """The bundle of a point, or the reason why there is none."""

    trial: int
    bundle: str | None
    confirmed: Confirmation | None
    reason: str


def planned_trials(plan: Json, study: str) -> set[int]:
    """Return the trials that a plan.json of a study serves.

    Raises:
        ConfigError: the plan is of another study, or of another version.
    """
    try:
        planned, trials = plan["study"], {phase["trial"] for phase in plan["phases"]}
    except (KeyError, TypeError) as error:
        raise ConfigError("--plan: must be a plan.json of leanrec plan, but it lacks its study or a trial") from error
    if planned != study:
        raise ConfigError(f"--plan: must be of the study {study!r}, but is of {planned!r}")
    return trials


def points_of(front: Front, trials: Sequence[int]) -> list[Point]:
    """Return the measured points of these trials, each once.

    Raises:
        ConfigError: one is of no measured trial.
    """
    points = {point.trial: point for point in front.points}
    for trial in trials:
        if trial not in points:
            known = ", ".join(map(str, sorted(points)))
            raise ConfigError(f"--trial: must be a measured trial of the study, one of {known}, but got {trial}")
    return [points[trial] for trial in dict.fromkeys(trials)]


def bundle_points(
    session: Session, trials: Sequence[int], policy: Policy, out: Path, console: Console
) -> tuple[PointBundle, ...]:
    """Confirm points over a long window and on test, and write the bundle of each that holds into `out`/trial-N.

    A bundle is also an artifact of its trial's run. What was chosen for the study, and its registered model, stay.

    Raises:
        BundleError: one of these folders holds something else.
        ConfigError: a trial was not measured, or files of the baseline are gone.
    """
    config, home, study = session.config, session.home, session.study
    front = session.front()
    points = points_of(front, trials)
    folders = {point.trial: out / f"trial-{point.trial}" for point in points}
    for folder in folders.values():
        check_free(folder)
    found: list[PointBundle] = []
    with locked(home, config.name), stoppable(), open_workers(home.logs(config.name)) as workers:
        looks = looks_of(study)
        pairs, sides = session.pairs(front, workers, console), session.sides()
        session.level(console)  # so that each trial has a run
        confirmed: Confirmed | choosing.Unconfirmed
        for point in points:
            side = sides[point.trial]
            try:
                confirmed = choosing.try_point(pairs, point, side, looks, policy)
            except JobError as error:
                confirmed = choosing.Unconfirmed(f"not evaluated: {error}")
            if not isinstance(confirmed, Confirmed):
                found.append(PointBundle(point.trial, None, None, confirmed.reason))
                continue
            folder, why = folders[point.trial], _reason(point, confirmed)
            bundle_up(folder, pairs.jobs, side, confirmed, why, study.facts["machine"], policy)
            session.ledger.log_file(folder, "bundle", point.trial)
            found.append(PointBundle(point.trial, str(folder), choosing.confirmation(confirmed), why))
    return tuple(found)


def _reason(point: Point, confirmed: Confirmed) -> str:
    quality = confirmed.measurement.quality
    loss = ranged(quality.loss, quality.loss_interval, "+.2%")
    return f"Trial {point.trial} was asked for; on test its loss is {loss} after {count(confirmed.looks, 'look')}."
