"""Search space of a study: defaults of the model family and the machine, replaced by the study file's settings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from objectives.records import LOW_RANK, PRUNING, Prepared
from objectives.serving.devices import computes_bf16, cores_allowed, kernel_unit, places_here
from search.config.space_sections import DistillationConfig, PlacementConfig, SpaceConfig, TablesConfig
from search.config.yaml_reader import show
from search.errors import ConfigError
from spaces.domains import Choice, Domain, Scalar
from spaces.model_structure import ModelStructure
from spaces.search_space import SearchSpace
from spaces.techniques.embeddings import SMALLEST
from spaces.techniques.placement import BF16_ENGINE, PlacementSpace, layouts
from spaces.techniques.pruning import IMPORTANCES, ways_to_prune
from spaces.techniques.quantization import CALIBRATIONS, WIDTHS, PrecisionSpace
from spaces.weights import FULL, MIXED, SHARED, TableSpace, WeightsSpace

# Passes over train in a cycle of a smaller model's training; more where the baseline took more to its best, and fewer
# where they would take longer than this at the baseline's speed. The search goes on for another cycle where it pays.
_EPOCHS, _CYCLES = 5, 4
_FIT_SECONDS = 30.0
# 0 leaves a group whole while another is pruned. The remaining size of a dimension is rounded to what kernels handle
# well, which may be half of it: in a dimension of two such steps, 0.25 and less round to nothing, and the trial fails.
# From 0.3 on, every ratio removes something from every prunable dimension; 0.3, 0.6, 0.9 are the three ways to prune
# one of four steps. Ratios that leave a group in the same shape are offered once.
RATIOS = (0.0, 0.3, 0.45, 0.6, 0.75, 0.9)
# Few settings of distillation, as of the forms of tables below, since each is a training of its own: between
# temperatures from 1 to 8 three seeds showed no difference of quality (tests/benchmarks/RESULTS.md).
TEMPERATURE = Choice((1.0, 2.0, 4.0))
_NOT_SOFTENED = Choice((1.0,))
TEACHER_WEIGHT = Choice((0.25, 0.5, 0.75))
FEATURE_WEIGHT = Choice((0.0,))
STEPS = Choice((1, 3))
# Two factors of half the rank are as large as a square layer; those of less are smaller.
RANKS = Choice((1.0, 0.375, 0.25, 0.125))
# Positions of an attention that is not sparse.
_ALL = Choice((0,))
TABLE_FORMS = Choice((FULL, SHARED, MIXED))
FULL_ROWS = Choice((0.05, 0.15, 0.3, 0.5))
TABLE_TEMPERATURE = Choice((0.15, 0.3, 0.6))


def space_for(given: SpaceConfig, prepared: Prepared, epochs: int | None = None) -> SearchSpace:
    """Build every knob of the study; the row limits of a placement follow the median request.

    Args:
        epochs: epochs of a cycle of training, where the study file gives none; None for those of `epochs_for`

    Raises:
        ConfigError: the study file names an unavailable group, size, engine or width; it lists the available ones.
    """
    epochs = epochs or epochs_for(prepared.training, prepared.epoch_seconds)
    return SearchSpace(
        _weights(given, prepared, given.distillation.epochs or epochs),
        _precision(given, prepared),
        _placement(given.placement, prepared),
    )


def epochs_for(training: Mapping[str, object], epoch_seconds: float) -> int:
    """Return the epochs of a cycle of a smaller model's training, each one pass over train.

    Args:
        training: facts of the baseline's, as far as they are known
        epoch_seconds: seconds of an epoch at the baseline's speed; 0 where they are neither known nor in `training`
    """
    best, history, seconds, passes = (training.get(name) for name in ("best_epoch", "history", "seconds", "passes"))
    wanted = _EPOCHS
    if isinstance(best, int) and isinstance(history, Sequence) and isinstance(seconds, int | float):
        of_epoch = passes if isinstance(passes, int) else 1
        wanted, epoch_seconds = max(_EPOCHS, (best + 1) * of_epoch), float(seconds) / (len(history) * of_epoch)
    return max(1, min(wanted, int(_FIT_SECONDS / max(epoch_seconds, 1e-3))))


def _weights(given: SpaceConfig, prepared: Prepared, epochs: int) -> WeightsSpace:
    groups = prepared.structure.groups
    student: dict[str, Domain] = {name: Choice(tuple(values)) for name, values in prepared.student.items()}
    unit = kernel_unit()
    prunable = [g for g in groups if g.prunable and prepared.refused(g.modules, PRUNING) is None]
    factorable = [g for g in groups if g.factorable and prepared.refused(g.modules, LOW_RANK) is None]
    ratios: dict[str, Domain] = {g.name: Choice(ways_to_prune(g, RATIOS, unit)) for g in prunable}
    ranks: dict[str, Domain] = {group.name: RANKS for group in factorable}
    pruning = _replaced("space.pruning", ratios, given.pruning)
    low_rank = _replaced("space.low_rank", ranks, given.low_rank)
    learning = given.distillation
    if learning.feature_weight is not None and not prepared.featured and learning.feature_weight != Choice((0.0,)):
        raise ConfigError(
            "space.distillation.feature_weight: must be [0] for this model, whose factory names no hidden module"
        )
    temperature = learning.temperature or (TEMPERATURE if prepared.softened else _NOT_SOFTENED)
    if not prepared.softened and _highest(temperature) != 1:
        raise ConfigError(
            "space.distillation.temperature: must be [1] for this model, whose outputs are values, which have none"
        )
    space = WeightsSpace(
        architecture=_sizes(student, given.architecture, prepared.built),
        own=prepared.sizes,
        pruning={group: d for group, d in pruning.items() if _highest(d) > 0},
        distillation={
            "temperature": temperature,
            "teacher_weight": learning.teacher_weight or TEACHER_WEIGHT,
            "feature_weight": learning.feature_weight or FEATURE_WEIGHT,
        },
        epochs=epochs,
        importance=Choice(given.pruning_importance or IMPORTANCES),
        steps=Choice(given.pruning_steps or STEPS.values),
        multiple=unit,
        low_rank={group: d for group, d in low_rank.items() if isinstance(d, Choice) and len(d.values) > 1},
        tables=_tables(given.tables, prepared),
        window=_looked_at("space.attention.window", given.attention.window, prepared.history),
        history=_looked_at("space.attention.history", given.attention.history, prepared.history),
        quantization_aware=_allowed(
            "space.quantization_aware", given.quantization_aware, (False, True), prepared.unlearnable
        ),
        cycles=Choice(tuple(range(1, 1 + (learning.cycles or (_CYCLES if learning.epochs is None else 1))))),
    )
    return space if learning.train == "separate" else _elastic(space, learning, prepared)


def _elastic(space: WeightsSpace, learning: DistillationConfig, prepared: Prepared) -> WeightsSpace:
    """Return the space with an elastic network for each origin whose shapes are nested in the model.

    Where slices are demanded, the techniques that are not trained in an elastic network are left out.
    """
    known = {name: Choice(values) for name, values in prepared.student.items()}
    nested = prepared.nested and all(
        isinstance(domain, Choice) and all(value in known[name] for value in domain.values)
        for name, domain in space.architecture.items()
    )
    held = {"student": nested and bool(space.architecture), "pruned": bool(space.pruning)}
    sliced = {origin: learning.elastic_epochs or space.epochs for origin in space.origins if held.get(origin, False)}
    if learning.train == "elastic" and not sliced:
        raise ConfigError(
            "space.distillation.train: must be auto or separate for this space, which has neither students of the "
            "model's own family and its sizes nor groups that can be pruned, but got elastic"
        )
    tuned = Choice(learning.fine_tuning or (0, space.epochs))
    space = replace(space, elastic_epochs=sliced, fine_tuning=tuned)
    if learning.train == "auto":
        return space
    architecture = space.architecture if "student" in sliced else {}
    return replace(space, architecture=architecture, low_rank={}, tables={}, window=_ALL, history=_ALL)


def _precision(given: SpaceConfig, prepared: Prepared) -> PrecisionSpace:
    kinds = {group.name: group.kind for group in prepared.structure.groups}
    chosen = dict(given.precision or {})
    stored = _stored(chosen, prepared.structure)
    widths: dict[str, Choice] = {}
    for name, modules in stored.items():
        offered = WIDTHS.get(kinds.get(name, "table"), ("fp32",))
        widths[name] = Choice(tuple(width for width in offered if not prepared.refused(modules, width)))
    compute: tuple[str, ...] = ("fp32", "bf16") if BF16_ENGINE in places_here() and computes_bf16() else ("fp32",)
    computes = _subset("space.precision.compute", chosen.pop("compute", None), compute)
    calibrations = Choice(chosen.pop("calibration", CALIBRATIONS))
    for group, asked in chosen.items():
        if group in kinds and group not in widths:
            raise ConfigError(f"space.precision.{group}: must be left out, since each of its tables is named by itself")
        if group not in widths:
            raise ConfigError(f"space.precision.{group}: unknown group or table; the model has {', '.join(widths)}")
        for width in asked:
            if (reason := prepared.refused(stored[group], str(width))) is not None:
                raise ConfigError(f"space.precision.{group}: {width} must be left out for this model: {reason}")
        widths[group] = _subset(f"space.precision.{group}", asked, [str(v) for v in widths[group].values])
    return PrecisionSpace(widths, computes, calibrations)


def _stored(named: Collection[str], structure: ModelStructure) -> Mapping[str, tuple[str, ...]]:
    """Return the parts with a width of their own; where a group of tables is named, only tables that are named too."""
    whole = any(group.kind == "table" and group.name in named for group in structure.groups)
    asked = (table.name for table in structure.tables if table.name in named)
    return structure.stored((*asked, *(() if whole else structure.heavy_tables())))


def _sizes(offered: Mapping[str, Domain], given: Mapping[str, Domain] | None, built: bool) -> Mapping[str, Domain]:
    """Return the sizes of a sibling; a factory that builds siblings and names no sizes accepts the study file's."""
    if given and not built:
        raise ConfigError("space.architecture: must be left out for this model, whose factory has no build(shape)")
    return dict(given or {}) if built and not offered else _replaced("space.architecture", offered, given)


