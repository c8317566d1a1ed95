"""The space of a study: what the model and the machine offer, overridden by the study file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
import pytest
from optuna.trial import FixedTrial

from objectives.compression.low_rank import rank_of
from objectives.records import Artifact, InputSpec, Prepared
from search.config import defaults
from search.config.defaults import RANKS, RATIOS, epochs_for, space_for
from search.config.study_file import parse
from search.errors import ConfigError
from spaces.candidate import Candidate
from spaces.domains import Choice, FixedValues
from spaces.model_structure import AxisSlice, Group, ModelStructure, PrunableDim, Table
from spaces.search_space import SearchSpace
from spaces.techniques.attention import Attention
from spaces.techniques.embeddings import SMALLEST
from spaces.techniques.pruning import IMPORTANCES, kept_units
from spaces.techniques.quantization import CALIBRATIONS, LINEAR_WIDTHS, TABLE_WIDTHS


def width(name: str, units: int) -> tuple[PrunableDim, ...]:
    return (PrunableDim(name, units, (AxisSlice(f"{name}.weight", 0),)),)


# As of SASRec with one head: its attention cannot be pruned, its tables and MLPs can.
ANATOMY = ModelStructure(
    (
        Group("tables", "table", ("tables.item",), 5000, width("tables.item", 48)),
        Group("attention", "attention", ("blocks.0.q", "blocks.0.k"), 4608, (), "each block has one head"),
        Group("mlp", "linear", ("blocks.0.inner",), 2304, width("blocks.0.inner", 48)),
        Group("head", "other", ("norm",), 96, (), "left whole"),
    ),
    (Table("tables.item", 5000, ("history", "item")),),
)

WAYS = (0.0, 0.3, 0.6)  # of 48 units in vectors of 16
STUDENT = {"embedding_dim": [16, 32, 48], "blocks": [1, 2]}


def prepared(**changes: Any) -> Prepared:
    given: dict[str, Any] = {
        "key": "k",
        "holdout": "holdouts/h",
        "structure": ANATOMY,
        "student": STUDENT,
        "inputs": (InputSpec("history", "int64", (50,), 100, "user"), InputSpec("item", "int64", (), 100)),
        "baseline": Artifact("base", "base/model.onnx", {}, 5000, 0.0),
        "split": "by user",
        "rows": {},
        "users": 3,
        "training": {},
        "references": {},
        "history": 50,
    }
    return Prepared(**{**given, **changes})


def space(given: Mapping[str, Any] | None = None, median_rows: int = 100, **changes: Any) -> SearchSpace:
    config = parse({"name": "s", "data": {"source": "ml-100k"}, "space": given or {}})
    return space_for(config.space, prepared(**{"median_rows": median_rows, **changes}))


def refused(given: Mapping[str, Any], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        space(given, **changes)
    line = str(caught.value)
    assert len(line.splitlines()) == 1
    return line


def values(domain: Any) -> tuple[Any, ...]:
    found: tuple[Any, ...] = domain.values
    return found


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cores, vectors of 16 numbers, bf16 and two engines."""
    for name, value in {
        "cores_allowed": 2,
        "kernel_unit": 16,
        "computes_bf16": True,
        "places_here": ("onnxruntime", "openvino"),
    }.items():
        monkeypatch.setattr(defaults, name, lambda value=value: value)


# --- elastic networks ---


def train(how: str, **more: Any) -> dict[str, Any]:
    return {"distillation": {"train": how, **more}}


def test_networks_are_offered_for_what_is_nested_and_can_be_pruned() -> None:
    assert space().weights.elastic_epochs == {} == space(train("separate"), nested=True).weights.elastic_epochs
    weights = space(train("auto"), nested=True).weights
    assert weights.elastic_epochs == {"student": weights.epochs, "pruned": weights.epochs}
    assert weights.fine_tuning == Choice((0, weights.epochs)) and weights.low_rank and values(weights.window) != (0,)
    assert space(train("auto")).weights.elastic_epochs.keys() == {"pruned"}
    other = {**train("auto"), "architecture": {"embedding_dim": [16, 24]}}
    assert space(other, nested=True).weights.elastic_epochs.keys() == {"pruned"}
    own = space({**train("auto", elastic_epochs=3, fine_tuning=[2]), "pruning": {}}, nested=True).weights
    assert (own.elastic_epochs, own.fine_tuning) == ({"student": 3}, Choice((2,)))


