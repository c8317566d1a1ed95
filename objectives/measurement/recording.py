"""One timing as it was recorded: raw milliseconds of both arms, in a small file; and what is judged from it.

A number can be judged again from the file, with no new run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from objectives.measurement.latency import Timings, summarise
from objectives.measurement.statistics import Floats, interval, percentile
from objectives.measurement.throughput import Probe, slo_rate
from objectives.record import Latency, NotFiniteError, Throughput


@dataclass(frozen=True)
class Search:
    """One arm's search for the rate under the SLO: its probes by rate, and what it answers when saturated.

    saturation_rps: (blocks,)
    """

    probes: tuple[Probe, ...]
    saturation_rps: Floats


@dataclass(frozen=True)
class Recording:
    """Latency in pairs of blocks at the study's load, and each arm's search for the rate under the SLO.

    slo_ms: None for the baseline's own percentile at that load
    baseline: its search, which needs no probes where its own percentile is the SLO
    """

    timings: Timings
    slo_ms: float | None
    percent: int
    seed: int
    candidate: Search
    baseline: Search

    def judged(self) -> tuple[Latency, Throughput]:
        """Percentiles, ratios and their intervals; the same each time.

        Raises:
            NotFiniteError: so many requests were refused that a percentile is infinite, or the baseline keeps no SLO.
        """
        return summarise(self.timings, self.seed), self._throughput()

    def _throughput(self) -> Throughput:
        """Without an SLO of its own the limit is the baseline's percentile in this very run, whose rate is known."""
        kept = self.timings.kept()
        theirs, offered = kept.baseline, float(np.median(kept.rate_rps))
        limit = percentile(theirs, self.percent) if self.slo_ms is None else self.slo_ms
        ours = self.candidate
        rate, rates = slo_rate(
            ours.probes, ours.saturation_rps, theirs if self.slo_ms is None else limit, self.percent, self.seed
        )
        if self.slo_ms is None:
            base, bases = offered, np.full(len(rates), offered)
        else:
            base, bases = slo_rate(
                self.baseline.probes, self.baseline.saturation_rps, self.slo_ms, self.percent, self.seed
            )
        if base == 0:
            raise NotFiniteError(f"The baseline must keep the SLO of {limit:g} ms at some rate, but got none.")
        saturated, reference = (float(s.saturation_rps.mean()) for s in (ours, self.baseline))
        return Throughput(
            rps=rate,
            baseline_rps=base,
            ratio=rate / base,
            ratio_interval=_around(rate / base, interval(rates / bases)),
            slo_ms=limit,
            saturated_rps=saturated,
            rps_interval=_around(rate, interval(rates)),
            saturated_ratio=saturated / reference,
        )


def _around(point: float, found: tuple[float, float]) -> tuple[float, float]:
    """A point at the highest probe lies at the edge of what the resamples may be."""
    return min(found[0], point), max(found[1], point)


def write_recording(recording: Recording, path: Path) -> None:
    """A compressed .npz of some tens of kilobytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        f"timings.{f.name}": getattr(recording.timings, f.name).astype(np.float32) for f in fields(Timings)
    }
    for name in ("percent", "seed"):
        arrays[name] = getattr(recording, name)
    arrays["slo_ms"] = np.nan if recording.slo_ms is None else recording.slo_ms
    for arm, search in (("candidate", recording.candidate), ("baseline", recording.baseline)):
        arrays[f"{arm}.saturation_rps"] = search.saturation_rps
        arrays[f"{arm}.rates"] = np.array([p.rate_rps for p in search.probes])
        for i, probe in enumerate(search.probes):
            arrays[f"{arm}.probe{i}"] = probe.latency_ms.astype(np.float32)
    partial = path.with_suffix(".partial.npz")
    np.savez_compressed(partial, **arrays)
    partial.rename(path)


def read_recording(path: Path) -> Recording:
    """What `write_recording` wrote.

    Raises:
        FileNotFoundError: there is none.
    """
    with np.load(path) as arrays:
        timings = Timings(**{f.name: arrays[f"timings.{f.name}"].astype(np.float64) for f in fields(Timings)})
        slo = float(arrays["slo_ms"])
        return Recording(
            timings=timings,
            slo_ms=None if np.isnan(slo) else slo,
            percent=int(arrays["percent"]),
            seed=int(arrays["seed"]),
            candidate=_search(arrays, "candidate"),
            baseline=_search(arrays, "baseline"),
        )


def _search(arrays: Mapping[str, Any], arm: str) -> Search:
    rates: Sequence[float] = arrays[f"{arm}.rates"].tolist()
    probes = tuple(Probe(rate, arrays[f"{arm}.probe{i}"].astype(np.float64)) for i, rate in enumerate(rates))
    return Search(probes, arrays[f"{arm}.saturation_rps"])
