"""Options of a machine: variants with the numbers of their replicas, what each can serve, and when which is planned."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from spaces.techniques.placement import Admission, Placement

# Difference by which losses count as different.
_SAME_LOSS = 1e-12
# Requests wait for so long in any case, so that a pause of the machine is made up for.
_LEAST_WAIT_S = 1.0


@dataclass(frozen=True)
class Option:
    """A variant with a placement on this machine.

    variant: name of the variant, which is its bundle's
    loss: quality loss that counts, 0 or more
    capacity_rps: highest rate at which the SLO is kept
    load_seconds: from the decision to serve it until it serves
    cores: that its replicas use
    """

    variant: str
    loss: float
    placement: Placement
    capacity_rps: float
    load_seconds: float
    cores: int

    @property
    def name(self) -> str:
        """Variant and layouts, replicas x threads of each instance group."""
        return f"{self.variant} {' + '.join(group.layout for group in self.placement.instance_groups)}"


def with_queue(option: Option, slo_ms: float) -> Option:
    """Return the option with a limit of the requests that wait: what it answers within the SLO, or a second.

    In a surge, more would be late, and would keep the cores and the next switch from the variant that is to take over.
    A limit that the placement has stays. Each instance group has the whole limit: where the placement routes, twice as
    many may wait.
    """
    placement, admission = option.placement, option.placement.admission
    if admission.queue is not None or math.isinf(slo_ms):
        return option
    queue = max(1, math.ceil(option.capacity_rps * max(slo_ms / 1e3, _LEAST_WAIT_S)))
    return replace(option, placement=replace(placement, admission=Admission(queue, admission.deadline_ms)))


@dataclass(frozen=True)
class PlannedPhase:
    """A phase of a plan, as one machine of a fleet sees it.

    rate_rps: capacity alone that this machine is to have
    loss: of the variant that is planned
    capacity_factor: factor by which the capacity of a machine exceeds that alone: where requests are dealt in turn to
        several machines, each gets them at more even times
    """

    rate_rps: float
    loss: float
    capacity_factor: float = 1.0


@dataclass(frozen=True)
class ControlPlan:
    """Options of a machine, and the phases of its plan, from second 0 on; outside of them nothing is foreseen.

    phases: of `phase_s` seconds each; none for a rule that only reacts
    repeat_s: seconds after which the phases repeat, as those of a week do; None where they do not
    begins_s: second of the plan at which it begins to be followed; before it, what is foreseen is that of this second
    slo_ms: milliseconds after which an answer is late
    allowed_late: share of late answers that the SLO tolerates
    """

    options: tuple[Option, ...]
    phases: tuple[PlannedPhase, ...] = ()
    phase_s: float = 1.0
    repeat_s: float | None = None
    slo_ms: float = math.inf
    allowed_late: float = 0.05
    begins_s: float = -math.inf

    def __post_init__(self) -> None:
        if not self.options or min(option.capacity_rps for option in self.options) <= 0:
            raise ValueError(f"A plan has one option or more, of a capacity above 0, but got {self.options}.")
        if not self.phase_s > 0:
            raise ValueError(f"A phase is longer than 0 s, but got {self.phase_s}.")
        if self.repeat_s is not None and not self.repeat_s > 0:
            raise ValueError(f"Phases repeat after more than 0 s, but got {self.repeat_s}.")

    @property
    def lead_s(self) -> float:
        """Seconds before a phase at which its option is to be loaded."""
        return max(option.load_seconds for option in self.options)

    def foreseen(self, from_s: float, until_s: float) -> PlannedPhase | None:
        """Return the highest rate of the phases from one moment until another, with loss and factor of the last phase.

        None where there is no phase.
        """
        until_s += max(self.begins_s - from_s, 0.0)
        from_s = max(from_s, self.begins_s)
        first, last = (int(moment // self.phase_s) for moment in (from_s, until_s))
        moments = [from_s, *(number * self.phase_s for number in range(first + 1, last + 1)), until_s]
        phases = [phase for phase in map(self._phase_at, moments) if phase is not None]
        return replace(phases[-1], rate_rps=max(phase.rate_rps for phase in phases)) if phases else None

    def capacity_factor(self, second: float) -> float:
        """Return the capacity factor of the phase at a second.

        Before the first phase it is that of the first, and behind the last one that of the last: the machines of a
        fleet are not ordered away.
        """
        if not self.phases:
            return 1.0
        number = self._number_at(max(second, self.begins_s))
        return self.phases[min(max(number, 0), len(self.phases) - 1)].capacity_factor

    def _phase_at(self, moment: float) -> PlannedPhase | None:
        number = self._number_at(moment)
        return self.phases[number] if 0 <= number < len(self.phases) else None

    def _number_at(self, moment: float) -> int:
        return int((moment if self.repeat_s is None else moment % self.repeat_s) // self.phase_s)


def capacity_factor(capacity_rps: float, machines: int, alone_rps: float) -> float:
    """Return the factor by which the capacity of each of several machines exceeds that of one alone, at least 1."""
    return max(capacity_rps / machines / alone_rps, 1.0) if alone_rps > 0 else 1.0


def choose(
    options: Sequence[Option], rate_rps: float, least_loss: float, left_out: Collection[int] = frozenset()
) -> int | None:
    """Choose the option that serves a rate, or None where all are left out.

    Of the options that suffice, it is the one of least loss, then of fewest cores. Where none suffices, it is the one
    of the highest capacity.

    Args:
        least_loss: variants that lose less are not used, since the plan saves their cost
    """
    allowed = usable_options(options, least_loss, left_out)
    enough = [number for number in allowed if options[number].capacity_rps >= rate_rps]
    if enough:
        return min(enough, key=lambda n: (options[n].loss, options[n].cores, -options[n].capacity_rps, n))
    return min(allowed, key=lambda n: (-options[n].capacity_rps, options[n].loss, options[n].cores, n), default=None)


def usable_options(options: Sequence[Option], least_loss: float, left_out: Collection[int]) -> list[int]:
    """Return the options that may be chosen; all that are not left out where none loses as much as `least_loss`."""
    usable = [number for number in range(len(options)) if number not in left_out]
    return [number for number in usable if options[number].loss >= least_loss - _SAME_LOSS] or usable


def change(old: Option, new: Option) -> str:
    """Name the change from one option to another."""
    if abs(new.loss - old.loss) > _SAME_LOSS:
        return "degrade" if new.loss > old.loss else "recover"
    if new.cores != old.cores:
        return "scale up" if new.cores > old.cores else "scale down"
    return "rearrange"