def test_slices_alone_leave_out_what_no_network_holds() -> None:
    weights = space(train("elastic"), nested=True).weights
    assert (weights.low_rank, weights.tables, values(weights.window), values(weights.history)) == ({}, {}, (0,), (0,))
    assert weights.elastic_epochs.keys() == {"student", "pruned"} and weights.architecture
    assert space(train("elastic")).weights.origins == ("baseline", "pruned"), "students are not nested"


def test_slices_alone_need_a_network() -> None:
    line = refused({**train("elastic"), "pruning": {}})
    assert line.startswith("space.distillation.train: must be auto or separate") and line.endswith("but got elastic")


# --- the weights ---


@pytest.mark.parametrize(("rows", "offered"), [(SMALLEST - 1, set()), (SMALLEST, {"tables"})])
def test_tables_that_a_core_holds_anyway_keep_their_form(rows: int, offered: set[str]) -> None:
    structure = replace(ANATOMY, tables=(Table("tables.item", rows, ("item",)),))
    assert set(space(structure=structure).weights.tables) == offered


SHARED = ModelStructure(
    (Group("tables", "table", ("tables.user", "tables.item", "tables.hour"), 9, (), "tied"),),
    (Table("tables.user", 500, ("user",)), Table("tables.item", 400, ("item",)), Table("tables.hour", 24, ("hour",))),
)


def test_heavy_tables_are_stored_each_in_its_own_way() -> None:
    found = space(structure=SHARED)
    assert {name: values(d) for name, d in found.precision.widths.items()} == dict.fromkeys(
        ("tables", "tables.user", "tables.item"), TABLE_WIDTHS
    )
    assert set(found.weights.tables) == {"tables.user", "tables.item"}, "hours are few"
    drawn = draws(found, 200)
    mixed = {tuple(width for _, width in candidate.precision.widths) for candidate in drawn}
    assert any(len(set(widths)) == 3 for widths in mixed)
    assert {form.group for candidate in drawn for form in candidate.weights.table_forms} == {
        "tables.user",
        "tables.item",
    }


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ({"tables": ["fp32", "int8"]}, {"tables"}),
        ({"tables.hour": ["fp32", "int8"]}, {"tables.user", "tables.item", "tables.hour"}),
        ({"tables": ["fp32"], "tables.hour": ["fp32", "int8"]}, {"tables", "tables.hour"}),
    ],
)
def test_the_study_file_says_which_tables_are_alike(asked: dict[str, Any], stored: set[str]) -> None:
    widths = space({"precision": asked}, structure=SHARED).precision.widths
    assert set(widths) == stored
    assert all(values(widths[name]) == tuple(given) for name, given in asked.items())


def test_a_table_that_there_is_not_is_refused() -> None:
    line = refused({"precision": {"tables.town": ["fp32"]}}, structure=SHARED)
    assert re.match(r"space\.precision\.tables\.town: .*tables, tables\.user, tables\.item", line)


def test_dimensions_are_mixed_where_rows_are_looked_up_unevenly() -> None:
    forms = {name: values(table.form) for name, table in space(structure=SHARED).weights.tables.items()}
    every = ("full", "quotient-remainder", "mixed-dimensions")
    assert forms == {"tables.user": every, "tables.item": every}
    even = space(structure=SHARED, even_tables=("tables.user",)).weights.tables
    assert {n: values(t.form) for n, t in even.items()} == forms | {"tables.user": every[:2]}
    mixed = {"tables": {"form": ["full", "mixed-dimensions"]}}
    assert set(space(mixed, structure=SHARED, even_tables=("tables.user",)).weights.tables) == {"tables.item"}


def test_dimensions_that_nothing_mixes_are_refused_where_they_are_asked_for() -> None:
    even = ("tables.user", "tables.item")
    said = refused({"tables": {"form": ["full", "mixed-dimensions"]}}, structure=SHARED, even_tables=even)
    assert said.startswith("space.tables.form: mixed-dimensions")


def test_a_group_of_tables_that_are_all_named_is_refused() -> None:
    named = {table.name: ["fp32"] for table in SHARED.tables}
    assert refused({"precision": {"tables": ["fp32"], **named}}, structure=SHARED).startswith(
        "space.precision.tables: "
    )


