"""Keys of every JSON document for other programs, against those that were stored.

A new key is added to `json_keys.json` by hand, null where a document of the test holds null.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from objectives.bags import Bags
from objectives.measurement.interference import Interference
from objectives.measurement.profile.profile import GroupCost, Profile
from objectives.records import Artifact, InputSpec, Outcome, Prepared, SimulatedRatios, SliceQuality, Tried
from search.ablation.records import FACT, DistillationGain, fact
from search.bench import bench
from search.choose import rebuild as recipe
from search.choose.choose import Confirmed, choice
from search.choose.policy import Policy
from search.cli import validation
from search.config.loss_limits import Limits
from search.config.study_file import load
from search.explore.dry_run import DryRun
from search.results import TUNED, Front, Point, TunedRatios, choice_json, front_json, numbers_of
from search.study import Study
from search.study_front import study_front
from spaces.candidate import Candidate
from spaces.model_structure import Group, ModelStructure
from spaces.serialization import fields_in, to_plain
from spaces.techniques.placement import InstanceGroup, Placement
from tests.ablation_tests.ablated import CHOSEN, PROFILE, ablation
from tests.bench_tests.test_bench import played
from tests.search_tests.documents import read_front
from tests.search_tests.measurements import complete_outcome, small_space

STORED = Path(__file__).with_name("json_keys.json")
PREPARED = Prepared(
    "k", "holdouts/h", ModelStructure(()), {}, (), Artifact("base", "base/model.onnx", {}, 1000, 0.0), "by user",
    {"test": 10}, 2, {}, {"baseline": 0.79, "popularity": 0.7, "bayes_optimal": 0.8},
    left_alone={"extra": "it is not known"},
)  # fmt: skip
PARTS = (SliceQuality("new users", 50, 5, 0.7, 0.71, 0.01, (0.0, 0.02)), SliceQuality("rare", 5, 1, reason="too few"))


def keys_of(value: Any) -> Any:
    """The keys at every depth; those of a list's items together."""
    if isinstance(value, dict):
        return {key: keys_of(item) for key, item in sorted(value.items())}
    if not isinstance(value, list):
        return None
    together = None
    for item in value:
        together = _joined(together, keys_of(item))
    return None if together is None else [together]


def _joined(one: Any, other: Any) -> Any:
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, list):
        return [_joined(one[0], other[0])]
    return {key: _joined(one.get(key), other.get(key)) for key in sorted({**one, **other})}


def confirmed() -> Confirmed:
    measurement = measured("b").measurement
    assert measurement is not None
    quality = replace(measurement.quality, slices=PARTS)
    control = DistillationGain("auc", 0.1, (0.0, 0.2), 3, "It gained.")
    tuned = TunedRatios(trial=4, **fields_in(TunedRatios, numbers_of(measurement)))
    return Confirmed(replace(measurement, quality=quality), 1, control, tuned)


def measured(key: str) -> Outcome:
    outcome = complete_outcome(key=key)
    assert outcome.measurement is not None
    quality = replace(outcome.measurement.quality, slices=PARTS)
    return replace(outcome, measurement=replace(outcome.measurement, quality=quality))


def study_of(folder: Path) -> Study:
    """Trials of each state, a reference point, an ablation and a choice."""
    study = Study("s", f"sqlite:///{folder / 'o.db'}", load("ml-100k").objectives, Limits(0.01), 0)
    candidates = [Candidate(), CHOSEN]
    stopped = Outcome("stopped", "slow", simulated=SimulatedRatios(2.0, 0.5, 2.0, 2.0, 2.0, 0.5))
    outcomes = [complete_outcome(1.0, 1.0, 0.0), measured("b"), stopped, Outcome("failed", "broken")]
    for number, outcome in enumerate(outcomes):
        trial, _ = study.ask(small_space())
        if number < len(candidates):
            trial.set_user_attr("candidate", to_plain(candidates[number]))
        study.tell(trial.number, outcome, 1.0)
    study.enqueue_reference(TUNED, Candidate(placement=Placement(InstanceGroup(replicas=2, threads=1))))
    study.tell(study.ask(small_space())[0].number, complete_outcome(0.8), 2.0)
    study.note(
        prepared=to_plain(PREPARED), resolution=0.001, machine="m", search_seconds=60.0, profile=to_plain(PROFILE)
    )
    study.note(**{FACT: fact((), ablation(1))})
    point = study_front(load("ml-100k"), study).rows[1]
    assert isinstance(point, Point)
    chosen = choice(point, confirmed(), Path("bundle"), "why", {"name": "s", "version": "1"})
    study.note(chosen=choice_json(chosen))
    return study


def front_of(folder: Path) -> Front:
    study = study_of(folder)
    return study_front(load("ml-100k"), study)


def front(folder: Path) -> Any:
    return front_json(front_of(folder))


def rebuilt() -> Any:
    found = confirmed()
    old = recipe.BesideOld(found.measurement.quality, found.measurement.latency)
    made = recipe.Rebuilt(Artifact("a", "a/model.onnx", {}, 10, 0.0), found, old)
    given: Any = recipe.Recipe(None, load("ml-100k"), Policy(0.01, 5.0, 0.5))  # type: ignore[arg-type]
    return to_plain(recipe._result(given, Path("b"), made, None, "why"))


def benched() -> Any:
    random = np.random.default_rng(0)
    ours, theirs = (played(random.exponential(size=2000)) for _ in range(2))
    bundle: Any = SimpleNamespace(folder=Path("b"), name="s")
    undisturbed = Interference(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    return to_plain(
        bench._summary(bundle, bench.Plan("bursts"), np.array([3, 4]), 100.0, 50.0, ours, theirs, undisturbed)
    )


def validated() -> Any:
    tried = (Tried("mlp", "pruning", "it is tied"), Tried("mlp", "int8-dynamic", None))
    prepared = replace(
        PREPARED, structure=ModelStructure((Group("mlp", "linear", ("mlp.0",), 10, (), "no"),)), tried=tried,
        inputs=(
            InputSpec("user", "int64", (), 5, "user"),
            InputSpec("of", "bool", (None,), None, bags=Bags("of", ("ids",))),
        ),
        rows={"validation": 100}, batches_per_epoch=5,
    )  # fmt: skip
    profile = Profile(200, 1.0, None, (GroupCost("mlp", "linear", 1.0, 1.0, 1, 1, 1),), (), ())
    found = DryRun(prepared, profile, {"export": 0.2, "service curve": 1.0}, 0.1)
    return to_plain(validation.report(load("ml-100k"), found, 2.0))


def test_keys_stay(tmp_path: Path) -> None:
    found = {"front": front(tmp_path), "rebuild": rebuilt(), "bench": benched(), "validate": validated()}
    assert keys_of(found) == json.loads(STORED.read_text())


def test_a_front_that_was_written_is_read_back(tmp_path: Path) -> None:
    found = front_of(tmp_path)
    assert read_front(json.loads(json.dumps(front_json(found)))) == found
