"""Recordings are summarised again from their file to the same numbers, those worked out by hand."""

from __future__ import annotations

import math
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from objectives.measurement.latency import Timings
from objectives.measurement.latency_summary import summarize_latency
from objectives.measurement.recording import (
    Recording,
    Visit,
    _throughput,
    read_recording,
    write_recording,
)
from objectives.measurement.statistics import TooFewSamplesError
from objectives.measurement.throughput import Probe, RateSearch
from objectives.measurement.visits import NO_RATIO_NOISE, LatencyNoise, RatioNoise, VisitNoise
from objectives.records import Latency, NotFiniteError, OverheadRatios
from tests.measurement_tests.simulated import QUIET

Floats = NDArray[np.float64]
LOUD = replace(QUIET, foreign=0.5)


def single(values: Any) -> Floats:
    """The value in single precision, as a timing is kept."""
    return np.asarray(values, dtype=np.float32).astype(np.float64)


def random_timings(random: np.random.Generator, pairs: int = 22) -> Timings:
    """Return timings with a disturbed block in pairs 3 and 11."""
    interference = np.tile(QUIET.row(), (pairs, 2, 1))
    interference[3, 0] = interference[11, 1] = LOUD.row()
    return Timings(
        candidate=single(random.gamma(4, 0.5, (pairs, 35))),
        baseline=single(random.gamma(4, 1.0, (pairs, 35))),
        candidate_service=single(random.gamma(9, 0.1, (pairs, 5))),
        baseline_service=single(random.gamma(9, 0.2, (pairs, 5))),
        lag=single(random.exponential(0.01, (2 * pairs, 35))),
        offered=single(random.uniform(0.99, 1, 2 * pairs)),
        interference=single(interference),
        rate_rps=single(random.uniform(300, 340, pairs)),
        wanted=20,
        warm_up=9,
    )


def random_search(capacity: float, random: np.random.Generator) -> RateSearch:
    """A made-up machine whose latency is around 1 / (1 - utilisation) ms."""

    def probe(rate: float) -> Probe:
        return Probe(rate, single(random.uniform(0.95, 1.0, (5, 40)) / (1 - rate / capacity)))

    rates = capacity * np.array([0.2, 0.55, 0.7, 0.8, 0.9])
    service = single(random.uniform(0.9, 1.0, (20, 5)))
    return RateSearch(tuple(probe(rate) for rate in rates.tolist()), random.normal(capacity, 1, 5), service)


def recording(seed: int = 0, slo_ms: float | None = None, visits: int = 3) -> Recording:
    random = np.random.default_rng(seed)
    made = tuple(
        Visit(random_timings(random), random_search(3000.0, random), random_search(1000.0, random))
        for _ in range(visits)
    )
    return Recording(made, slo_ms, 95, seed)


def numbers(found: Recording) -> list[Any]:
    """Every array of a recording, and the plain numbers."""
    listed: list[Any] = [found.slo_ms, found.percent, found.seed, found.through, found.overhead_ms]
    for visit in found.visits:
        listed += [getattr(visit.timings, f.name) for f in fields(Timings)]
        for search in (visit.candidate, visit.baseline):
            listed += [search.capacity_rps, search.service_ms]
            listed += [value for probe in search.probes for value in (probe.rate_rps, probe.latency_ms)]
    return listed


def same(one: Recording, other: Recording) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(numbers(one), numbers(other), strict=True))


@pytest.mark.parametrize("slo_ms", [None, 4.0])
def test_a_recording_comes_back_whole_and_gives_the_same_numbers(tmp_path: Path, slo_ms: float | None) -> None:
    path = tmp_path / "timings" / "study" / "7.npz"
    kept = replace(recording(slo_ms=slo_ms), through="http", overhead_ms=1.25)
    write_recording(kept, path)
    assert [file.name for file in path.parent.iterdir()] == ["7.npz"], "nothing half written is left"
    again = read_recording(path)
    assert numbers(again)[0] == slo_ms and same(replace(again, slo_ms=0.0), replace(kept, slo_ms=0.0))
    assert again.summarize() == kept.summarize()
    write_recording(again, path)
    assert same(replace(read_recording(path), slo_ms=0.0), replace(kept, slo_ms=0.0)), "written over"


