"""The plan of one machine, read from the plan.json of `leanrec plan` and from the bundles that the machine has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from objectives.errors import InputError
from objectives.serving.bundle import read_bundle
from objectives.serving.control.options import ControlPlan, Option, PlannedPhase, capacity_factor, with_queue
from spaces.serialization import Json, from_plain
from spaces.techniques.placement import Placement

WEEK_SECONDS = 7 * 86400.0
# The first Monday 0:00 UTC since the epoch.
MONDAY_S = 4 * 86400.0
ModelIdentity = tuple[str, Placement]


class MachinePlan(NamedTuple):
    """Plan of one machine.

    folders: bundle of each option
    start_s: start of the plan in seconds since the epoch, None where the plan does not tell; a Monday for a weekly plan
    """

    control: ControlPlan
    folders: tuple[Path, ...]
    start_s: float | None


@dataclass(frozen=True)
class OfferedLayout:
    """An option as an offer of plan.json has it.

    replicas: of the first instance group
    load_seconds: from the decision to serve it until it serves
    """

    replicas: int
    cores: int
    capacity_rps: float
    load_seconds: float


def read_plan(path: Path) -> Json:
    """Read a plan.json.

    Raises:
        InputError: the file cannot be read, or is none.
    """
    try:
        found = json.loads(path.read_bytes())
        if not isinstance(found, dict) or not found["offers"] or not found["phases"]:
            raise ValueError("it has no offers and phases")
    except (OSError, ValueError, KeyError, RecursionError) as error:
        raise InputError(f"--plan: must be a plan.json of leanrec plan, but {path}: {error}") from error
    return found


def machine_plan(document: Json, machine: str | None, bundles: Sequence[Path]) -> MachinePlan:
    """Return the plan of a machine of a kind, on which these bundles are.

    Args:
        document: content of a plan.json
        machine: name of the kind; None where the plan has a single one

    Raises:
        InputError: the plan has no such kind, a bundle is none of its variants, or a variant that it serves on this
            kind has no bundle.
        BundleError: a bundle is not whole.
    """
    try:
        offers = offers_on(document, machine)
        held = {identity_in(folder): folder for folder in bundles}
        return _joined(document, offers, held)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        lacking = f"it lacks {error}; plan again with this version"
        but = lacking if isinstance(error, KeyError) else " ".join(str(error).split())
        raise InputError(f"--plan: must be a plan.json of leanrec plan, but {but}") from error


def repeats_after(document: Json) -> float | None:
    """Return the seconds after which the phases of a plan repeat, or None where they do not.

    They repeat after a week in the plan of a weekly profile, which is not forecast. The plan of a replay, in compressed
    time, holds `repeat_seconds` of its own.
    """
    repeat_s = document.get("repeat_seconds", WEEK_SECONDS if document["forecast"] is None else None)
    return None if repeat_s is None else float(repeat_s)


def starts_at(document: Json) -> float | None:
    """Return the start of a plan in seconds since the epoch, or None where the plan does not tell.

    A plan that repeats and has no date is weekly, and starts on a Monday 0:00 UTC.
    """
    if document["start_s"] is not None:
        return float(document["start_s"])
    return None if repeats_after(document) is None else MONDAY_S


def _begins_at(document: Json) -> float:
    """Return the second of a plan at which it begins to be followed, which only the plan of a replay has."""
    return float(document.get("begins_seconds", -math.inf))


def planned_phases(document: Json, offers: Mapping[int, Json]) -> tuple[PlannedPhase, ...]:
    """Return what each phase asks of one machine of a fleet.

    The machines share the rate of a phase equally. A phase that machines of other kinds serve asks for nothing.
    """
    return tuple(
        _planned_phase(phase, offers[phase["offer"]]) if phase["offer"] in offers else PlannedPhase(0.0, 0.0)
        for phase in document["phases"]
    )


def _planned_phase(phase: Json, offer: Json) -> PlannedPhase:
    factor = capacity_factor(phase["capacity_rps"], phase["machines"], phase["alone_rps"])
    return PlannedPhase(phase["demand_rps"] / phase["machines"] / factor, max(offer["loss"], 0.0), factor)


def options_of(offer: Json, slo_ms: float) -> tuple[Option, ...]:
    """Return the options of an offer, one for each layout that keeps the SLO at all."""
    placement = from_plain(Placement, offer["deployed"])
    layouts = [_layout(layout) for layout in offer["layouts"]]
    options = [
        Option(
            f"trial {offer['trial']}",
            max(offer["loss"], 0.0),
            placement.with_replicas(layout.replicas),
            layout.capacity_rps,
            layout.load_seconds,
            layout.cores,
        )
        for layout in layouts
        if layout.capacity_rps > 0
    ]
    return tuple(with_queue(option, slo_ms) for option in options)


def _layout(layout: Json) -> OfferedLayout:
    """Read a layout; KeyError where the plan of an earlier version lacks a field."""
    return from_plain(OfferedLayout, {each.name: layout[each.name] for each in fields(OfferedLayout)})


def offers_on(document: Json, machine: str | None) -> dict[int, Json]:
    """Return the offers on a kind of machine, by their number.

    Raises:
        InputError: the plan has no such kind, or several and none is given.
    """
    offers = document["offers"]
    kinds = sorted({offer["machine"] for offer in offers})
    if machine is None and len(kinds) > 1:
        raise InputError(f"--machine: must be given, one of {', '.join(kinds)}")
    if machine is not None and machine not in kinds:
        raise InputError(f"--machine: must be one of {', '.join(kinds)}, but got {machine!r}")
    return {offer["offer"]: offer for offer in offers if machine in (None, offer["machine"])}


def model_identity(variant: str, placement: Placement) -> ModelIdentity:
    """Identify the model files of a variant with a placement.

    The files differ where a placement splits or rewrites the graph. Placements of the same files may take each other's
    place.
    """
    return variant, placement.of_graph


def identity_in(bundle: Path) -> ModelIdentity:
    """Identify the model files of a bundle.

    Raises:
        BundleError: it is not whole.
    """
    candidate = read_bundle(bundle).candidate
    return model_identity(candidate.variant_id, candidate.placement)


def _joined(document: Json, offers: Mapping[int, Json], held: Mapping[ModelIdentity, Path]) -> MachinePlan:
    files = {
        number: model_identity(offer["variant"], from_plain(Placement, offer["deployed"]))
        for number, offer in offers.items()
    }
    for identity, folder in held.items():
        if identity not in files.values():
            raise InputError(f"BUNDLE: must be of a point that the plan offers, but {folder} is of none")
    for phase in document["phases"]:
        if phase["offer"] in offers and files[phase["offer"]] not in held:
            raise InputError(
                f"--variant: must give a bundle of each point that the plan serves, but trial {phase['trial']} has none"
            )
    pairs = [
        (option, held[files[number]])
        for number, offer in offers.items()
        if files[number] in held
        for option in options_of(offer, document["slo_ms"])
    ]
    if not pairs:
        raise InputError("--plan: must offer a point that keeps its SLO on this machine, but has none")
    phases = planned_phases(document, offers)
    options, repeat_s = tuple(option for option, _ in pairs), repeats_after(document)
    allowed, begins_s = 1 - document["percent"] / 100, _begins_at(document)
    control = ControlPlan(options, phases, document["phase_seconds"], repeat_s, document["slo_ms"], allowed, begins_s)
    return MachinePlan(control, tuple(folder for _, folder in pairs), starts_at(document))