def _highest(domain: Domain) -> float:
    return max(map(float, domain.values)) if isinstance(domain, Choice) else domain.high


def _tables(given: TablesConfig, prepared: Prepared) -> dict[str, TableSpace]:
    """Return the forms of tables that may have several; with equal lookup frequencies, mixed dimensions do nothing."""
    rows = {table.name: table.rows for table in prepared.structure.tables if table.form_refused is None}
    stored = prepared.structure.stored(prepared.structure.heavy_tables())
    large = {name: {m for m in modules if rows.get(m, 0) >= SMALLEST} for name, modules in stored.items()}

    def refused(name: str, form: str) -> str | None:
        if form == MIXED and large[name] <= set(prepared.even_tables):
            return "these data, which look up every id as often"
        reason = prepared.refused(stored[name], form)
        return None if reason is None else f"this model: {reason}"

    asked = given.form or TABLE_FORMS.values
    forms = {name: tuple(f for f in asked if refused(name, str(f)) is None) for name in large if large[name]}
    unfit = sorted(f"this model: {t.form_refused}" for t in prepared.structure.tables if t.form_refused is not None)
    for form in given.form or ():
        reasons = [refused(name, form) for name in forms]
        if form != FULL and None not in reasons and (why := [*filter(None, reasons), *unfit]):
            raise ConfigError(f"space.tables.form: {form} must be left out for {why[0]}")
    full_rows, temperature = given.full_rows_share or FULL_ROWS, given.temperature or TABLE_TEMPERATURE
    return {name: TableSpace(Choice(of), full_rows, temperature) for name, of in forms.items() if len(of) > 1}