@settings(max_examples=5)
@given(st.integers(0, 10_000), st.sampled_from([None, 3.0]), st.integers(1, 3))
def test_to_summarise_again_changes_nothing(seed: int, slo_ms: float | None, visits: int) -> None:
    kept = recording(seed, slo_ms, visits)
    latency, throughput = kept.summarize()
    assert kept.summarize() == (latency, throughput)
    assert (latency.blocks, latency.repeated_blocks) == (20 * visits, 2 * visits)
    for point, (low, high) in (
        (latency.p95_ratio, latency.p95_ratio_interval),
        (latency.service_p50_ratio, latency.service_p50_ratio_interval),
        (throughput.ratio, throughput.ratio_interval),
        (throughput.capacity_ratio, throughput.capacity_ratio_interval),
    ):
        assert low <= point <= high
    assert throughput.rps <= throughput.capacity_rps and throughput.baseline_rps <= throughput.baseline_capacity_rps


def test_without_an_slo_the_limit_is_twice_the_baselines_own_percentile_for_both() -> None:
    """Both deployments are searched under the limit of undisturbed pairs: 20 x 35 samples, the p95 is number 665."""
    kept = recording(visits=1)
    _, throughput = kept.summarize()
    calm = np.delete(kept.visits[0].timings.baseline, [3, 11], axis=0)
    limit = 2 * sorted(calm.ravel())[664]
    assert throughput.slo_ms == pytest.approx(limit)
    # 1 / (1 - rate / capacity) = limit for each; the noise takes at most 5% off a latency.
    assert throughput.rps == pytest.approx(3000 * (1 - 1 / limit), rel=0.03)
    assert throughput.baseline_rps == pytest.approx(1000 * (1 - 1 / limit), rel=0.03)
    assert throughput.ratio == pytest.approx(3, rel=0.03)


def test_a_baseline_against_itself_carries_its_own_load() -> None:
    """The ratio of a baseline to itself is 1.

    Each side is drawn by itself: 40 pairs, of whose intervals 36 or more hold 1. In an earlier version the rate was the
    offered load, 40% of the capacity, and this ratio was above 2.
    """
    found = []
    for seed in range(40):
        random = np.random.default_rng(seed)
        visits = [
            Visit(random_timings(random), random_search(800.0, random), random_search(800.0, random)) for _ in range(3)
        ]
        found.append(Recording(tuple(visits), None, 95, seed).summarize()[1])
    assert len({throughput.ratio for throughput in found}) > 30
    assert np.median([throughput.ratio for throughput in found]) == pytest.approx(1, abs=0.03)
    assert np.median([throughput.capacity_ratio for throughput in found]) == pytest.approx(1, abs=0.03)
    assert sum(low <= 1 <= high for low, high in (throughput.ratio_interval for throughput in found)) >= 36
    assert sum(low <= 1 <= high for low, high in (throughput.capacity_ratio_interval for throughput in found)) >= 36


def test_with_an_slo_both_are_held_to_it() -> None:
    """1 / (1 - rate / capacity) = 4 at three quarters of each capacity."""
    _, throughput = recording(slo_ms=4.0).summarize()
    assert throughput.slo_ms == 4.0
    assert throughput.baseline_rps == pytest.approx(750, rel=0.03)
    assert throughput.rps == pytest.approx(2250, rel=0.03)
    assert throughput.ratio == pytest.approx(3, rel=0.04)


def test_capacities_are_those_of_the_bursts() -> None:
    kept = recording(slo_ms=4.0, visits=2)
    _, throughput = kept.summarize()
    ratios = [v.candidate.capacity_rps.mean() / v.baseline.capacity_rps.mean() for v in kept.visits]
    assert throughput.capacity_visits == pytest.approx(ratios)
    assert throughput.capacity_ratio == pytest.approx(stats.gmean(ratios))
    assert throughput.capacity_rps == pytest.approx(stats.gmean([v.candidate.capacity_rps.mean() for v in kept.visits]))