def test_every_technique_is_offered_to_the_groups_that_it_fits() -> None:
    weights = space().weights
    assert weights.architecture == {"embedding_dim": Choice((16, 32, 48)), "blocks": Choice((1, 2))}
    assert set(weights.pruning) == {"tables", "mlp"}, "what cannot be pruned is not"
    assert set(weights.low_rank) == {"attention", "mlp"}, "tables and the rest have no factors"
    assert set(weights.tables) == {"tables"}
    assert values(weights.tables["tables"].form) == ("full", "quotient-remainder", "mixed-dimensions")
    assert (values(weights.importance), values(weights.steps), weights.multiple) == (IMPORTANCES, (1, 3), 16)
    assert values(weights.quantization_aware) == (False, True)
    assert set(weights.distillation) == {"temperature", "teacher_weight", "feature_weight"}
    assert weights.origins == ("baseline", "student", "pruned")


@pytest.mark.parametrize(
    ("history", "offered"),
    [(50, (0, 6, 12, 25)), (200, (0, 25, 50, 100)), (8, (0, 1, 2, 4)), (3, (0, 1)), (1, (0,)), (None, (0,))],
)
def test_sparse_attention_follows_the_length_of_the_history(history: int | None, offered: tuple[int, ...]) -> None:
    weights = space(history=history).weights
    assert values(weights.window) == values(weights.history) == offered


def test_the_study_file_says_what_each_knob_may_be() -> None:
    weights = space(
        {
            "architecture": {"blocks": [1]},
            "pruning": {"mlp": [0, 0.25]},
            "pruning_importance": ["taylor"],
            "pruning_steps": [2, 4],
            "low_rank": {"mlp": [1.0, 0.5]},
            "tables": {"form": ["full", "quotient-remainder"], "full_rows_share": [0.1], "temperature": 0.3},
            "attention": {"window": [0, 49], "history": [0]},
            "quantization_aware": [False],
            "distillation": {"temperature": [2.0], "feature_weight": [0.0, 0.1], "epochs": 2},
        }
    ).weights
    assert weights.architecture == {"embedding_dim": Choice((16, 32, 48)), "blocks": Choice((1,))}
    assert weights.pruning == {"tables": Choice(WAYS), "mlp": Choice((0.0, 0.25))}, "what is not named keeps its own"
    assert (values(weights.importance), values(weights.steps)) == (("taylor",), (2, 4))
    assert weights.low_rank == {"attention": RANKS, "mlp": Choice((1.0, 0.5))}
    table = weights.tables["tables"]
    assert (values(table.form), values(table.full_rows_share)) == (("full", "quotient-remainder"), (0.1,))
    assert values(table.temperature) == (0.3,)
    assert (values(weights.window), values(weights.history)) == ((0, 49), (0,))
    assert values(weights.quantization_aware) == (False,)
    assert (values(weights.distillation["temperature"]), weights.epochs) == ((2.0,), 2)
    assert values(weights.distillation["feature_weight"]) == (0.0, 0.1)


