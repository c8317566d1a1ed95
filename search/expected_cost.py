"""Expected cost of candidates: what was simulated, corrected by what others have shown, and what was measured.

Before its benchmark, a candidate is expected where its simulation puts it. After it, simulation and measurement are two
observations of the same cost, each with an error: the one expected of another benchmark lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from objectives.records import SimulatedRatios
from search.front import Floats
from search.trials import EndedTrial, inverse, log_deviations, sought

QUALITY = "quality"
# A percentile that lies among the refused requests stands where one of this ratio would.
_REFUSED = 10.0
# Deviations of simulations, as logarithms, before so many benchmarks have shown their own: that of the p95 in a study,
# in the median (tests/benchmarks/RESULTS.md).
_PRIOR, _ENOUGH = (-0.45, 0.45), 10
# The least share of their squared deviations that is due to the simulations, and not to the measurements that they are
# compared with: both variances are estimates.
_LEAST_SHARE = 0.25
# Smallest value whose logarithm is taken, and smallest variance.
_LEAST = 1e-9
# Fewest measured trials whose mean says what to expect of others.
_FEW = 3


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
    median: Floats = np.median(errors, axis=0) if len(errors) else np.zeros(errors.shape[1])
    return np.exp(median)


def deviations(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    """Return errors of the simulation around their median, (n, objectives but quality).

    An error is the logarithm of measured over corrected simulated values, scaled so that the variance of the
    measurements is no part of it. Each trial that has both gives a row. Where fewer than ten have, there are two more,
    of what simulations have erred by elsewhere.
    """
    found, noise = _deviations(trials, objectives)
    total = np.square(found).mean(axis=0)
    return found * np.sqrt(np.divide(_own_variance(found, noise), total, out=np.ones_like(total), where=total > 0))


def expected_again(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> dict[int, Floats]:
    """Return the values that are expected of measured trials if they were measured again, by number.

    Each is (objectives but quality,), lower is better. The best of many that were measured once are partly the luckiest
    (the winner's curse), so a measured value is shrunk towards what would be expected without it: the corrected
    simulation, or the mean of all that were measured where there is none. Their logarithms are weighted by the inverse
    of their variances, of which that of the expectation is estimated from the trials (empirical Bayes: Efron and Morris
    1975, J. Amer. Statist. Assoc. 70). The narrower the interval of a measurement, as after a final benchmark, the less
    changes. The ratios of the baseline to itself are 1.
    """
    others = [name for name in objectives if name != QUALITY]
    able = [(trial, m) for trial in trials if (m := trial.measurement) is not None]
    if not able:
        return {}
    measured = _logs([sought(m, others) for _, m in able])
    noise = np.square([log_deviations(m, others) for _, m in able])
    mean, corrected = measured.mean(axis=0), _logs(correction(trials, objectives))
    around_mean = _own_variance(measured - mean, noise) if len(able) >= _FEW else np.inf
    of_simulations = _own_variance(*_deviations(trials, objectives))
    found = dict[int, Floats]()
    for (trial, _), logs, variance in zip(able, measured, noise, strict=True):
        simulated = _simulated(trial, objectives)
        prior, spread = (mean, around_mean) if simulated is None else (_logs(simulated) + corrected, of_simulations)
        expected = logs + variance / (variance + np.maximum(spread, _LEAST)) * (prior - logs)
        if trial.candidate.is_baseline:
            expected = np.where([is_ratio(name) for name in others], 0.0, logs)
        found[trial.number] = np.exp(expected)
    return found


def _deviations(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> tuple[Floats, Floats]:
    """Return errors of simulations around their median, and the variances of the measurements, both (n, objectives)."""
    errors = _errors(trials, objectives)
    found = errors - np.median(errors, axis=0) if len(errors) else errors
    others = [name for name in objectives if name != QUALITY]
    both = [t.measurement for t in trials if t.measurement is not None and _simulated(t, objectives) is not None]
    noise = np.reshape([np.square(log_deviations(m, others)) for m in both], found.shape)
    if len(found) >= _ENOUGH:
        return found, noise
    simulated = [float(name not in _EXACT) for name in others]
    prior = np.outer(_PRIOR, simulated)
    return np.concatenate([found, prior]), np.concatenate([noise, np.zeros_like(prior)])


def _own_variance(deviations: Floats, noise: Floats) -> Floats:
    """Return the mean square of deviations, (n, m), without the mean variance of the measurements, (n, m): (m,)."""
    total = np.square(deviations).mean(axis=0)
    own: Floats = np.maximum(total - noise.mean(axis=0), _LEAST_SHARE * total)
    return own


def _errors(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> Floats:
    others = [name for name in objectives if name != QUALITY]
    errors = [
        _logs(sought(trial.measurement, others)) - _logs(simulated)
        for trial in trials
        if trial.measurement is not None and (simulated := _simulated(trial, objectives)) is not None
    ]
    return np.reshape(errors, (len(errors), len(others)))


def _simulated(trial: EndedTrial, objectives: Sequence[str]) -> list[float] | None:
    """Return what was simulated of a trial; None where that is not known, or a percentile was among the refused."""
    ratios = trial.outcome.simulated
    return None if ratios is None or refusal(ratios, objectives) else simulated_values(ratios, objectives)


def _logs(values: npt.ArrayLike) -> Floats:
    logs: Floats = np.log(np.maximum(values, _LEAST))
    return logs
