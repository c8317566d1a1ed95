"""Description of a fleet, a small YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from planning.fleet import Deployment, MachineKind, offers_of
from planning.virtual_fleet.incidents import Deployments, Failures, FleetSpec, Incidents, SlowMachines, Zones
from search.config.section import Section
from search.config.yaml_reader import nearest
from search.errors import ConfigError
from search.plan.yaml_file import read_section

_HOUR, _MINUTE = 3600.0, 60.0
# Most machines of a fleet.
MOST = 10_000

_Mtbf = Annotated[float, Field(ge=1, description="a number of hours, at least 1: mean time between failures")]
_Mttr = Annotated[float, Field(gt=0, description="a number of hours above 0: mean time to repair")]


class _Failures(Section):
    mtbf_hours: _Mtbf
    mttr_hours: _Mttr


class _Slow(Section):
    share: float = Field(gt=0, lt=1, description="a number between 0 and 1: share of the machines, in the mean")
    speed: float = Field(gt=0, lt=1, description="a number between 0 and 1: of a machine's own speed")
    hours: float = Field(default=1.0, ge=0.1, description="a number, at least 0.1: mean hours of an episode")


class _Deployments(Section):
    every_hours: float = Field(ge=0.1, description="a number of hours, at least 0.1")
    at_once: int = Field(ge=1, le=MOST, description=f"a whole number of machines from 1 to {MOST}")
    minutes: float = Field(gt=0, description="a number above 0: minutes that a machine is away")
    start_hours: float = Field(
        default=0.0, ge=0, description="a number of hours, at least 0, after which the first begins"
    )


class _Zones(Section):
    count: int = Field(ge=2, le=100, description="a whole number from 2 to 100")
    mtbf_hours: _Mtbf
    mttr_hours: _Mttr


class _Fleet(Section):
    machines: dict[str, Annotated[int, Field(ge=1, le=MOST)]] = Field(
        min_length=1, description=f"a mapping from names of the table of machines to whole numbers from 1 to {MOST}"
    )
    balancer: Literal["two-choices", "least-outstanding", "round-robin", "shortest-delay"] = Field(
        default="two-choices", description="two-choices, least-outstanding, round-robin or shortest-delay"
    )
    speed_spread: float = Field(default=0.0, ge=0, le=1, description="a number from 0 to 1")
    detection_seconds: float = Field(default=0.5, ge=0, le=3600, description="a number of seconds from 0 to 3600")
    failures: _Failures | None = Field(default=None, description="a mapping with mtbf_hours and mttr_hours, or null")
    slow: _Slow | None = Field(default=None, description="a mapping with share, speed and hours, or null")
    deployments: _Deployments | None = Field(
        default=None, description="a mapping with every_hours, at_once, minutes and start_hours, or null"
    )
    zones: _Zones | None = Field(default=None, description="a mapping with count, mtbf_hours and mttr_hours, or null")


def read_fleet(path: Path, deployment: Deployment, kinds: tuple[MachineKind, ...]) -> FleetSpec:
    """Read a fleet that serves a deployment.

    Args:
        kinds: the table of machines

    Raises:
        ConfigError: the file cannot be read or has a wrong value, or a kind of machine is not in the table, or does not
            have the cores and the memory of the deployment.
    """
    found = read_section(path, "--fleet", _Fleet)
    known = {kind.name: kind for kind in kinds}
    for name in found.machines:
        if name not in known:
            near = nearest(name, tuple(known))
            raise ConfigError(f"--fleet: machines: must be of the kinds {', '.join(known)}, but got {name!r}{near}")
    if (total := sum(found.machines.values())) > MOST:
        raise ConfigError(f"--fleet: machines: must be at most {MOST} in all, but got {total}")
    offers = offers_of((deployment,), [known[name] for name in found.machines])
    if lacking := set(found.machines) - {offer.kind.name for offer in offers}:
        raise ConfigError(
            f"--fleet: machines: must have the {deployment.cores} cores and the memory of {deployment.name}, but "
            f"{min(lacking)!r} has not"
        )
    incidents = _incidents(found)
    rolling = incidents.deployments
    if rolling is not None and (taken_s := rolling.seconds(total)) > rolling.every_s:
        raise ConfigError(
            f"--fleet: deployments: must end before the next one begins, after {rolling.every_s / _HOUR:g} hours, but "
            f"take {taken_s / _HOUR:g} for {total} machines"
        )
    return FleetSpec(offers, tuple(found.machines.values()), found.balancer, found.speed_spread, incidents)


def _incidents(found: _Fleet) -> Incidents:
    failures, slow, rolling, zones = found.failures, found.slow, found.deployments, found.zones
    return Incidents(
        None if failures is None else Failures(_HOUR * failures.mtbf_hours, _HOUR * failures.mttr_hours),
        None if slow is None else SlowMachines(slow.share, slow.speed, _HOUR * slow.hours),
        None if rolling is None else _deployments(rolling),
        None if zones is None else Zones(zones.count, _HOUR * zones.mtbf_hours, _HOUR * zones.mttr_hours),
        found.detection_seconds,
    )


def _deployments(rolling: _Deployments) -> Deployments:
    return Deployments(
        _HOUR * rolling.every_hours, rolling.at_once, _MINUTE * rolling.minutes, _HOUR * rolling.start_hours
    )
