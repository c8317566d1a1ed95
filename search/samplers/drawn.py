"""Random candidates of a space, and neighbours of given ones, with the distributions that Optuna keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.search_space import SearchSpace

# Standard deviation of a step between neighbours, as a share of the range.
_STEP = 0.2


@dataclass(frozen=True, eq=False)
class Drawn:
    """A candidate with the knobs that were suggested for it, and their distributions."""

    candidate: Candidate
    knobs: Mapping[str, Scalar]
    distributions: Mapping[str, BaseDistribution]


def draw(space: SearchSpace, random: Random, near: Mapping[str, Scalar] | None = None, change: float = 1.0) -> Drawn:
    """Draw a candidate.

    Args:
        near: knobs that are kept where the space still offers them
        change: probability that a knob is changed all the same: a choice is drawn anew, a number moves by a normal step
            of a fifth of its range
    """
    suggester = _RandomSuggester(random, {} if near is None else near, change)
    candidate = space.suggest(suggester)
    return Drawn(candidate, suggester.knobs, suggester.distributions)


@dataclass(eq=False)
class _RandomSuggester:
    random: Random
    near: Mapping[str, Scalar]
    change: float
    knobs: dict[str, Scalar] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name in self.knobs:
            return self.knobs[name]
        near = self.near.get(name)
        stays = near is not None and near in choices and self._stays()
        return self._keep(name, near if stays else self.random.choice(choices), _categorical(name, tuple(choices)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        def value(near: Any) -> int:
            if log:
                return round(self._number(low - 0.49, high + 0.49, True, near))
            return low + step * round(self._number(-0.49, (high - low) // step + 0.49, False, _steps(near, low, step)))

        return int(self._suggest_number(name, _integers(low, high, step, log), value))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        def value(near: Any) -> float:
            if step is not None:
                most = round((high - low) / step)
                return low + step * round(self._number(-0.49, most + 0.49, False, _steps(near, low, step)))
            return self._number(low, high, log, near)

        return float(self._suggest_number(name, _floats(low, high, step, log), value))

    def _suggest_number(
        self, name: str, domain: IntDistribution | FloatDistribution, value: Callable[[Any], Scalar]
    ) -> Any:
        if name in self.knobs:
            return self.knobs[name]
        near: Any = self.near.get(name)
        if near is not None and not (_is_number(near) and domain._contains(near)):
            near = None
        return self._keep(name, near if near is not None and self._stays() else value(near), domain)

    def _stays(self) -> bool:
        """Draw whether a knob that is near stays as it is."""
        return self.random.random() >= self.change

    def _keep(self, name: str, value: Any, domain: BaseDistribution) -> Any:
        self.knobs[name], self.distributions[name] = value, domain
        return value

    def _number(self, low: float, high: float, log: bool, near: float | None) -> float:
        """Draw a number uniformly, or around another one."""
        if log:
            around = None if near is None else math.log(near)
            return math.exp(self._number(math.log(low), math.log(high), False, around))
        if near is None:
            return self.random.uniform(low, high)
        return min(max(self.random.gauss(near, _STEP * (high - low)), low), high)


# Distributions are made once: their checks take longer than a draw. Knobs have their own, since True equals 1.
@lru_cache(maxsize=1024)
def _categorical(name: str, choices: tuple[Any, ...]) -> CategoricalDistribution:
    return CategoricalDistribution(choices)


@lru_cache(maxsize=1024)
def _integers(low: int, high: int, step: int, log: bool) -> IntDistribution:
    return IntDistribution(low, high, log, step)


@lru_cache(maxsize=1024)
def _floats(low: float, high: float, step: float | None, log: bool) -> FloatDistribution:
    return FloatDistribution(low, high, log, step)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _steps(near: Any, low: float, step: float) -> float | None:
    return None if near is None else (near - low) / step
