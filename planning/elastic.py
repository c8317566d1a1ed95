"""An elastic server on the virtual clock.

The controller of `leanrec serve` and the scheduler of its pool run here with service times in place of models.

During a switch two models share the machine's cores: from the decision until the new one serves, its loading occupies
one core, and after that the old one still answers what it has accepted. A run that begins while more cores are busy
than the machine has, its own included, takes longer by that factor (processor sharing, decided when a run begins).
Without a switch a run takes its measured time, in which replicas of one model have their influence on each other.
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
from objectives.serving.http.limits import Limits
from objectives.serving.pool.virtual_pool import ServiceTime, VirtualPool
from planning.capacity import Objective
from planning.demand import Counts, Floats
from planning.fleet import MAX_IN_FLIGHT, as_served

# Seconds for which a switch waits for the old model's last answer: `leanrec serve --drain-seconds`.
_DRAIN_SECONDS = Limits.drain_seconds
STATIC_MEAN, STATIC_PEAK, REACTIVE, ELASTIC = "static, mean", "static, peak", "reactive", "planned + reactive"


@dataclass(frozen=True)
class Segment:
    """An option that serves from a second on; `loaded_s` is when its loading began, also before second 0."""

    start_s: float
    loaded_s: float
    option: int


@dataclass(frozen=True, eq=False)
class Served:
    """Requests that an elastic server got.

    latency_ms: (n,) from the arrival, infinite where a request was refused
    options: (n,) number of the option that served each
    segments: what served when
    decisions: for another option, in seconds of the simulation
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
    cores: int,
    begins_s: float = 0.0,
    end_s: float = 0.0,
) -> Served:
    """Simulate a machine that is controlled from a second of the plan on, until its last request or later.

    Args:
        seconds: (n,) ascending arrival times of the requests, from 0
        rows: (n,) rows of each
        service: returns the service time of an option
        cores: of the machine
        begins_s: second of the plan at which second 0 of the simulation lies
        end_s: second of the simulation until which it is controlled where its last request comes before

    Raises:
        OutsideRangeError: a run has a size for which no time was measured.
    """
    machine = _Machine(plan, windows, service, cores, begins_s)
    for second, size in zip(seconds.tolist(), rows.tolist(), strict=True):
        machine.advance(second)
        machine.submit(second, size)
    machine.advance(end_s)
    return machine.finish()


class _Model:
    """The pool of an option that serves or has served, and the requests that it got.

    requests: number of them
    unanswered: number of a request in the count of late ones, by its number in the pool
    """

    def __init__(self, segment: Segment, option: Option, service: Callable[[_Model], ServiceTime]) -> None:
        self.segment, self.option = segment, option
        self._cores = _replica_cores(option)
        self.pool = VirtualPool(as_served(option.placement), service(self))
        self.requests = 0
        self.unanswered: dict[int, int] = {}

    def busy_cores(self, begins: int | None = None) -> float:
        """Return the cores of the replicas that run, and of one of an instance group that is about to begin."""
        busy = sum(count * cores for count, cores in zip(self.pool.busy, self._cores, strict=True))
        return busy if begins is None else busy + self._cores[begins]

    def latency_ms(self) -> Floats:
        """Return the latencies of all requests, once they are answered."""
        found = self.pool.finish()
        return np.where(found.refused, np.inf, (found.finished_ns - found.submitted_ns) / 1e6)


def _replica_cores(option: Option) -> tuple[float, ...]:
    """Return the cores of a replica of each instance group.

    Replicas whose engine chooses the threads share the cores of the option that the others leave.
    """
    groups = option.placement.instance_groups
    given = sum(group.replicas * (group.threads or 0) for group in groups)
    automatic = sum(group.replicas for group in groups if not group.threads)
    return tuple(float(group.threads or (option.cores - given) / automatic) for group in groups)