@pytest.mark.slow
def test_one_visits_intervals_of_rate_and_capacity_cover_as_often_as_they_say() -> None:
    """For a deployment beside one like it, about 190 of 200 intervals hold 1.

    The latencies are the exponential ones of an M/M/1 queue, and bursts differ by 3%. Of the intervals of resampled
    quantiles of so few parts, 175 hold 1.
    """
    timings, held = random_timings(np.random.default_rng(0)), np.zeros(2)
    for run in range(200):
        random = np.random.default_rng(run)

        def search(random: np.random.Generator = random) -> RateSearch:
            rates = (400.0, 600.0, 700.0, 800.0)
            probes = tuple(Probe(rate, random.exponential(1000 / (1000 - rate), (5, 100))) for rate in rates)
            bursts = 1000 * random.normal(1, 0.03, 5)
            return RateSearch(probes, bursts, random.exponential(1.0, (20, 5)))

        found = _throughput(Recording((Visit(timings, search(), search()),), 10.0, 95, run), NO_RATIO_NOISE)
        held += [low <= 1 <= high for low, high in (found.ratio_interval, found.capacity_ratio_interval)]
    assert ((held >= 180) & (held <= 198)).all(), held


REFUSING = RateSearch((Probe(300.0, np.full((5, 40), np.inf)),), np.zeros(5), np.full((20, 5), np.inf))


def test_a_candidate_that_refused_all_answers_no_rate() -> None:
    """A candidate that kept the SLO at no rate has a rate of 0 rather than an error."""
    kept = recording(slo_ms=4.0)
    visits = tuple(replace(visit, candidate=REFUSING) for visit in kept.visits)
    _, throughput = replace(kept, visits=visits).summarize()
    assert (throughput.rps, throughput.ratio, throughput.capacity_rps, throughput.capacity_ratio) == (0, 0, 0, 0)
    assert throughput.ratio_interval == throughput.capacity_ratio_interval == (0, 0)


def test_a_baseline_that_keeps_the_slo_at_no_rate_is_no_measurement() -> None:
    kept = recording(slo_ms=4.0)
    with pytest.raises(NotFiniteError):
        replace(kept, visits=(replace(kept.visits[0], baseline=REFUSING),)).summarize()


def test_ratios_are_geometric_means_over_the_visits_and_so_unsure_as_those_differ() -> None:
    kept = recording()
    latency, _ = kept.summarize()
    assert latency.p95_ratio == pytest.approx(stats.gmean(latency.p95_visits))
    assert len(latency.p95_visits) == len(latency.service_p50_visits) == 3
    slower = replace(kept.visits[1].timings, candidate=3 * kept.visits[1].timings.candidate)
    differing = replace(kept, visits=(kept.visits[0], replace(kept.visits[1], timings=slower), kept.visits[2]))
    wide, _ = differing.summarize()
    half = drifting(stats.t.ppf(0.975, 2) * stats.sem(np.log(wide.p95_visits)), wide.p95_ratio)
    assert np.log(wide.p95_ratio_interval) == pytest.approx(math.log(wide.p95_ratio) + half * np.array([-1, 1]))
    assert wide.p95_ratio_interval[1] / wide.p95_ratio_interval[0] > 5, "blocks alone would say 1.2"


