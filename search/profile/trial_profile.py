"""Profile of a trial's model beside the baseline's: where its time goes, and what keeps it from being faster."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from objectives.held_out_rows import read_requests
from objectives.measurement.profile.profile import OperatorCost, Profile, median_request
from objectives.measurement.profile.roofline import group_roofs
from objectives.records import Through, rows_of
from objectives.serving.devices import describe
from objectives.serving.pool.scheduler import group_of
from search.cli.console import Console
from search.errors import ConfigError
from search.locking import locked, stoppable
from search.profile.floor import Floor, measure_floor
from search.session import Session
from search.workers.processes import call, open_workers

# Most trials that an error names.
_SHOWN = 10


@dataclass(frozen=True)
class GroupTimes:
    """Milliseconds of a layer group in the baseline and in the trial's model.

    time_share: of the trial's time
    perfect_ms: what perfect single-precision kernels would take in the trial's model
    """

    name: str
    kind: str
    baseline_ms: float
    ms: float
    time_share: float
    perfect_ms: float


@dataclass(frozen=True)
class TrialProfile:
    """Profile of a trial's model beside the baseline's, as `leanrec profile --trial --json` prints it.

    Both are run in ONNX Runtime on the CPU, one after the other: the same request of `rows` rows again and again, the
    baseline on the engine's default threads, the trial on those of its instance group for so many rows.

    place: engine and device that the trial itself runs in for so many rows
    threads: of the trial; None for the engine's default
    baseline_p50_ms, p50_ms: of a run
    service_p50_ms: of requests of all sizes in the trial's benchmark, one at a time; None where it had none, or on
        another machine
    through: how those requests reached the trial
    floor: the trial and an empty graph in its place at the study's load; None where that was not asked for
    """

    study: str
    trial: int
    place: str
    rows: int
    threads: int | None
    baseline_p50_ms: float
    p50_ms: float
    service_p50_ms: float | None
    through: Through
    groups: tuple[GroupTimes, ...]
    operators: tuple[OperatorCost, ...]
    floor: Floor | None = None


def profile_trial(session: Session, trial: int, console: Console, with_floor: bool = False) -> TrialProfile:
    """Measure the profiles of the baseline and of a trial's model, one after the other, and the trial's floor.

    Raises:
        ConfigError: the trial has no model file, or one that is split between two devices.
        JobError: a model cannot be profiled, or a benchmark fails.
    """
    config, sides, front = session.config, session.sides(), session.front()
    jobs = session.jobs(front)
    if trial not in sides:
        raise ConfigError(not_built(trial, sides))
    artifact, candidate = sides[trial]
    if candidate.placement.embedding_device is not None:
        raise ConfigError(f"--trial: must be a trial whose model is one graph, but got {trial}, which is split in two")
    if not (file := session.home.root / artifact.path).is_file():
        raise ConfigError(f"--trial: must be a trial whose model file is in the cache, but got {trial} without {file}")
    rows = rows_of(median_request(read_requests(Path(jobs.prepared.holdout))))
    group = candidate.placement.instance_groups[group_of(candidate.placement, rows)]
    with locked(session.home, config.name), stoppable(), open_workers(session.home.logs(config.name)) as workers:
        baseline, ours = (
            call(workers.meter, asked, config.workers.job_seconds, console.say)
            for asked in (jobs.profile(), jobs.profile((artifact, candidate), group.threads))
        )
        floor = None
        if with_floor:
            side, folder = (artifact, candidate), f"floor-{trial}"
            floor = measure_floor(jobs, workers.meter, side, front.rate_rps, folder, console.say)
    measured = next(one.measurement for one in session.study.ended() if one.number == trial)
    if session.study.facts.get("machine") != describe():
        measured = None
    perfect = {name: roof.perfect_ms for name, roof in group_roofs(ours.profile, ours.roofline).items()}
    return TrialProfile(
        study=config.name,
        trial=trial,
        place=group.place,
        rows=ours.profile.rows,
        threads=ours.profile.threads,
        baseline_p50_ms=baseline.profile.p50_ms,
        p50_ms=ours.profile.p50_ms,
        service_p50_ms=None if measured is None else measured.latency.candidate.service_p50_ms,
        through=config.traffic.through,
        groups=group_times(baseline.profile, ours.profile, perfect),
        operators=ours.profile.operators,
        floor=floor,
    )


def not_built(trial: int, built: Collection[int]) -> str:
    """Say that a trial's model was not built, and whose was: the first ten."""
    known = ", ".join(map(str, sorted(built)[:_SHOWN])) or "none here"
    more = f" and {len(built) - _SHOWN} more" if len(built) > _SHOWN else ""
    return f"--trial: must be a trial whose model was built ({known}{more}), but got {trial}"


def group_times(baseline: Profile, ours: Profile, perfect_ms: Mapping[str, float]) -> tuple[GroupTimes, ...]:
    """Return the times of each layer group of either model, the slowest of ours first; an absent one takes none."""
    before, now = ({group.name: group for group in profile.groups} for profile in (baseline, ours))
    found = []
    for name, kind in {group.name: group.kind for group in (*baseline.groups, *ours.groups)}.items():
        ms, share = (now[name].ms, now[name].time_share) if name in now else (0.0, 0.0)
        found.append(
            GroupTimes(name, kind, before[name].ms if name in before else 0.0, ms, share, perfect_ms.get(name, 0.0))
        )
    return tuple(sorted(found, key=lambda group: -group.ms))
