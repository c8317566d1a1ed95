"""Fits of a small model of each family: every way to change its weights, one by one and several at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from objectives.build import fit as fitting
from objectives.build import model_structure
from objectives.build.fit import Fitted, fit, untrained
from objectives.build.model_structure import of_baseline, of_sibling
from objectives.build.teacher_outputs import kept_scores
from objectives.compression.distillation import Training, distil
from objectives.compression.embeddings import MixedTable, QuotientRemainderTable
from objectives.compression.low_rank import LowRankLinear
from objectives.compression.pipeline import epochs_of
from objectives.compression.structure import Traced, trace
from objectives.recommenders.families.sasrec import SASRec
from objectives.recommenders.protocol import Recommender
from spaces.techniques.architecture import Architecture
from spaces.techniques.attention import Attention
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import MixedDimensions, QuotientRemainder
from spaces.techniques.low_rank import LowRank
from spaces.techniques.pruning import IMPORTANCES, Importance, Pruning
from spaces.weights import Weights
from tests.build_tests.small import FAMILIES

Opened = Callable[[str], Recommender]
LEARNING = Distillation(2.0, 0.5, 1)
# The group that pruning, factors and rounding are tried on, its first layer, and its width (inputs, outputs).
LINEAR: Mapping[str, tuple[str, str, tuple[int, int]]] = {
    "dcn-v2": ("mlp", "mlp.0", (42, 64)),
    "dlrm": ("top", "top.0", (23, 64)),
    "sasrec": ("feed_forward", "blocks.0.feed_forward.inner", (16, 32)),
}
# A quarter of the first layer's full rank, which is that of its inputs, to multiples of 8 where there are so many.
QUARTER = {"dcn-v2": 8, "dlrm": 8, "sasrec": 4}
FACTORS = ("first", "second")
TABLE = {"dcn-v2": "tables.shop", "dlrm": "tables.shop", "sasrec": "tables.item"}
STUDENTS: Mapping[str, Architecture] = {
    "dcn-v2": Architecture((("embedding_dim", 4), ("crosses", 1), ("mlp", "16"))),
    "dlrm": Architecture((("embedding_dim", 4), ("bottom", "16"), ("top", "16"))),
    "sasrec": Architecture((("embedding_dim", 8), ("blocks", 1), ("heads", 1), ("feed_forward", 16))),
}
# The baselines', as they are opened here.
OWN_SIZES: Mapping[str, dict[str, Any]] = {
    "dcn-v2": {"embedding_dim": 8, "crosses": 2, "mlp": "64-32"},
    "dlrm": {"embedding_dim": 8, "bottom": "32", "top": "64-32"},
    "sasrec": {"embedding_dim": 16, "blocks": 2, "heads": 2, "feed_forward": 32},
}


# Other sizes of the students' programs.
WIDER: Mapping[str, Architecture] = {
    "dcn-v2": Architecture((("embedding_dim", 6), ("crosses", 1), ("mlp", "24"))),
    "dlrm": Architecture((("embedding_dim", 6), ("bottom", "24"), ("top", "24"))),
    "sasrec": Architecture((("embedding_dim", 8), ("blocks", 1), ("heads", 1), ("feed_forward", 24))),
}


def _fit(recommender: Recommender, **weights: Any) -> Fitted:
    return fit(recommender, Weights(**{"distillation": LEARNING, **weights}), 3, lambda line: None)


@pytest.fixture(scope="module")
def student(opened: Opened) -> Callable[[str], Fitted]:
    """A function of the family: its student after one epoch."""
    return cache(lambda family: _fit(opened(family), architecture=STUDENTS[family]))


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _scores(recommender: Recommender, model: nn.Module) -> Tensor:
    with torch.inference_mode():
        scores: Tensor = model.eval()(**recommender.serving_rows(100))
    return scores


def _changed(recommender: Recommender, fitted: Fitted) -> set[str]:
    """Tensors of the baseline that have another shape, or are gone."""
    before, after = _shapes(recommender.model), _shapes(fitted.model)
    return {name for name, shape in before.items() if after.get(name) != shape}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _baseline_is_left_alone(request: pytest.FixtureRequest) -> Iterator[None]:
    """A fit changes copies only."""
    names = request.fixturenames
    if "opened" not in names or "family" not in names:
        yield
        return
    model = request.getfixturevalue("opened")(request.getfixturevalue("family")).model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    yield
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_same_again_from_the_same_seed_and_from_its_file(family: str, opened: Opened, tmp_path: Path) -> None:
    recommender = opened(family)
    fitted, again = _fit(recommender), _fit(recommender)
    assert _shapes(fitted.model) == _shapes(recommender.model)
    assert fitted.structure == of_baseline(recommender).structure and fitted.ranges == {}
    assert not torch.equal(_scores(recommender, fitted.model), _scores(recommender, recommender.model))
    assert torch.equal(_scores(recommender, fitted.model), _scores(recommender, again.model))
    fitted.save(tmp_path)
    loaded = Fitted.load(tmp_path)
    assert torch.equal(_scores(recommender, loaded.model), _scores(recommender, fitted.model))
    assert (loaded.structure, loaded.ranges) == (fitted.structure, fitted.ranges)


def test_a_student_has_the_sizes_of_its_own(family: str, opened: Opened, student: Callable[[str], Fitted]) -> None:
    recommender, fitted = opened(family), student(family)
    assert _shapes(fitted.model) == _shapes(recommender.build(STUDENTS[family]))
    assert fitted.structure == of_sibling(recommender, fitted.model).structure
    assert sum(p.numel() for p in fitted.model.parameters()) < sum(p.numel() for p in recommender.model.parameters())


def test_a_student_starts_from_what_the_teacher_knows(
    family: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors of the teacher's shape start with its values, and at least one tensor does not."""
    recommender, seen = opened(family), list[dict[str, Tensor]]()

    def look(student: nn.Module, *_: Any, begun: None) -> Training:
        seen.append({name: tensor.clone() for name, tensor in student.state_dict().items()})
        return Training((0.0,), {}, {}, torch.empty(0), torch.empty(0))

    monkeypatch.setattr("objectives.build.fit.distil", look)
    name, size = {"dcn-v2": ("crosses", 1), "dlrm": ("top", "32"), "sasrec": ("blocks", 1)}[family]
    _fit(recommender, architecture=Architecture(tuple({**OWN_SIZES[family], name: size}.items())))
    theirs = recommender.model.state_dict()
    same = {name for name, tensor in seen[0].items() if theirs[name].shape == tensor.shape}
    assert same and all(torch.equal(seen[0][name], theirs[name]) for name in same)
    assert len(theirs) > len(same), "something is smaller"