@pytest.mark.parametrize(("unit", "ways"), [(16, (0.0, 0.3, 0.6)), (8, (0.0, 0.3, 0.45, 0.6, 0.9))])
def test_ratios_that_leave_the_same_units_are_one(
    unit: int, ways: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """48 units go in whole vectors: of 16, that is 32 (33.6 and 26.4 are asked for) or 16 (19.2, 12 and 4.8)."""
    monkeypatch.setattr(defaults, "kernel_unit", lambda: unit)
    assert space().weights.pruning == {"tables": Choice(ways), "mlp": Choice(ways)}


@pytest.mark.parametrize(
    ("units", "ways"), [(10, (0.0, 0.3, 0.6)), (16, (0.0, 0.45)), (18, (0.0, 0.3, 0.6)), (1, None)]
)
def test_a_group_may_always_stay_whole(
    units: int, ways: tuple[float, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """8 and 4 of 10 stay, 8 of 16, 16 and 8 of 18; a width of one unit cannot be cut."""
    monkeypatch.setattr(defaults, "kernel_unit", lambda: 8)
    group = Group("mlp", "linear", ("mlp.0",), 100, width("mlp.0", units))
    assert space(structure=ModelStructure((group,))).weights.pruning == ({"mlp": Choice(ways)} if ways else {})


def test_the_baselines_own_sizes_are_known_to_the_space() -> None:
    own = {"embedding_dim": 48, "blocks": 2}
    assert space(sizes=own).weights.own == own
    assert space().weights.own == {}, "a factory names none"


def test_what_is_switched_off_is_no_road() -> None:
    """A technique that is switched off, or that may only be what the baseline is, is not offered."""
    off: dict[str, Any] = {"pruning": {}, "low_rank": {}, "tables": {"form": "full"}, "quantization_aware": [False]}
    off["attention"] = {"window": [0], "history": [0]}
    weights = space(off).weights
    assert (weights.pruning, weights.low_rank, weights.tables) == ({}, {}, {})
    assert weights.origins == ("baseline", "student")
    assert space({**off, "architecture": {}}).weights.origins == ("baseline",)
    whole = space({**off, "low_rank": {"mlp": [1.0], "attention": 1.0}}).weights
    assert whole.low_rank == {} and whole.origins == ("baseline", "student")
    rounding = {**off, "quantization_aware": [False, True]}
    assert "pruned" in space(rounding).weights.origins, "the baseline's weights may learn to be rounded"
    fp32 = space({**rounding, "precision": {"mlp": ["fp32"], "attention": ["fp32", "int8-dynamic"]}})
    assert fp32.weights.origins == ("baseline", "student"), "nothing is in static int8, whose rounding is learned"
    assert set(space({"low_rank": {"mlp": [1.0]}}).weights.low_rank) == {"attention"}
    for one in ({"pruning": {"mlp": [0.5]}}, {"low_rank": {"mlp": [1.0, 0.25]}}, {"attention": {"window": [0, 8]}}):
        assert "pruned" in space({**off, **one}).weights.origins


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"architecture": {"depth": [1]}}, "space.architecture.depth: .*embedding_dim, blocks"),
        ({"pruning": {"attention": [0.5]}}, "space.pruning.attention: .*tables, mlp"),
        ({"low_rank": {"tables": [1.0, 0.5]}}, "space.low_rank.tables: .*attention, mlp"),
        ({"low_rank": {"head": [1.0, 0.5]}}, "space.low_rank.head: .*attention, mlp"),
        ({"attention": {"window": [0, 8, 50]}}, "space.attention.window: .*50"),
        ({"attention": {"history": [0, 64]}}, "space.attention.history: .*50 .*64"),
        ({"precision": {"cross": ["fp32"]}}, "space.precision.cross: .*tables, attention, mlp, head"),
        (
            {"precision": {"mlp": ["fp32", "int2"]}},
            "space.precision.mlp: 'int2' .*: fp32, int8-dynamic, int8-static, int4, int4-dynamic",
        ),
        (
            {"precision": {"tables": ["fp32", "int8-dynamic"]}},
            "space.precision.tables: 'int8-dynamic' .*: fp32, fp16, int8, int4, int2",
        ),
        ({"precision": {"head": ["fp32", "int4"]}}, "space.precision.head: 'int4' .*: fp32"),
        (
            {"placement": {"engines": ["onnxruntime", "onnxruntime:cuda"]}},
            "space.placement.engines: 'onnxruntime:cuda' .*: onnxruntime, openvino",
        ),
        (
            {"placement": {"embedding_device": ["same", "onnxruntime:cuda"]}},
            "space.placement.embedding_device: 'onnxruntime:cuda' .*: same, onnxruntime, openvino",
        ),
    ],
)
def test_what_the_model_and_the_machine_do_not_have_is_refused(given: dict[str, Any], line: str) -> None:
    assert re.match(line, refused(given))


@pytest.mark.parametrize("name", ["window", "history"])
def test_a_model_without_a_history_has_no_sparse_attention(name: str) -> None:
    assert re.match(rf"space\.attention\.{name}: .*\[0, 8\]", refused({"attention": {name: [0, 8]}}, history=None))
    assert values(space({"attention": {name: [0]}}, history=None).weights.window) == (0,)


# --- the ratios and the ranks that are offered by default ---


def test_every_ratio_takes_something_of_every_width_that_can_be_cut() -> None:
    """A ratio that rounds to nothing would fail the whole trial."""
    ratios = [ratio for ratio in RATIOS if ratio > 0]
    assert 0.0 in RATIOS and len(ratios) == len(RATIOS) - 1
    whole = [
        (units, ratio, multiple, size)
        for units in range(2, 1025)
        for ratio in ratios
        for multiple in (8, 16)
        for size in (1, 2, 10, 16, 50)
        if kept_units(units, ratio, multiple, size) >= units
    ]
    assert whole == []


