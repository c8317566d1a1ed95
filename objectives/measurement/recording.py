"""Raw timings of one benchmark in a small file, and the numbers computed from them, again at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import truediv
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from objectives.arrays import Arrays
from objectives.measurement.latency import Timings, measured_limit
from objectives.measurement.latency_summary import summarize_latency
from objectives.measurement.statistics import Floats, block_percentiles, block_picks, percentile
from objectives.measurement.throughput import (
    BURSTS,
    RESAMPLES,
    SEGMENTS,
    Probe,
    RateSearch,
    rate_under_slo,
    resampled_rates,
)
from objectives.measurement.visits import DRIFT, NO_RATIO_NOISE, RatioNoise, ratio_over_visits
from objectives.records import Latency, NotFiniteError, Through, Throughput

_FORMAT = 2


@dataclass(frozen=True)
class Visit:
    """One visit: latency in pairs of blocks at the study's load, and both searches for the rate under the SLO."""

    timings: Timings
    candidate: RateSearch
    baseline: RateSearch


@dataclass(frozen=True)
class Recording:
    """Visits of one benchmark.

    slo_ms: None for `SLO_TIMES` the baseline's own percentile in each visit
    through: how the requests reached both deployments
    overhead_ms: of each request, spent elsewhere; the SLO covers it
    """

    visits: tuple[Visit, ...]
    slo_ms: float | None
    percent: int
    seed: int
    through: Through = "pool"
    overhead_ms: float = 0.0

    def summarize(self, noise: RatioNoise = NO_RATIO_NOISE) -> tuple[Latency, Throughput]:
        """Compute percentiles, ratios and their intervals, deterministically.

        Raises:
            NotFiniteError: a percentile is infinite, since too many requests were refused, or the baseline keeps the
            SLO at no rate.
            TooFewSamplesError: fewer samples than a p95 needs.
        """
        timings = [visit.timings for visit in self.visits]
        latency = summarize_latency(timings, self.seed, noise, self.through, self.overhead_ms)
        return latency, _throughput(self, noise)


def slo_of(timings: Timings, slo_ms: float | None, percent: int, overhead_ms: float) -> float:
    """Return the milliseconds of a visit's SLO that are left to what is measured."""
    return float(measured_limit(percentile(timings.kept().baseline, percent), slo_ms, overhead_ms))


def _throughput(recording: Recording, noise: RatioNoise) -> Throughput:
    percent, found = recording.percent, []
    for number, visit in enumerate(recording.visits):
        seed, searches = recording.seed + number, (visit.candidate, visit.baseline)
        limit = slo_of(visit.timings, recording.slo_ms, percent, recording.overhead_ms)
        rate, base = (rate_under_slo(search, limit, percent) for search in searches)
        if base == 0:
            alone = percentile(visit.baseline.service_ms, percent)
            raise NotFiniteError(
                "The baseline must keep the SLO at some rate, since throughput is compared with its own, but it leaves "
                f"{limit:.3g} ms, and one request at a time has a p{percent} of {alone:.3g} ms: slo.ms must be larger."
            )
        drawn = _resampled_limits(recording, visit.timings, seed)
        ours, theirs = (
            resampled_rates(search, drawn, percent, seed + 10 * side) for side, search in enumerate(searches)
        )
        some = theirs > 0
        picks = block_picks(len(visit.candidate.capacity_rps), seed, RESAMPLES)
        bursts, base_bursts = (search.capacity_rps[picks].mean(axis=1) for search in searches)
        most, base_most = (float(search.capacity_rps.mean()) for search in searches)
        variances = map(_relative_variance, (ours, ours[some] / theirs[some], bursts / base_bursts))
        found.append((limit, rate, base, most, base_most, *variances))
    limits, rates, bases, capacities, base_capacities, *within = zip(*found, strict=True)
    ratios = tuple(map(truediv, rates, bases))
    capacity_ratios = tuple(map(truediv, capacities, base_capacities))
    ratio, ratio_interval = ratio_over_visits(ratios, within[1], noise.throughput, blocks=SEGMENTS, drift=DRIFT)
    capacity, capacity_interval = ratio_over_visits(
        capacity_ratios, within[2], noise.capacity, blocks=BURSTS, drift=DRIFT
    )
    rps, rps_interval = ratio_over_visits(rates, within[0], blocks=SEGMENTS)
    return Throughput(
        rps=rps,
        baseline_rps=_geometric_mean(bases),
        ratio=ratio,
        ratio_interval=ratio_interval,
        slo_ms=float(np.mean(limits)),
        capacity_rps=_geometric_mean(capacities),
        baseline_capacity_rps=_geometric_mean(base_capacities),
        capacity_ratio=capacity,
        capacity_ratio_interval=capacity_interval,
        rps_interval=rps_interval,
        ratio_visits=ratios,
        capacity_visits=capacity_ratios,
    )


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(values)))) if min(values) > 0 else 0.0


