"""Backlog of an overloaded fleet: by hand, against small steps of time, and against every request simulated."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning.virtual_fleet.approximation import approximate
from planning.virtual_fleet.backlog import BacklogSpan, backlog_of
from planning.virtual_fleet.exact import exact
from tests.planning_tests.virtual_fleets import OBJECTIVE, ROWS, flat, fleet, table_of


def test_it_grows_is_full_and_drains() -> None:
    """10 of 30 requests/s too many fill a room of 50 in 5 s; 5 fewer than 20 drain it in 10 s."""
    found = backlog_of(np.array([30.0, 15.0, 15.0]), np.array([8.0, 4.0, 8.0]), np.full(3, 20.0), np.full(3, 50.0))
    assert found.spans == [
        BacklogSpan(0, 150.0, 0.0, 2.5),
        BacklogSpan(0, 60.0, 2.5, 2.5),
        BacklogSpan(1, 60.0, 2.5, 1.5),
        BacklogSpan(2, 90.0, 1.5, 0.0),
    ]
    assert found.refused.tolist() == [30.0, 0.0, 0.0] and found.calm.tolist() == [0.0, 0.0, 30.0]


def test_without_machines_all_is_refused_and_forgotten() -> None:
    found = backlog_of(
        np.array([30.0, 5.0, 5.0]), np.full(3, 2.0), np.array([20.0, 0.0, 20.0]), np.array([9.0, 0.0, 9.0])
    )
    assert [span.piece for span in found.spans] == [0, 0]
    assert found.refused.tolist() == pytest.approx([11.0, 10.0, 0.0]) and found.calm.tolist() == [0.0, 0.0, 10.0]


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(1, 20), st.integers(0, 50), st.integers(0, 300)),
        min_size=1,
        max_size=8,
    )
)
@settings(deadline=None)
def test_it_is_that_of_small_steps(given_: list[tuple[int, int, int, int]]) -> None:
    rates, seconds, capacity, room = np.array(given_, np.float64).T
    found = backlog_of(rates, seconds, capacity, room)
    accepted = np.bincount([span.piece for span in found.spans], [span.requests for span in found.spans], len(given_))
    assert accepted + found.calm + found.refused == pytest.approx(rates * seconds)
    waiting, steps = 0.0, 1000
    for piece, (rate, length, can, most) in enumerate(given_):
        waiting, refused = min(waiting, most), 0.0
        for _ in range(steps):
            waiting += (rate - can) * length / steps
            if can == 0:
                refused, waiting = refused + rate * length / steps, 0.0
            refused, waiting = refused + max(waiting - most, 0.0), min(max(waiting, 0.0), most)
        assert found.refused[piece] == pytest.approx(refused, abs=1.0 + 50 * length / steps)


def test_an_overloaded_fleet_is_near_every_request_simulated() -> None:
    """Four machines of 100 requests/s each at 440: full after 26 s of an hour, and 1 in 11 is refused."""
    spec, demand = fleet(4), flat(440.0, phase_s=36.0, hours=1)
    demand = type(demand)(demand.counts[:3], 36.0)
    table = table_of(spec)
    approximated = approximate(spec, demand, table, OBJECTIVE, 0)
    simulated = exact(spec, demand, ROWS, table, OBJECTIVE, 0)
    assert simulated.refused == pytest.approx(approximated.refused, abs=0.02) and approximated.refused > 0.05
    for name in ("mean_ms", "p50_ms", "late"):
        assert getattr(approximated, name) == pytest.approx(getattr(simulated, name), rel=0.1), name
