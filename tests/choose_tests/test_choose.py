"""Finalists come in a fixed order that validation and timing settle; looks at test are counted and paid for."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from objectives.records import Measurement, OverheadRatios
from search.choose import choose
from search.choose.looks import Look, Looks, confidence_of
from search.choose.policy import Policy, finalists, measured_bounds, no_finalist
from search.errors import ConfigError, NothingConfirmedError
from search.results import Front, Point, PointLatency, PointQuality
from spaces.candidate import Candidate
from tests.search_tests.measurements import complete_outcome


def point(
    trial: int,
    p95: float,
    throughput: float,
    loss: float,
    size: int = 1000,
    half: float = 0.002,
    on_front: bool = True,
    memory: int | None = None,
) -> Point:
    around = (0.9 * p95, 1.1 * p95)
    return Point(
        trial=trial, candidate="c", weights="w", variant="v", state="complete", on_front=on_front, feasible=True,
        origin="baseline", knobs={},
        quality=PointQuality(metric="auc", value=0.8, loss=loss, loss_interval=(loss - half, loss + half)),
        latency_ms=PointLatency(
            p50=5 * p95, p95=10 * p95, p99=None, service_p50=4 * p95, p95_ratio=p95, p95_ratio_interval=around,
            service_p50_ratio=p95, service_p50_ratio_interval=around, p95_interval=(9 * p95, 11 * p95),
        ),
        throughput_rps=100 * throughput, throughput_ratio=throughput, throughput_ratio_interval=(throughput,) * 2,
        throughput_interval=(95 * throughput, 105 * throughput), peak_memory_bytes=memory,
        capacity_ratio=throughput, capacity_ratio_interval=(throughput,) * 2, model_bytes=size,
    )  # fmt: skip


def with_overhead(of: Point, overhead_ms: float) -> Point:
    """The point where each request spends so long elsewhere: the baseline has a p95 of 10 ms."""
    low, value, high = (
        (10 * p95 + overhead_ms) / (10 + overhead_ms)
        for p95 in (of.p95_ratio_interval[0], of.p95_ratio, of.p95_ratio_interval[1])
    )
    return replace(of, with_overhead=OverheadRatios(overhead_ms, value, (low, high), value, (low, high), None, None))


def front(*points: Point, overhead_ms: float = 0.0) -> Front:
    return Front(
        study="s", rows=points, max_loss=0.01, objectives=(), hypervolume=0.0, minutes=1.0, resolution=None,
        machine="m", rate_rps=None, slo_ms=None, overhead_ms=overhead_ms,
    )  # fmt: skip


POINTS = (
    point(0, 1.0, 1.0, 0.0),
    point(1, 0.05, 20.0, 0.0095),  # fastest, but its interval reaches beyond the tolerated loss
    point(2, 0.10, 12.0, 0.004, size=3000, memory=60_000_000),
    point(3, 0.30, 15.0, 0.001, size=500, memory=60_000_001),
    point(4, 0.01, 90.0, 0.0, on_front=False),
)


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (Policy(0.01, prefer="latency"), [2, 3, 1]),
        (Policy(0.01, prefer="throughput"), [3, 2, 1]),
        (Policy(0.01, prefer="memory"), [3, 2, 1]),
        (Policy(0.01, p95_ratio=0.2, prefer="latency"), [2, 1]),
        (Policy(0.01, p95_ms=0.6, prefer="latency"), [1]),
        (Policy(0.01, p95_ratio=0.31, prefer="throughput"), [2, 1, 3]),  # the interval of 3 reaches to 0.33
        (Policy(0.01, p95_ms=3.1, prefer="throughput"), [2, 1, 3]),
        (Policy(0.005, prefer="latency"), [3, 2]),
        (Policy(0.01, p95_ratio=0.01), []),
        (Policy(0.01, throughput_ratio=15.0, prefer="latency"), [3, 1]),
        (Policy(0.01, throughput_rps=1200.0, prefer="latency"), [3, 1, 2]),  # the interval of 2 reaches down to 1140
        (Policy(0.01, throughput_ratio=100.0), []),
        (Policy(0.01, memory_mb=60.0, prefer="latency"), [2]),  # that of 1 is not known
    ],
)
def test_the_order_is_the_policys(policy: Policy, order: list[int]) -> None:
    assert [found.trial for found in finalists(front(*POINTS), policy)] == order


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (Policy(0.01, prefer="latency"), [2, 3, 1]),
        (Policy(0.01, p95_ratio=0.2, prefer="latency"), []),  # that of 1 is (0.5 + 10) / 20
        (Policy(0.01, p95_ratio=0.56, prefer="latency"), [2, 1]),
        (Policy(0.01, p95_ratio=0.553, prefer="latency"), [1, 2]),  # the interval of 2 reaches to 0.555
        (Policy(0.01, p95_ms=9.0, prefer="latency"), []),
        (Policy(0.01, p95_ms=11.05, prefer="latency"), [1, 2]),  # the interval of 2 reaches to 11.1 ms
    ],
)
def test_a_policy_goes_by_the_latency_with_overhead(policy: Policy, order: list[int]) -> None:
    """An overhead of 10 ms is as much as the baseline's own p95, so that ratios are halfway to 1."""
    points = [with_overhead(one, 10.0) for one in POINTS]
    assert [found.trial for found in finalists(front(*points, overhead_ms=10.0), policy)] == order


