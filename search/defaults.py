"""The space of one study: what the family and the machine offer, with what the study file says in its place."""

from __future__ import annotations

from collections.abc import Mapping

from objectives.record import Prepared
from objectives.serving.devices import computes_bf16, cores_allowed, places_here
from search.sections import PlacementConfig, SpaceConfig
from search.study_yaml import ConfigError
from spaces.domains import Choice, Domain, Float, Scalar
from spaces.placement import layouts
from spaces.placement_space import BF16_ENGINE, PlacementSpace
from spaces.precision import LINEAR_WIDTHS, TABLE_WIDTHS
from spaces.space import SearchSpace

PASSES = 5
RATIOS = Float(0.25, 0.9, step=0.05)
TEMPERATURE = Float(1.0, 8.0, log=True)
TEACHER_WEIGHT = Float(0.0, 1.0)


def space_for(given: SpaceConfig, prepared: Prepared, median_rows: int) -> SearchSpace:
    """Every knob of the study; where a placement cuts, by rows, follows the median request.

    Raises:
        ConfigError: the study file names a group, size, engine or width that is not there, with those that are.
    """
    anatomy = prepared.anatomy
    student: dict[str, Domain] = {name: Choice(tuple(values)) for name, values in prepared.student.items()}
    ratios: dict[str, Domain] = {group.name: RATIOS for group in anatomy.groups if group.prunable}
    widths = {g.name: Choice(TABLE_WIDTHS if g.kind == "table" else LINEAR_WIDTHS) for g in anatomy.groups}
    compute: tuple[str, ...] = ("fp32", "bf16") if BF16_ENGINE in places_here() and computes_bf16() else ("fp32",)
    chosen = dict(given.precision or {})
    computes = _subset("space.precision.compute", chosen.pop("compute", None), compute)
    for group, asked in chosen.items():
        if group not in widths:
            raise ConfigError(f"space.precision.{group}: unknown group; the model has {', '.join(widths)}")
        widths[group] = _subset(f"space.precision.{group}", asked, [str(v) for v in widths[group].values])
    learning = given.distillation
    return SearchSpace(
        architecture=_replaced("space.architecture", student, given.architecture),
        pruning=_replaced("space.pruning", ratios, given.pruning),
        distillation={
            "temperature": learning.temperature or TEMPERATURE,
            "teacher_weight": learning.teacher_weight or TEACHER_WEIGHT,
        },
        precision=widths,
        compute=computes,
        placement=_placement(given.placement, prepared, median_rows),
        passes=learning.passes or PASSES,
    )


def _placement(given: PlacementConfig, prepared: Prepared, median_rows: int) -> PlacementSpace:
    places, cores = places_here(), cores_allowed()
    refused = prepared.user_once_refused
    if given.user_once is not None and True in given.user_once and refused is not None:
        raise ConfigError(f"space.placement.user_once: must be [false] for this model, but got true: {refused}")

    def domain(listed: tuple[Scalar, ...] | None, default: tuple[Scalar, ...]) -> Choice:
        return Choice(default if listed is None else listed)

    several = cores > 1
    return PlacementSpace(
        engine=_subset("space.placement.engines", given.engines, places),
        layout=_subset("space.placement.layouts", given.layouts, layouts(cores)),
        pinned=domain(given.pinned, (False, True) if several else (False,)),
        inline=domain(given.inline, (False, True)),
        batch_rows=domain(given.batch_rows, (0, 2 * median_rows, 8 * median_rows)),
        batch_wait_us=domain(given.batch_wait_us, (0, 200)),
        split_rows=domain(given.split_rows, (0, median_rows) if several else (0,)),
        route_rows=domain(given.route_rows, (0, median_rows, 2 * median_rows) if len(places) > 1 else (0,)),
        lookup=_subset("space.placement.lookup", given.lookup, ("same", *places)) if given.lookup else _lookup(places),
        user_once=domain(given.user_once, (False, True) if refused is None else (False,)),
        queue=Choice((given.queue or 0,)),
        deadline_ms=Choice((given.deadline_ms or 0.0,)),
    )


def _lookup(places: tuple[str, ...]) -> Choice:
    """Another engine on the same CPU looks up no faster; an accelerator's tables may lie on the host, or the other
    way round."""
    return Choice(("same", *places)) if any(":" in place for place in places) else Choice(("same",))


def _replaced(field: str, default: Mapping[str, Domain], given: Mapping[str, Domain] | None) -> Mapping[str, Domain]:
    """An empty mapping switches the technique off; a named knob takes the given domain, the rest keep theirs."""
    if given is None:
        return default
    unknown = [name for name in given if name not in default]
    if unknown:
        raise ConfigError(f"{field}.{unknown[0]}: unknown; there are {', '.join(default) or 'none'}")
    return {**default, **given} if given else {}


def _subset(field: str, given: tuple[str, ...] | None, offered: tuple[str, ...] | list[str]) -> Choice:
    if given is None:
        return Choice(tuple(offered))
    missing = [value for value in given if value not in offered]
    if missing:
        raise ConfigError(f"{field}: {missing[0]!r} is not to be had here; there are {', '.join(offered)}")
    return Choice(tuple(given))