def test_every_rank_gains_something_on_a_square_layer() -> None:
    """A rank gains something where r (m + n) < m n.

    For m = n, that is less than half of the full rank. The sizes are those above which whole vectors leave a choice.
    """
    for size in range(33, 1025):
        for share in values(RANKS)[1:]:
            rank = rank_of(size, size, share)
            assert rank is not None and rank * 2 * size < size * size
    assert values(RANKS)[0] == 1.0
    assert [size for size in range(16, 1025, 16) if rank_of(size, size, 0.5) is not None] == []


# --- the widths ---


def test_each_kind_of_group_has_its_widths() -> None:
    precision = space().precision
    assert {group: values(domain) for group, domain in precision.widths.items()} == {
        "tables": TABLE_WIDTHS,
        "attention": LINEAR_WIDTHS,
        "mlp": LINEAR_WIDTHS,
        "head": ("fp32",),
    }
    assert values(precision.compute) == ("fp32", "bf16")
    assert values(precision.calibration) == CALIBRATIONS


def test_the_study_file_says_which_widths() -> None:
    given = {"tables": ["fp32", "int4", "int2"], "compute": "fp32", "calibration": ["entropy"]}
    precision = space({"precision": given}).precision
    assert values(precision.widths["tables"]) == ("fp32", "int4", "int2")
    assert values(precision.widths["mlp"]) == LINEAR_WIDTHS
    assert (values(precision.compute), values(precision.calibration)) == (("fp32",), ("entropy",))


@pytest.mark.parametrize(("engines", "bf16"), [(("onnxruntime",), True), (("onnxruntime", "openvino"), False)])
def test_bf16_needs_an_engine_and_a_cpu_that_have_it(
    engines: tuple[str, ...], bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "places_here", lambda: engines)
    monkeypatch.setattr(defaults, "computes_bf16", lambda: bf16)
    assert values(space().precision.compute) == ("fp32",)
    assert re.fullmatch(
        "space.precision.compute: 'bf16' .*: fp32", refused({"precision": {"compute": ["fp32", "bf16"]}})
    )


# --- the placement ---


def test_where_a_placement_cuts_follows_the_median_request() -> None:
    alone = space(median_rows=30, rows_interact="scores depend on each other").placement
    assert values(alone.batch_rows) == values(alone.split_rows) == (0,)
    placement = space(median_rows=30).placement
    assert values(placement.batch_rows) == (0, 60, 240)
    assert (values(placement.split_rows), values(placement.route_rows)) == ((0, 30), (0, 30, 60))
    assert values(placement.embedding_device) == ("same",), "another engine on the same CPU looks up no faster"
    assert values(placement.user_once) == (False, True)
    given = space({"placement": {"batch_rows": [0, 7], "queue": 5, "embedding_device": ["same", "openvino"]}}).placement
    assert (values(given.batch_rows), values(given.queue)) == ((0, 7), (5,))
    assert values(given.embedding_device) == ("same", "openvino")


def test_one_core_and_one_engine_leave_less_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defaults, "cores_allowed", lambda: 1)
    monkeypatch.setattr(defaults, "places_here", lambda: ("onnxruntime",))
    placement = space().placement
    assert (values(placement.pinned), values(placement.split_rows)) == ((False,), (0,))
    assert (values(placement.engine), values(placement.route_rows)) == (("onnxruntime",), (0,))


def test_an_accelerators_tables_may_lie_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    places = ("onnxruntime", "onnxruntime:cuda")
    monkeypatch.setattr(defaults, "places_here", lambda: places)
    assert values(space().placement.embedding_device) == ("same", *places)


def test_a_model_whose_users_side_cannot_be_computed_once() -> None:
    reason = "it gives a request's history once already"
    assert values(space(user_once_refused=reason).placement.user_once) == (False,)
    line = refused({"placement": {"user_once": [False, True]}}, user_once_refused=reason)
    assert re.match(rf"space\.placement\.user_once: .*\[false\] .*true\]: {reason}", line)


def test_the_catalogue_is_scored_whole_where_there_is_one_vector() -> None:
    assert values(space().placement.score_catalogue) == (False, True)
    reason = "a request of 200 rows takes less than a tenth"
    assert values(space(catalogue_refused=reason).placement.score_catalogue) == (False,)
    line = refused({"placement": {"score_catalogue": [False, True]}}, catalogue_refused=reason)
    assert re.match(rf"space\.placement\.score_catalogue: .*\[false\] .*true\]: {reason}", line)
    assert values(space(user_once_refused="it is given once").placement.score_catalogue) == (False, True)
    given: dict[str, Any] = {"placement": {"user_once": [False]}}
    assert values(space(given).placement.score_catalogue) == (False,)
    given["placement"]["score_catalogue"] = [False, True]
    assert "not computed once" in refused(given)