def test_the_p95_in_milliseconds_is_as_unsure_as_the_visits_differ() -> None:
    """A policy asks that the p95's upper end be kept; pooled samples alone do not tell how the next visit differs."""
    kept = recording()
    visits = [
        replace(visit, timings=replace(visit.timings, candidate=times * visit.timings.candidate))
        for visit, times in zip(kept.visits, (1.0, 1.5, 2.0), strict=True)
    ]
    found = replace(kept, visits=tuple(visits)).summarize()[0].candidate
    own = [np.percentile(visit.timings.kept().candidate, 95, method="inverted_cdf") for visit in visits]
    expected = np.exp(stats.t.interval(0.95, 2, loc=np.log(own).mean(), scale=stats.sem(np.log(own))))
    assert found.p95_interval_ms == pytest.approx(expected)
    alone = replace(kept, visits=kept.visits[:1]).summarize()[0].candidate
    assert alone.p95_interval_ms is not None
    assert alone.p95_interval_ms[1] < 1.2 * alone.p95_ms


def test_one_visit_is_as_unsure_as_earlier_benchmarks_differed() -> None:
    kept = recording(visits=1)
    alone, _ = kept.summarize()
    noisy, _ = kept.summarize(RatioNoise(p95=VisitNoise(0.25, 6)))
    assert noisy.p95_ratio == alone.p95_ratio
    width = math.log(noisy.p95_ratio_interval[1] / noisy.p95_ratio_interval[0]) / 2
    assert width == pytest.approx(drifting(stats.t.ppf(0.975, 6) * 0.5, noisy.p95_ratio))
    assert noisy.service_p50_ratio_interval == alone.service_p50_ratio_interval


def drifting(half: float, ratio: float) -> float:
    """Half of an interval of logarithms, with the 3% of the logarithm that another hour changes."""
    return math.hypot(half, 1.959964 * 0.03 * math.log(ratio))


def by_hand(candidate: Floats, baseline: Floats, **rest: Any) -> Latency:
    """One visit of undisturbed pairs; the rest as given."""
    pairs, requests = candidate.shape
    timings = Timings(
        candidate=candidate,
        baseline=baseline,
        candidate_service=np.ones((pairs, 2)),
        baseline_service=np.ones((pairs, 2)),
        lag=np.zeros((2 * pairs, requests)),
        offered=np.ones(2 * pairs),
        interference=np.tile(QUIET.row(), (pairs, 2, 1)),
        rate_rps=np.full(pairs, 20.0),
        wanted=pairs,
        warm_up=0,
    )
    searches = recording(slo_ms=4.0).visits[0]
    seed, overhead_ms = rest.pop("seed", 0), rest.pop("overhead_ms", 0.0)
    visit = replace(searches, timings=replace(timings, **rest))
    slo_ms = 4.0 + overhead_ms
    return Recording((visit,), slo_ms, 95, seed, overhead_ms=overhead_ms).summarize()[0]


def shuffled(count: int, shape: tuple[int, int], seed: int = 0) -> Floats:
    """The numbers from 1 to their count in blocks, in any order."""
    return np.random.default_rng(seed).permutation(np.arange(1.0, count + 1)).reshape(shape)


def test_every_number_is_the_one_worked_out_by_hand() -> None:
    """The candidate's 140 are 1 to 140 ms, the baseline's twice that in another order: ranks 70 and 133 count."""
    ours, theirs = shuffled(140, (20, 7), 1), 2 * shuffled(140, (20, 7), 2)
    service = 0.5 * shuffled(40, (20, 2), 3)
    lag = 0.001 * shuffled(280, (40, 7), 4)
    found = by_hand(ours, theirs, candidate_service=service, baseline_service=2.5 * service, lag=lag)
    assert (found.candidate.p50_ms, found.candidate.p95_ms, found.candidate.p99_ms) == (70, 133, None)
    assert (found.baseline.p50_ms, found.baseline.p95_ms, found.baseline.p99_ms) == (140, 266, None)
    assert (found.candidate.service_p50_ms, found.baseline.service_p50_ms) == (10, 25)
    assert (found.p50_ratio, found.p99_ratio, found.p99_ratio_interval) == (0.5, None, None)
    assert found.p95_ratio == pytest.approx(0.5)
    assert found.service_p50_ratio == pytest.approx(0.4)
    expected = 0.4 * np.exp(drifting(0.0, 0.4) * np.array([-1, 1]))
    assert found.service_p50_ratio_interval == pytest.approx(expected), "block by block the same"
    assert found.p95_ratio_interval[0] < 0.5 < found.p95_ratio_interval[1]
    assert (found.rate_rps, found.requests, found.blocks, found.repeated_blocks) == (20, 140, 20, 0)
    assert found.lag_p95_ms == pytest.approx(0.266), "rank 266 of 280"
    assert found.candidate.refused_share == 0


