"""Expected cost of candidates before their benchmark: what was simulated, corrected by what others have shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from objectives.records import SimulatedRatios
from search.front import Floats
from search.trials import EndedTrial, inverse, sought

QUALITY = "quality"
# A percentile that lies among the refused requests stands where one of this ratio would.
_REFUSED = 10.0
# Deviations of simulations, as logarithms, before so many benchmarks have shown their own: that of the p95 in a study,
# in the median (tests/benchmarks/RESULTS.md).
_PRIOR, _ENOUGH = (-0.45, 0.45), 10


def _or_refused(ratio: float | None) -> float:
    return _REFUSED if ratio is None else ratio


def _rate(ratios: SimulatedRatios) -> float | None:
    return None if ratios.throughput_ratio is None else inverse(ratios.throughput_ratio)


# What is simulated of each objective, a ratio to the baseline; lower is better, as in `sought`.
_RATIOS: Mapping[str, Callable[[SimulatedRatios], float | None]] = {
    "latency_p50": lambda ratios: _or_refused(ratios.p50_ratio),
    "latency_p95": lambda ratios: _or_refused(ratios.p95_ratio),
    "latency_p99": lambda ratios: _or_refused(ratios.p99_ratio),
    "throughput": _rate,
    "money_per_million": _rate,
}
# What else is known before training: no ratio, and measured as it is expected.
_EXACT: Mapping[str, Callable[[SimulatedRatios], float | None]] = {"model_bytes": lambda ratios: ratios.model_bytes}
_EXPECTED = {**_RATIOS, **_EXACT}


def is_expected(objectives: Sequence[str]) -> bool:
    """Return whether there are objectives but quality, and all of them can be known before training."""
    others = set(objectives) - {QUALITY}
    return bool(others) and others <= set(_EXPECTED)


def is_ratio(objective: str) -> bool:
    """Return whether an objective is a ratio to the baseline, so that the baseline itself has 1."""
    return objective in _RATIOS


def refusal(ratios: SimulatedRatios, objectives: Sequence[str]) -> str | None:
    """Return which objective's percentile lies among the refused requests, in words; None where none."""
    percentiles = {"latency_p50": ratios.p50_ratio, "latency_p95": ratios.p95_ratio, "latency_p99": ratios.p99_ratio}
    for name in objectives:
        if name in percentiles and percentiles[name] is None:
            return f"simulated to refuse so many requests that {name.removeprefix('latency_')} is among them"
    return None


def simulated_values(ratios: SimulatedRatios, objectives: Sequence[str]) -> list[float] | None:
    """Return the values of all objectives but quality, lower is better; None where one of them is not known."""
    if not is_expected(objectives):
        return None
    found = [value for name in objectives if name != QUALITY and (value := _EXPECTED[name](ratios)) is not None]
    return found if len(found) == sum(name != QUALITY for name in objectives) else None


def correction(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    """Return the median ratio of measured over simulated values, (objectives but quality,); 1 where none is both."""
    errors = _errors(trials, objectives)
    return np.exp(np.median(errors, axis=0)) if len(errors) else np.ones(errors.shape[1])


def deviations(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    """Return the errors of the simulation around their median, (n, objectives but quality).

    An error is the logarithm of measured over corrected simulated values. Each trial that has both gives a row. Where
    fewer than ten have, there are two more, of what simulations have erred by elsewhere.
    """
    errors = _errors(trials, objectives)
    found = errors - np.median(errors, axis=0) if len(errors) else errors
    if len(found) >= _ENOUGH:
        return found
    simulated = [float(name not in _EXACT) for name in objectives if name != QUALITY]
    return np.concatenate([found, np.outer(_PRIOR, simulated)])


def _errors(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    others = [name for name in objectives if name != QUALITY]
    errors = []
    for trial in trials:
        if trial.measurement is None or trial.outcome.simulated is None:
            continue
        simulated = simulated_values(trial.outcome.simulated, objectives)
        if simulated is not None and refusal(trial.outcome.simulated, objectives) is None:
            errors.append(np.log(sought(trial.measurement, others)) - np.log(simulated))
    return np.reshape(errors, (len(errors), len(others)))
