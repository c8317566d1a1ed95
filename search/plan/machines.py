"""Table of the machines that can be rented, a small YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict

from planning.fleet import MachineKind
from search.config.section import Section
from search.errors import ConfigError
from search.plan.yaml_file import read_section

_GIGABYTE = 10**9


class _Machine(Section):
    name: str = Field(min_length=1, max_length=40, description="a text of 1 to 40 characters")
    cores: int = Field(ge=1, description="a whole number, at least 1")
    speed: float = Field(default=1.0, gt=0, description="above 0: how many times as fast as the study's machine")
    price_per_hour: float = Field(gt=0, description="a number above 0")
    start_seconds: float = Field(default=0.0, ge=0, description="a number of seconds, at least 0")
    most: int = Field(default=64, ge=1, le=1000, description="a whole number from 1 to 1000")
    memory_gb: float | None = Field(default=None, gt=0, description="a number above 0, or null")


class _Machines(Section):
    machines: Annotated[tuple[_Machine, ...], Strict(False)] = Field(
        min_length=1, max_length=20, description="a list of 1 to 20 machines with name, cores and price_per_hour"
    )


def read_machines(path: Path) -> tuple[MachineKind, ...]:
    """Read the kinds of machines.

    Raises:
        ConfigError: the file cannot be read or has a wrong value; the line names the key.
    """
    found = read_section(path, "--machines", _Machines).machines
    names = [machine.name for machine in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"--machines: machines: must have different names, but got {twice!r} twice")
    return tuple(
        MachineKind(
            machine.name,
            machine.cores,
            machine.speed,
            machine.price_per_hour,
            machine.start_seconds,
            machine.most,
            None if machine.memory_gb is None else round(machine.memory_gb * _GIGABYTE),
        )
        for machine in found
    )