def test_the_intervals_are_ranks_of_the_binomial_law() -> None:
    """The sample of rank n is n here."""
    found = by_hand(shuffled(140, (20, 7)), shuffled(140, (20, 7), 1)).candidate
    for interval, percent in ((found.p50_interval_ms, 0.5), (found.p95_interval_ms, 0.95)):
        assert interval is not None
        law = stats.binom(140, percent)
        assert law.cdf(interval[0] - 1) <= 0.025 < law.cdf(interval[0])
        assert law.sf(interval[1] - 1) <= 0.025 < law.sf(interval[1] - 2)
    assert found.p99_interval_ms is None


def test_a_ratio_that_is_the_same_in_every_block_is_unsure_for_another_hour_only() -> None:
    ours = shuffled(700, (20, 35))
    found = by_hand(ours, 4 * ours)
    ends = 0.25 * np.exp(drifting(0.0, 0.25) * np.array([-1, 1]))
    assert (found.p95_ratio, *found.p95_ratio_interval) == pytest.approx((0.25, *ends))
    assert found.p99_ratio == pytest.approx(0.25) and found.p99_ratio_interval == pytest.approx(ends)
    assert (found.candidate.p99_ms, found.baseline.p99_ms) == (693, 2772)
    assert found.candidate.p99_interval_ms is not None
    assert found.candidate.p99_interval_ms[0] < 693 < found.candidate.p99_interval_ms[1]


def with_overhead(kept: Recording, overhead_ms: float) -> OverheadRatios:
    timings = [visit.timings for visit in kept.visits]
    found = summarize_latency(timings, kept.seed, NO_RATIO_NOISE, overhead_ms=overhead_ms).with_overhead
    assert found is not None
    return found


@pytest.mark.parametrize("overhead_ms", [0.01, 3.0, 1000.0])
def test_a_time_spent_elsewhere_is_added_to_every_latency_of_both_sides(overhead_ms: float) -> None:
    """The ratio of each visit by sorting the sums; and it lies between the measured one and 1."""
    kept = recording()
    found, measured = with_overhead(kept, overhead_ms), kept.summarize()[0]
    assert measured.with_overhead is None and found.overhead_ms == overhead_ms
    for percent, ratio, visits in ((50, found.p50_ratio, found.p50_visits), (95, found.p95_ratio, found.p95_visits)):
        expected = []
        for visit in kept.visits:
            sides = (visit.timings.kept().candidate, visit.timings.kept().baseline)
            sums = [np.sort(side.ravel() + overhead_ms) for side in sides]
            rank = math.ceil(percent / 100 * len(sums[0])) - 1
            expected.append(sums[0][rank] / sums[1][rank])
        assert visits == pytest.approx(expected) and ratio == pytest.approx(stats.gmean(expected))
    assert min(1, measured.p95_ratio) <= found.p95_ratio * (1 + 1e-9)
    assert found.p95_ratio <= max(1, measured.p95_ratio) * (1 + 1e-9)
    assert with_overhead(kept, 1e9).p95_ratio == pytest.approx(1)


