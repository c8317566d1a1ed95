"""Finalists come in a fixed order that validation and timing settle; looks at test are counted and paid for."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.choose import choose
from search.choose.choose import Policy, confidence_of, finalists
from search.errors import ConfigError, NothingConfirmedError
from spaces.candidate import Candidate
from spaces.serialization import to_plain
from tests.search_tests.measurements import complete_outcome


def row(
    trial: int, p95: float, throughput: float, loss: float, size: int = 1000, half: float = 0.002
) -> dict[str, Any]:
    return {
        "trial": trial, "on_front": True, "feasible": True, "throughput_ratio": throughput, "model_bytes": size,
        "quality": {"loss": loss, "loss_interval": [loss - half, loss + half]},
        "latency_ms": {
            "p95": 10 * p95, "p95_interval": [9 * p95, 11 * p95],
            "p95_ratio": p95, "p95_ratio_interval": [0.9 * p95, 1.1 * p95],
        },
    }  # fmt: skip


ROWS = [
    row(0, 1.0, 1.0, 0.0),
    row(1, 0.05, 20.0, 0.0095),  # fastest, but its interval reaches beyond the tolerated loss
    row(2, 0.10, 12.0, 0.004, size=3000),
    row(3, 0.30, 15.0, 0.001, size=500),
    {**row(4, 0.01, 90.0, 0.0), "on_front": False},
]


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
    ],
)
def test_the_order_is_the_policys(policy: Policy, order: list[int]) -> None:
    assert [r["trial"] for r in finalists({"rows": ROWS}, policy)] == order


def test_the_knee_is_good_on_every_objective() -> None:
    rows = [row(1, 0.05, 2.0, 0.0), row(2, 0.08, 30.0, 0.001), row(3, 0.5, 40.0, 0.0)]
    assert finalists({"rows": rows}, Policy(0.01))[0]["trial"] == 2


@pytest.mark.parametrize(
    ("policy", "held"),
    [
        (Policy(0.01, p95_ratio=0.53), True),
        (Policy(0.01, p95_ratio=0.51), False),
        (Policy(0.01, p95_ms=5.3), True),
        (Policy(0.01, p95_ms=5.1), False),
    ],
)
def test_a_latency_policy_must_hold_at_the_upper_bound(
    policy: Policy, held: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long window gives a p95 of 5.00 [4.75, 5.25] ms and a ratio of 0.500 [0.475, 0.525]."""
    outcome = complete_outcome(0.5, loss=0.0)
    found = outcome.measurement
    assert found is not None
    monkeypatch.setattr(choose, "call", lambda *asked: to_plain(found))
    monkeypatch.setattr(choose, "judged", lambda *asked: found.quality)
    jobs: Any = SimpleNamespace(
        recording=str, time=lambda *asked: {}, config=SimpleNamespace(seed=0), limit_seconds=lambda length: 1.0
    )
    said: list[str] = []
    looks: list[dict[str, Any]] = []
    asked: Any = (jobs, [(row(1, 0.5, 2.0, 0.0), Candidate(), outcome)], looks, policy, None, None, said.append)
    if held:
        assert choose.confirm(*asked).latency == found.latency
        return
    with pytest.raises(NothingConfirmedError):
        choose.confirm(*asked)
    assert looks == [], "what is too slow is not looked at on test"
    assert "may be" in said[-1] and "above the" in said[-1]


@given(st.integers(1, 500))
def test_the_looks_never_spend_more_than_five_per_cent(looks: int) -> None:
    spent = [1 - confidence_of(k) for k in range(1, looks + 1)]
    assert sum(spent) < 0.05
    assert all(a > b for a, b in pairwise(spent))


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"max_loss": 0.0}, "max_loss: must lie between 0 and 1, but got 0.0"),
        ({"p95_ms": -1.0}, "p95_ms: must be above 0, but got -1.0"),
        ({"p95_ratio": float("nan")}, "p95_ratio: must be above 0, but got nan"),
        ({"prefer": "fast"}, "prefer: must be one of knee, latency, throughput, memory, but got 'fast'"),
    ],
)
def test_a_policy_out_of_its_range_is_one_line(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Policy(**{"max_loss": 0.01, **wrong})
    assert str(caught.value) == line
