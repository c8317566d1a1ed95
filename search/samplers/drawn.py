"""Random candidates of a space, and neighbours of given ones, with the distributions that Optuna keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from spaces.candidate import Candidate
from spaces.domains import Scalar
from spaces.search_space import SearchSpace


@dataclass(frozen=True, eq=False)
class Drawn:
    """A candidate with the knobs that were suggested for it, and their distributions."""

    candidate: Candidate
    knobs: Mapping[str, Scalar]
    distributions: Mapping[str, BaseDistribution]


def draw(
    space: SearchSpace, random: np.random.Generator, near: Mapping[str, Scalar] | None = None, change: float = 1.0
) -> Drawn:
    """Draw a candidate.

    Args:
        near: knobs that are kept where the space still offers them
        change: probability that a knob is drawn anew all the same
    """
    suggester = _RandomSuggester(random, {} if near is None else near, change)
    candidate = space.suggest(suggester)
    return Drawn(candidate, suggester.knobs, suggester.distributions)


@dataclass(eq=False)
class _RandomSuggester:
    random: np.random.Generator
    near: Mapping[str, Scalar]
    change: float
    knobs: dict[str, Scalar] = field(default_factory=dict)
    distributions: dict[str, BaseDistribution] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._keep(
            name,
            CategoricalDistribution(choices),
            lambda kept: kept in choices,
            lambda: choices[int(self.random.integers(len(choices)))],
        )

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        def value() -> int:
            if log:
                return int(np.clip(round(self._logarithmic(low - 0.5, high + 0.5)), low, high))
            return low + step * int(self.random.integers((high - low) // step + 1))

        return int(self._keep(name, IntDistribution(low, high, log, step), lambda kept: low <= kept <= high, value))

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        def value() -> float:
            if log:
                return float(np.clip(self._logarithmic(low, high), low, high))
            if step is not None:
                return low + step * int(self.random.integers(round((high - low) / step) + 1))
            return float(self.random.uniform(low, high))

        return float(self._keep(name, FloatDistribution(low, high, log, step), lambda kept: low <= kept <= high, value))

    def _logarithmic(self, low: float, high: float) -> float:
        return float(np.exp(self.random.uniform(np.log(low), np.log(high))))

    def _keep(
        self, name: str, domain: BaseDistribution, offers: Callable[[Any], bool], value: Callable[[], Scalar]
    ) -> Any:
        """Return the value that the knob has already, the one that is near and still on offer, or a new one."""
        if name not in self.knobs:
            near = self.near.get(name)
            stays = near is not None and offers(near) and self.random.random() >= self.change
            self.knobs[name] = near if stays and near is not None else value()
            self.distributions[name] = domain
        return self.knobs[name]
