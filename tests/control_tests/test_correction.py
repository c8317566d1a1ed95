"""Corrections by late answers: rates of false alarms and of what is found, on answers drawn at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.serving.control.correction import Answers, Correction, Terms, correct

TERMS = Terms(allowed=0.05, stable_s=60.0, panic_s=6.0, settle_s=7.0, explained=False, most=math.inf)
SECONDS = 6000


def follow(late: Sequence[int], rate: int = 10, most: float = math.inf, explained: bool = False) -> list[float]:
    """Return the factor after each second, of which so many answers are late."""
    terms = replace(TERMS, explained=explained, most=most)
    state, ended, total, found = Correction(from_s=0.0, batch_s=0.0), 0, 0, []
    for second, count in enumerate(late, 1):
        ended, total = ended + rate, total + int(count)
        state = correct(state, Answers(float(second), ended, total, 0), terms)
        found.append(state.factor)
    return found


def raises(factors: Sequence[float]) -> int:
    return int((np.diff([1.0, *factors]) > 0).sum())


@pytest.mark.parametrize("seed", range(5))
def test_as_many_late_answers_as_tolerated_are_seldom_a_cause(seed: int) -> None:
    """A hundred windows of a minute, in which each answer is late with the chance that the SLO tolerates."""
    late = np.random.default_rng(seed).binomial(10, 0.05, SECONDS)
    assert raises(follow(late)) <= 4


@pytest.mark.parametrize("seed", range(5))
def test_pauses_of_seconds_are_no_cause(seed: int) -> None:
    """Pauses of 2 s, in which every answer is late, take one second in a hundred, wherever they fall."""
    random = np.random.default_rng(seed)
    begun = random.random(SECONDS) < 0.005
    late = 10 * (begun | np.roll(begun, 1))
    assert raises(follow(late)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_little_more_than_tolerated_is_found_within_minutes(seed: int) -> None:
    late = np.random.default_rng(seed).binomial(10, 0.12, SECONDS)
    assert follow(late)[600] > 1


def test_what_is_always_late_is_found_in_four_batches_and_no_larger_factor_than_makes_a_difference() -> None:
    factors = follow([10] * 100, most=1.8)
    # Four batches of 2 s, then 7 s in which answers tell nothing and four batches more.
    assert [factors[at] for at in (6, 7, 7 + 14, 7 + 15)] == [1.0, 1.5, 1.5, 1.8]
    assert max(factors) == 1.8 and follow([10] * 100, most=1.0)[-1] == 1.0
    assert set(follow([10] * 100, explained=True)) == {1.0}


def test_few_requests_are_evidence_once_they_are_enough() -> None:
    """A batch of one answer a second is 20 s, and four are 80 s."""
    factors = follow([1] * 100, rate=1)
    assert factors[78] == 1.0 and factors[79] == 1.5


@settings(max_examples=50, deadline=None)
@given(late=st.lists(st.integers(0, 10), min_size=1, max_size=400), most=st.floats(1.0, 20.0))
def test_a_factor_stays_in_its_range_and_grows_or_falls_by_its_steps(late: list[int], most: float) -> None:
    factors = [1.0, *follow(late, most=most)]
    assert all(1.0 <= factor <= most for factor in factors)
    for before, after in itertools.pairwise(factors):
        assert after in (before, pytest.approx(min(1.5 * before, most)), pytest.approx(max(1.0, 0.97 * before)))
