"""What was recorded is judged again from its file to the same numbers."""

from __future__ import annotations

import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.measurement.latency import Timings
from objectives.measurement.recording import Recording, Search, read_recording, write_recording
from objectives.measurement.strain import Strain
from objectives.measurement.throughput import Probe
from objectives.record import NotFiniteError

CALM = Strain(1.0, 0.5, 0.0, 0.0, 1.5, 0.0, 0.0)
LOUD = Strain(1.0, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0)


def single(values: Any) -> NDArray[np.float64]:
    """In single precision, as a timing is kept."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def timings(random: np.random.Generator, pairs: int = 22) -> Timings:
    """Of pairs 3 and 11 an arm was disturbed."""
    strain = np.tile(CALM.row(), (pairs, 2, 1))
    strain[3, 0] = strain[11, 1] = LOUD.row()
    return Timings(
        candidate=single(random.gamma(4, 0.5, (pairs, 35))),
        baseline=single(random.gamma(4, 1.0, (pairs, 35))),
        candidate_service=single(random.gamma(9, 0.1, (pairs, 5))),
        baseline_service=single(random.gamma(9, 0.2, (pairs, 5))),
        lag=single(random.exponential(0.01, (2 * pairs, 35))),
        offered=single(random.uniform(0.99, 1, 2 * pairs)),
        strain=single(strain),
        rate_rps=single(random.uniform(300, 340, pairs)),
    )


def probe(rate: float, capacity: float, random: np.random.Generator) -> Probe:
    """A made-up machine whose latency is around 1 / (1 - load) ms."""
    noise = random.uniform(0.95, 1.0, (5, 40))
    return Probe(rate, single(noise / (1 - rate / capacity)))


def search(capacity: float, random: np.random.Generator) -> Search:
    rates = capacity * np.array([0.2, 0.55, 0.7, 0.8, 0.9])
    return Search(tuple(probe(rate, capacity, random) for rate in rates.tolist()), random.normal(capacity, 1, 5))


def recording(seed: int = 0, slo_ms: float | None = None) -> Recording:
    random = np.random.default_rng(seed)
    theirs = search(1000.0, random) if slo_ms is not None else Search((), random.normal(1000, 1, 5))
    return Recording(timings(random), slo_ms, 95, seed, search(3000.0, random), theirs)


def same(one: Recording, other: Recording) -> bool:
    """Each number of both, and the shapes."""
    arrays = [(getattr(one.timings, f.name), getattr(other.timings, f.name)) for f in fields(Timings)]
    for ours, theirs in ((one.candidate, other.candidate), (one.baseline, other.baseline)):
        arrays.append((ours.saturation_rps, theirs.saturation_rps))
        arrays += [(a.latency_ms, b.latency_ms) for a, b in zip(ours.probes, theirs.probes, strict=True)]
        arrays += [
            (np.array(a.rate_rps), np.array(b.rate_rps)) for a, b in zip(ours.probes, theirs.probes, strict=True)
        ]
    plain = [(r.slo_ms, r.percent, r.seed) for r in (one, other)]
    return plain[0] == plain[1] and all(np.array_equal(a, b) for a, b in arrays)


@pytest.mark.parametrize("slo_ms", [None, 4.0])
def test_a_recording_comes_back_whole_and_is_judged_the_same(tmp_path: Path, slo_ms: float | None) -> None:
    path = tmp_path / "timings" / "study" / "7.npz"
    kept = recording(slo_ms=slo_ms)
    write_recording(kept, path)
    assert [file.name for file in path.parent.iterdir()] == ["7.npz"], "nothing half written is left"
    again = read_recording(path)
    assert same(again, kept)
    assert again.judged() == kept.judged()
    write_recording(again, path)
    assert same(read_recording(path), kept), "written over"


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, 3.0]))
def test_to_judge_again_changes_nothing(seed: int, slo_ms: float | None) -> None:
    kept = recording(seed, slo_ms)
    latency, throughput = kept.judged()
    assert kept.judged() == (latency, throughput)
    assert (latency.blocks, latency.repeated_blocks) == (20, 2)
    assert throughput.ratio == throughput.rps / throughput.baseline_rps
    assert throughput.ratio_interval[0] <= throughput.ratio <= throughput.ratio_interval[1]
    assert throughput.rps_interval is not None
    assert throughput.rps_interval[0] <= throughput.rps <= throughput.rps_interval[1]


def test_without_an_slo_the_limit_is_the_baselines_own_percentile() -> None:
    """Of the calm pairs alone: 20 x 35 samples, the p95 is number 665."""
    kept = recording()
    _, throughput = kept.judged()
    calm = np.delete(kept.timings.baseline, [3, 11], axis=0)
    limit = sorted(calm.ravel())[664]
    assert throughput.slo_ms == limit
    rates = np.delete(kept.timings.rate_rps, [3, 11])
    assert throughput.baseline_rps == np.median(rates), "the rate of this very run"
    # 1 / (1 - rate / 3000) = limit; the noise takes at most 5% off a latency.
    assert throughput.rps == pytest.approx(3000 * (1 - 1 / limit), rel=0.03)


def test_with_an_slo_both_arms_are_held_to_it() -> None:
    """1 / (1 - rate / capacity) = 4 at three quarters of each capacity."""
    _, throughput = recording(slo_ms=4.0).judged()
    assert throughput.slo_ms == 4.0
    assert throughput.baseline_rps == pytest.approx(750, rel=0.03)
    assert throughput.rps == pytest.approx(2250, rel=0.03)
    assert throughput.ratio == pytest.approx(3, rel=0.04)


def test_the_saturated_rates_are_means_over_the_blocks() -> None:
    kept = recording(slo_ms=4.0)
    _, throughput = kept.judged()
    ours, theirs = kept.candidate.saturation_rps, kept.baseline.saturation_rps
    assert throughput.saturated_rps == pytest.approx(sum(ours) / 5)
    assert throughput.saturated_ratio == pytest.approx(sum(ours) / sum(theirs))


def test_a_candidate_that_refused_all_answers_no_rate() -> None:
    """It kept the SLO at no rate, which is 0 rather than an error."""
    kept = recording(slo_ms=4.0)
    refusing = Search((Probe(300.0, np.full((5, 40), np.inf)),), np.zeros(5))
    _, throughput = replace(kept, candidate=refusing).judged()
    assert (throughput.rps, throughput.ratio, throughput.saturated_rps, throughput.saturated_ratio) == (0, 0, 0, 0)
    assert throughput.ratio_interval == (0, 0)


def test_a_baseline_that_keeps_the_slo_at_no_rate_is_no_measurement() -> None:
    refusing = Search((Probe(300.0, np.full((5, 40), np.inf)),), np.zeros(5))
    with pytest.raises(NotFiniteError):
        replace(recording(slo_ms=4.0), baseline=refusing).judged()


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01])
def test_a_truncated_file_is_an_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "7.npz"
    write_recording(recording(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(zipfile.BadZipFile):
        read_recording(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_recording(tmp_path / "7.npz")


def test_a_recording_is_small(tmp_path: Path) -> None:
    path = tmp_path / "7.npz"
    write_recording(recording(slo_ms=4.0), path)
    assert path.stat().st_size < 100_000
