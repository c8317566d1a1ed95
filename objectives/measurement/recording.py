"""Raw timings of one benchmark in a small file, and the numbers computed from them, again at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from operator import truediv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from objectives.arrays import Arrays
from objectives.measurement.latency import Timings
from objectives.measurement.statistics import (
    Floats,
    TooFewSamplesError,
    block_percentiles,
    block_picks,
    fewest_samples,
    paired_log_variance,
    percentile,
    percentile_interval,
)
from objectives.measurement.throughput import (
    BURSTS,
    RESAMPLES,
    SEGMENTS,
    Probe,
    RateSearch,
    rate_under_slo,
    resampled_rates,
)
from objectives.measurement.visits import NO_NOISE, VisitNoise, ratio_over_visits
from objectives.records import Interval, Latency, NotFiniteError, Percentiles, Throughput

# Default SLO: this multiple of the baseline's own percentile at the study's load.
SLO_TIMES = 2.0
_FORMAT = 2


@dataclass(frozen=True)
class Visit:
    """One visit: latency in pairs of blocks at the study's load, and both searches for the rate under the SLO."""

    timings: Timings
    candidate: RateSearch
    baseline: RateSearch


@dataclass(frozen=True)
class RatioNoise:
    """Variance of each ratio between visits, from earlier benchmarks of the same study."""

    p95: VisitNoise = NO_NOISE
    p99: VisitNoise = NO_NOISE
    service_p50: VisitNoise = NO_NOISE
    throughput: VisitNoise = NO_NOISE
    capacity: VisitNoise = NO_NOISE


NO_RATIO_NOISE = RatioNoise()


@dataclass(frozen=True)
class Recording:
    """Visits of one benchmark; slo_ms is None for `SLO_TIMES` the baseline's own percentile in each visit."""

    visits: tuple[Visit, ...]
    slo_ms: float | None
    percent: int
    seed: int

    def summarize(self, noise: RatioNoise = NO_RATIO_NOISE) -> tuple[Latency, Throughput]:
        """Compute percentiles, ratios and their intervals, deterministically.

        Raises:
            NotFiniteError: a percentile is infinite, since too many requests were refused, or the baseline keeps the
            SLO at no rate.
            TooFewSamplesError: fewer samples than a p95 needs.
        """
        return _latency(self, noise), _throughput(self, noise)


def slo_of(timings: Timings, slo_ms: float | None, percent: int) -> float:
    """Return the SLO of a visit in milliseconds."""
    return SLO_TIMES * percentile(timings.kept().baseline, percent) if slo_ms is None else slo_ms


def _latency(recording: Recording, noise: RatioNoise) -> Latency:
    every = [visit.timings for visit in recording.visits]
    kept = [timings.kept() for timings in every]
    ours = _percentiles([one.candidate for one in kept], [one.candidate_service for one in kept])
    theirs = _percentiles([one.baseline for one in kept], [one.baseline_service for one in kept])
    loops = [(one.candidate, one.baseline) for one in kept]
    services = [(one.candidate_service, one.baseline_service) for one in kept]
    p95, p95_interval, p95_visits = _ratio(loops, 95, recording.seed, noise.p95)
    service, service_interval, service_visits = _ratio(services, 50, recording.seed, noise.service_p50)
    p99: tuple[float | None, Interval | None, tuple[float, ...]] = (None, None, ())
    if ours.p99_ms is not None and theirs.p99_ms is not None:
        enough = all(one.candidate.size >= fewest_samples(99) for one in kept)
        pooled = [(np.concatenate([loop for loop, _ in loops]), np.concatenate([loop for _, loop in loops]))]
        p99 = _ratio(loops if enough else pooled, 99, recording.seed, noise.p99)
    return Latency(
        candidate=ours,
        baseline=theirs,
        p50_ratio=ours.p50_ms / theirs.p50_ms,
        p95_ratio=p95,
        p95_ratio_interval=p95_interval,
        p99_ratio=p99[0],
        service_p50_ratio=service,
        service_p50_ratio_interval=service_interval,
        rate_rps=float(np.median(np.concatenate([one.rate_rps for one in kept]))),
        requests=sum(one.candidate.size for one in kept),
        blocks=sum(len(one.candidate) for one in kept),
        lag_p95_ms=percentile(np.concatenate([one.lag for one in kept]), 95),
        p95_ratio_all=_ratio([(one.candidate, one.baseline) for one in every], 95, recording.seed, noise.p95)[0],
        p99_ratio_interval=p99[1],
        pairs=sum(len(one.candidate) for one in every),
        busy_share=float(np.mean(np.concatenate([one.taken for one in every]))),
        drift=max(one.drift() for one in kept),
        lateness=max(one.lateness() for one in kept),
        p95_visits=p95_visits,
        service_p50_visits=service_visits,
        p99_visits=p99[2],
    )