def test_the_knee_weighs_latency_less_where_it_is_spent_elsewhere() -> None:
    """As measured, 1 is four times as fast as 2; of the whole request it is hardly faster, and serves less."""
    points = (point(1, 0.05, 2.0, 0.0), point(2, 0.2, 3.0, 0.0))
    assert [one.trial for one in finalists(front(*points), Policy(0.01))] == [1, 2]
    slowed = [with_overhead(one, 1000.0) for one in points]
    assert [one.trial for one in finalists(front(*slowed, overhead_ms=1000.0), Policy(0.01))] == [2, 1]


@pytest.mark.parametrize(("limit_ms", "held"), [(15.3, True), (15.2, False)])
def test_a_confirmed_p95_is_held_to_the_policy_with_overhead(limit_ms: float, held: bool) -> None:
    """The long window gives a p95 of 5.00 [4.75, 5.25] ms, and a ratio of 0.75 [0.74, 0.76] with the 10 ms."""
    found = complete_outcome(0.5, loss=0.0).measurement
    assert found is not None
    added = OverheadRatios(10.0, 0.75, (0.74, 0.76), 0.75, (0.74, 0.76), None, None)
    values = measured_bounds(replace(found.latency, with_overhead=added), found.throughput, found.footprint)
    assert values["p95_ratio"] == 0.76 and values["p95_ms"] == pytest.approx(15.25)
    assert (Policy(0.01, p95_ms=limit_ms).broken(values) is None) == held


def test_the_knee_is_good_on_every_objective() -> None:
    found = finalists(
        front(point(1, 0.05, 2.0, 0.0), point(2, 0.08, 30.0, 0.001), point(3, 0.5, 40.0, 0.0)), Policy(0.01)
    )
    assert found[0].trial == 2


@pytest.mark.parametrize(
    ("policy", "held"),
    [
        (Policy(0.01, p95_ratio=0.53), True),
        (Policy(0.01, p95_ratio=0.51), False),
        (Policy(0.01, p95_ms=5.3), True),
        (Policy(0.01, p95_ms=5.1), False),
        (Policy(0.01, throughput_ratio=1.9), True),
        (Policy(0.01, throughput_ratio=1.91), False),
        (Policy(0.01, throughput_rps=1.0), False),  # its interval is not known
    ],
)
def test_a_policy_must_hold_at_the_end_of_each_interval(policy: Policy, held: bool) -> None:
    """A limit is compared with the worse end of the interval.

    The long window gives a p95 of 5.00 [4.75, 5.25] ms, a ratio of 0.500 [0.475, 0.525], and a throughput of 2.00
    [1.90, 2.10] times the baseline's.
    """
    outcome = complete_outcome(0.5, loss=0.0)
    found = outcome.measurement
    assert found is not None
    said: list[str] = []
    looks = Looks((), lambda looks: None)
    pairs = SimpleNamespace(
        jobs=SimpleNamespace(recording=str), console=SimpleNamespace(say=said.append),
        benchmark=lambda *asked: found, evaluate=lambda *asked: found.quality,
    )  # fmt: skip
    asked: Any = (pairs, [(point(1, 0.5, 2.0, 0.0), (outcome.artifact, Candidate()))], looks, policy)
    if held:
        assert choose.confirm(*asked)[1].measurement.latency == found.latency
        return
    with pytest.raises(
        NothingConfirmedError, match="no finalist was confirmed; the first, trial 1: over a long window"
    ):
        choose.confirm(*asked)
    assert len(looks) == 0, "what is too slow is not looked at on test"
    assert re.search("may be .* (above|below) the|is not known", said[-1])