class _Machine:
    """A machine on the virtual clock.

    A switch takes the load time of the new option. Meanwhile the old option serves, and it answers all requests that it
    has accepted; they count among the requests in flight. The next switch begins once they are answered, or at the end
    of the time that a server waits for them.
    """

    def __init__(
        self,
        plan: ControlPlan,
        windows: Windows,
        service: Callable[[Option], ServiceTime],
        cores: int,
        begins_s: float,
    ) -> None:
        self._plan, self._windows, self._service, self._begins_s = plan, windows, service, begins_s
        self._cores = cores
        self._state = begin(plan, windows, begins_s)
        self._next_tick = windows.tick_s
        self._ready: Segment | None = None  # what is being loaded
        self._models: list[_Model] = []  # all so far; the last one serves
        self._draining: list[_Model] = []  # those before it that have requests
        self._decisions: list[Decision] = []
        self._arrived, self._lateness = 0, Lateness()
        self._lateness.slo_ms = plan.slo_ms
        self._serve(Segment(0.0, 0.0, self._state.option))

    def advance(self, second: float) -> None:
        """Handle ticks and finished loads up to a second, in their order."""
        while min(self._next_tick, math.inf if self._ready is None else self._ready.start_s) <= second:
            if self._ready is not None and self._ready.start_s <= self._next_tick:
                self._advance_pools(self._ready.start_s * 1e9)
                self._serve(self._ready)
                self._ready = None
            else:
                self._tick(self._next_tick)
                self._next_tick += self._windows.tick_s

    def submit(self, second: float, rows: int) -> None:
        now_ns, model = round(second * 1e9), self._models[-1]
        self._advance_pools(now_ns)
        if self._draining and self._in_flight_limit_reached():
            model.pool.refuse(now_ns)
        else:
            model.pool.submit(rows, now_ns)
        model.unanswered[model.requests] = self._lateness.began(now_ns)
        model.requests += 1
        self._arrived += 1

    def finish(self) -> Served:
        if self._ready is not None:  # it loads on, and gets no request
            self._advance_pools(self._ready.start_s * 1e9)
            self._ready = None
        self._advance_pools(math.inf)
        return Served(
            np.concatenate([model.latency_ms() for model in self._models]),
            np.concatenate([np.full(model.requests, model.segment.option) for model in self._models]),
            tuple(model.segment for model in self._models),
            tuple(self._decisions),
        )

    def _in_flight_limit_reached(self) -> bool:
        return sum(model.pool.requests for model in (*self._draining, self._models[-1])) >= MAX_IN_FLIGHT

    def _advance_pools(self, now_ns: float) -> None:
        """Handle the events of all pools up to a time, in their order."""
        while self._draining:
            pools = [model.pool for model in (*self._draining, self._models[-1])]
            first = min(pools, key=lambda pool: pool.next_ns)
            if first.next_ns > now_ns:
                return
            first.advance(first.next_ns)
            self._draining = [model for model in self._draining if model.pool.requests]
        self._models[-1].pool.advance(now_ns)

    def _tick(self, second: float) -> None:
        self._advance_pools(second * 1e9)
        model = self._models[-1]
        ended, late = self._count_answers(second * 1e9)
        now_s, serving = self._begins_s + second, model.segment.option
        seen = Observation(now_s, self._arrived, model.pool.queued, serving, ended=ended, late=late)
        self._state, decision = decide(self._plan, self._windows, self._state, seen)
        if decision.reason is not Reason.STEADY:
            self._decisions.append(replace(decision, now_s=second))
        settled = not self._draining or second >= model.segment.start_s + _DRAIN_SECONDS
        if decision.option != serving and self._ready is None and settled:
            load_s = self._plan.options[decision.option].load_seconds
            self._ready = Segment(second + load_s, second, decision.option)

    def _serve(self, segment: Segment) -> None:
        self._draining = [model for model in (*self._draining, *self._models[-1:]) if model.pool.requests]
        self._models.append(_Model(segment, self._plan.options[segment.option], self._shared_service))
        self._lateness.model_replaced()

    def _shared_service(self, model: _Model) -> ServiceTime:
        """Return the service time of a model on cores that it may share with others."""
        alone = self._service(model.option)

        def shared(group: int, rows: int, idle_ns: int | None, busy: int) -> float:
            taken_ns = alone(group, rows, idle_ns, busy)
            if self._ready is None and not self._draining:
                return taken_ns
            others = (other for other in (*self._draining, self._models[-1]) if other is not model)
            beside = (self._ready is not None) + sum(other.busy_cores() for other in others)
            wanted = beside + model.busy_cores(begins=group) if beside else 0.0
            return taken_ns * max(1.0, wanted / self._cores)

        return shared

    def _count_answers(self, now_ns: float) -> tuple[int, int]:
        """Count the answers since the last call, and return the counts of ended and of late requests.

        These are the requests so far that ended or are overdue, and the late ones among them.
        """
        model = self._models[-1]
        for number, request in list(model.unanswered.items()):
            if (at_ns := model.pool.answer_ns(number)) is not None:
                self._lateness.answered(request, at_ns)
                del model.unanswered[number]
        return self._lateness.counts(now_ns)


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
    """Return the seconds of replicas and of cores from second 0 on, those in which they load included."""
    used = {"replicas": 0.0, "cores": 0.0}
    ends = [*(segment.start_s for segment in segments[1:]), end_s]
    for segment, end in zip(segments, ends, strict=True):
        option, seconds = options[segment.option], max(end - max(segment.loaded_s, 0.0), 0.0)
        used["replicas"] += seconds * option.placement.replicas
        used["cores"] += seconds * option.cores
    return used