def test_the_interval_with_overhead_is_a_bootstrap_of_the_sums() -> None:
    """The oracle has resamples of its own: a normal interval of the ratio's logarithm, of one visit."""
    ours, theirs, overhead_ms = shuffled(700, (20, 35), 1), 3 * shuffled(700, (20, 35), 2), 250.0
    searches = by_hand(ours, theirs, overhead_ms=overhead_ms).with_overhead
    assert searches is not None
    picks = np.random.default_rng(99).integers(0, 20, (4000, 20))
    sums = [np.percentile((side + overhead_ms)[picks].reshape(4000, -1), 95, axis=1) for side in (ours, theirs)]
    half = 1.96 * float(np.log(sums[0] / sums[1]).std())
    low, high = searches.p95_ratio_interval
    assert math.log(high / low) / 2 == pytest.approx(drifting(half, searches.p95_ratio), rel=0.1)
    assert searches.p95_ratio == pytest.approx((665 + 250) / (3 * 665 + 250))
    alone = by_hand(ours, theirs).p95_ratio_interval
    assert math.log(high / low) < math.log(alone[1] / alone[0]), "a part that is the same on both sides is no noise"


def test_a_p99_with_overhead_is_there_where_the_measured_one_is() -> None:
    many = by_hand(shuffled(700, (20, 35)), 4 * shuffled(700, (20, 35)), overhead_ms=7.0).with_overhead
    few = by_hand(shuffled(140, (20, 7)), 4 * shuffled(140, (20, 7)), overhead_ms=7.0).with_overhead
    assert many is not None and many.p99_ratio == pytest.approx((693 + 7) / (2772 + 7))
    assert few is not None and few.p99_ratio is None and few.p99_ratio_interval is None


@pytest.mark.parametrize(("slo_ms", "overhead_ms"), [(None, 0.0), (None, 1.5), (9.0, 1.5)])
def test_the_slo_covers_the_overhead(slo_ms: float | None, overhead_ms: float) -> None:
    """The measured part has what is left: the given SLO less the overhead, or twice the whole less the overhead."""
    kept = replace(recording(slo_ms=slo_ms, visits=1), overhead_ms=overhead_ms)
    p95 = np.percentile(kept.visits[0].timings.kept().baseline, 95, method="inverted_cdf")
    limit = 9.0 - 1.5 if slo_ms else 2 * (p95 + overhead_ms) - overhead_ms
    _, throughput = kept.summarize()
    assert throughput.slo_ms == pytest.approx(limit)
    _, same = replace(kept, slo_ms=limit, overhead_ms=0.0).summarize()
    assert (throughput.rps, throughput.ratio) == pytest.approx((same.rps, same.ratio))


def test_earlier_benchmarks_say_how_unsure_a_ratio_with_overhead_is() -> None:
    """Visits vary by their own ratios with overhead; those without vary more."""
    kept = replace(recording(visits=1), overhead_ms=5.0)
    noisy, _ = kept.summarize(RatioNoise(p95=VisitNoise(4.0, 6), with_overhead=LatencyNoise(p95=VisitNoise(0.25, 6))))
    assert noisy.with_overhead is not None
    low, high = noisy.with_overhead.p95_ratio_interval
    half = drifting(stats.t.ppf(0.975, 6) * 0.5, noisy.with_overhead.p95_ratio)
    assert math.log(high / low) / 2 == pytest.approx(half)


def test_the_same_timings_give_the_same_numbers() -> None:
    one, other = shuffled(140, (20, 7)), shuffled(140, (20, 7), 1)
    assert by_hand(one, other, seed=4) == by_hand(one, other, seed=4)
    assert by_hand(one, other, seed=4).p95_ratio_interval != by_hand(one, other, seed=5).p95_ratio_interval


def test_the_ratio_over_all_pairs_includes_the_disturbed_ones() -> None:
    """Two of 22 pairs were disturbed, and the candidate was slow in them."""
    kept = recording(visits=1)
    timings = kept.visits[0].timings
    slow = timings.candidate.copy()
    slow[[3, 11]] *= 100
    found, _ = replace(kept, visits=(replace(kept.visits[0], timings=replace(timings, candidate=slow)),)).summarize()
    assert found.p95_ratio == kept.summarize()[0].p95_ratio
    everything = np.sort(slow.ravel())[731] / np.sort(timings.baseline.ravel())[731]
    assert found.p95_ratio_all == pytest.approx(everything), "rank 732 of 770"
    assert everything > found.p95_ratio_interval[1]


