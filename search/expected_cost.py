"""Expected cost of candidates: what was simulated, corrected by what benchmarks of others have shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from objectives.records import SimulatedRatios
from search.front import Floats
from search.trials import EndedTrial, inverse, sought

QUALITY = "quality"


def _rate(ratios: SimulatedRatios) -> float | None:
    return None if ratios.throughput_ratio is None else inverse(ratios.throughput_ratio)


# What is simulated of each objective, lower is better, as in `sought`.
_SIMULATED: Mapping[str, Callable[[SimulatedRatios], float | None]] = {
    "latency_p50": lambda ratios: ratios.p50_ratio,
    "latency_p95": lambda ratios: ratios.p95_ratio,
    "latency_p99": lambda ratios: ratios.p99_ratio,
    "throughput": _rate,
    "money_per_million": _rate,
}


def is_simulated(objectives: Sequence[str]) -> bool:
    """Return whether there are objectives but quality, and all of them can be simulated."""
    others = set(objectives) - {QUALITY}
    return bool(others) and others <= set(_SIMULATED)


def simulated_values(ratios: SimulatedRatios, objectives: Sequence[str]) -> list[float] | None:
    """Return the values of all objectives but quality, lower is better; None where one of them was not simulated."""
    if not is_simulated(objectives):
        return None
    found = [value for name in objectives if name != QUALITY and (value := _SIMULATED[name](ratios)) is not None]
    return found if len(found) == sum(name != QUALITY for name in objectives) else None


def correction(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    """Return the median ratio of measured over simulated values, (objectives but quality,); 1 where none is both."""
    errors = _errors(trials, objectives)
    return np.exp(np.median(errors, axis=0)) if len(errors) else np.ones(errors.shape[1])


def deviations(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    """Return the errors of the simulation around their median, (n, objectives but quality).

    An error is the logarithm of measured over corrected simulated values. Each trial that has both gives a row. Where
    none has, there is one row of zeros.
    """
    errors = _errors(trials, objectives)
    return errors - np.median(errors, axis=0) if len(errors) else np.zeros((1, errors.shape[1]))


def _errors(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    others = [name for name in objectives if name != QUALITY]
    errors = []
    for trial in trials:
        if trial.measurement is None or trial.outcome.simulated is None:
            continue
        simulated = simulated_values(trial.outcome.simulated, objectives)
        if simulated is not None:
            errors.append(np.log(sought(trial.measurement, others)) - np.log(simulated))
    return np.reshape(errors, (len(errors), len(others)))
