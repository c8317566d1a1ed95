"""The controller against closed forms, a second implementation written from its rules, and what must always hold."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objectives.serving.control.controller import Decision, Observation, Reason, begin, decide, resumed
from objectives.serving.control.options import ControlPlan, Option, PlannedPhase, change, choose
from objectives.serving.control.windows import Windows
from spaces.techniques.placement import InstanceGroup, Placement

WINDOWS = Windows(stable_s=60.0, panic_s=6.0, tick_s=1.0)


def option(variant: str, replicas: int, capacity: float, loss: float = 0.0, load_s: float = 1.0) -> Option:
    return Option(variant, loss, Placement(InstanceGroup(replicas=replicas, threads=1)), capacity, load_s, replicas)


# An exact variant of 10 requests/s a replica, and one of 40 that loses 1%; four cores.
OPTIONS = tuple(option("exact", n, 10.0 * n) for n in range(1, 5)) + tuple(
    option("fast", n, 40.0 * n, 0.01) for n in range(1, 5)
)


def play(
    plan: ControlPlan,
    windows: Windows,
    arrivals: list[int],
    backlogs: list[int] | None = None,
    late: list[int] | None = None,
) -> list[Decision]:
    """Decide at each tick, each decision being done at once; all that arrived is answered, so many of it late."""
    state, serving, total, late_so_far, found = begin(plan, windows, 0.0), None, 0, 0, []
    serving = state.option
    for tick, arrived in enumerate(arrivals, 1):
        total += arrived
        late_so_far += 0 if late is None else late[tick - 1]
        backlog = 0 if backlogs is None else backlogs[tick - 1]
        seen = Observation(tick * windows.tick_s, total, backlog, serving, ended=total, late=late_so_far)
        state, decision = decide(plan, windows, state, seen)
        serving = decision.option
        found.append(decision)
    return found


def first(decisions: list[Decision], reason: Reason) -> Decision:
    return next(decision for decision in decisions if decision.reason is reason)


def test_a_slow_rise_is_followed_when_the_mean_of_the_stable_window_reaches_the_capacity() -> None:
    """The mean of 60 s, after a step from 10 to 16 requests/s, is 10 + 6 t / 60, above 12 from t = 20 on."""
    plan = ControlPlan((option("one", 1, 12.0), option("one", 2, 30.0)))
    found = play(plan, WINDOWS, [10] * 120 + [16] * 120)
    assert first(found, Reason.CALM).now_s == 60, "it begins with the most, which is held for a stable window"
    up = first(found, Reason.STABLE)
    assert (up.now_s, up.option, up.panicking) == (120 + 21, 1, False)
    assert up.stable_rps == pytest.approx(10 + 6 * 21 / 60)


def test_a_surge_starts_a_panic_when_the_mean_of_the_panic_window_is_twice_the_capacity() -> None:
    """The mean of 6 s, after a step from 10 to 34, is 10 + 4 t, 24 from t = 3.5 on; it is 34 after 6 s."""
    plan = ControlPlan((option("one", 1, 12.0), option("one", 2, 30.0), option("one", 3, 40.0)))
    found = play(plan, WINDOWS, [10] * 120 + [34] * 20 + [10] * 200)
    up = first(found, Reason.PANIC)
    assert (up.now_s, up.option) == (124, 1)
    assert [d.option for d in found[123:]][:4] == [1, 1, 2, 2], "10 + 4 t is above 30 from t = 6 on"
    # The rate of 34 was seen until 140, and leaves the window of 6 s, and then that of 60 s, later than that.
    last_seen = max(d.now_s for d in found if d.panic_rps >= 34)
    down = next(d for d in found if d.now_s > 140 and d.reason is Reason.CALM)
    assert down.now_s >= last_seen + 60 and found[-1].option == 0
    assert {decision.correction for decision in found} == {1.0}, "more arrived than was to be served"


def test_requests_that_wait_count_as_a_rate_within_the_panic_window() -> None:
    """A machine that became slow: the rate stays at 10, and 6 s x 14 requests/s wait, which makes 24."""
    plan = ControlPlan((option("one", 1, 12.0), option("one", 2, 30.0)))
    found = play(plan, WINDOWS, [10] * 110, [0] * 100 + [83] * 5 + [84] * 5)
    up = first(found, Reason.PANIC)
    assert (up.now_s, up.panic_rps) == (106, pytest.approx(24))
    assert up.correction == 1.5, "no more arrived than was to be served"


@pytest.mark.parametrize(("factor", "serves"), [(1.6, 0), (1.0, 1)])
def test_a_machine_of_a_fleet_serves_more_than_its_capacity_alone(factor: float, serves: int) -> None:
    """24 requests/s are planned and come on a capacity of 16 alone, or 25.6 where they are dealt to several."""
    plan = ControlPlan(
        (option("exact", 1, 16.0), option("fast", 1, 100.0, 0.01)), (PlannedPhase(24.0 / factor, 0.0, factor),), 1000.0
    )
    found = play(plan, WINDOWS, [24] * 100)
    assert {decision.option for decision in found} == {serves}
    assert {decision.capacity_factor for decision in found} == {factor}
    assert found[-1].stable_rps == found[-1].planned_rps == pytest.approx(24 / factor)


def test_requests_count_by_the_phase_in_which_they_come() -> None:
    """Each of four machines gets 28 requests/s, then a single one gets 15, then each of four 28 again.

    The capacity of 20 alone suffices for all: of four machines it is 30. The rates that were held for the first phase
    do not count as those of a machine alone in the second.
    """
    phases = (PlannedPhase(28.0 / 1.5, 0.0, 1.5), PlannedPhase(15.0, 0.0), PlannedPhase(28.0 / 1.5, 0.0, 1.5))
    plan = ControlPlan((option("exact", 1, 20.0), option("fast", 1, 100.0, 0.01)), phases, 100.0)
    found = play(plan, WINDOWS, [28] * 100 + [15] * 100 + [28] * 99)
    assert {decision.option for decision in found} == {0} and not any(decision.panicking for decision in found)
    assert [found[at].stable_rps for at in (98, 198, 298)] == pytest.approx([28 / 1.5, 15, 28 / 1.5])


def test_late_answers_within_the_capacity_make_rates_count_for_more_and_answers_in_time_for_less_again() -> None:
    """Late answers raise the wanted rate, and each window without any lowers it again.

    The load is 10 requests/s on a capacity of 12. After four late batches of 2 s, 1.5 times as much is wanted. Answers
    in the second of loading and in the 6 s behind it tell nothing. In the 60 s after them none is late, and each such
    window takes 3% away.
    """
    options = (option("one", 1, 12.0), option("one", 2, 30.0), option("one", 3, 40.0))
    plan = ControlPlan(options, (PlannedPhase(10.0, 0.0),), 1000.0)
    found = play(plan, WINDOWS, [10] * 700, late=[10] * 15 + [0] * 685)
    up = first(found, Reason.LATE)
    assert (up.now_s, up.option, up.correction, up.held_rps) == (8, 1, 1.5, 15.0)
    changes = [(d.now_s, d.correction) for b, d in itertools.pairwise(found) if d.correction != b.correction]
    assert [now for now, _ in changes] == [8, *(15 + 60 * n for n in range(1, 12))]
    assert [factor for _, factor in changes] == pytest.approx([1.5 * 0.97**n for n in range(12)])
    assert first(found, Reason.CALM).now_s == 15 + 480 - 1 + 60, "1.5 x 0.97^8 x 10 is below 12; more was held a minute"


def test_late_answers_to_more_than_was_to_be_served_and_from_the_queue_behind_it_correct_nothing() -> None:
    """20 requests/s for 10 s on a capacity of 12 that has no larger one in time, and a queue that goes in 40 s."""
    plan = ControlPlan((option("one", 1, 12.0), option("one", 2, 100.0)), (PlannedPhase(10.0, 0.0),), 1000.0)
    windows = Windows(60.0, 6.0, 1.0, panic=1000.0)
    surge, waits = [10] * 100 + [20] * 10 + [10] * 100, [0] * 102 + [8 * n for n in range(1, 9)] + [64] * 40 + [0] * 60
    found = play(plan, windows, surge, waits, late=[0] * 103 + [10] * 47 + [0] * 60)
    assert {decision.correction for decision in found} == {1.0}


def test_nothing_is_corrected_where_nothing_larger_could_serve() -> None:
    found = play(ControlPlan((option("one", 1, 12.0),)), WINDOWS, [10] * 100, late=[10] * 100)
    assert {decision.correction for decision in found} == {1.0}


def test_a_plan_that_is_read_again_in_a_surge_goes_on_with_it() -> None:
    """The new plan, whose clock is 1000 s ahead, foresees little: everything but its rate is as if nothing was read."""
    old = ControlPlan((option("one", 1, 12.0), option("one", 2, 30.0), option("one", 3, 40.0)))
    new = ControlPlan(old.options, (PlannedPhase(5.0, 0.0),) * 100, 60.0)
    arrivals = [10] * 120 + [34] * 30 + [10] * 200
    state, total = begin(old, WINDOWS, 0.0), 0
    for tick, arrived in enumerate(arrivals[:130], 1):
        total += arrived
        state, _ = decide(old, WINDOWS, state, Observation(tick, total, 0, state.option))
    first_of_new = begin(new, WINDOWS, 1130.0).option
    assert state.option == 2 and first_of_new == 0
    state = resumed(new, WINDOWS, state, 1000.0, Observation(1130.0, total, 0, first_of_new))
    assert state.option == 2, "what the surge needs, and not what the plan foresees"
    found = []
    for tick, arrived in enumerate(arrivals[130:], 1131):
        total += arrived
        state, decision = decide(new, WINDOWS, state, Observation(tick, total, 0, state.option))
        found.append(decision)
    for ours, theirs in zip(found, play(old, WINDOWS, arrivals)[130:], strict=True):
        assert (ours.stable_rps, ours.panic_rps, ours.panicking) == (
            theirs.stable_rps, theirs.panic_rps, theirs.panicking,
        )  # fmt: skip
        assert ours.option == theirs.option


def test_requests_of_a_plan_that_is_read_again_count_by_the_phase_of_each_plan() -> None:
    """First each of several machines has 1.5 times its capacity alone, then, under another plan, twice."""
    old, new = (
        ControlPlan((option("one", 1, 20.0), option("one", 2, 40.0)), (PlannedPhase(5.0, 0.0, factor),), 1e6)
        for factor in (1.5, 2.0)
    )
    state, total = begin(old, WINDOWS, 0.0), 0
    for tick in range(1, 101):
        total += 24
        state, decision = decide(old, WINDOWS, state, Observation(tick, total, 0, state.option))
    assert decision.stable_rps == pytest.approx(16.0)
    state = resumed(new, WINDOWS, state, 500.0, Observation(600.0, total, 0, state.option))
    for tick in range(601, 631):
        total += 24
        state, decision = decide(new, WINDOWS, state, Observation(tick, total, 0, state.option))
    assert decision.stable_rps == pytest.approx((30 * 16.0 + 30 * 12.0) / 60)


def test_it_degrades_where_no_replicas_suffice_and_recovers() -> None:
    found = play(ControlPlan(OPTIONS), WINDOWS, [5] * 100 + [90] * 100 + [5] * 200)
    names = [OPTIONS[decision.option].name for decision in found]
    assert names[99] == "exact 1x1"
    assert names[199] == "fast 3x1", "90 requests/s are above the 40 of the exact one"
    assert names[-1] == "exact 1x1"
    changes = [change(OPTIONS[a.option], OPTIONS[b.option]) for a, b in itertools.pairwise(found)]
    assert changes.count("degrade") == 1 and changes.count("recover") == 1


def test_a_plan_is_followed_before_its_phases_begin() -> None:
    phases = (PlannedPhase(5.0, 0.0), PlannedPhase(100.0, 0.01), PlannedPhase(15.0, 0.0))
    found = play(ControlPlan(OPTIONS, phases, 200.0), WINDOWS, [1] * 700)
    names = {decision.now_s: OPTIONS[decision.option].name for decision in found}
    assert names[198] == "exact 1x1"
    assert names[199] == names[200] == names[400] == "fast 3x1", "a second before, since it takes as long to load"
    assert names[459] == "exact 2x1" and names[458] == "fast 3x1", "100 requests/s were planned until 399"
    assert names[700] == "exact 1x1", "nothing is foreseen behind the last phase"
    assert first(found, Reason.PLAN).now_s == 199


def test_what_a_phase_needs_is_loaded_at_its_start_wherever_that_lies_between_two_ticks() -> None:
    phases = (PlannedPhase(5.0, 0.0), PlannedPhase(100.0, 0.01))
    found = play(ControlPlan(OPTIONS, phases, 200.5), WINDOWS, [1] * 210)
    decided = next(each.now_s for each in found if OPTIONS[each.option].name == "fast 3x1")
    assert decided == 199, "loaded at 200; decided a tick later, it would be loaded at 201"


def test_it_begins_with_what_a_phase_needs_that_its_first_tick_would_load_too_late() -> None:
    phases = (PlannedPhase(5.0, 0.0), PlannedPhase(100.0, 0.01))
    for length, name in ((1.5, "fast 3x1"), (2.0, "exact 1x1")):
        state = begin(ControlPlan(OPTIONS, phases, length), WINDOWS, 0.0)
        assert OPTIONS[state.option].name == name, "what the tick at 1 decides serves from 2 on"


def test_a_plan_that_saves_the_cost_of_the_exact_variant_is_not_overruled_by_calm() -> None:
    found = play(ControlPlan(OPTIONS, (PlannedPhase(5.0, 0.01),), 500.0), WINDOWS, [1] * 400)
    assert {OPTIONS[decision.option].name for decision in found} == {"fast 1x1"}


def test_an_option_that_cannot_be_opened_is_left_out() -> None:
    plan = ControlPlan(OPTIONS)
    state = begin(plan, WINDOWS, 0.0)
    assert OPTIONS[state.option].name == "exact 4x1"
    exact = frozenset(range(4))
    state, decision = decide(plan, WINDOWS, state, Observation(1.0, 5, 0, state.option, exact))
    assert (OPTIONS[decision.option].name, decision.reason) == ("fast 1x1", Reason.BROKEN)
    state, decision = decide(plan, WINDOWS, state, Observation(2.0, 5, 0, state.option, frozenset(range(8))))
    assert decision.reason is Reason.STEADY


arrivals = st.lists(st.sampled_from([0, 3, 8, 12, 25, 60, 110, 200]), min_size=1, max_size=12).flatmap(
    lambda rates: st.tuples(st.just(rates), st.lists(st.integers(1, 40), min_size=len(rates), max_size=len(rates)))
)
phases = st.lists(
    st.builds(
        PlannedPhase,
        st.sampled_from([0.0, 7.0, 33.0, 90.0]),
        st.sampled_from([0.0, 0.01]),
        st.sampled_from([1.0, 1.0, 2.0]),
    ),
    max_size=5,
)


def ticks(drawn: tuple[list[int], list[int]]) -> list[int]:
    return [rate for rate, count in zip(*drawn, strict=True) for _ in range(count)]


@settings(max_examples=60, deadline=None)
@given(drawn=arrivals, planned=phases, stable_s=st.sampled_from([6, 20]), data=st.data())
def test_what_always_holds(
    drawn: tuple[list[int], list[int]], planned: list[PlannedPhase], stable_s: int, data: st.DataObject
) -> None:
    counts = ticks(drawn)
    backlogs = data.draw(st.lists(st.sampled_from([0, 0, 0, 50]), min_size=len(counts), max_size=len(counts)))
    windows = Windows(float(stable_s), 3.0, 1.0)
    plan = ControlPlan(OPTIONS, tuple(planned), 30.0)
    found = play(plan, windows, counts, backlogs)
    most = max(each.capacity_rps for each in OPTIONS)
    grown_s = -math.inf
    for before, now in itertools.pairwise([None, *found]):
        assert now is not None
        old, new = OPTIONS[begin(plan, windows, 0.0).option if before is None else before.option], OPTIONS[now.option]
        # Never below what is planned, nor below what was wanted, as far as the machine goes.
        assert new.capacity_rps >= min(now.planned_rps, most)
        assert new.capacity_rps >= min(now.held_rps, most) or (now.panicking and new == old)
        assert now.held_rps >= max(now.planned_rps, now.stable_rps)
        if now.panicking:
            assert new.capacity_rps >= old.capacity_rps, "a panic only scales up"
        if new.capacity_rps > old.capacity_rps:
            grown_s = now.now_s
        elif new.capacity_rps < old.capacity_rps:
            recent = [each for each in found if now.now_s - stable_s < each.now_s <= now.now_s]
            assert max(each.stable_rps for each in recent) <= new.capacity_rps
            assert max(each.planned_rps for each in recent) <= new.capacity_rps
            if not planned:
                assert now.now_s >= grown_s + stable_s, "it never flaps within the stable window"
        if new.loss > 0 and not planned and not now.panicking:
            assert now.held_rps > 40.0, "degraded only where the exact variant does not suffice"


@settings(max_examples=40, deadline=None)
@given(drawn=arrivals, planned=phases)
def test_against_a_second_implementation(drawn: tuple[list[int], list[int]], planned: list[PlannedPhase]) -> None:
    """All of the history at every tick, in place of a state."""
    counts, windows = ticks(drawn), Windows(12.0, 4.0, 1.0, panic=1.5, target=0.8)
    plan = ControlPlan(OPTIONS, tuple(planned), 25.0)
    found = play(plan, windows, counts)
    last = len(planned) - 1
    factors = [planned[min(at // 25, last)].capacity_factor if planned else 1.0 for at in range(len(counts) + 1)]
    counted = [arrived / factor for arrived, factor in zip(counts, factors[:-1], strict=True)]
    start = begin(plan, windows, 0.0)
    wants, current, until = [(0, start.wanted[0].value)], start.option, -math.inf
    for tick, decision in enumerate(found, 1):
        rates = [sum(counted[max(0, tick - width) : tick]) / max(4, min(tick, width)) for width in (12, 4)]
        phase, coming = tick // 25, (tick + 1) // 25
        near = [planned[p] for p in {phase, coming} if p < len(planned)]
        floor = max((each.rate_rps for each in near), default=0.0)
        least_loss = planned[min(coming, len(planned) - 1)].loss if near else 0.0
        if rates[1] / 0.8 >= 1.5 * OPTIONS[current].capacity_rps:
            until = tick + 12
        slow = max(floor, rates[0] / 0.8)
        wants.append((tick, max(slow, rates[1] / 0.8) if tick < until else slow))
        held = max(want for at, want in wants if at > tick - 12)
        best = choose(OPTIONS, held, least_loss)
        assert best is not None
        if not (tick < until and OPTIONS[best].capacity_rps < OPTIONS[current].capacity_rps):
            current = best
        assert (decision.option, decision.panicking) == (current, tick < until)
        assert decision.held_rps == pytest.approx(held)


@settings(max_examples=200, deadline=None)
@given(
    drawn=st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 0.02]), st.integers(1, 3), st.sampled_from([5.0, 9.0, 20.0])),
        min_size=1,
        max_size=6,
    ),
    rate=st.sampled_from([0.0, 5.0, 8.0, 15.0, 30.0]),
    least=st.sampled_from([0.0, 0.01, 0.05]),
)
def test_the_choice_against_all_orders(drawn: list[tuple[float, int, float]], rate: float, least: float) -> None:
    """No option that may be used is better by loss, then cores, if the choice suffices, or by capacity if none does."""
    options = [option("one", cores, capacity, loss) for loss, cores, capacity in drawn]
    found = choose(options, rate, least)
    assert found is not None
    allowed = [each for each in options if each.loss >= least] or options
    assert options[found] in allowed
    if options[found].capacity_rps < rate:
        assert max(each.capacity_rps for each in allowed) == options[found].capacity_rps
    else:
        better = [(each.loss, each.cores) for each in allowed if each.capacity_rps >= rate]
        assert min(better) == (options[found].loss, options[found].cores)


@pytest.mark.parametrize("given_windows", [(6.0, 60.0, 2.0), (60.0, 6.0, 0.0), (60.0, 1.0, 2.0), (math.inf, 6.0, 2.0)])
def test_windows_that_make_no_sense_are_refused(given_windows: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="tick <= panic <= stable"):
        Windows(*given_windows)


def test_a_plan_without_options_or_capacity_is_refused() -> None:
    with pytest.raises(ValueError, match="one option or more"):
        ControlPlan(())
    with pytest.raises(ValueError, match="above 0"):
        ControlPlan((dataclasses.replace(OPTIONS[0], capacity_rps=0.0),))
