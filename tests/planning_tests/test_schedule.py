"""Schedules against all schedules of small problems."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planning.schedule import (
    NoScheduleError,
    Problem,
    Schedule,
    cheapest,
    least_loss,
    loss_of,
    money_of,
    without_dominated,
)

PHASES, OFFERS, MOST = 3, 2, 3


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    needed = random.integers(0, MOST + 1, (PHASES, OFFERS))
    return Problem(
        needed=needed,
        price=random.integers(1, 5, OFFERS).astype(float),
        start_price=random.integers(0, 6, OFFERS).astype(float),
        loss=random.choice([0.0, 0.01, 0.02], OFFERS),
        most=np.full(OFFERS, MOST),
        weight=random.integers(1, 10, PHASES).astype(float),
        day=np.array([0, 0, 1]),
        serving=draw(st.sampled_from([None, (0, 1), (1, 3)])),
    )


def every_schedule(problem: Problem) -> list[tuple[float, float, float]]:
    """Money, mean loss and largest loss of a day of each schedule that serves every phase, counted by hand."""
    found = []
    choices = [(o, n) for o in range(OFFERS) for n in range(1, MOST + 1)]
    for picked in itertools.product(choices, repeat=PHASES):
        if any(not 0 < problem.needed[t, o] <= n for t, (o, n) in enumerate(picked)):
            continue
        money, before = 0.0, picked[0] if problem.serving is None else problem.serving
        for offer, machines in picked:
            kept = before[1] if before[0] == offer else 0
            money += problem.price[offer] * machines + problem.start_price[offer] * max(machines - kept, 0)
            before = offer, machines
        daily = []
        for day in (0, 1):
            at = [t for t in range(PHASES) if problem.day[t] == day]
            daily.append(sum(problem.weight[t] * problem.loss[picked[t][0]] for t in at) / problem.weight[at].sum())
        lost = sum(problem.weight[t] * problem.loss[o] for t, (o, _) in enumerate(picked)) / problem.weight.sum()
        found.append((money, lost, max(daily)))
    return found


def check(problem: Problem, found: Schedule, best: tuple[float, float]) -> None:
    assert (found.money, found.loss) == pytest.approx(best)
    assert found.gap == 0
    assert money_of(problem, found.offers, found.machines) == pytest.approx(best[0])
    assert loss_of(problem, found.offers) == pytest.approx(best[1])
    needed = problem.needed[np.arange(PHASES), found.offers]
    assert ((needed > 0) & (found.machines >= needed)).all()


@settings(max_examples=40)
@given(problem=problems(), max_loss=st.sampled_from([0.0, 0.005, 0.01, 0.02]))
def test_the_cheapest_schedule_is_that_of_brute_force(problem: Problem, max_loss: float) -> None:
    allowed = [(money, lost) for money, lost, daily in every_schedule(problem) if daily <= max_loss + 1e-12]
    if not allowed:
        with pytest.raises(NoScheduleError):
            cheapest(problem, max_loss)
        return
    check(problem, cheapest(problem, max_loss), min(allowed))


@settings(max_examples=40)
@given(
    problem=problems(),
    max_money=st.sampled_from([6.0, 10.0, 15.0, 30.0]),
    max_loss=st.sampled_from([0.005, 0.01, 1.0]),
)
def test_the_least_loss_is_that_of_brute_force(problem: Problem, max_money: float, max_loss: float) -> None:
    allowed = [
        (lost, money)
        for money, lost, daily in every_schedule(problem)
        if money <= max_money + 1e-9 and daily <= max_loss + 1e-12
    ]
    if not allowed:
        with pytest.raises(NoScheduleError):
            least_loss(problem, max_money, max_loss)
        return
    lost, money = min(allowed)
    check(problem, least_loss(problem, max_money, max_loss), (money, lost))


@settings(max_examples=40)
@given(problem=problems(), seed=st.integers(0, 10**6), max_loss=st.sampled_from([0.0, 0.005, 0.01]))
def test_the_fewest_requests_are_left_unserved_and_then_the_money_is_least(
    problem: Problem, seed: int, max_loss: float
) -> None:
    """Brute force over the offers of all phases, with as many machines as are needed or more, is the oracle."""
    shares = np.random.default_rng(seed).choice([0.0, 0.25, 0.5], (PHASES, OFFERS))
    strained = replace(problem, needed=np.maximum(problem.needed, 1), unserved=shares)
    choices = [(o, n) for o in range(OFFERS) for n in range(1, MOST + 1)]
    allowed = []
    for picked in itertools.product(choices, repeat=PHASES):
        offers, machines = np.array(picked).T
        if any(strained.needed[t, o] > n for t, (o, n) in enumerate(picked)):
            continue
        lost = [problem.weight[:2] @ problem.loss[offers[:2]] / problem.weight[:2].sum(), problem.loss[offers[2]]]
        if max(lost) <= max_loss + 1e-12:
            unserved = float(problem.weight @ shares[np.arange(PHASES), offers])
            allowed.append((unserved, money_of(strained, offers, machines)))
    if not allowed:
        with pytest.raises(NoScheduleError):
            cheapest(strained, max_loss)
        return
    found = cheapest(strained, max_loss)
    unserved = float(problem.weight @ shares[np.arange(PHASES), found.offers])
    assert (unserved, found.money) == pytest.approx(min(allowed), abs=1e-6)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), serving=st.sampled_from([None, (2, 2)]))
def test_dominated_offers_change_no_optimum(seed: int, serving: tuple[int, int] | None) -> None:
    """Without dominated offers, the least money within each loss is the same, by brute force over all choices.

    With few values, most problems of three offers have one that another dominates.
    """
    random = np.random.default_rng(seed)
    problem = Problem(
        needed=random.integers(1, 3, (2, 3)),
        price=random.integers(1, 3, 3).astype(float),
        start_price=random.integers(0, 3, 3).astype(float),
        loss=random.choice([0.0, 0.01], 3),
        most=np.full(3, 2),
        weight=np.ones(2),
        day=np.zeros(2, np.int64),
        serving=serving,
    )

    def best(one: Problem) -> dict[float, float]:
        found: dict[float, float] = {}
        choices = [(offer, machines) for offer in range(3) for machines in (1, 2)]
        for picked in itertools.product(choices, repeat=2):
            offers, machines = np.array(picked).T
            if all(0 < one.needed[t, o] <= n for t, (o, n) in enumerate(picked)):
                lost = loss_of(one, offers)
                found[lost] = min(found.get(lost, np.inf), money_of(one, offers, machines))
        return {most: min(money for lost, money in found.items() if lost <= most) for most in (0.0, 0.005, 0.01)
                if any(lost <= most for lost in found)}  # fmt: skip

    assert best(without_dominated(problem)) == pytest.approx(best(problem))


def test_the_dominated_are_found() -> None:
    """Offer 1 is offer 0 but dearer, and offer 2 its equal; offer 3 loses more and needs less."""
    needed = np.array([[2, 2, 2, 1], [3, 3, 3, 0]])
    prices, losses = np.array([1.0, 1.5, 1.0, 1.0]), np.array([0.0, 0.0, 0.0, 0.01])
    most, flat = np.full(4, 5), np.ones(2)
    problem = Problem(needed, prices, np.zeros(4), losses, most, flat, np.zeros(2, np.int64))
    assert without_dominated(problem).needed.any(axis=0).tolist() == [True, False, False, True]


def test_machines_stay_through_a_dip_that_is_shorter_than_a_start_is_dear() -> None:
    """Planted: a start costs as much as 3 phases of a machine."""
    for dip, kept in ((2, True), (4, False)):
        needed = np.array([2, 2, *[1] * dip, 2])[:, None]
        phases = len(needed)
        problem = Problem(
            needed, np.ones(1), np.full(1, 3.0), np.zeros(1), np.full(1, 5), np.ones(phases), np.zeros(phases, int)
        )
        found = cheapest(problem, 0.0)
        assert (found.machines.min() == 2) == kept