def test_engines_may_be_kept_warm() -> None:
    assert values(space().placement.keep_warm_ms) == (0.0, 2.0)
    assert values(space({"placement": {"keep_warm_ms": [0, 0.5]}}).placement.keep_warm_ms) == (0.0, 0.5)
    for wrong in ([2], [0, -1], [0, float("inf")], [0, 250], [0, 0.001]):
        assert refused({"placement": {"keep_warm_ms": wrong}}).startswith("space.placement.keep_warm_ms")


def test_a_model_that_takes_its_history_once_is_not_batched() -> None:
    assert values(space().placement.batch_rows) == (0, 200, 800)
    assert values(space(once=("history",)).placement.batch_rows) == (0,)
    assert values(space({"placement": {"batch_rows": [0]}}, once=("history",)).placement.batch_rows) == (0,)
    line = refused({"placement": {"batch_rows": [0, 64]}}, once=("history",))
    assert re.match(r"space\.placement\.batch_rows: .*\[0\] .*\[0, 64\]: .*history", line)


# --- what is drawn from it ---


def draws(whole: SearchSpace, count: int) -> list[Candidate]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [whole.suggest(study.ask()) for _ in range(count)]


def test_every_technique_is_drawn_and_none_beyond_what_is_offered() -> None:
    whole = space()
    drawn = [candidate.weights for candidate in draws(whole, 400)]
    ratios = {pair for w in drawn if w.pruning for pair in w.pruning.ratios}
    assert ratios == {(group, ratio) for group in ("tables", "mlp") for ratio in WAYS[1:]}
    shares = {pair for w in drawn if w.low_rank for pair in w.low_rank.shares}
    assert shares == {(group, share) for group in ("attention", "mlp") for share in values(RANKS)[1:]}
    windows = {w.attention.window for w in drawn if w.attention}
    histories = {w.attention.history for w in drawn if w.attention}
    assert windows == histories == {None, 6, 12, 25}
    assert {form.group for w in drawn for form in w.table_forms} == {"tables"}
    assert any(w.quotient_remainder for w in drawn) and any(w.mixed_dimensions for w in drawn)
    assert {w.pruning.importance for w in drawn if w.pruning} == set(IMPORTANCES)
    assert {w.pruning.steps for w in drawn if w.pruning} == {1, 3}
    assert {w.pruning.multiple for w in drawn if w.pruning} == {16}
    assert any(w.quantization_aware for w in drawn)


def test_the_first_trials_are_the_baseline_and_the_middle_of_each_road() -> None:
    whole = space()
    candidates = [whole.suggest(FixedTrial(knobs)) for knobs in whole.starts()]
    assert candidates[0].is_baseline
    roads = ["student", "pruned", "pruned", "student", "baseline"]
    origins = [candidate.weights.origin for candidate in candidates]
    assert origins == ["baseline", *roads, "student", *roads, *roads[:-1]]
    assert candidates[6].weights.previous == candidates[1].weights
    pruning = candidates[2].weights.pruning
    assert pruning is not None and pruning.ratios == (("mlp", 0.3), ("tables", 0.3))
    for number, candidate in enumerate(candidates):
        weights = candidate.weights
        assert (weights.low_rank, weights.table_forms) == (None, ())
        assert weights.attention == (Attention(None, 6) if number in (3, 9, 14) else None)


# --- narrowed to what is worth compressing ---


def test_groups_out_of_focus_are_in_no_technique() -> None:
    whole = space()
    narrow = whole.within({"mlp"})
    weights = narrow.weights
    assert (set(weights.pruning), set(weights.low_rank), dict(weights.tables)) == ({"mlp"}, {"mlp"}, {})
    assert {group: values(domain) for group, domain in narrow.precision.widths.items()} == {
        "tables": ("fp32",),
        "attention": ("fp32",),
        "mlp": LINEAR_WIDTHS,
        "head": ("fp32",),
    }
    assert replace(weights, pruning={}, low_rank={}, tables={}) == replace(
        whole.weights, pruning={}, low_rank={}, tables={}
    )
    assert narrow.placement == whole.placement
    for candidate in draws(narrow, 200):
        named = {group for group, width in candidate.precision.widths if width != "fp32"}
        named |= {form.group for form in candidate.weights.table_forms} | set(candidate.weights.quantization_aware)
        for part in (candidate.weights.pruning, candidate.weights.low_rank):
            named |= {group for group, _ in (getattr(part, "ratios", None) or getattr(part, "shares", ()))}
        assert named <= {"mlp"}


