"""Two arms side by side: what is run again and left out, and every number against one worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from objectives.measurement import latency as module
from objectives.measurement import traffic
from objectives.measurement.latency import Timings, Window, check_calm, summarise, time_side_by_side
from objectives.measurement.schedule import Traffic, gaps
from objectives.measurement.statistics import TooFewSamplesError, fewest_samples
from objectives.measurement.strain import DisturbedError, Strain
from objectives.measurement.traffic import BehindError
from objectives.record import NotFiniteError

Floats = NDArray[np.float64]
CALM = Strain(wall=1.0, cpu=0.5, waiting=0.0, foreign=0.0, idle=1.5, stolen=0.0, switches=0.0)
LOUD = Strain(wall=1.0, cpu=0.5, waiting=0.5, foreign=0.5, idle=0.0, stolen=0.0, switches=0.0)
WINDOW = Window(blocks=20, requests=7, service_requests=1)
# Two requests of each block come before it and are not counted.
ASKED = 2 + WINDOW.requests + WINDOW.service_requests
RATE = 20.0


@dataclass
class Clock:
    """Time that passes while the generator sleeps, and a little at each look at it."""

    now: int = 10**12

    def perf_counter_ns(self) -> int:
        self.now += 50
        return self.now

    def monotonic(self) -> float:
        return self.now / 1e9

    def process_time(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        self.now += max(round(seconds * 1e9), 1000)


@dataclass(frozen=True)
class Seen:
    arm: str
    request: int
    at_ns: int


class Bench:
    """Two arms that answer in 2 and in 4 ms, in virtual time; of the blocks in the order of the run some are loud."""

    def __init__(self, clock: Clock, loud: Sequence[int] | None = ()) -> None:
        self.clock, self.loud = clock, loud
        self.seen: list[Seen] = []
        self.blocks = 0

    def arm(self, name: str, milliseconds: float) -> Any:
        def submit(request: Mapping[str, Any]) -> Any:
            self.seen.append(Seen(name, request["id"], self.clock.now))
            return SimpleNamespace(finished_ns=self.clock.now + round(milliseconds * 1e6), result=lambda: None)

        return submit

    def watch(self) -> Any:
        number, self.blocks = self.blocks, self.blocks + 1
        disturbed = self.loud is None or number in self.loud
        return SimpleNamespace(strain=lambda: LOUD if disturbed else CALM)

    def run(self, seed: int = 3) -> Timings:
        requests: Any = [{"id": i} for i in range(37)]
        ours, theirs = self.arm("ours", 2), self.arm("theirs", 4)
        return time_side_by_side(ours, theirs, requests, Traffic(), self.rate, WINDOW, seed, self.watch)

    def rate(self) -> float:
        return RATE

    def by_block(self) -> list[list[Seen]]:
        return [self.seen[at : at + ASKED] for at in range(0, len(self.seen), ASKED)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(traffic, "time", clock)
    return clock


def test_each_arm_gets_its_own_latency_in_pairs_of_blocks(clock: Clock) -> None:
    timings = Bench(clock).run()
    assert timings.candidate == pytest.approx(np.full((20, 7), 2.0), abs=0.01)
    assert timings.baseline == pytest.approx(np.full((20, 7), 4.0), abs=0.01)
    assert timings.candidate_service == pytest.approx(np.full((20, 1), 2.0), abs=0.01)
    assert timings.baseline_service == pytest.approx(np.full((20, 1), 4.0), abs=0.01)
    assert timings.lag.shape == (40, 7) and timings.offered.shape == (40,)
    assert timings.strain.shape == (20, 2, 7) and timings.calm().all()
    check_calm(timings, 20)


def test_the_arm_that_goes_first_alternates(clock: Clock) -> None:
    bench = Bench(clock)
    bench.run()
    arms = [{each.arm for each in block} for block in bench.by_block()]
    assert arms == [{"ours"}, {"theirs"}, {"theirs"}, {"ours"}] * 10


def test_whatever_ran_before_is_idle_when_a_block_begins(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The baseline too, whose pace is asked for just before: its threads spin on for a while."""
    bench, events = Bench(clock), list[str]()
    monkeypatch.setattr(module, "settle", lambda: events.append("idle"))
    monkeypatch.setattr(bench, "rate", lambda: events.append("paced") or RATE)
    blocks = bench.arm

    def arm(name: str, milliseconds: float) -> Any:
        submit = blocks(name, milliseconds)
        return lambda request: (events.append(name), submit(request))[1]

    monkeypatch.setattr(bench, "arm", arm)
    bench.run()
    begun = [i for i, event in enumerate(events) if event in ("ours", "theirs") and event != events[i - 1]]
    assert len(begun) == 40 and all(events[i - 1] == "idle" for i in begun)
    assert events.count("paced") == 21


