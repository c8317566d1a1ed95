"""Two deployments in turns: pairs that are run again and left out, and the raw numbers against a simulated clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from objectives.measurement import latency as module
from objectives.measurement.arrivals import Traffic, gaps
from objectives.measurement.latency import Timings, Window, measure_latency
from objectives.measurement.load_generator import Arrivals
from objectives.measurement.statistics import fewest_samples
from tests.measurement_tests.simulated import QUIET, requests_of

Floats = NDArray[np.float64]
LOUD = replace(QUIET, foreign=0.5)
WINDOW = Window(blocks=20, requests=7, service_requests=1)
RATE = 20.0


class Bench:
    """Two deployments that answer in 2 and in 4 ms; of the blocks in the order of the run some are loud."""

    def __init__(self, loud: Sequence[int] | None = (), waiting: Sequence[int] = ()) -> None:
        self.loud, self.waiting = loud, waiting
        self.events: list[tuple[str, str]] = []
        self.played: list[tuple[str, list[int], NDArray[np.int64]]] = []
        self.blocks = 0

    def target(self, name: str, milliseconds: float) -> Any:
        def open_loop(requests: Sequence[Mapping[str, Any]], gaps_ns: NDArray[np.int64]) -> Arrivals:
            self.events.append((name, "open_loop"))
            self.played.append((name, [len(request["item"]) for request in requests], gaps_ns))
            count = len(requests)
            return Arrivals(np.full(count, milliseconds), np.zeros(count), 1.0)

        def closed_loop(requests: Sequence[Mapping[str, Any]]) -> Floats:
            return np.full(len(requests), milliseconds)

        return SimpleNamespace(
            served_together=1,
            open_loop=open_loop,
            closed_loop=closed_loop,
            settle=lambda: self.events.append((name, "settle")),
        )

    def monitor(self) -> Any:
        number, self.blocks = self.blocks, self.blocks + 1
        if self.loud is None:
            # Ever more is taken, so that hardly a block is as calm as the calmest.
            return SimpleNamespace(stop=lambda: replace(QUIET, foreign=0.1 * number))
        waits = replace(QUIET, waiting=3.0) if number in self.waiting else QUIET
        return SimpleNamespace(stop=lambda: LOUD if number in (self.loud or ()) else waits)

    def run(self, seed: int = 3, window: Window = WINDOW) -> Timings:
        ours, theirs = self.target("ours", 2), self.target("theirs", 4)
        requests = requests_of(range(1, 38))
        return measure_latency((ours, theirs), requests, Traffic(), self.rate, window, seed, self.monitor)[0]

    def rate(self) -> float:
        self.events.append(("reference", "rate"))
        return RATE


def test_each_deployment_gets_its_own_latency_in_pairs_of_blocks() -> None:
    timings = Bench().run()
    assert (timings.candidate == np.full((20, 7), 2.0)).all()
    assert (timings.baseline == np.full((20, 7), 4.0)).all()
    assert (timings.candidate_service == np.full((20, 1), 2.0)).all()
    assert (timings.baseline_service == np.full((20, 1), 4.0)).all()
    assert timings.lag.shape == (40, 7) and timings.offered.shape == (40,)
    assert timings.interference.shape == (20, 2, 7) and timings.undisturbed().all()


def test_the_one_that_goes_first_alternates() -> None:
    bench = Bench()
    bench.run()
    assert [name for name, *_ in bench.played] == ["ours", "theirs", "theirs", "ours"] * 10


def test_whatever_ran_before_is_idle_when_a_block_begins() -> None:
    """What ran before spins on for a while, the reference of the pace too."""
    bench = Bench()
    bench.run()
    begun = [i for i, (_, event) in enumerate(bench.events) if event == "open_loop"]
    assert len(begun) == 40 and all(bench.events[i - 1][1] == "settle" for i in begun)
    assert sum(event == "rate" for _, event in bench.events) == 21


def test_both_get_the_same_requests_after_the_same_gaps() -> None:
    bench = Bench()
    timings = bench.run()
    length = timings.warm_up + 7
    schedule = gaps(Traffic(), RATE, 60 * length, 3).reshape(60, length)
    for pair, ((_, ours, one), (_, theirs, other)) in enumerate(
        zip(bench.played[::2], bench.played[1::2], strict=True)
    ):
        assert ours == theirs and len(ours) == length
        assert np.array_equal(one, schedule[pair]) and np.array_equal(other, schedule[pair])
    drawn = [rows for _, block, _ in bench.played[::2] for rows in block]
    assert len(set(drawn)) > 30, "drawn anew in each pair"


def test_several_candidates_share_the_baseline_and_each_goes_first_equally_often() -> None:
    bench = Bench()
    names = ("ours", "others", "theirs")
    targets = [bench.target(name, milliseconds) for name, milliseconds in zip(names, (2, 3, 4), strict=True)]
    window = replace(WINDOW, blocks=21)
    found = measure_latency(
        targets,
        requests_of(range(1, 38)),
        Traffic(),
        bench.rate,
        window,
        3,
        bench.monitor,
    )
    assert [(one.candidate == value).all() for one, value in zip(found, (2.0, 3.0), strict=True)] == [True, True]
    assert all((one.baseline == 4.0).all() and one.rate_rps.shape == (21,) for one in found)
    turns = [[name for name, *_ in bench.played[turn : turn + 3]] for turn in range(0, 63, 3)]
    assert all(sorted(turn) == sorted(names) for turn in turns)
    assert Counter(turn[0] for turn in turns) == dict.fromkeys(names, 7)
    for turn in range(0, 63, 3):
        (_, rows, schedule), *others = bench.played[turn : turn + 3]
        assert all(rows == other and np.array_equal(schedule, gaps) for _, other, gaps in others)


def test_a_disturbed_block_is_left_out_for_its_own_candidate_only() -> None:
    """Block 0 is the first candidate's and block 5 is the baseline's, of the turns 0 and 1."""
    bench = Bench(loud=(0, 4))
    targets = [bench.target(name, 2) for name in ("ours", "others", "theirs")]
    ours, others = measure_latency(targets, requests_of([1]), Traffic(), bench.rate, WINDOW, 3, bench.monitor)
    assert np.flatnonzero(~ours.undisturbed()).tolist() == [0, 1]
    assert np.flatnonzero(~others.undisturbed()).tolist() == [1]


def test_the_requests_that_bring_it_to_steady_state_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "warm_up_requests", lambda *_: 13)
    bench = Bench()
    timings = bench.run()
    assert timings.warm_up == 13 and timings.candidate.shape == (20, 7)
    assert {len(block) for _, block, _ in bench.played} == {20}


@pytest.mark.parametrize(("milliseconds", "share"), [(2.0, 0.4), (36.0, 0.72)])
def test_the_warm_up_is_that_of_the_busier_of_both(
    milliseconds: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(module, "warm_up_requests", lambda utilisation, _: asked.append(utilisation) or 1)
    bench = Bench()
    ours, theirs = bench.target("ours", milliseconds), bench.target("theirs", 20)
    measure_latency((ours, theirs), requests_of([1]), Traffic(), bench.rate, WINDOW, 0, bench.monitor)
    assert max(asked) == pytest.approx(share)


@pytest.mark.parametrize(
    ("ours_ms", "theirs_ms", "limit", "expected"),
    [(1e3 / RATE, 2.0, 4, 28), (1e3 / RATE, 2.0, 1, 7), (2.0, 1e3 / RATE, 4, 1000), (2.0, 1e3 / RATE, 1, 1000)],
)
def test_a_candidate_near_its_capacity_does_not_make_all_blocks_long(
    ours_ms: float, theirs_ms: float, limit: int, expected: int
) -> None:
    """The window counts seven requests of a block; a baseline of that load gets the warm-up that it needs."""
    bench, window = Bench(), replace(WINDOW, warm_up=limit)
    targets = bench.target("ours", ours_ms), bench.target("theirs", theirs_ms)
    (timings,) = measure_latency(targets, requests_of([1]), Traffic(), bench.rate, window, 0, bench.monitor)
    assert timings.warm_up == expected


def test_a_single_stall_of_the_machine_does_not_make_all_blocks_long() -> None:
    """One of the first requests takes the baseline 200 ms: its 50 take 6 ms in the mean, and 2 ms without that one."""
    bench = Bench()
    stalls, targets = iter([200.0]), (bench.target("ours", 2.0), bench.target("theirs", 2.0))
    steady = targets[1].closed_loop
    targets[1].closed_loop = lambda requests: np.r_[next(stalls, 2.0), steady(requests)[1:]]
    (timings,) = measure_latency(targets, requests_of([1]), Traffic(), bench.rate, WINDOW, 0, bench.monitor)
    (calm,) = measure_latency(targets, requests_of([1]), Traffic(), bench.rate, WINDOW, 0, bench.monitor)
    assert timings.warm_up == calm.warm_up < 28


def test_disturbed_pairs_are_run_again_and_left_out() -> None:
    """Blocks 0, 5 and 40 are loud: one of the pairs 0, 2 and 20."""
    timings = Bench(loud=(0, 5, 40)).run()
    assert len(timings.candidate) == 23
    assert np.flatnonzero(~timings.undisturbed()).tolist() == [0, 2, 20]
    kept = timings.kept()
    calm = [pair for pair in range(23) if pair not in (0, 2, 20)]
    assert np.array_equal(kept.candidate, timings.candidate[calm])
    assert np.array_equal(kept.baseline_service, timings.baseline_service[calm])
    assert np.array_equal(kept.lag, timings.lag.reshape(23, 2, 7)[calm].reshape(40, 7))
    assert np.array_equal(kept.offered, timings.offered.reshape(23, 2)[calm].ravel())
    assert np.array_equal(kept.interference, timings.interference[calm])


def test_a_deployment_whose_own_threads_waited_keeps_its_blocks() -> None:
    """The deployment's latency is what is measured: leaving those blocks out would flatter it."""
    timings = Bench(waiting=(0, 3, 4, 7, 8)).run()
    assert len(timings.candidate) == 20 and timings.undisturbed().all()


