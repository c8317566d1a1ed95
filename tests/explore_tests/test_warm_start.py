"""Warm starts: points of another front, and given candidates, in a space that offers some of their knobs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from search.errors import ConfigError
from search.explore.warm_start import check_sources, starting_points
from search.home import Home
from search.samplers.drawn import draw
from spaces.domains import Choice
from spaces.search_space import SearchSpace
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import CYCLES
from tests.search_tests.measurements import small_space

SPACE = small_space()
# The knobs of a pruned candidate, without those that are fixed.
PRUNED = dict(draw(SPACE, Random(0), SPACE.starts()[1], 0.0).knobs)


def written(path: Path, data: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return str(path)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def front(*points: tuple[bool, object]) -> dict[str, object]:
    rows = [{"trial": 0, "on_front": True, "suggested": SPACE.starts()[0]}]
    rows += [{"trial": 1, "on_front": on_front, "suggested": knobs} for on_front, knobs in points]
    return {"rows": rows}


def test_the_points_of_a_front_are_candidates_of_the_space(home: Home, tmp_path: Path) -> None:
    """A study of this home is named, another one is a file; what is off the front or has no knobs is left out."""
    other = {**PRUNED, "pruning.mlp": 0.3}
    data = front((True, {}), (True, PRUNED), (False, {**PRUNED, "pruning.mlp": 0.7}), (True, other), (True, PRUNED))
    named = written(home.reports("other") / "front.json", data)
    assert starting_points("other", home, SPACE, 0) == [PRUNED, other]
    assert starting_points(named, home, SPACE, 0) == [PRUNED, other]


def test_given_candidates_are_a_list(home: Home, tmp_path: Path) -> None:
    source = written(tmp_path / "candidates.json", [{"weights.origin": "pruned", "pruning.mlp": 0.3}])
    (found,) = starting_points(source, home, SPACE, 0)
    assert (found["weights.origin"], found["pruning.mlp"]) == ("pruned", 0.3)
    assert set(found) == set(PRUNED), "what was not given is drawn"
    assert starting_points(source, home, SPACE, 0) == [found], "by the seed"


def test_a_knob_that_is_not_offered_is_drawn(home: Home, tmp_path: Path) -> None:
    only = SearchSpace(SPACE.weights, PrecisionSpace({"mlp": Choice(("fp32",))}), SPACE.placement)
    given = {**PRUNED, "pruning.mlp": 0.99, "precision.mlp": "int4", "gone": 3, "distillation.temperature": "hot"}
    (found,) = starting_points(written(tmp_path / "c.json", [given]), home, only, 0)
    assert 1 <= float(found["distillation.temperature"]) <= 8
    assert 0.25 <= float(found["pruning.mlp"]) <= 0.75 and "gone" not in found
    assert found["placement.layout"] == PRUNED["placement.layout"]
    narrow = replace(SPACE, placement=replace(SPACE.placement, layout=Choice(("1xauto",))))
    (found,) = starting_points(written(tmp_path / "d.json", [PRUNED]), home, narrow, 0)
    assert found["pruning.mlp"] == PRUNED["pruning.mlp"]


@pytest.mark.parametrize(
    "data", [3, {"rows": 1}, {"rows": [1]}, [1], {"rows": [{"trial": 1, "on_front": True, "suggested": 4}]}]
)
def test_something_else_is_refused_in_one_line(home: Home, tmp_path: Path, data: object) -> None:
    source = written(tmp_path / "c.json", data)
    with pytest.raises(ConfigError, match=r"^start_from: .*holds something else$"):
        starting_points(source, home, SPACE, 0)


def test_a_front_of_the_version_before_is_refused_by_its_age(home: Home, tmp_path: Path) -> None:
    source = written(tmp_path / "front.json", {"rows": [{"trial": 3, "on_front": True, "knobs": PRUNED}]})
    with pytest.raises(ConfigError, match=r"^start_from: .*must be of this version"):
        starting_points(source, home, SPACE, 0)


def test_a_source_that_is_not_there_is_refused_in_one_line(home: Home) -> None:
    with pytest.raises(ConfigError, match=r"^start_from: 'nobody' must be a study of this home, .*No such file"):
        starting_points("nobody", home, SPACE, 0)
    with pytest.raises(ConfigError, match=r"^start_from: 'nobody' must be"):
        check_sources(["nobody"], home)


def test_the_catalogue_of_an_earlier_front_is_not_scored_as_a_whole(home: Home, tmp_path: Path) -> None:
    both = replace(SPACE.placement, score_catalogue=Choice((False, True)))
    space, knob = replace(SPACE, placement=both), "placement.score_catalogue"
    for seed in range(5):
        source = written(tmp_path / f"{seed}.json", [PRUNED, {**PRUNED, knob: True}])
        assert [found[knob] for found in starting_points(source, home, space, seed)] == [False, True]


def test_no_engine_of_an_earlier_front_is_kept_warm(home: Home, tmp_path: Path) -> None:
    both = replace(SPACE.placement, keep_warm_ms=Choice((0.0, 2.0)))
    space, knob = replace(SPACE, placement=both), "placement.keep_warm_ms"
    for seed in range(5):
        source = written(tmp_path / f"{seed}.json", [PRUNED, {**PRUNED, knob: 2.0}])
        assert [found[knob] for found in starting_points(source, home, space, seed)] == [0.0, 2.0]


def test_a_training_whose_cycles_are_not_given_has_one(home: Home, tmp_path: Path) -> None:
    space = replace(SPACE, weights=replace(SPACE.weights, cycles=Choice((1, 2, 3))))
    for seed in range(5):
        source = written(tmp_path / f"{seed}.json", [PRUNED, {**PRUNED, CYCLES: 3}])
        assert [found[CYCLES] for found in starting_points(source, home, space, seed)] == [1, 3]