def test_refusals_in_disturbed_pairs_leave_the_numbers_of_the_others() -> None:
    """In two of 22 pairs, which do not count, the candidate refused all requests."""
    kept = recording(visits=1)
    timings = kept.visits[0].timings
    refused = timings.candidate.copy()
    refused[[3, 11]] = np.inf
    found, _ = replace(kept, visits=(replace(kept.visits[0], timings=replace(timings, candidate=refused)),)).summarize()
    assert found == replace(kept.summarize()[0], p95_ratio_all=None)


def test_fewer_samples_than_a_p95_needs_are_refused() -> None:
    with pytest.raises(TooFewSamplesError, match=r"p95.*130.*120"):
        by_hand(shuffled(120, (20, 6)), shuffled(120, (20, 6), 1))


def refusing(share: float, shape: tuple[int, int] = (20, 35)) -> Floats:
    """Timings of 1 to n ms in any order, of which the longest were refused instead."""
    count = shape[0] * shape[1]
    latency = shuffled(count, shape)
    latency[latency > round((1 - share) * count)] = np.inf
    return latency


def test_the_share_of_refused_requests_is_reported() -> None:
    found = by_hand(refusing(1 / 140, (20, 7)), shuffled(140, (20, 7), 1))
    assert found.candidate.refused_share == pytest.approx(1 / 140)
    assert found.candidate.p95_ms == 133, "a refused request counts among the longest"
    assert found.baseline.refused_share == 0


@pytest.mark.parametrize("share", [0.06, 0.5, 1.0])
def test_a_percentile_that_was_refused_is_no_measurement(share: float) -> None:
    with pytest.raises(NotFiniteError):
        by_hand(refusing(share), shuffled(700, (20, 35), 1))


@pytest.mark.parametrize("share", [0.003, 0.006, 0.02])
def test_a_p99_that_was_refused_is_not_reported(share: float) -> None:
    """A few refusals say nothing against the p95, which is what is asked for."""
    found = by_hand(refusing(share), shuffled(700, (20, 35), 1))
    assert found.candidate.p95_ms == 665
    assert found.candidate.refused_share == pytest.approx(share, abs=1e-3)
    assert found.candidate.p99_ms is None and found.p99_ratio is None


def test_a_block_that_refused_some_requests_leaves_the_other_ratios() -> None:
    """Ten refusals of 3000 in one block: some resamples have it so often that their p99 is among the refused."""
    latency = shuffled(3000, (120, 25))
    latency[17, :10] = np.inf
    found = by_hand(latency, shuffled(3000, (120, 25), 1))
    assert found.candidate.p99_ms is not None and found.p99_ratio is None and found.p99_ratio_interval is None
    assert all(map(math.isfinite, found.p95_ratio_interval))


def test_a_p95_that_some_resamples_have_among_the_refused_is_told_so() -> None:
    """Sixty refusals of 3000 in three blocks: the p95 is finite, but not where these blocks are drawn often."""
    latency = shuffled(3000, (120, 25))
    latency[[17, 50, 90], :20] = np.inf
    with pytest.raises(NotFiniteError, match="p95 must be finite whichever blocks are drawn, but too many requests"):
        by_hand(latency, shuffled(3000, (120, 25), 1))


@pytest.mark.parametrize("share", [0.9, 0.5, 0.01])
def test_a_truncated_file_is_an_error(tmp_path: Path, share: float) -> None:
    path = tmp_path / "7.npz"
    write_recording(recording(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(zipfile.BadZipFile):
        read_recording(path)


def test_a_file_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "7.npz", slo_ms=np.nan, percent=95, seed=0)
    with pytest.raises(ValueError, match=r"7\.npz: .*format 2"):
        read_recording(tmp_path / "7.npz")


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_recording(tmp_path / "7.npz")


def test_a_recording_is_small(tmp_path: Path) -> None:
    path = tmp_path / "7.npz"
    write_recording(recording(slo_ms=4.0), path)
    assert path.stat().st_size < 150_000