def test_interference_is_kept_by_deployment_whichever_went_first() -> None:
    """Blocks 0 and 3 are the candidate's, 5 the baseline's."""
    timings = Bench(loud=(0, 3, 5)).run()
    assert np.argwhere(timings.taken > 0).tolist() == [[0, 0], [1, 0], [2, 1]]


def test_a_busy_machine_gives_the_least_disturbed_pairs_after_thrice_as_many() -> None:
    bench = Bench(loud=None)
    timings = bench.run()
    assert len(timings.candidate) == 60 and bench.blocks == 120
    assert timings.undisturbed().sum() == 20
    assert np.flatnonzero(timings.undisturbed()).max() < 25, "the early ones, of which least was taken"


def test_the_window_says_how_many_pairs_a_busy_machine_costs() -> None:
    timings = Bench(loud=None).run(window=replace(WINDOW, most=1.26))
    assert len(timings.candidate) == 26 and timings.undisturbed().sum() == 20
    with pytest.raises(ValueError, match=r"most=0\.9"):
        replace(WINDOW, most=0.9)


def test_without_patience_no_more_pairs_are_run_than_asked_for() -> None:
    timings = Bench(loud=None).run(window=replace(WINDOW, patience_seconds=1e-9))
    assert len(timings.candidate) == 20 and timings.undisturbed().all()


