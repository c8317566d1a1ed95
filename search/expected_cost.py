"""Expected cost of candidates: what was simulated, corrected by what others have shown, and what was measured.

Before its benchmark, a candidate is expected where its simulation puts it. After it, simulation and measurement are two
observations of the same cost, each with an error: the one expected of another benchmark lies between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

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
# The least share of a variance that is not due to the measurements: it is a difference of two estimates.
_LEAST_SHARE = 0.25
# Smallest value whose logarithm is taken, and smallest variance.
_LEAST = 1e-9
# Fewest measured trials whose median says what to expect of others.
_FEW = 3
# From this share of a core that other processes took all the while, a measurement says less than a simulation: of one
# that was taken beside a type checker, the ratio of the p95 was a sixth of what it was on idle cores.
_DISTURBED = 0.5
# Median of the square of a standard normal number.
_MEDIAN_SQUARE = 0.4549
# Trials whose simulated values are kept, since each proposal reads those of all again.
_KEPT = 1 << 14


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


@lru_cache(maxsize=_KEPT)
def simulated_values(ratios: SimulatedRatios, objectives: tuple[str, ...]) -> tuple[float, ...] | None:
    """Return the values of all objectives but quality, lower is better; None where one of them is not known."""
    if not is_expected(objectives):
        return None
    found = [value for name in objectives if name != QUALITY and (value := _EXPECTED[name](ratios)) is not None]
    return tuple(found) if len(found) == sum(name != QUALITY for name in objectives) else None


@dataclass(frozen=True, eq=False)
class ExpectedCosts:
    """Costs expected of measured trials, and how far the simulations of others err, by the trials that were measured.

    Values are of the objectives but quality, (others,), lower is better.

    measured: what is expected of the measured trials if they were measured again, by number
    correction: median ratio of measured over simulated values, 1 where no trial has both
    deviations: (n, others), errors of the simulation around that, as logarithms, scaled so that the variance of the
        measurements is no part of theirs; a row for each trial that has both, and where these are fewer than ten, two
        more, of what simulations have erred by elsewhere
    """

    measured: Mapping[int, Floats]
    correction: Floats
    deviations: Floats


def expected_costs(trials: Sequence[EndedTrial], objectives: Sequence[str]) -> ExpectedCosts:
    """Return what is expected of costs, given all trials that were measured.

    The best of many that were measured once are partly the luckiest (the winner's curse), so a measured value is shrunk
    towards what would be expected without it: the corrected simulation, or the median of all that were measured where
    there is none. Their logarithms are weighted by the inverse of their variances, of which that of the expectation is
    estimated from the trials (empirical Bayes: Efron and Morris 1975, J. Amer. Statist. Assoc. 70). The narrower the
    interval of a measurement, as after a final benchmark, the less changes. The ratios of the baseline to itself are 1.

    A measurement whose machine was taken by other processes all the while is expected where its simulation puts it, and
    says nothing of others, unless most were disturbed. Its interval does not tell: both sides were slow throughout.
    """
    others = [name for name in objectives if name != QUALITY]
    able = [(trial, m) for trial in trials if (m := trial.measurement) is not None]
    disturbed = np.array([m.latency.busy_share > _DISTURBED for _, m in able], dtype=bool)
    if 2 * disturbed.sum() > len(able):
        disturbed[:] = False
    simulated = [_simulated(trial, objectives) for trial, _ in able]
    shape = len(able), len(others)
    measured = _logs(np.reshape([sought(m, others) for _, m in able], shape))
    noise = np.square(np.reshape([log_deviations(m, others) for _, m in able], shape))
    both = np.array([row for row, values in enumerate(simulated) if values is not None], dtype=int)
    logs = _logs(np.reshape([simulated[row] for row in both], (len(both), len(others))))
    calm = ~disturbed[both]
    errors = measured[both] - logs
    correction = _median(errors[calm])
    deviations = _deviations(errors[calm] - correction, noise[both][calm], others)
    expected, variance = np.tile(_median(measured[~disturbed]), (len(able), 1)), np.full(shape, np.inf)
    if (~disturbed).sum() >= _FEW:
        variance[:] = _variance(_without_noise((measured - expected)[~disturbed], noise[~disturbed]))
    expected[both], variance[both] = logs + correction, _variance(deviations)
    weight = noise / (noise + np.maximum(variance, _LEAST))
    weight[disturbed & np.isfinite(variance).all(axis=1)] = 1.0
    shrunk = np.exp(measured + weight * (expected - measured))
    ratios = [is_ratio(name) for name in others]
    own = {
        trial.number: np.where(ratios, 1.0, row) if trial.candidate.is_baseline else row
        for (trial, _), row in zip(able, shrunk, strict=True)
    }
    return ExpectedCosts(own, np.exp(correction), deviations)


def _deviations(errors: Floats, noise: Floats, others: Sequence[str]) -> Floats:
    """Return the deviations of simulations by their errors around the median and the variances of the measurements."""
    found = _without_noise(errors, noise)
    if len(found) >= _ENOUGH:
        return found
    return np.concatenate([found, np.outer(_PRIOR, [float(name not in _EXACT) for name in others])])


def _without_noise(found: Floats, noise: Floats) -> Floats:
    """Return deviations, (n, m), scaled so that measurements of such variances, (n, m), have no part in theirs."""
    total = _variance(found)
    noisy = np.divide(_median(noise), total, out=np.zeros_like(total), where=total > 0)
    scaled: Floats = found * np.sqrt(np.maximum(1.0 - noisy, _LEAST_SHARE))
    return scaled


def _variance(found: Floats) -> Floats:
    """Return the variance of normal numbers of the median square of these deviations, (n, m): (m,)."""
    return _median(np.square(found)) / _MEDIAN_SQUARE


def _median(found: Floats) -> Floats:
    """Return the median of the rows of (n, m), (m,); 0 where there are none."""
    median: Floats = np.median(found, axis=0) if len(found) else np.zeros(found.shape[1])
    return median


def _simulated(trial: EndedTrial, objectives: Sequence[str]) -> tuple[float, ...] | None:
    """Return what was simulated of a trial; None where that is not known, or a percentile was among the refused."""
    ratios = trial.outcome.simulated
    return None if ratios is None or refusal(ratios, objectives) else simulated_values(ratios, tuple(objectives))


def _logs(values: npt.ArrayLike) -> Floats:
    logs: Floats = np.log(np.maximum(values, _LEAST))
    return logs
