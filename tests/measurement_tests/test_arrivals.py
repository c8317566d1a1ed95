"""Schedules against closed forms: laws of the gaps, cumulative rates, dispersion of counts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from objectives.measurement.arrivals import PATTERNS, Pattern, Traffic, gaps
from objectives.measurement.request_log import RequestLog, RequestLogError, write_trace
from spaces.serialization import from_plain, to_plain

DRAWN = tuple(set(get_args(Pattern)) - {"replay"})


def _seconds(traffic: Traffic, rate: float, count: int, seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.cumsum(gaps(traffic, rate, count, seed)) / 1e9


def test_every_pattern_is_registered() -> None:
    assert set(PATTERNS) == set(get_args(Pattern))


@given(
    st.sampled_from(DRAWN),
    st.floats(0.1, 1e6),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_gaps_are_positive_whole_nanoseconds_and_the_seed_decides(
    pattern: Pattern, rate: float, count: int, seed: int, quiet: float, depth: float
) -> None:
    traffic = Traffic(pattern, on_seconds=0.05, off_seconds=0.2, quiet=quiet, period_seconds=3.0, depth=depth)
    drawn = gaps(traffic, rate, count, seed)
    assert drawn.shape == (count,) and drawn.dtype == np.int64 and drawn.min() >= 1
    assert np.array_equal(drawn, gaps(traffic, rate, count, seed))
    if pattern != "deterministic":
        assert not np.array_equal(drawn, gaps(traffic, rate / 2, count, seed + 1))


def test_poisson_gaps_are_exponential() -> None:
    drawn = gaps(Traffic(), 400.0, 20_000, seed=3)
    assert stats.kstest(drawn, stats.expon(scale=1e9 / 400).cdf).pvalue > 0.01


def test_deterministic_gaps_are_equal_and_their_roundings_do_not_add_up() -> None:
    drawn = gaps(Traffic("deterministic"), 3e6, 30_000, seed=0)
    assert set(drawn.tolist()) == {333, 334}
    assert drawn.sum() == 10**7


def test_silent_between_bursts_the_gaps_are_hyperexponential() -> None:
    """An interrupted Poisson process renews at each arrival (Kuczura 1973)."""
    on, off, rate = 0.2, 0.3, 100.0
    drawn = gaps(Traffic("bursts", on_seconds=on, off_seconds=off), rate, 40_000, seed=1) / 1e9
    busy, leave, enter = rate * (on + off) / on, 1 / on, 1 / off
    total = busy + leave + enter
    root = math.sqrt(total**2 - 4 * busy * enter)
    fast, slow = (total + root) / 2, (total - root) / 2
    weight = (busy - slow) / (fast - slow)

    def law(t: Any) -> Any:
        return 1 - weight * np.exp(-fast * t) - (1 - weight) * np.exp(-slow * t)

    assert stats.kstest(drawn[1:], law).pvalue > 0.01
    assert drawn.mean() == pytest.approx(1 / rate, rel=0.05)


@pytest.mark.parametrize("quiet", [0.0, 0.25])
def test_bursts_disperse_counts_as_a_modulated_poisson_process(quiet: float) -> None:
    """Variance over mean of the counts in windows (Fischer and Meier-Hellstern 1993)."""
    on, off, rate, window = 0.1, 0.3, 200.0, 1.0
    seconds = _seconds(Traffic("bursts", on_seconds=on, off_seconds=off, quiet=quiet), rate, 800_000, seed=5)
    counts = np.bincount((seconds / window).astype(int))[:-1]
    busy = rate * (on + off) / (on + quiet * off)
    leave, enter = 1 / on, 1 / off
    both = leave + enter
    limit = 2 * leave * enter * (busy - quiet * busy) ** 2 / (both**2 * rate * both)
    expected = 1 + limit * (1 - (1 - math.exp(-both * window)) / (both * window))
    assert expected > 5
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.1)
    assert counts.mean() == pytest.approx(rate, rel=5 * math.sqrt(expected / rate / len(counts)))


def test_bursts_that_are_never_quiet_are_poisson() -> None:
    drawn = gaps(Traffic("bursts", quiet=1.0), 400.0, 20_000, seed=3)
    assert stats.kstest(drawn, stats.expon(scale=1e9 / 400).cdf).pvalue > 0.01


@pytest.mark.parametrize("depth", [0.0, 0.8, 1.0])
def test_diurnal_arrivals_are_poisson_in_the_cumulative_rate(depth: float) -> None:
    rate, period = 50.0, 20.0
    seconds = _seconds(Traffic("diurnal", period_seconds=period, depth=depth), rate, 20_000, seed=2)
    turn = 2 * np.pi / period
    cumulative = rate * (seconds + depth / turn * (1 - np.cos(turn * seconds)))
    assert stats.kstest(np.diff(cumulative, prepend=0), stats.expon.cdf).pvalue > 0.01
    poisson = _seconds(Traffic(), rate, 20_000, seed=2)
    np.testing.assert_allclose(cumulative / rate, poisson, rtol=0, atol=1e-8)


def test_diurnal_traffic_comes_in_the_first_half_of_its_period() -> None:
    """The integral of 1 + depth sin over half a period: a share of 1/2 + depth / pi."""
    rate, period, depth = 100.0, 10.0, 0.6
    seconds = _seconds(Traffic("diurnal", period_seconds=period, depth=depth), rate, 100_000, seed=4)
    whole = seconds[seconds < 90 * period]
    assert len(whole) == pytest.approx(90 * period * rate, abs=5 * math.sqrt(90 * period * rate))
    assert np.mean(whole % period < period / 2) == pytest.approx(0.5 + depth / math.pi, abs=0.01)


def _trace(folder: Path) -> tuple[Traffic, np.ndarray[Any, np.dtype[np.float64]]]:
    random = np.random.default_rng(8)
    recorded = random.lognormal(-3, 2, size=500)
    recorded[100:110] = 0  # several arrive together
    write_trace(RequestLog(np.append(0, np.cumsum(recorded))), folder / "trace.npz")
    return Traffic("replay", trace=str(folder / "trace.npz")), recorded


def test_a_replay_is_the_recorded_gaps_times_one_constant(tmp_path: Path) -> None:
    traffic, recorded = _trace(tmp_path)
    scaled = recorded * (1e9 / 2000 / recorded.mean())
    drawn = gaps(traffic, 2000.0, 1300, seed=6)  # more than twice around
    starts = [
        s
        for s in range(500)
        if np.allclose(drawn, np.maximum(np.resize(np.roll(scaled, -s), 1300), 1), rtol=1e-6, atol=2)
    ]
    assert len(starts) == 1
    once = gaps(traffic, 2000.0, 500, seed=6)
    assert once.mean() == pytest.approx(5e5, rel=1e-4)
    assert once.std() / once.mean() == pytest.approx(recorded.std() / recorded.mean(), rel=1e-4)


def test_the_seed_chooses_where_a_replay_starts(tmp_path: Path) -> None:
    traffic, _ = _trace(tmp_path)
    assert np.array_equal(gaps(traffic, 100.0, 50, seed=1), gaps(traffic, 100.0, 50, seed=1))
    assert len({gaps(traffic, 100.0, 50, seed=s).tobytes() for s in range(20)}) > 15


def test_a_replay_of_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestLogError, match=r"none\.npz"):
        gaps(Traffic("replay", trace=str(tmp_path / "none.npz")), 100.0, 5, seed=0)


def test_traffic_is_plain_data() -> None:
    for traffic in (Traffic(), Traffic("bursts", quiet=0.1), Traffic("replay", trace="a.npz")):
        assert from_plain(Traffic, to_plain(traffic)) == traffic


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pattern": "tides"}, "pattern .*'tides'"),
        ({"on_seconds": 0.0}, "on_seconds .*0.001 .*0.0"),
        ({"off_seconds": math.inf}, "off_seconds .*inf"),
        ({"period_seconds": -1.0}, "period_seconds .*-1.0"),
        ({"quiet": 1.5}, "quiet .*1.5"),
        ({"depth": math.nan}, "depth .*nan"),
        ({"pattern": "replay"}, "trace .*'replay' and None"),
        ({"trace": "a.npz"}, "trace .*'poisson' and 'a.npz'"),
    ],
)
def test_traffic_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Traffic(**fields)


@pytest.mark.parametrize(("rate", "count"), [(0.0, 5), (math.inf, 5), (math.nan, 5), (10.0, 0)])
def test_a_schedule_of_nothing_is_refused(rate: float, count: int) -> None:
    with pytest.raises(ValueError, match=f"rate .*{rate}.*{count}"):
        gaps(Traffic(), rate, count, seed=0)
