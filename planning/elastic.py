"""An elastic server on the virtual clock.

The controller of `leanrec serve` and the scheduler of its pool run here with service times in place of models.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from objectives.measurement.statistics import percentile
from objectives.serving.control.controller import Decision, Observation, Reason, begin, decide
from objectives.serving.control.lateness import Lateness
from objectives.serving.control.options import ControlPlan, Option, choose
from objectives.serving.control.windows import Windows
from objectives.serving.pool.virtual_pool import ServiceTime, VirtualPool
from planning.capacity import Objective
from planning.demand import Counts, Floats
from planning.fleet import limited

STATIC_MEAN, STATIC_PEAK, REACTIVE, ELASTIC = "static, mean", "static, peak", "reactive", "planned + reactive"


@dataclass(frozen=True)
class Segment:
    """An option that serves from a second on; `loaded_s` is when its loading began."""

    start_s: float
    loaded_s: float
    option: int


@dataclass(frozen=True, eq=False)
class Served:
    """Requests that an elastic server got.

    latency_ms: (n,) from the arrival, infinite where a request was refused
    options: (n,) number of the option that served each
    segments: what served when
    decisions: for another option
    """

    latency_ms: Floats
    options: NDArray[np.int64]
    segments: tuple[Segment, ...]
    decisions: tuple[Decision, ...] = ()


@dataclass(frozen=True, kw_only=True)
class MachineOutcome:
    """Outcome of a policy on one machine.

    late: share of the requests that were refused or answered after the SLO
    refused: share of the requests
    p50_ms, p95_ms, p99_ms: None where it lies among the refused
    loss: mean quality loss of the requests
    money: of the cores in use, at their share of the machine's price
    switches: changes of what serves
    switch_seconds, planned_switch_seconds: medians of the seconds from the beginning of a switch until it served, and
        of those that the plan has for the same options; None without a switch
    """

    requests: int
    late: float
    refused: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    loss: float
    replica_seconds: float
    core_seconds: float
    money: float
    switches: int
    switch_seconds: float | None
    planned_switch_seconds: float | None


def policies(plan: ControlPlan) -> dict[str, ControlPlan]:
    """Return the plans of a machine without and with a controller.

    These are what is best for the mean and for the highest planned rate, a rule that only reacts, and the plan itself.
    """
    rates = [phase.rate_rps for phase in plan.phases] or [0.0]

    def static(rate: float) -> ControlPlan:
        option = choose(plan.options, rate, 0.0)
        assert option is not None, "a plan has an option"
        return replace(plan, options=(plan.options[option],), phases=(), repeat_s=None)

    return {
        STATIC_MEAN: static(float(np.mean(rates))),
        STATIC_PEAK: static(max(rates)),
        REACTIVE: replace(plan, phases=()),
        ELASTIC: plan,
    }


def simulate_elastic(
    plan: ControlPlan,
    windows: Windows,
    seconds: Floats,
    rows: Counts,
    service: Callable[[Option], ServiceTime],
) -> Served:
    """Simulate a machine that is controlled from second 0 of the plan on.

    Args:
        seconds: (n,) ascending arrival times of the requests, from 0
        rows: (n,) rows of each
        service: returns the service time of an option

    Raises:
        OutsideRangeError: a run has a size for which no time was measured.
    """
    machine = _Machine(plan, windows, service)
    for second, size in zip(seconds.tolist(), rows.tolist(), strict=True):
        machine.advance(second)
        machine.submit(second, size)
    return machine.finish()


class _Machine:
    """A machine on the virtual clock.

    A switch takes the load time of the new option. Meanwhile the old option serves, and it answers all requests that it
    has accepted.
    """

    def __init__(self, plan: ControlPlan, windows: Windows, service: Callable[[Option], ServiceTime]) -> None:
        self._plan, self._windows, self._service = plan, windows, service
        self._state = begin(plan, 0.0)
        self._next_tick = windows.tick_s
        self._ready: Segment | None = None  # what is being loaded
        self._segments: list[Segment] = []
        self._decisions: list[Decision] = []
        self._latency: list[Floats] = []
        self._options: list[NDArray[np.int64]] = []
        self._arrived, self._lateness = 0, Lateness()
        self._lateness.slo_ms = plan.slo_ms
        self._serve(Segment(0.0, 0.0, self._state.option))

    def advance(self, second: float) -> None:
        """Handle ticks and finished loads up to a second, in their order."""
        while min(self._next_tick, math.inf if self._ready is None else self._ready.start_s) <= second:
            if self._ready is not None and self._ready.start_s <= self._next_tick:
                self._end_segment()
                self._serve(self._ready)
                self._ready = None
            else:
                self._tick(self._next_tick)
                self._next_tick += self._windows.tick_s

    def submit(self, second: float, rows: int) -> None:
        due_ns = round(second * 1e9)
        now_ns = max(due_ns, self._pool.free_ns)
        self._pool.advance(now_ns)
        self._pool.submit(rows, now_ns)
        self._unanswered[len(self._due)] = self._lateness.began(due_ns)
        self._due.append(due_ns)
        self._arrived += 1

    def finish(self) -> Served:
        self._end_segment()
        return Served(
            np.concatenate(self._latency),
            np.concatenate(self._options),
            tuple(self._segments),
            tuple(self._decisions),
        )

    def _tick(self, second: float) -> None:
        self._pool.advance(second * 1e9)
        ended, late = self._count_answers(second * 1e9)
        seen = Observation(second, self._arrived, self._pool.queued, self._segments[-1].option, ended=ended, late=late)
        self._state, decision = decide(self._plan, self._windows, self._state, seen)
        if decision.reason is not Reason.STEADY:
            self._decisions.append(decision)
        if decision.option != self._segments[-1].option and self._ready is None:
            load_s = self._plan.options[decision.option].load_seconds
            self._ready = Segment(second + load_s, second, decision.option)

    def _serve(self, segment: Segment) -> None:
        option = self._plan.options[segment.option]
        self._pool = VirtualPool(limited(option.placement), self._service(option))
        self._due: list[int] = []
        # Number of a request in the count of late ones, by its number in the pool.
        self._unanswered: dict[int, int] = {}
        self._lateness.model_replaced()
        self._segments.append(segment)

    def _count_answers(self, now_ns: float) -> tuple[int, int]:
        """Count the answers since the last call, and return the counts of ended and of late requests.

        These are the requests so far that ended or are overdue, and the late ones among them.
        """
        for number, request in list(self._unanswered.items()):
            if (at_ns := self._pool.answer_ns(number)) is not None:
                self._lateness.answered(request, at_ns)
                del self._unanswered[number]
        return self._lateness.counts(now_ns)

    def _end_segment(self) -> None:
        found = self._pool.finish()
        due_ns = np.array(self._due, np.int64)
        self._latency.append(np.where(found.refused, np.inf, (found.finished_ns - due_ns) / 1e6))
        self._options.append(np.full(len(due_ns), self._segments[-1].option, np.int64))


def machine_outcome(
    served: Served, options: Sequence[Option], end_s: float, objective: Objective, core_price_per_hour: float
) -> MachineOutcome:
    """Summarise what a machine served until a second."""
    latency = served.latency_ms
    losses = np.array([option.loss for option in options])
    used = _used(served.segments, options, end_s)
    return MachineOutcome(
        requests=len(latency),
        late=float((latency > objective.slo_ms).mean()),
        refused=float(np.isinf(latency).mean()),
        **_percentiles(latency),
        loss=float(losses[served.options].mean()),
        replica_seconds=used["replicas"],
        core_seconds=used["cores"],
        money=used["cores"] / 3600 * core_price_per_hour,
        switches=len(served.segments) - 1,
        switch_seconds=_median([segment.start_s - segment.loaded_s for segment in served.segments[1:]]),
        planned_switch_seconds=_median([options[segment.option].load_seconds for segment in served.segments[1:]]),
    )


def _median(seconds: Sequence[float]) -> float | None:
    return float(np.median(seconds)) if seconds else None


def _percentiles(latency_ms: Floats) -> dict[str, float | None]:
    found = {f"p{percent}_ms": float(percentile(latency_ms, percent)) for percent in (50, 95, 99)}
    return {name: value if math.isfinite(value) else None for name, value in found.items()}


def _used(segments: Sequence[Segment], options: Sequence[Option], end_s: float) -> Mapping[str, float]:
    """Return the seconds of replicas and of cores, those in which they load included."""
    used = {"replicas": 0.0, "cores": 0.0}
    ends = [*(segment.start_s for segment in segments[1:]), end_s]
    for segment, end in zip(segments, ends, strict=True):
        option, seconds = options[segment.option], max(end - segment.loaded_s, 0.0)
        used["replicas"] += seconds * option.placement.replicas
        used["cores"] += seconds * option.cores
    return used