def test_a_student_of_the_baselines_own_sizes_is_refused(family: str, opened: Opened) -> None:
    with pytest.raises(ValueError, match=next(iter(OWN_SIZES[family]))):
        _fit(opened(family), architecture=Architecture(tuple(OWN_SIZES[family].items())))


def test_another_number_of_heads_is_another_student(opened: Opened) -> None:
    """Another number of heads leaves the shape of each tensor, and is another student all the same."""
    fitted = _fit(opened("sasrec"), architecture=Architecture(tuple({**OWN_SIZES["sasrec"], "heads": 1}.items())))
    assert _shapes(fitted.model) == _shapes(opened("sasrec").model)


@pytest.mark.parametrize(("family", "importance"), list(zip(FAMILIES, IMPORTANCES, strict=True)))
def test_a_pruned_group_has_the_units_that_stay(family: str, importance: Importance, opened: Opened) -> None:
    recommender, (group, first, (inputs, outputs)) = opened(family), LINEAR[family]
    fitted = _fit(recommender, pruning=Pruning(((group, 0.5),), importance))
    assert _shapes(fitted.model)[f"{first}.weight"] == (outputs // 2, inputs)
    widths = {w.name: w.units for w in of_baseline(recommender).structure.group(group).dims}
    assert {w.name: w.units for w in fitted.structure.group(group).dims} == {n: u // 2 for n, u in widths.items()}
    assert _changed(recommender, fitted) == {
        cut.tensor for width in of_baseline(recommender).structure.group(group).dims for cut in width.axis_slices
    }


def test_steps_of_pruning_have_passes_of_training_between_them(family: str, opened: Opened) -> None:
    recommender, (group, *_), lines = opened(family), LINEAR[family], list[str]()
    weights = Weights(pruning=Pruning(((group, 0.75),), steps=3, multiple=4), distillation=replace(LEARNING, epochs=4))
    fitted = fit(recommender, weights, 0, lines.append)
    told = [line.partition(",")[0].partition(": ")[2] for line in lines]
    assert told == ["epoch 1 of 1", "epoch 1 of 1", "epoch 1 of 2", "epoch 2 of 2"]
    widths = of_baseline(recommender).structure.group(group).dims
    assert [w.units for w in fitted.structure.group(group).dims] == [w.units // 4 for w in widths]


def test_embeddings_narrow_everywhere(family: str, opened: Opened) -> None:
    recommender = opened(family)
    fitted = _fit(recommender, pruning=Pruning((("tables", 0.5),), multiple=4))
    shapes, whole = _shapes(fitted.model), _shapes(recommender.model)
    for name, shape in whole.items():
        if name.startswith("tables."):
            assert shapes[name] == (shape[0], shape[1] // 2)


def test_factors_take_the_place_of_a_layer(family: str, opened: Opened) -> None:
    recommender, (group, first, (inputs, outputs)) = opened(family), LINEAR[family]
    fitted = _fit(recommender, low_rank=LowRank(((group, 0.25),)))
    layer = fitted.model.get_submodule(first)
    assert isinstance(layer, LowRankLinear)
    assert (layer.in_features, layer.first.out_features, layer.out_features) == (inputs, QUARTER[family], outputs)
    assert all(isinstance(fitted.model.get_submodule(m), LowRankLinear) for m in fitted.structure.group(group).modules)


@pytest.mark.parametrize("name", ["quotient_remainder", "mixed_dimensions"])
def test_rare_ids_are_held_in_less(family: str, name: str, opened: Opened) -> None:
    recommender, of = opened(family), TABLE[family]
    form = QuotientRemainder(of, 0.1) if name == "quotient_remainder" else MixedDimensions(of, 0.5)
    fitted = _fit(recommender, **{name: (form,)})
    table = fitted.model.get_submodule(of)
    assert isinstance(table, QuotientRemainderTable if name == "quotient_remainder" else MixedTable)
    before = recommender.model.get_submodule(TABLE[family])
    rows = before.get_parameter("weight").shape[0]
    assert table(torch.arange(rows)).shape == before(torch.arange(rows)).shape
    assert _changed(recommender, fitted) == {f"{TABLE[family]}.weight"}, "too few rows elsewhere"
    held = sum(p.numel() for p in table.parameters())
    saved = before.get_parameter("weight").numel() - held
    assert saved > 0
    whole = of_baseline(recommender).structure.group("tables").parameters
    assert fitted.structure.group("tables").parameters == whole - saved


def test_frequencies_of_ids_are_those_of_train(family: str, opened: Opened) -> None:
    """Mixed dimensions go by the frequencies: the most frequent code first, summing to the lookups of train."""
    recommender = opened(family)
    (rows,) = recommender.train_rows().blocks
    for name, counts in recommender.counts(recommender.model, of_baseline(recommender).structure.tables).items():
        table = recommender.model.get_submodule(name)
        assert counts.shape == (table.get_parameter("weight").shape[0],)
        assert (np.diff(counts[1:].numpy()) <= 0).all()
        if family != "sasrec":
            codes = rows.inputs[name.removeprefix("tables.")].flatten().tolist()
            assert counts.tolist() == [codes.count(code) for code in range(len(counts))]


def test_attention_reads_no_more_than_it_is_told(opened: Opened) -> None:
    recommender = opened("sasrec")
    fitted = _fit(recommender, attention=Attention(window=2, history=4))
    assert isinstance(fitted.model, SASRec) and (fitted.model.window, fitted.model.history) == (2, 4)
    rows = recommender.serving_rows(100)
    scores, history = _scores(recommender, fitted.model), rows["history"]
    for position, matters in ((3, False), (4, False), (6, True), (7, True)):
        other = history.clone()
        other[:, position] = 1 + (history[:, position] + 5) % 300
        with torch.inference_mode():
            moved = fitted.model(history=other, item=rows["item"])
        assert torch.equal(moved, scores) is not matters, f"two blocks of window 2 see three positions, not {position}"


def test_rounding_is_learned_in_the_loop(family: str, opened: Opened, tmp_path: Path) -> None:
    recommender, (group, *_) = opened(family), LINEAR[family]
    fitted = _fit(recommender, quantization_aware=(group,))
    assert set(fitted.ranges) == set(fitted.structure.group(group).modules)
    assert all(low <= 0 <= high and low < high for low, high in fitted.ranges.values())
    assert _shapes(fitted.model) == _shapes(recommender.model)
    fitted.save(tmp_path)
    assert Fitted.load(tmp_path).ranges == fitted.ranges
    assert torch.equal(_scores(recommender, Fitted.load(tmp_path).model), _scores(recommender, fitted.model))


def _everything(family: str) -> dict[str, Any]:
    group = LINEAR[family][0]
    return {
        "quotient_remainder": (QuotientRemainder(TABLE[family], 0.2),),
        "attention": Attention(window=3, history=6) if family == "sasrec" else None,
        "pruning": Pruning((("tables", 0.5), (group, 0.5)), "taylor", 2, 4),
        "low_rank": LowRank(((group, 0.25),)),
        "distillation": Distillation(3.0, 0.7, 3, 0.1),
        "quantization_aware": (group,),
    }


@pytest.mark.slow
def test_all_at_once(family: str, opened: Opened, tmp_path: Path) -> None:
    recommender, (group, first, (_, outputs)) = opened(family), LINEAR[family]
    fitted = _fit(recommender, **_everything(family))
    assert isinstance(fitted.model.get_submodule(TABLE[family]), QuotientRemainderTable)
    layer = fitted.model.get_submodule(first)
    assert isinstance(layer, LowRankLinear) and layer.out_features == outputs // 2
    assert set(fitted.ranges) == {f"{m}.{part}" for m in fitted.structure.group(group).modules for part in FACTORS}
    assert torch.isfinite(_scores(recommender, fitted.model)).all()
    fitted.save(tmp_path)
    assert torch.equal(_scores(recommender, Fitted.load(tmp_path).model), _scores(recommender, fitted.model))


@pytest.mark.parametrize(
    ("weights", "runs"),
    [(Distillation(4.0, 0.0, 1), False), (Distillation(4.0, 0.5, 1), True), (Distillation(4.0, 0.0, 1, 0.5), True)],
)
def test_the_control_never_asks_the_teacher(family: str, weights: Distillation, runs: bool, opened: Opened) -> None:
    recommender, calls = opened(family), list[object]()
    handle = recommender.model.get_submodule(recommender.hidden).register_forward_hook(lambda *_: calls.append(1))
    try:
        _fit(recommender, architecture=STUDENTS[family], distillation=weights)
    finally:
        handle.remove()
    assert bool(calls) is runs


@pytest.mark.slow
def test_the_teacher_is_asked_once_for_all_fits(family: str, opened: Opened, tmp_path: Path) -> None:
    """The teacher runs once also where candidates are drawn anew; students are those that learned batch by batch."""
    recommender, calls = opened(family), list[int]()
    handle = recommender.model.get_submodule(recommender.hidden or "").register_forward_hook(
        lambda *args: calls.append(len(args[2]))
    )
    learning = [replace(LEARNING, epochs=epochs) for epochs in (1, 3)]
    weights = [Weights(architecture=STUDENTS[family], distillation=each) for each in learning]
    try:
        kept = [fit(recommender, each, 3, lambda line: None, tmp_path) for each in weights]
        asked = sum(calls)
        fit(recommender, weights[0], 3, lambda line: None, tmp_path)
        assert sum(calls) - asked <= recommender.train_rows().batch_size, "a batch tells how much there is to keep"
    finally:
        handle.remove()
    rows, batch = recommender.train_rows().rows, recommender.train_rows().batch_size
    assert rows <= asked <= rows + 2 * batch, "one run over all of train"
    for one, each in zip(kept, weights, strict=True):
        anew = fit(recommender, each, 3, lambda line: None)
        # Adam makes more of what the teacher's scores are rounded to, the more steps there are.
        assert torch.allclose(_scores(recommender, one.model), _scores(recommender, anew.model), atol=2e-2)


def test_what_is_too_large_to_keep_is_asked_anew(
    family: str, opened: Opened, student: Callable[[str], Fitted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("objectives.build.teacher_outputs.LARGEST", 100)
    recommender, weights = opened(family), Weights(architecture=STUDENTS[family], distillation=LEARNING)
    large = fit(recommender, weights, 3, lambda line: None, tmp_path)
    assert torch.equal(_scores(recommender, large.model), _scores(recommender, student(family).model))
    assert not list(tmp_path.iterdir())


def test_what_is_kept_gives_the_teachers_scores(family: str, opened: Opened, tmp_path: Path) -> None:
    """Kept scores equal those of running the teacher on all inputs of each batch."""
    recommender = opened(family)
    kept = kept_scores(recommender, tmp_path)
    assert kept is not None
    for batch in recommender.train_rows().epoch(torch.Generator().manual_seed(5)):
        with torch.inference_mode():
            expected = recommender.scores(recommender.outputs(recommender.model.eval(), batch.inputs))
        assert torch.allclose(kept(batch), expected, atol=1e-5)


def test_a_student_learns_what_there_is_to_learn(family: str, opened: Opened) -> None:
    """The student's training loss falls, by labels alone."""
    recommender = opened(family)

    def loss(model: nn.Module) -> float:
        inputs, labels = next(recommender.train_rows().batches(torch.Generator().manual_seed(9)))
        with torch.inference_mode():
            return float(recommender.loss(recommender.outputs(model.eval(), inputs), labels))

    short, long = (
        _fit(recommender, architecture=STUDENTS[family], distillation=Distillation(1.0, 0.0, epochs))
        for epochs in (1, 10)
    )
    assert loss(long.model) < loss(short.model)


@pytest.mark.parametrize(
    ("family", "weights", "line"),
    [
        ("dcn-v2", {"pruning": Pruning((("cross", 0.5),))}, r"'cross'.* tied"),
        ("dlrm", {"pruning": Pruning((("cross", 0.5),))}, r"groups .*'cross'"),
        ("sasrec", {"pruning": Pruning((("attention", 0.1),))}, r"0\.1 of 'attention'.*\[2, 2\]"),
        ("dcn-v2", {"low_rank": LowRank((("mlp", 0.9),))}, r"0\.9.*'mlp'"),
        ("dlrm", {"low_rank": LowRank((("tables", 0.25),))}, r"'tables'.* kind table"),
        ("dcn-v2", {"quotient_remainder": (QuotientRemainder("mlp", 0.1),)}, r"'mlp'.* kind linear"),
        (
            "dlrm",
            {"quotient_remainder": (QuotientRemainder("tables", 0.999),)},
            r"QuotientRemainder\(.*256 rows",
        ),
        ("sasrec", {"mixed_dimensions": (MixedDimensions("tables", 1e-9),)}, r"MixedDimensions\(.*256 rows"),
        ("dcn-v2", {"attention": Attention(window=2)}, r"DCNV2.*window"),
        ("dlrm", {"quantization_aware": ("tables",)}, r"'tables\.user'.* Embedding"),
        ("sasrec", {"quantization_aware": ("cross",)}, r"groups .*'cross'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    family: str, weights: Mapping[str, Any], line: str, opened: Opened
) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        _fit(opened(family), **weights)
    assert len(str(caught.value).splitlines()) == 1


@given(st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_passes_are_as_many_as_were_asked_for(epochs: int, steps: int, rounding: bool) -> None:
    pruning = Pruning((("mlp", 0.5),), steps=steps)
    aware = ("mlp",) if rounding else ()
    weights = Weights(pruning=pruning, distillation=replace(LEARNING, epochs=epochs), quantization_aware=aware)
    plain, learned = epochs_of(weights)
    stages = steps - 1 + 1 + rounding
    assert steps - 1 + plain + learned == max(epochs, stages)
    assert plain >= 1 and (learned >= 1) == rounding
    if rounding and epochs - (steps - 1) >= 3:
        assert learned == (epochs - (steps - 1)) // 3


def test_passes_of_a_model_that_is_not_pruned() -> None:
    alone, aware = (
        epochs_of(Weights(distillation=replace(LEARNING, epochs=6), quantization_aware=groups))
        for groups in ((), ("mlp",))
    )
    assert (alone, aware) == ((6, 0), (4, 2))


def test_the_seed_of_learning_is_another_training_of_the_same_choice(opened: Opened) -> None:
    recommender = opened("dcn-v2")
    pruning = Pruning((("mlp", 0.5),))
    first, again, other = (
        _scores(recommender, _fit(recommender, pruning=pruning, distillation=replace(LEARNING, seed=seed)).model)
        for seed in (0, 0, 1)
    )
    torch.testing.assert_close(first, again)
    assert not torch.allclose(first, other, atol=1e-4)


def test_no_two_trainings_of_a_fit_have_the_same_order_of_batches(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the steps of a pruning, at its end, where the seed is that of one not pruned, and with rounding."""
    seeds: list[int] = []

    def noted(*given: Any, **more: Any) -> Training:
        seeds.append(given[4])
        return distil(*given, **more)

    monkeypatch.setattr(fitting, "distil", noted)
    pruning, learning = Pruning((("mlp", 0.5),), steps=3), replace(LEARNING, epochs=5)
    _fit(opened("dcn-v2"), pruning=pruning, distillation=learning, quantization_aware=("mlp",))
    assert len(seeds) == len(set(seeds)) == 4 and seeds[2] == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_untrained_students_of_one_program_have_the_groups_of_the_one_that_was_traced(
    family: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    recommender, traced = opened(family), []
    exact = {
        sizes: of_sibling(recommender, recommender.build(sizes)).structure
        for sizes in (STUDENTS[family], WIDER[family])
    }

    def counted(*of: Any) -> Traced:
        traced.append(of)
        return trace(*of)

    for known in ("_siblings", "_groups"):
        monkeypatch.setattr(model_structure, known, {})
    monkeypatch.setattr(model_structure, "trace", counted)
    for sizes, expected in exact.items():
        found = untrained(recommender, Weights(architecture=sizes, distillation=LEARNING), seed=0)
        kept = [(group.name, group.kind, group.modules, group.parameters) for group in found.structure.groups]
        assert kept == [(group.name, group.kind, group.modules, group.parameters) for group in expected.groups]
        assert [table.name for table in found.structure.tables] == [table.name for table in expected.tables]
    assert len(traced) == 1