def _looked_at(field: str, given: tuple[int, ...] | None, history: int | None) -> Choice:
    """Return the positions of an attention over a history of this length, None where the model has none."""
    if history is None:
        return _allowed(field, given, (0,), "it reads no history")
    for size in given or ():
        if size >= history:
            raise ConfigError(
                f"{field}: must be 0 (all) or below the {history} positions of the history, but got {size}"
            )
    return Choice(given or tuple(dict.fromkeys((0, history // 8, history // 4, history // 2))))


def _allowed(field: str, given: tuple[Scalar, ...] | None, default: tuple[Scalar, ...], refused: str | None) -> Choice:
    """Return the values of a knob, of which the model may refuse all but the default's first, which is off."""
    off = default[:1]
    if given is not None and refused is not None and given != off:
        raise ConfigError(f"{field}: must be {show(off)} for this model, but got {show(given)}: {refused}")
    return Choice(off if refused is not None else given or default)


def _placement(given: PlacementConfig, prepared: Prepared) -> PlacementSpace:
    rows, places, cores = prepared.median_rows, places_here(), cores_allowed()
    several = cores > 1
    user_once = _allowed("space.placement.user_once", given.user_once, (False, True), prepared.user_once_refused)
    refused = _catalogue_refused(prepared, user_once)
    score_catalogue = _allowed("space.placement.score_catalogue", given.score_catalogue, (False, True), refused)
    # Another engine on the same CPU is no faster; an accelerator's tables may be on the host, or the reverse.
    embedding_devices = given.embedding_device or (None if any(":" in place for place in places) else ("same",))
    return PlacementSpace(
        engine=_subset("space.placement.engines", given.engines, places),
        layout=_subset("space.placement.layouts", given.layouts, layouts(cores)),
        pinned=Choice(given.pinned or ((False, True) if several else (False,))),
        inline=Choice(given.inline or (False, True)),
        batch_rows=_allowed(
            "space.placement.batch_rows", given.batch_rows, (0, 2 * rows, 8 * rows), _unbatched(prepared)
        ),
        batch_wait_us=Choice(given.batch_wait_us or (0, 200)),
        split_rows=_allowed(
            "space.placement.split_rows", given.split_rows, (0, rows) if several else (0,), prepared.rows_interact
        ),
        route_rows=Choice(given.route_rows or ((0, rows, 2 * rows) if len(places) > 1 else (0,))),
        embedding_device=_subset("space.placement.embedding_device", embedding_devices, ("same", *places)),
        user_once=user_once,
        score_catalogue=score_catalogue,
        keep_warm_ms=Choice(given.keep_warm_ms or (0.0, 2.0)),
        queue=Choice((given.queue or 0,)),
        deadline_ms=Choice((given.deadline_ms or 0.0,)),
        tables=_table_names(prepared.structure) if True in score_catalogue else (),
    )


def _table_names(structure: ModelStructure) -> tuple[str, ...]:
    """Return the names of the tables and of their groups, by which their widths are given."""
    groups = (group.name for group in structure.groups if group.kind == "table")
    return tuple(dict.fromkeys((*groups, *(table.name for table in structure.tables))))


def _unbatched(prepared: Prepared) -> str | None:
    """Return the reason why several requests cannot be run as one batch, or None."""
    if prepared.rows_interact is not None:
        return prepared.rows_interact
    if prepared.once:
        return f"a request gives its {', '.join(prepared.once)} once, and a batch has several"
    lengths = [spec.name for spec in prepared.inputs if None in spec.shape]
    return f"requests give {', '.join(lengths)} in different lengths" if lengths else None


def _catalogue_refused(prepared: Prepared, user_once: Choice) -> str | None:
    """Return the reason why the catalogue cannot be scored as a whole, or None."""
    if prepared.catalogue_refused is None and prepared.user_once_refused is None and True not in user_once:
        return "the user's side is not computed once a request"
    return prepared.catalogue_refused


def _replaced(field: str, default: Mapping[str, Domain], given: Mapping[str, Domain] | None) -> Mapping[str, Domain]:
    """Replace the domains of named knobs, and keep the others; an empty mapping switches the technique off."""
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
        raise ConfigError(f"{field}: {missing[0]!r} is not available here; available: {', '.join(offered)}")
    return Choice(tuple(given))