def test_both_arms_get_the_same_requests_after_the_same_gaps(clock: Clock) -> None:
    bench = Bench(clock)
    bench.run()
    blocks = bench.by_block()
    schedule = gaps(Traffic(), RATE, 20 * 7, 3).reshape(20, 7)
    for pair, (one, other) in enumerate(zip(blocks[::2], blocks[1::2], strict=True)):
        assert [each.request for each in one] == [each.request for each in other]
        fresh = [(pair * 8 + i) % 37 for i in range(8)]
        assert [each.request for each in one][2:] == fresh, "each pair takes the requests that come next"
        for block in (one, other):
            moments = [each.at_ns for each in block[2:9]]
            assert np.diff(moments) == pytest.approx(schedule[pair][1:], abs=30_000)


def test_disturbed_pairs_are_run_again_and_left_out(clock: Clock) -> None:
    """Blocks 0, 5 and 40 are loud: one arm of the pairs 0, 2 and 20."""
    timings = Bench(clock, loud=(0, 5, 40)).run()
    assert len(timings.candidate) == 23
    assert np.flatnonzero(~timings.calm()).tolist() == [0, 2, 20]
    kept = timings.kept()
    calm = [pair for pair in range(23) if pair not in (0, 2, 20)]
    assert np.array_equal(kept.candidate, timings.candidate[calm])
    assert np.array_equal(kept.baseline_service, timings.baseline_service[calm])
    assert np.array_equal(kept.lag, timings.lag.reshape(23, 2, 7)[calm].reshape(40, 7))
    assert np.array_equal(kept.offered, timings.offered.reshape(23, 2)[calm].ravel())
    assert np.array_equal(kept.strain, timings.strain[calm])
    check_calm(timings, 20)
    found = summarise(timings, 0)
    assert (found.blocks, found.repeated_blocks, found.requests) == (20, 3, 140)


def test_strain_is_kept_by_arm_whichever_went_first(clock: Clock) -> None:
    """Blocks 0 and 3 are the candidate's, 5 the baseline's."""
    timings = Bench(clock, loud=(0, 3, 5)).run()
    loud = timings.strain[:, :, 2] > 0
    assert np.argwhere(loud).tolist() == [[0, 0], [1, 0], [2, 1]]


