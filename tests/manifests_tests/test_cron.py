"""Cron triggers against the plan, minute by minute, as KEDA reads them: its rule, and a second library for cron."""

from __future__ import annotations

import datetime
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray

from search.plan.document import PlanDocument
from search.plan.manifests.cron import CronSchedule, CronTrigger, cron_schedule
from search.plan.manifests.served import served_plan
from tests.manifests_tests.plans import START_S, WEEK_S, Kind, dated_plans, plan_of, weekly_plans

Minutes = NDArray[np.int64]
# A Monday 0:00 UTC in minutes since the epoch.
MONDAY = 1_795_996_800 // 60 - 7 * 1440


def schedules(plan: PlanDocument) -> dict[int, CronSchedule]:
    served = served_plan(plan)
    return {
        offer.row.offer: cron_schedule(served.calendar, offer.processes(), offer.row.start_seconds)
        for offer in served.offers
    }


def following(expression: str, minutes: Minutes) -> Minutes:
    """Return the first minute after each of ascending ones at which a cron expression matches."""
    cronsim = pytest.importorskip("cronsim", reason="cron expressions are read by cronsim")
    before = datetime.datetime.fromtimestamp(int(minutes[0]) * 60, datetime.UTC)
    matches = (int(at.timestamp()) // 60 for at in cronsim.CronSim(expression, before))
    until = itertools.takewhile(lambda at: at <= minutes[-1], matches)
    found = list(until)
    last = datetime.datetime.fromtimestamp(int(minutes[-1]) * 60, datetime.UTC)
    found.append(int(next(cronsim.CronSim(expression, last)).timestamp()) // 60)
    return np.array(found)[np.searchsorted(found, minutes, side="right")]


def is_active(trigger: CronTrigger, minutes: Minutes) -> NDArray[np.bool_]:
    """KEDA's cron scaler: active unless the next start comes before the next end."""
    assert trigger.start != trigger.end
    return following(trigger.end, minutes) <= following(trigger.start, minutes)


def wanted_by_triggers(schedule: CronSchedule, minutes: Minutes) -> Minutes:
    """The most of the minimum and of the active triggers, as the horizontal autoscaler has it."""
    wanted = np.full(len(minutes), schedule.least)
    for trigger in schedule.triggers:
        wanted = np.maximum(wanted, np.where(is_active(trigger, minutes), trigger.processes, 0))
    return wanted


def wanted_by_plan(plan: PlanDocument, offer: int, minutes: Minutes, origin_s: float) -> Minutes:
    """The most processes of the phases that touch each minute, their starts included, from the phases themselves."""
    row = next(row for row in plan.offers if row.offer == offer)
    wanted = np.zeros(len(minutes), np.int64)
    for number, phase in enumerate(plan.phases):
        if phase.offer != offer:
            continue
        end_s = phase.start_s + plan.phase_seconds
        if plan.forecast is None and number == len(plan.phases) - 1:
            end_s = WEEK_S
        begins, ends = origin_s + phase.start_s - row.start_seconds, origin_s + end_s
        touched = (60 * minutes + 60 > begins) & (60 * minutes < ends)
        wanted[touched] = np.maximum(wanted[touched], phase.machines * row.copies)
    return wanted


@given(weekly_plans())
def test_the_triggers_of_a_week_are_its_plan(plan: PlanDocument) -> None:
    minutes = MONDAY + np.arange(7 * 1440)
    for offer, schedule in schedules(plan).items():
        weeks = [wanted_by_plan(plan, offer, minutes, 60.0 * MONDAY + shift * WEEK_S) for shift in (-1, 0, 1)]
        assert wanted_by_triggers(schedule, minutes).tolist() == np.max(weeks, axis=0).tolist()


@given(dated_plans())
def test_the_triggers_of_given_dates_are_their_plan(plan: PlanDocument) -> None:
    """Outside of the dates the machines of the last phase stay, also while those of the first one start."""
    assert plan.start_s is not None
    end_s = plan.start_s + len(plan.phases) * plan.phase_seconds
    for offer, schedule in schedules(plan).items():
        row = next(row for row in plan.offers if row.offer == offer)
        first, last = math.floor((plan.start_s - row.start_seconds) / 60), math.ceil(end_s / 60)
        minutes = np.arange(first - 3000, last + 3000)
        wanted = wanted_by_plan(plan, offer, minutes, plan.start_s)
        final = plan.phases[-1]
        stay = final.machines * row.copies if final.offer == offer else 0
        wanted[(minutes < first) | (minutes >= last)] = stay
        starting = (minutes >= first) & (60 * minutes < plan.start_s)
        wanted[starting] = np.maximum(wanted[starting], stay)
        assert wanted_by_triggers(schedule, minutes).tolist() == wanted.tolist()


def test_days_that_are_alike_share_a_trigger() -> None:
    """One machine at night and two from 8:00 to 20:00, on each day: the machine takes 90 s to start."""
    phases = ([(0, 1)] * 2 + [(0, 2)] * 3 + [(0, 1)]) * 7
    (schedule,) = schedules(plan_of([Kind(90.0)], phases, 4 * 3600.0, weekly=True)).values()
    assert schedule == CronSchedule(1, (CronTrigger("58 7 * * *", "0 20 * * *", 2),))
    weekend = [(0, 1)] * 6
    (schedule,) = schedules(plan_of([Kind(90.0)], phases[:30] + 2 * weekend, 4 * 3600.0, weekly=True)).values()
    assert schedule.triggers == (CronTrigger("58 7 * * 1,2,3,4,5", "0 20 * * 1,2,3,4,5", 2),)


def test_the_last_machines_stay_until_the_plan_begins_again() -> None:
    found = schedules(plan_of([Kind(), Kind(copies=2)], [(0, 3), (1, 1), (1, 2)], 3600.0, START_S))
    assert found[0] == CronSchedule(0, (CronTrigger("0 8 28 11 *", "0 9 28 11 *", 3),))
    assert found[1] == CronSchedule(
        0, (CronTrigger("0 9 28 11 *", "0 10 28 11 *", 2), CronTrigger("0 10 28 11 *", "0 8 28 11 *", 4))
    )


def test_a_plan_that_never_changes_needs_no_trigger() -> None:
    assert schedules(plan_of([Kind(60.0)], [(0, 2)] * 4)) == {0: CronSchedule(2, ())}