def test_the_seed_decides_the_gaps() -> None:
    def drawn(seed: int) -> Any:
        bench = Bench()
        bench.run(seed)
        return bench.played[0][2]

    assert np.array_equal(drawn(3), drawn(3))
    assert not np.array_equal(drawn(3), drawn(4))


def even(**rest: Any) -> Timings:
    """Return calm pairs in which the generator was on time and the baseline served in 1 ms; the rest as given."""
    calm = Timings(
        candidate=np.full((20, 7), 2.0),
        baseline=np.full((20, 7), 4.0),
        candidate_service=np.ones((20, 3)),
        baseline_service=np.ones((20, 3)),
        lag=np.zeros((40, 7)),
        offered=np.ones(40),
        interference=np.tile(QUIET.row(), (20, 2, 1)),
        rate_rps=np.full(20, RATE),
        wanted=20,
        warm_up=0,
    )
    return replace(calm, **rest)


@pytest.mark.parametrize("later", [1.6, 0.625])
def test_the_drift_is_how_many_times_slower_one_half_was(later: float) -> None:
    service = np.repeat([1.0, later], 10)[:, None] * np.ones((20, 3))
    assert even(baseline_service=service).drift() == pytest.approx(1.6)
    assert even(candidate_service=service).drift() == 1


def test_a_single_slow_answer_is_no_drift() -> None:
    service = np.ones((20, 3))
    service[2, 1] = 900.0
    assert even(baseline_service=service).drift() == 1


