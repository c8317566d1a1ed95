"""Elastic server: the controller's clock, what it sees of the server, and what is done of what it decides."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from objectives.errors import ExplainedError, InputError, one_line
from objectives.serving.control.controller import Decision, Observation, Reason, State, begin, decide, resumed
from objectives.serving.control.options import Option, change
from objectives.serving.control.plan_file import MachinePlan, machine_plan, read_plan
from objectives.serving.control.timeline import Timeline, decision_facts, option_facts
from objectives.serving.control.windows import Windows
from objectives.serving.http.follower import follow
from objectives.serving.http.inference import Inference
from objectives.serving.http.intake.loop_load import reading_done
from objectives.serving.http.metrics import ControllerMetrics
from objectives.serving.http.model import Model
from objectives.serving.pool.balancing import LEAST_ROWS
from spaces.techniques.placement import Placement

_LOGGER = logging.getLogger("leanrec.serve")
# The least step of the wall clock that is followed: phases are minutes, and reading two clocks may be interrupted.
_LEAST_STEP_S = 0.5


@dataclass(frozen=True)
class ElasticSettings:
    """Settings of an elastic server.

    plan: the plan.json
    machine: kind of this machine in it; None where it has a single one
    bundles: returns the folders of all variants, at the start and at each reload
    timeline: file to which decisions are written, None for none
    follow_seconds: time between two looks at the bundles, which are reloaded where others are found; None for none
    """

    plan: Path
    machine: str | None
    bundles: Callable[[], Sequence[Path]]
    windows: Windows
    timeline: Path | None
    follow_seconds: float | None = None


class Elastic:
    """Controller of a server. `open` comes first; all else is called on the event loop's thread.

    At most one switch is under way, so that no more than two models are in memory; what is decided meanwhile is done
    after it. An option that cannot be opened is left out until the next reload, with all others of its bundle unless
    one of them serves.
    """

    _plan: MachinePlan
    _bundles: Sequence[Path]
    _state: State
    _began_s: float  # of the plan, by the monotonic clock
    _serving: int
    _broken: set[int]
    _placed: Callable[[Placement], Placement]
    _policy: str

    def __init__(self, settings: ElasticSettings, say: Callable[[str], None]) -> None:
        """Read the plan and the bundles.

        Raises:
            InputError: they do not fit one another, or the timeline cannot be written.
        """
        self._settings, self._say = settings, say
        plan, bundles = self._read()
        self._take(plan, bundles, begin(plan.control, settings.windows, _second(plan)), _second(plan))
        self._timeline = Timeline(settings.timeline)
        self._switch: asyncio.Task[None] | None = None
        self._reload = self._panicking = False

    def open(self, placed: Callable[[Placement], Placement], policy: str = LEAST_ROWS) -> Model:
        """Open the first option.

        Args:
            placed: returns the placement that takes the place of an option's, now and at each switch
            policy: of balancing, now and at each switch

        Raises:
            BundleError: it cannot be.
        """
        self._placed, self._policy = placed, policy
        model = self._opened(self._plan, self._serving)
        option = self._option
        now, control = self._now_s(), self._plan.control
        end_s = len(control.phases) * control.phase_s
        if control.repeat_s is None and not 0 <= now < end_s:
            self._say(f"warning: now is second {now:.0f} of a plan of {end_s:.0f} s: nothing is foreseen")
        self._say(f"{option.name} serves up to {option.capacity_rps:.4g} requests/s")
        self._timeline.write("start", {"second": round(now, 3), **option_facts(option)})
        return model

    def ask_reload(self) -> None:
        """Read plan and bundles again at the next tick."""
        self._reload = True

    async def run(self, inference: Inference) -> None:
        """Decide at each tick, until cancelled."""
        # The time of the load is none in which requests could have come.
        self._state = replace(begin(self._plan.control, self._settings.windows, self._now_s()), option=self._serving)
        metrics = inference.metrics.controlled()
        inference.lateness.slo_ms = self._plan.control.slo_ms
        self._note(metrics)
        following = asyncio.create_task(self._follow())
        tick_s = self._settings.windows.tick_s
        last = next_tick = time.monotonic()
        try:
            while True:
                next_tick = max(next_tick + tick_s, time.monotonic())
                await asyncio.sleep(next_tick - time.monotonic())
                now = time.monotonic()
                await reading_done()
                try:
                    self._tick(inference, metrics, now - last)
                except Exception:
                    _LOGGER.exception("the controller failed; what serves stays")
                last = now
        finally:
            following.cancel()
            if self._switch is not None:
                self._switch.cancel()
            self._timeline.close()

    async def _follow(self) -> None:
        """Ask for a reload where other bundles are found, if they are to be followed."""
        if (seconds := self._settings.follow_seconds) is not None:
            await follow(self._settings.bundles, lambda: self._bundles, seconds, self.ask_reload, self._say)

    def _tick(self, inference: Inference, metrics: ControllerMetrics, elapsed_s: float) -> None:
        idle = self._switch is None or self._switch.done()
        if self._reload and idle:
            self._reload = idle = False
            self._switch = asyncio.create_task(self._read_again(inference, metrics))
        self._follow_clock(inference)
        before = self._state.option
        seen = _seen(inference, self._now_s(), self._serving, frozenset(self._broken))
        self._state, decision = decide(self._plan.control, self._settings.windows, self._state, seen)
        self._record(before, decision, metrics, elapsed_s)
        if decision.option != self._serving and decision.option not in self._broken and idle:
            self._switch = asyncio.create_task(self._switch_to(decision.option, inference, metrics))

    def _follow_clock(self, inference: Inference) -> None:
        """Go to another second of a plan with a date, where the wall clock was set; what was seen moves along."""
        if self._plan.start_s is None or abs(step_s := _second(self._plan) - self._now_s()) < _LEAST_STEP_S:
            return
        self._began_s -= step_s
        seen = _seen(inference, self._now_s(), self._serving, frozenset(self._broken))
        moved = resumed(self._plan.control, self._settings.windows, self._state, step_s, seen)
        self._state = replace(moved, option=self._state.option)
        self._say(f"the clock was set: now is second {self._now_s():.0f} of the plan")
        self._timeline.write("clock", {"second": round(self._now_s(), 3), "step_seconds": round(step_s, 3)})

    def _record(self, before: int, decision: Decision, metrics: ControllerMetrics, elapsed_s: float) -> None:
        options = self._plan.control.options
        rates = {
            "planned": decision.planned_rps,
            "stable": decision.stable_rps,
            "panic": decision.panic_rps,
            "held": decision.held_rps,
        }
        replica_seconds = elapsed_s * options[self._serving].placement.replicas
        metrics.ticked(rates, decision.panicking, decision.correction, decision.capacity_factor, replica_seconds)
        if decision.panicking != self._panicking:
            self._timeline.write("panic" if decision.panicking else "calm", decision_facts(decision))
        self._panicking = decision.panicking
        if decision.reason is Reason.STEADY:
            return
        old, new = options[before], options[decision.option]
        metrics.changed(change(old, new), str(decision.reason))
        self._say(
            f"{change(old, new)} from {old.name} to {new.name} ({decision.reason}): {decision.held_rps:.4g} requests/s "
            f"are to be served (planned {decision.planned_rps:.4g}, stable window {decision.stable_rps:.4g}, panic "
            f"window {decision.panic_rps:.4g}), {new.capacity_rps:.4g} can be{_as_alone(decision.capacity_factor)}"
        )
        facts = {**decision_facts(decision), "change": change(old, new), **option_facts(new)}
        self._timeline.write("decision", facts)

    async def _switch_to(self, option: int, inference: Inference, metrics: ControllerMetrics) -> None:
        began = time.perf_counter()
        try:
            model = await asyncio.to_thread(self._opened, self._plan, option)
        except Exception as error:
            self._broken |= self._unusable(option)
            self._failed(self._plan.control.options[option].name, error, metrics)
            return
        self._serving = option
        seconds = time.perf_counter() - began
        metrics.loaded(seconds)
        facts = {"load_seconds": round(seconds, 3), "planned_load_seconds": self._option.load_seconds}
        await self._swap(model, inference, metrics, "serving", facts)

    def _unusable(self, option: int) -> set[int]:
        """Return the options that are left out with one that cannot be opened: all of a bundle that does not serve."""
        folders = self._plan.folders
        if folders[option] == folders[self._serving]:
            return {option}
        return {number for number, folder in enumerate(folders) if folder == folders[option]}

    async def _swap(
        self,
        model: Model,
        inference: Inference,
        metrics: ControllerMetrics,
        event: str,
        facts: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Serve a model from the next request on, and return once the old one is closed."""
        model.tell_warnings(self._say)
        self._note(metrics)
        inference.metrics.swapped("done")
        self._timeline.write(event, {"second": round(self._now_s(), 3), **option_facts(self._option), **facts})
        if (left := await inference.swap(model)) is not None:
            self._say(left)

    async def _read_again(self, inference: Inference, metrics: ControllerMetrics) -> None:
        """Read plan and bundles again, and serve what they and the requests so far ask for.

        Where they are wrong, the old ones serve on.
        """
        try:
            plan, bundles = await asyncio.to_thread(self._read)
            first = self._resumed(plan, inference).option
            model = await asyncio.to_thread(self._opened, plan, first)
        except Exception as error:
            self._failed("the new plan", error, metrics)
            return
        # The next tick sees what has come since the option was chosen.
        self._take(plan, bundles, replace(self._resumed(plan, inference), option=first), self._second_of(plan))
        inference.lateness.slo_ms = plan.control.slo_ms
        self._say("the plan was read again")
        await self._swap(model, inference, metrics, "reload")

    def _resumed(self, plan: MachinePlan, inference: Inference) -> State:
        """Return the state that goes on with what was seen, under another plan."""
        now_s, windows = self._second_of(plan), self._settings.windows
        seen = _seen(inference, now_s, self._serving)
        return resumed(plan.control, windows, self._state, now_s - self._now_s(), seen)

    def _opened(self, plan: MachinePlan, option: int) -> Model:
        placement = self._placed(plan.control.options[option].placement)
        return Model.open(plan.folders[option], lambda _: placement, self._policy)

    def _read(self) -> tuple[MachinePlan, Sequence[Path]]:
        """Read the plan and find the bundles."""
        settings, bundles = self._settings, self._settings.bundles()
        return machine_plan(read_plan(settings.plan), settings.machine, bundles), bundles

    def _second_of(self, plan: MachinePlan) -> float:
        """Return the second of a plan that takes the current one's place.

        A plan without a date and with the same phases, such as one with a newer bundle, goes on at the current second.
        """
        goes_on = plan.start_s is None and plan.control.phases == self._plan.control.phases
        return self._now_s() if goes_on else _second(plan)

    def _take(self, plan: MachinePlan, bundles: Sequence[Path], state: State, second: float) -> None:
        """Take a plan at its second, of which the state's option serves."""
        self._began_s = time.monotonic() - second
        self._plan, self._bundles, self._state, self._serving = plan, bundles, state, state.option
        self._broken = set()

    def _failed(self, name: str, error: Exception, metrics: ControllerMetrics) -> None:
        explained = isinstance(error, (ExplainedError, InputError))
        reason = " ".join(str(error).split()) if explained else one_line(error)
        metrics.failed()
        self._say(f"{name} cannot be served: {reason}")
        self._timeline.write("failed", {"second": round(self._now_s(), 3), "what": name, "reason": reason})

    def _note(self, metrics: ControllerMetrics) -> None:
        metrics.serving(self._option.capacity_rps, self._option.placement.replicas, self._option.loss)

    @property
    def _option(self) -> Option:
        """Return the option that serves."""
        return self._plan.control.options[self._serving]

    def _now_s(self) -> float:
        return time.monotonic() - self._began_s


def _as_alone(capacity_factor: float) -> str:
    """Return what is said of rates that are not those which arrive."""
    return "" if capacity_factor == 1 else f" (all of a machine alone, {capacity_factor:.4g} times as much arrives)"


def _seen(inference: Inference, now_s: float, serving: int, broken: frozenset[int] = frozenset()) -> Observation:
    ended, late = inference.lateness.counts(time.perf_counter_ns())
    return Observation(now_s, inference.arrived, inference.queued, serving, broken, ended, late)


def _second(plan: MachinePlan) -> float:
    """Return the second of a plan that it is now; a plan without a date begins now."""
    return 0.0 if plan.start_s is None else time.time() - plan.start_s