def test_nothing_in_focus_leaves_a_student_and_sparse_attention() -> None:
    assert space().within(()).weights.origins == ("baseline", "student", "pruned")
    assert space(history=None).within(()).weights.origins == ("baseline", "student")


def test_a_model_that_cannot_learn_its_rounding() -> None:
    assert space().weights.quantization_aware.values == (False, True)
    reason = "its training cannot be one graph for all batches"
    assert space(unlearnable=reason).weights.quantization_aware.values == (False,)
    line = refused({"quantization_aware": [False, True]}, unlearnable=reason)
    assert re.match(rf"space\.quantization_aware: .*\[false\] .*true\]: {reason}", line)


def test_layers_that_cannot_be_factors_have_no_ranks() -> None:
    whole = [group.name for group in ANATOMY.groups if group.kind in ("linear", "attention")]
    assert set(space().weights.low_rank) == set(whole)
    groups = tuple(replace(g, unfactorable_reason="it fails") if g.name == whole[0] else g for g in ANATOMY.groups)
    assert set(space(structure=replace(ANATOMY, groups=groups)).weights.low_rank) == set(whole[1:])


@pytest.mark.parametrize(
    ("training", "epoch_seconds", "epochs"),
    [
        ({}, 0.0, 5),
        ({}, 5.9, 5),
        ({}, 12.0, 2),
        ({}, 500.0, 1),
        ({"best_epoch": 1, "history": [0.6, 0.7, 0.6], "seconds": 15.0}, 0.0, 5),
        ({"best_epoch": 1, "history": [0.6, 0.7, 0.6], "seconds": 30.0}, 0.0, 3),
        ({"best_epoch": 14, "history": [0.1] * 20, "seconds": 20.0}, 0.0, 15),
        ({"best_epoch": 14, "history": [0.1] * 20, "seconds": 20.0, "passes": 3}, 0.0, 45),
        ({"best_epoch": 14, "history": [0.1] * 20, "seconds": 200.0, "passes": 3}, 0.0, 9),
        ({"best_epoch": 14, "history": [0.1] * 20, "seconds": 2000.0, "passes": 1}, 0.0, 1),
    ],
)
def test_a_cycle_takes_as_long_as_the_baseline_did_as_far_as_that_is_short(
    training: dict[str, object], epoch_seconds: float, epochs: int
) -> None:
    """Twenty validations, so 60 passes of three in each, in 200 s: 9 passes take 30 s."""
    assert epochs_for(training, epoch_seconds) == epochs


def test_a_temperature_is_drawn_only_where_it_changes_a_training() -> None:
    """Values have none, and where the teacher does not count, all temperatures are the same training."""
    assert values(space().weights.distillation["temperature"]) == (1.0, 2.0, 4.0)
    assert values(space(softened=False).weights.distillation["temperature"]) == (1.0,)
    line = refused({"distillation": {"temperature": [1, 4]}}, softened=False)
    assert line.startswith("space.distillation.temperature: must be [1] for this model")
    assert space({"distillation": {"temperature": [1]}}, softened=False)
    weights = space({"distillation": {"temperature": [2, 4], "teacher_weight": [0.0, 0.5]}}).weights
    student = {"weights.origin": "student", "distillation.temperature": 4.0}
    for teacher_weight, temperature in ((0.0, 1.0), (0.5, 4.0)):
        drawn = weights.suggest(FixedValues({**student, "distillation.teacher_weight": teacher_weight}), ())
        assert drawn.distillation is not None
        assert (drawn.distillation.teacher_weight, drawn.distillation.temperature) == (teacher_weight, temperature)


def test_a_training_may_go_on_unless_the_study_file_gives_its_epochs() -> None:
    def cycles(**given: Any) -> tuple[Any, ...]:
        return values(space({"distillation": given}).weights.cycles)

    assert cycles() == (1, 2, 3, 4) and cycles(epochs=3) == (1,)
    assert cycles(cycles=2) == (1, 2) == cycles(cycles=2, epochs=3)
