"""Profile of a trial's model beside the baseline's: where its time goes, and what keeps it from being faster."""

from __future__ import annotations

from dataclasses import dataclass

from objectives.measurement.profile.profile import OperatorCost, Profile
from objectives.measurement.profile.roofline import group_roofs
from search.cli.console import Console
from search.errors import ConfigError
from search.locking import locked, stoppable
from search.session import Session
from search.workers.processes import call, open_workers


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

    Both are run in ONNX Runtime, one request of `rows` rows at a time, the trial's on the threads of its first instance
    group (None: the engine's default).

    place: engine and device that the trial runs in
    baseline_p50_ms, p50_ms: of runs of the same request, one after another
    service_p50_ms: of requests of all sizes in the trial's benchmark, one at a time; None where it had none
    """

    study: str
    trial: int
    place: str
    rows: int
    threads: int | None
    baseline_p50_ms: float
    p50_ms: float
    service_p50_ms: float | None
    groups: tuple[GroupTimes, ...]
    operators: tuple[OperatorCost, ...]


def profile_trial(session: Session, trial: int, console: Console) -> TrialProfile:
    """Measure the profiles of a trial's model and of the baseline, one after the other.

    Raises:
        ConfigError: the trial has no model file, or one that is split between two devices.
        JobError: a model cannot be profiled.
    """
    sides = session.sides()
    if trial not in sides:
        built = f"{min(sides)} to {max(sides)}" if sides else "none"
        raise ConfigError(f"--trial: must be a trial that was built ({built}), but got {trial}")
    if sides[trial][1].placement.embedding_device is not None:
        raise ConfigError(f"--trial: must be a trial whose model is one graph, but got {trial}, which is split in two")
    config, jobs = session.config, session.jobs(session.front())
    with locked(session.home, config.name), stoppable(), open_workers(session.home.logs(config.name)) as workers:
        workers.builder.kill()
        baseline, ours = (
            call(workers.meter, jobs.profile(side), config.workers.job_seconds, console.say)
            for side in (None, sides[trial])
        )
    measured = next(one.measurement for one in session.study.ended() if one.number == trial)
    roofs = group_roofs(ours.profile, ours.roofline)
    perfect = {name: roof.perfect_ms for name, roof in roofs.items()}
    return TrialProfile(
        study=config.name,
        trial=trial,
        place=sides[trial][1].placement.instance_group.place,
        rows=ours.profile.rows,
        threads=ours.profile.threads,
        baseline_p50_ms=baseline.profile.p50_ms,
        p50_ms=ours.profile.p50_ms,
        service_p50_ms=None if measured is None else measured.latency.candidate.service_p50_ms,
        groups=group_times(baseline.profile, ours.profile, perfect),
        operators=ours.profile.operators,
    )


def group_times(baseline: Profile, ours: Profile, perfect_ms: dict[str, float]) -> tuple[GroupTimes, ...]:
    """Return the times of each layer group of either model, the slowest of ours first; an absent one takes none."""
    before, now = ({group.name: group for group in profile.groups} for profile in (baseline, ours))
    found = []
    for name, kind in {group.name: group.kind for group in (*baseline.groups, *ours.groups)}.items():
        ms, share = (now[name].ms, now[name].time_share) if name in now else (0.0, 0.0)
        found.append(
            GroupTimes(name, kind, before[name].ms if name in before else 0.0, ms, share, perfect_ms.get(name, 0.0))
        )
    return tuple(sorted(found, key=lambda group: -group.ms))