def _resampled_limits(recording: Recording, timings: Timings, seed: int) -> Floats:
    """Return `slo_of` for each resample, (resamples,), by resampled blocks where it follows the baseline's."""
    blocks = timings.kept().baseline
    resampled = block_percentiles(blocks, recording.percent, block_picks(len(blocks), seed, RESAMPLES))
    return np.broadcast_to(measured_limit(resampled, recording.slo_ms, recording.overhead_ms), RESAMPLES)


def _relative_variance(values: Floats) -> float:
    """Return the variance of the logarithm, to first order, since a rate of 0 has no logarithm."""
    mean = float(values.mean())
    return float(values.var()) / mean**2 if mean > 0 else 0.0


def write_recording(recording: Recording, path: Path) -> None:
    """Write a compressed .npz of some tens of kilobytes, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, ArrayLike] = {
        "format": _FORMAT,
        "visits": len(recording.visits),
        "percent": recording.percent,
        "seed": recording.seed,
        "slo_ms": np.nan if recording.slo_ms is None else recording.slo_ms,
        "through": recording.through,
        "overhead_ms": recording.overhead_ms,
    }
    for number, visit in enumerate(recording.visits):
        for f in fields(Timings):
            arrays[f"{number}.timings.{f.name}"] = _single(getattr(visit.timings, f.name))
        for side, search in ((f"{number}.candidate", visit.candidate), (f"{number}.baseline", visit.baseline)):
            arrays[f"{side}.capacity_rps"] = search.capacity_rps
            arrays[f"{side}.rates"] = [one.rate_rps for one in search.probes]
            arrays[f"{side}.service_ms"] = _single(search.service_ms)
            arrays |= {f"{side}.probe{i}": _single(one.latency_ms) for i, one in enumerate(search.probes)}
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    partial.rename(path)


def _single(value: ArrayLike) -> ArrayLike:
    return value.astype(np.float32) if isinstance(value, np.ndarray) else value


def read_recording(path: Path) -> Recording:
    """Read the recording that `write_recording` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has an earlier format.
    """
    with np.load(path) as arrays:
        if int(arrays.get("format", 1)) != _FORMAT:
            raise ValueError(f"{path}: must be a recording of format {_FORMAT}, but got one of an earlier version")
        slo = float(arrays["slo_ms"])
        return Recording(
            visits=tuple(_visit(arrays, number) for number in range(int(arrays["visits"]))),
            slo_ms=None if np.isnan(slo) else slo,
            percent=int(arrays["percent"]),
            seed=int(arrays["seed"]),
            through=cast(Through, str(arrays.get("through", "pool"))),
            overhead_ms=float(arrays.get("overhead_ms", 0.0)),
        )


def _visit(arrays: Arrays, number: int) -> Visit:
    def value(name: str) -> Any:
        array = arrays[f"{number}.{name}"]
        return array.astype(np.float64) if array.ndim else array.item()

    def search(side: str) -> RateSearch:
        probes = tuple(Probe(rate, value(f"{side}.probe{i}")) for i, rate in enumerate(value(f"{side}.rates").tolist()))
        return RateSearch(probes, value(f"{side}.capacity_rps"), value(f"{side}.service_ms"))

    timings = Timings(**{f.name: value(f"timings.{f.name}") for f in fields(Timings)})
    return Visit(timings, search("candidate"), search("baseline"))
