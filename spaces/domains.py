"""Domains of knobs, and the protocol that suggests a value for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Scalar = str | int | float | bool


class Suggester(Protocol):
    """Suggests one value for each named knob; `optuna.Trial` and `optuna.trial.FixedTrial` implement it.

    A name is always asked with the same domain; asked twice within one trial, it gives the same value.
    """

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any: ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int: ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float: ...


@dataclass(frozen=True)
class FixedValues:
    """A suggester that returns given values, and a domain's first or lowest where none is given."""

    knobs: Mapping[str, Scalar]

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self.knobs.get(name, choices[0])

    def suggest_int(self, name: str, low: int, high: int, **scale: object) -> int:
        return int(self.knobs.get(name, low))

    def suggest_float(self, name: str, low: float, high: float, **scale: object) -> float:
        return float(self.knobs.get(name, low))


@dataclass(frozen=True)
class Choice:
    """Unordered set of values of one knob."""

    values: tuple[Scalar, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("A choice needs at least one value, but got none.")
        if len({(type(v), v) for v in self.values}) != len(self.values):
            raise ValueError(f"A choice needs different values, but got {list(self.values)}.")

    def suggest(self, suggester: Suggester, name: str) -> Any:
        return suggester.suggest_categorical(name, self.values)

    def __contains__(self, value: object) -> bool:
        return any(type(v) is type(value) and v == value for v in self.values)


@dataclass(frozen=True)
class Integer:
    """Integers from low to high, both included, in multiples of `step` from low."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"low must be at most high, but got low={self.low}, high={self.high}.")
        if self.step < 1 or (self.high - self.low) % self.step:
            raise ValueError(f"step must be positive and divide {self.high - self.low}, but got {self.step}.")
        if self.log and (self.low < 1 or self.step != 1):
            raise ValueError(f"A log scale needs low >= 1 and step 1, but got low={self.low}, step={self.step}.")

    def suggest(self, suggester: Suggester, name: str) -> int:
        return suggester.suggest_int(name, self.low, self.high, step=self.step, log=self.log)


@dataclass(frozen=True)
class Float:
    """Real numbers from low to high, both included; with a step, the points of that grid."""

    low: float
    high: float
    step: float | None = None
    log: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"low must be finite and at most high, but got low={self.low}, high={self.high}.")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(f"A log scale needs low > 0 and no step, but got low={self.low}, step={self.step}.")
        if self.step is not None:
            steps = (self.high - self.low) / self.step if self.step > 0 else math.nan
            if not math.isclose(steps, round(steps) if math.isfinite(steps) else 0.5, abs_tol=1e-9):
                raise ValueError(f"step must be positive and divide {self.high - self.low:g}, but got {self.step}.")

    def suggest(self, suggester: Suggester, name: str) -> float:
        return suggester.suggest_float(name, self.low, self.high, step=self.step, log=self.log)


Domain = Choice | Integer | Float


def pick(domain: Domain, suggester: Suggester, name: str) -> Any:
    """Return the only value of a choice without a suggestion, or the suggested one."""
    if isinstance(domain, Choice) and len(domain.values) == 1:
        return domain.values[0]
    return domain.suggest(suggester, name)


def draw(domains: Mapping[str, Domain], suggester: Suggester, prefix: str) -> tuple[tuple[str, Scalar], ...]:
    """Suggest a value for each domain, in the order of their names."""
    return tuple((name, pick(domains[name], suggester, f"{prefix}.{name}")) for name in sorted(domains))


def least(domain: Domain) -> Scalar:
    """Return the first value of a choice, whose sizes are listed in ascending order, or the lower bound of a range."""
    return domain.values[0] if isinstance(domain, Choice) else domain.low


def middle(domain: Domain) -> Scalar:
    """Return the middle value, rounded down to the grid of a stepped domain; on a log scale, the geometric mean."""
    if isinstance(domain, Choice):
        return domain.values[len(domain.values) // 2 if len(domain.values) < 4 else (len(domain.values) - 1) // 2]
    if isinstance(domain, Integer):
        return domain.low + (domain.high - domain.low) // (2 * domain.step) * domain.step
    if domain.step is not None:
        return domain.low + round((domain.high - domain.low) / domain.step) // 2 * domain.step
    return math.sqrt(domain.low * domain.high) if domain.log else (domain.low + domain.high) / 2