@pytest.mark.parametrize("which", [0, 1])
def test_lateness_is_the_share_of_the_p95_where_it_is_larger(which: int) -> None:
    """The p95 of the candidate is 2 ms and that of the baseline 4 ms."""
    lag = np.zeros((40, 7))
    lag[which::2] = 0.2 * (which + 1)
    assert even(lag=lag).lateness() == pytest.approx(0.1)


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
    assert Window().extended(99) == replace(Window(), blocks=27, fewest=662), "662 samples or more, 25 of a block"


@given(st.integers(20, 60), st.integers(7, 40), st.floats(0.1, 1000), st.floats(0.5, 60))
def test_blocks_are_shortened_to_the_seconds_of_a_window_where_a_percentile_needs_no_more(
    blocks: int, requests: int, rate_rps: float, seconds: float
) -> None:
    window = replace(Window(), blocks=blocks, requests=requests, seconds=seconds).extended(95)
    at = window.at(rate_rps)
    assert replace(at, requests=requests) == window
    assert fewest_samples(95) <= at.blocks * at.requests <= window.blocks * window.requests
    fits = (blocks * requests) / rate_rps <= seconds
    assert not fits or at.requests == requests
    one_less = blocks * (at.requests - 1)
    assert at.requests == requests or one_less < fewest_samples(95) or one_less <= seconds * rate_rps


def test_blocks_of_a_slow_model_are_shorter() -> None:
    window = replace(Window(), requests=15, seconds=5.0).extended(95)
    counts = {rate_rps: window.at(rate_rps).requests for rate_rps in (200.0, 60.0, 40.0, 10.0)}
    assert counts == {200.0: 15, 60.0: 15, 40.0: 10, 10.0: 7}, "300 requests of 20 blocks, 200, and 130 at least"


@pytest.mark.parametrize("field", ["blocks", "requests", "service_requests", "probe_requests", "visits"])
def test_a_window_without_enough_of_anything_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=rf"20 .*blocks.*{field}="):
        replace(Window(), **{field: 19 if field == "blocks" else 0})


def test_a_pair_is_stretched_to_the_rate_that_was_found_before_it() -> None:
    class Slowing(Bench):
        """A machine that is half as fast from the fifth look on."""

        looks = 0

        def rate(self) -> float:
            self.looks += 1
            return RATE if self.looks < 5 else RATE / 2

    bench = Slowing()
    timings = bench.run()
    assert timings.rate_rps.tolist() == [RATE] * 3 + [RATE / 2] * 17
    length = timings.warm_up + 7
    schedule = gaps(Traffic(), RATE, 60 * length, 3).reshape(60, length)
    for pair, (_, _, played) in enumerate(bench.played[::2]):
        assert played == pytest.approx((1 if pair < 3 else 2) * schedule[pair], abs=2)
