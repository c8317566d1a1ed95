"""Reader of the plan.json that `leanrec plan` wrote."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from objectives.serving.control.plan_file import options_of
from planning.demand import DAY_SECONDS
from planning.hours_of_week import HOURS
from search.config.yaml_reader import dotted, show
from search.errors import ConfigError
from search.plan.document import OfferRow, PhaseRow, PlanDocument
from spaces.serialization import to_plain

_LONGEST_S = (HOURS + 12) * 3600.0  # a week, whose last phase may end up to half a day after it


class _Fact(NamedTuple):
    """A value that must be above 0, or at least 0, and at most `most`."""

    where: str
    value: float
    above: bool = True
    most: float = math.inf

    @property
    def rule(self) -> str:
        lowest = "above 0" if self.above else "at least 0"
        return f"{lowest} and at most {self.most:g}" if math.isfinite(self.most) else f"{lowest} and finite"

    @property
    def holds(self) -> bool:
        positive = self.value > 0 if self.above else self.value >= 0
        return math.isfinite(self.value) and positive and self.value <= self.most


def read_plan(path: Path, argument: str = "PLAN") -> PlanDocument:
    """Read a plan.

    Args:
        argument: name by which errors call the file

    Raises:
        ConfigError: the file cannot be read, is none of this version, or has a value that no plan has; the line names
            the key.
    """
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{argument}: must be a plan.json of leanrec plan, but {path}: {error}") from error
    try:
        plan = TypeAdapter(PlanDocument).validate_python(data)
    except ValidationError as error:
        raise ConfigError(f"{argument}: {_explained(error)}") from error
    for fact in _facts(plan):
        if not fact.holds:
            raise ConfigError(f"{argument}: {fact.where}: must be {fact.rule}, but got {show(fact.value)}")
    _check_phases(plan, argument)
    _check_layouts(plan, argument)
    return plan


def _explained(error: ValidationError) -> str:
    """Explain the first error: which key, what it must be, and what it was."""
    first = error.errors()[0]
    where = dotted(first["loc"]) if first["loc"] else "it"
    if first["type"] == "missing":
        return f"{where}: missing; plan again with this version"
    reason = first["msg"].removeprefix("Input should be ")
    return f"{where}: must be {reason}, but got {show(first['input'])}"


def _facts(plan: PlanDocument) -> Iterator[_Fact]:
    yield _Fact("slo_ms", plan.slo_ms)
    yield _Fact("percent", plan.percent, most=99)
    yield _Fact("phase_seconds", plan.phase_seconds, most=DAY_SECONDS)
    yield _Fact("start_s", plan.start_s or 0.0, above=False, most=1e11)
    yield _Fact("number of phases", len(plan.phases))
    yield _Fact("phases and phase_seconds", len(plan.phases) * plan.phase_seconds, most=_LONGEST_S)
    for number, offer in enumerate(plan.offers):
        yield from _offer_facts(f"offers.{number}", offer)
    for number, phase in enumerate(plan.phases):
        yield from _phase_facts(f"phases.{number}", phase)


def _offer_facts(where: str, offer: OfferRow) -> Iterator[_Fact]:
    for name in ("most", "copies", "cores", "replicas", "machine_cores"):
        yield _Fact(f"{where}.{name}", getattr(offer, name), most=100_000)
    for name in ("machine_speed", "price_per_hour"):
        yield _Fact(f"{where}.{name}", getattr(offer, name))
    yield _Fact(f"{where}.trial", offer.trial, above=False)
    yield _Fact(f"{where}.loss", abs(offer.loss), above=False)  # below 0 where the point gains
    yield _Fact(f"{where}.load_seconds", offer.load_seconds, above=False, most=DAY_SECONDS)
    yield _Fact(f"{where}.start_seconds", offer.start_seconds, above=False, most=DAY_SECONDS)
    yield _Fact(f"{where}.memory_bytes", 1 if offer.memory_bytes is None else offer.memory_bytes)
    for number, layout in enumerate(offer.layouts):
        for name in ("replicas", "cores"):
            yield _Fact(f"{where}.layouts.{number}.{name}", getattr(layout, name), most=100_000)
        yield _Fact(f"{where}.layouts.{number}.capacity_rps", layout.capacity_rps, above=False)
        yield _Fact(f"{where}.layouts.{number}.load_seconds", layout.load_seconds, above=False, most=DAY_SECONDS)


def _phase_facts(where: str, phase: PhaseRow) -> Iterator[_Fact]:
    yield _Fact(f"{where}.machines", phase.machines, most=100_000)
    yield _Fact(f"{where}.capacity_rps", phase.capacity_rps)
    yield _Fact(f"{where}.alone_rps", phase.alone_rps, above=False)
    yield _Fact(f"{where}.expected_rps", phase.expected_rps, above=False)
    yield _Fact(f"{where}.demand_rps", phase.demand_rps, above=False)


def _check_phases(plan: PlanDocument, argument: str) -> None:
    """Check that phases follow one another and are served by offers of the plan."""
    offers = [offer.offer for offer in plan.offers]
    if len(set(offers)) < len(offers):
        raise ConfigError(f"{argument}: offers: must have different numbers, but got {show(offers)}")
    for number, phase in enumerate(plan.phases):
        start_s = number * plan.phase_seconds
        if not math.isclose(phase.start_s, start_s, abs_tol=1e-6):
            raise ConfigError(
                f"{argument}: phases.{number}.start_s: must be {start_s:g}, but got {show(phase.start_s)}"
            )
        if phase.offer not in offers:
            raise ConfigError(
                f"{argument}: phases.{number}.offer: must be one of {show(offers)}, but got {phase.offer}"
            )


def _check_layouts(plan: PlanDocument, argument: str) -> None:
    """Check that each offer has a placement, which its layouts fit."""
    for number, offer in enumerate(plan.offers):
        try:
            options_of(to_plain(offer), plan.slo_ms)
        except (KeyError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise ConfigError(f"{argument}: offers.{number}.deployed: must be a placement, but {reason}") from error