def _ratio(
    pairs: Sequence[tuple[Floats, Floats]], percent: int, seed: int, noise: VisitNoise
) -> tuple[float, Interval, tuple[float, ...]]:
    """Return a ratio of percentiles over visits' pairs of (blocks, samples), its interval, and each visit's ratio."""
    ratios = tuple(percentile(ours, percent) / percentile(theirs, percent) for ours, theirs in pairs)
    if not all(map(math.isfinite, ratios)):
        raise NotFiniteError(f"p{percent} must be finite, but too many requests were refused in a visit.")
    with np.errstate(invalid="ignore"):
        within = [paired_log_variance(ours, theirs, percent, seed + i) for i, (ours, theirs) in enumerate(pairs)]
    return (*ratio_over_visits(ratios, within, noise), ratios)


def _percentiles(loops: Sequence[Floats], services: Sequence[Floats]) -> Percentiles:
    """Compute percentiles with intervals from the open and closed loops of each visit, (blocks, samples) each."""
    loop = np.concatenate(loops)
    p50, p50_interval = percentile_interval(loop, 50)
    p95, p95_interval = percentile_interval(loop, 95)
    own = [percentile(visit, 95) for visit in loops]
    if len(own) > 1 and all(map(math.isfinite, own)):
        # The pooled samples do not show the variance between visits.
        _, (low, high) = ratio_over_visits(own, [0.0] * len(own))
        p95_interval = (min(low, p95_interval[0]), max(high, p95_interval[1]))
    p99: tuple[float | None, Interval | None] = (None, None)
    with suppress(TooFewSamplesError):  # no p99 is reported then, nor where an upper end is among refused requests
        point, ends = percentile_interval(loop, 99)
        p99 = (point, ends) if math.isfinite(ends[1]) else p99
    service, refused = percentile(np.concatenate(services), 50), float(np.isinf(loop).mean())
    return Percentiles(p50, p95, p99[0], service, p50_interval, p95_interval, p99[1], refused)


def _throughput(recording: Recording, noise: RatioNoise) -> Throughput:
    percent, found = recording.percent, []
    for number, visit in enumerate(recording.visits):
        seed, searches = recording.seed + number, (visit.candidate, visit.baseline)
        limit = slo_of(visit.timings, recording.slo_ms, percent)
        rate, base = (rate_under_slo(search, limit, percent) for search in searches)
        if base == 0:
            raise NotFiniteError(f"The baseline must keep the SLO of {limit:g} ms at some rate, but got none.")
        drawn = _resampled_limits(visit.timings, recording.slo_ms, percent, seed)
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
    ratio, ratio_interval = ratio_over_visits(ratios, within[1], noise.throughput, blocks=SEGMENTS)
    capacity, capacity_interval = ratio_over_visits(capacity_ratios, within[2], noise.capacity, blocks=BURSTS)
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


def _resampled_limits(timings: Timings, slo_ms: float | None, percent: int, seed: int) -> Floats:
    """Return the SLO of each resample, (resamples,), by resampled blocks where it follows the baseline's percentile."""
    if slo_ms is not None:
        return np.full(RESAMPLES, slo_ms)
    blocks = timings.kept().baseline
    return SLO_TIMES * block_percentiles(blocks, percent, block_picks(len(blocks), seed, RESAMPLES))


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