def test_at_most_thrice_the_pairs_are_run(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_PAIRS", 3)
    bench = Bench(clock, loud=None)
    timings = bench.run()
    assert len(timings.candidate) == 60 and bench.blocks == 120
    with pytest.raises(DisturbedError, match="Only 0 of 60 pairs of blocks were undisturbed, 20 are needed"):
        check_calm(timings, 20)


def test_the_seed_decides_the_gaps(clock: Clock) -> None:
    def moments(seed: int) -> Any:
        bench = Bench(clock)
        bench.run(seed)
        return np.diff([each.at_ns for each in bench.by_block()[0]])

    first = moments(3)
    assert moments(3) == pytest.approx(first, abs=30_000)
    assert moments(4) != pytest.approx(first, abs=30_000)


def made(candidate: Floats, baseline: Floats, **rest: Any) -> Timings:
    """Calm pairs in which the generator was on time and the baseline served in 1 ms; the rest as given."""
    pairs, requests = candidate.shape
    calm = Timings(
        candidate=candidate,
        baseline=baseline,
        candidate_service=np.ones((pairs, 2)),
        baseline_service=np.ones((pairs, 2)),
        lag=np.zeros((2 * pairs, requests)),
        offered=np.ones(2 * pairs),
        strain=np.tile(CALM.row(), (pairs, 2, 1)),
        rate_rps=np.full(pairs, RATE),
    )
    return replace(calm, **rest)


def shuffled(count: int, shape: tuple[int, int], seed: int = 0) -> Floats:
    """1 to count in blocks, in any order."""
    return np.random.default_rng(seed).permutation(np.arange(1.0, count + 1)).reshape(shape)


def even(pairs: int = 20, requests: int = 7) -> Timings:
    return made(np.full((pairs, requests), 2.0), np.full((pairs, requests), 4.0))


def test_calm_timings_pass() -> None:
    check_calm(even(), 20)


@pytest.mark.parametrize("later", [1.6, 0.625])
def test_a_baseline_that_drifts_within_a_timing_is_an_error(later: float) -> None:
    service = np.repeat([1.0, later], 10)[:, None] * np.ones((20, 3))
    timings = replace(even(), baseline_service=service)
    assert timings.drift() == pytest.approx(1.6)
    with pytest.raises(DisturbedError, match=r"The baseline's own time changed 1\.6 times within a timing"):
        check_calm(timings, 20)


def test_a_single_slow_answer_is_no_drift() -> None:
    service = np.ones((20, 3))
    service[2, 1] = 900.0
    check_calm(replace(even(), baseline_service=service), 20)
    check_calm(replace(even(), candidate_service=np.repeat([1.0, 9.0], 10)[:, None] * np.ones((20, 3))), 20)


@pytest.mark.parametrize("arm", [0, 1])
def test_a_generator_that_lags_in_one_arm_was_behind(arm: int) -> None:
    """The p95 of the candidate is 2 ms and that of the baseline 4 ms: a tenth of each is allowed."""
    lag = np.zeros((40, 7))
    lag[arm::2] = 0.19 * (arm + 1)
    check_calm(replace(even(), lag=lag), 20)
    lag[arm::2] = 0.21 * (arm + 1)
    with pytest.raises(BehindError, match="lower the load"):
        check_calm(replace(even(), lag=lag), 20)


@pytest.mark.parametrize("arm", [0, 1])
def test_a_load_that_one_arm_was_not_offered_is_an_error(arm: int) -> None:
    offered = np.ones(40)
    offered[arm::2] = [0.5] * 9 + [0.99] * 11
    check_calm(replace(even(), offered=offered), 20)
    offered[arm::2] = [0.97] * 11 + [1.0] * 9
    with pytest.raises(BehindError, match=r"a rate of 97\.0%"):
        check_calm(replace(even(), offered=offered), 20)


def test_what_a_disturbed_pair_did_counts_against_nobody() -> None:
    timings = even(23)
    strain, lag, service = timings.strain.copy(), timings.lag.copy(), timings.baseline_service.copy()
    strain[5, 1] = LOUD.row()
    lag[10:12], service[5] = 1000.0, 1e6
    loud = replace(timings, strain=strain, lag=lag, baseline_service=service)
    check_calm(loud, 22)
    assert summarise(loud, 0).lag_p95_ms == 0
    with pytest.raises(DisturbedError, match="Only 22 of 23"):
        check_calm(loud, 23)


def test_every_number_is_the_one_worked_out_by_hand() -> None:
    """The candidate's 140 are 1 to 140 ms, the baseline's twice that in another order: ranks 70 and 133 count."""
    ours, theirs = shuffled(140, (20, 7), 1), 2 * shuffled(140, (20, 7), 2)
    service = 0.5 * shuffled(40, (20, 2), 3)
    lag = 0.001 * shuffled(280, (40, 7), 4)
    found = summarise(made(ours, theirs, candidate_service=service, baseline_service=2.5 * service, lag=lag), 9)
    assert (found.candidate.p50_ms, found.candidate.p95_ms, found.candidate.p99_ms) == (70, 133, None)
    assert (found.baseline.p50_ms, found.baseline.p95_ms, found.baseline.p99_ms) == (140, 266, None)
    assert (found.candidate.service_p50_ms, found.baseline.service_p50_ms) == (10, 25)
    assert (found.p50_ratio, found.p95_ratio, found.p99_ratio, found.p99_ratio_interval) == (0.5, 0.5, None, None)
    assert found.service_p50_ratio == pytest.approx(0.4)
    assert found.service_p50_ratio_interval == pytest.approx((0.4, 0.4)), "block by block the same"
    assert found.p95_ratio_interval[0] < 0.5 < found.p95_ratio_interval[1]
    assert (found.rate_rps, found.requests, found.blocks, found.repeated_blocks) == (RATE, 140, 20, 0)
    assert found.lag_p95_ms == pytest.approx(0.266), "rank 266 of 280"
    assert found.candidate.refused_share == 0


def test_the_intervals_are_ranks_of_the_binomial_law() -> None:
    """Of the numbers from 1 the sample is its own rank."""
    found = summarise(made(shuffled(140, (20, 7)), shuffled(140, (20, 7), 1)), 0).candidate
    for interval, percent in ((found.p50_interval_ms, 0.5), (found.p95_interval_ms, 0.95)):
        assert interval is not None
        law = stats.binom(140, percent)
        assert law.cdf(interval[0] - 1) <= 0.025 < law.cdf(interval[0])
        assert law.sf(interval[1] - 1) <= 0.025 < law.sf(interval[1] - 2)
    assert found.p99_interval_ms is None


def test_a_ratio_that_is_the_same_in_every_block_has_no_width() -> None:
    ours = shuffled(700, (20, 35))
    found = summarise(made(ours, 4 * ours), 0)
    assert (found.p95_ratio, *found.p95_ratio_interval) == (0.25, 0.25, 0.25)
    assert (found.p99_ratio, found.p99_ratio_interval) == (0.25, (0.25, 0.25))
    assert (found.candidate.p99_ms, found.baseline.p99_ms) == (693, 2772)
    assert found.candidate.p99_interval_ms is not None
    assert found.candidate.p99_interval_ms[0] < 693 < found.candidate.p99_interval_ms[1]


def test_the_same_timings_give_the_same_numbers() -> None:
    timings = made(shuffled(140, (20, 7)), shuffled(140, (20, 7), 1))
    assert summarise(timings, 4) == summarise(timings, 4)
    assert summarise(timings, 4).p95_ratio_interval != summarise(timings, 5).p95_ratio_interval


def test_fewer_samples_than_a_p95_needs_are_refused() -> None:
    with pytest.raises(TooFewSamplesError, match="A p95 needs 130 samples or more, but got 120"):
        summarise(made(shuffled(120, (20, 6)), shuffled(120, (20, 6), 1)), 0)


def refusing(share: float, shape: tuple[int, int] = (20, 35)) -> Floats:
    """1 to n ms in any order, of which the longest were refused instead."""
    count = shape[0] * shape[1]
    latency = shuffled(count, shape)
    latency[latency > round((1 - share) * count)] = np.inf
    return latency


def test_the_share_of_refused_requests_is_told() -> None:
    timings = made(refusing(1 / 140, (20, 7)), shuffled(140, (20, 7), 1))
    found = summarise(timings, 0)
    assert found.candidate.refused_share == pytest.approx(1 / 140)
    assert found.candidate.p95_ms == 133, "a refused request counts among the longest"
    assert found.baseline.refused_share == 0


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # infinities in a resample
@pytest.mark.parametrize("share", [0.06, 0.5, 1.0])
def test_a_percentile_that_was_refused_is_no_measurement(share: float) -> None:
    with pytest.raises(NotFiniteError, match="must be finite, but got"):
        summarise(made(refusing(share), shuffled(700, (20, 35), 1)), 0)


@pytest.mark.parametrize("share", [0.003, 0.006, 0.02])
def test_a_p99_that_was_refused_is_not_told(share: float) -> None:
    """A few refusals say nothing against the p95, which is what is asked for."""
    found = summarise(made(refusing(share), shuffled(700, (20, 35), 1)), 0)
    assert found.candidate.p95_ms == 665
    assert found.candidate.refused_share == pytest.approx(share, abs=1e-3)
    assert found.candidate.p99_ms is None and found.p99_ratio is None


@given(st.integers(20, 60), st.integers(1, 150), st.sampled_from([50, 90, 95, 99]))
def test_a_window_is_extended_to_the_fewest_blocks_that_show_a_percentile(
    blocks: int, requests: int, percent: float
) -> None:
    window, fewest = Window(blocks, requests, 3), fewest_samples(percent)
    extended = window.extended(percent)
    assert (extended.requests, extended.service_requests) == (requests, 3)
    possible = [count for count in range(blocks, 700) if count * requests >= fewest]
    assert extended.blocks == min(possible)


def test_a_window_is_extended_until_it_shows_a_percentile() -> None:
    assert Window().extended(95) == Window()
    assert Window().extended(99) == replace(Window(), blocks=27), "662 samples or more, 25 of a block"


@pytest.mark.parametrize("field", ["blocks", "requests", "service_requests"])
def test_a_window_without_enough_of_anything_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match="20 blocks or more with requests in each, but got"):
        replace(Window(), **{field: 19 if field == "blocks" else 0})


def test_a_pair_is_stretched_to_the_rate_that_was_found_in_the_pair_before(clock: Clock) -> None:
    class Slowing(Bench):
        """Half as fast from the fifth look on."""

        looks = 0

        def rate(self) -> float:
            self.looks += 1
            return RATE if self.looks < 5 else RATE / 2

    bench = Slowing(clock)
    timings = bench.run()
    assert timings.rate_rps.tolist() == [RATE] * 4 + [RATE / 2] * 16
    schedule = gaps(Traffic(), RATE, 20 * 7, 3).reshape(20, 7)
    for pair, (one, other) in enumerate(zip(bench.by_block()[::2], bench.by_block()[1::2], strict=True)):
        for block in (one, other):
            moments = [each.at_ns for each in block[2:9]]
            stretch = 1 if pair < 4 else 2
            assert np.diff(moments) == pytest.approx(stretch * schedule[pair][1:], abs=30_000)
    assert summarise(timings, 0).rate_rps == RATE / 2