@pytest.mark.parametrize(("slow", "tried", "confirmed"), [(6, 7, 7), (0, 5, None), (11, 12, 12), (12, 12, None)])
def test_what_is_too_slow_takes_no_look_at_test(slow: int, tried: int, confirmed: int | None) -> None:
    """The first `slow` of 20 finalists are too slow; the others keep the loss if one is to be confirmed."""
    fast, slower = (complete_outcome(p95, loss=0.0 if confirmed else 0.5).measurement for p95 in (0.5, 0.9))
    assert fast is not None and slower is not None
    recorded: list[tuple[Look, ...]] = []
    timed, looks = list[str](), Looks((), recorded.append)

    def benchmark(side: Any, name: str, recording: str) -> Measurement:
        timed.append(recording)
        return slower if len(timed) <= slow else fast

    pairs = SimpleNamespace(
        jobs=SimpleNamespace(recording=str), console=SimpleNamespace(say=lambda line: None),
        benchmark=benchmark, evaluate=lambda *asked: fast.quality,
    )  # fmt: skip
    sides = [(complete_outcome(key=f"k{number}").artifact, Candidate()) for number in range(1, 21)]
    points = [(point(number, 0.5, 2.0, 0.0), side) for number, side in enumerate(sides, 1)]
    asked: Any = (pairs, points, looks, Policy(0.01, p95_ratio=0.6))
    if confirmed is None:
        with pytest.raises(NothingConfirmedError):
            choose.confirm(*asked)
    else:
        assert choose.confirm(*asked)[0].trial == confirmed
    assert (len(timed), len(looks)) == (tried, 1 if confirmed else tried - slow)
    assert [[look.look for look in seen] for seen in recorded] == [
        list(range(1, number + 1)) for number in range(1, len(looks) + 1)
    ], "each look is recorded by itself"


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (Policy(0.01, p95_ratio=0.1), "trial 2: the p95 ratio may be 0.200, 0.100 above the 0.1 of the policy"),
        (
            Policy(0.01, throughput_ratio=8.0),
            "trial 1: the throughput ratio may be 4.000, 4.000 below the 8 of the policy",
        ),
        (Policy(0.001), "trial 1: a loss of 0.20% is above the 0.10% of the policy"),
        (
            Policy(0.01, memory_mb=3.0),
            "trial 1: the upper bound of the peak memory must be 3 MB at most, but is not known",
        ),
    ],
)
def test_without_a_finalist_the_nearest_point_is_told(policy: Policy, told: str) -> None:
    """The nearest point is the one that misses a limit by the smallest factor; each case has another limit."""
    found = front(point(1, 0.3, 4.0, 0.002), point(2, 0.2, 2.0, 0.004))
    assert finalists(found, policy) == []
    assert no_finalist(found, policy) == f"no point of the front keeps the policy; the nearest, {told}"
    assert no_finalist(front(), policy) == "the front has no point but the baseline"


@given(st.integers(1, 500))
def test_the_looks_never_spend_more_than_five_per_cent(looks: int) -> None:
    spent = [1 - confidence_of(k) for k in range(1, looks + 1)]
    assert sum(spent) < 0.05
    assert all(a > b for a, b in pairwise(spent))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"max_loss": 0.0}, r"^max_loss: .*, but got 0\.0$"),
        ({"p95_ms": -1.0}, r"^p95_ms: .*, but got -1\.0$"),
        ({"memory_mb": 0.0}, r"^memory_mb: .*, but got 0\.0$"),
        ({"p95_ratio": float("nan")}, r"^p95_ratio: .*, but got nan$"),
        ({"prefer": "fast"}, r"^prefer: .*knee, latency, throughput, memory, but got 'fast'$"),
    ],
)
def test_a_policy_out_of_its_range_is_one_line(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        Policy(**{"max_loss": 0.01, **wrong})
