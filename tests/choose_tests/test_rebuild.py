"""Reports of a rebuilt bundle: its margins, and an old bundle that today's rows do not fit."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from objectives.jobs.requests import BenchmarkResponse
from objectives.records import Measurement, SliceQuality
from objectives.serving.bundle_files import MEASUREMENT, BundleError
from search.choose import rebuild as recipe
from search.choose.choose import Confirmed
from search.choose.policy import Policy
from search.choose.rebuild import BesideOld, RebuildResult, Rebuilt, Recipe
from search.choose.run import made_of
from search.cli.console import Console
from search.errors import JobError, LostJobError
from search.home import Home
from spaces.candidate import Candidate
from spaces.serialization import to_plain
from spaces.techniques.quantization import Precision
from tests.search_tests.measurements import complete_outcome

POLICY = Policy(0.01, p95_ms=8.0, p95_ratio=0.4, slices={"rare items": 0.02, "nobody": 0.02})


def _rebuilt(old: BesideOld, loss: float = 0.001) -> Rebuilt:
    outcome = complete_outcome(p95_ratio=0.5, loss=loss)
    found = outcome.measurement
    assert isinstance(found, Measurement) and outcome.artifact is not None
    parts = (SliceQuality("rare items", 10, 3, 0.7, 0.7, 0.01, (0.0, 0.015)), SliceQuality("nobody", 0, 0, reason="no"))
    quality = replace(found.quality, slices=parts)
    return Rebuilt(outcome.artifact, Confirmed(replace(found, quality=quality), 2), old)


def _beside(loss: float) -> BesideOld:
    found = complete_outcome(loss=loss).measurement
    assert found is not None
    return BesideOld(found.quality, found.latency)


def _undisturbed(loss: float) -> BesideOld:
    """Evaluate without timing."""
    return replace(_beside(loss), latency=None, trouble="disturbed")


def _told(found: Rebuilt, policy: Policy = POLICY) -> dict[str, Any]:
    made: Any = SimpleNamespace(policy=policy, config=SimpleNamespace(recommender="shop:factory"))
    broken = recipe._broken(policy, found)
    return {**to_plain(recipe._result(made, Path("bundle"), found, broken, "")), "broken": broken}


def test_every_limit_of_the_policy_has_its_margin() -> None:
    found = _told(_rebuilt(BesideOld(trouble="other inputs")))
    assert found["margins"] == {
        "loss": pytest.approx(0.01 - 0.003),
        "loss on rare items": pytest.approx(0.005),
        "loss on nobody": None,
        "p95_ms": pytest.approx(8 - 1.05 * 5),
        "p95_ratio": pytest.approx(0.4 - 1.05 * 0.5),
    }
    assert found["not_compared"] == "other inputs" and found["p95_ratio_to_old"] is None


@pytest.mark.parametrize(
    ("found", "policy", "line"),
    [
        (_rebuilt(_beside(0.0)), Policy(0.01), None),
        (_rebuilt(BesideOld(trouble="its tables are too small")), Policy(0.01), None),
        (
            _rebuilt(_undisturbed(0.3)),
            Policy(0.01),
            "tolerated 1%",
        ),
        (_rebuilt(_beside(0.3)), Policy(0.01), "tolerated 1%"),
        (_rebuilt(_beside(0.0), loss=0.009), Policy(0.01), "1.10%, 0.10% above the 1.00%"),
        (_rebuilt(_beside(0.0)), Policy(0.01, p95_ratio=0.4), "0.525, 0.125 above the 0.4"),
        (_rebuilt(_beside(0.0)), Policy(0.01, p95_ratio=0.51), "0.525, 0.015 above the 0.51"),
        (_rebuilt(_beside(0.0)), Policy(0.01, p95_ratio=0.53), None),
        (_rebuilt(_beside(0.0)), Policy(0.01, p95_ms=4.0), "5.250 ms, 1.250 above the 4 ms"),
        (_rebuilt(_beside(0.0)), Policy(0.01, p95_ms=5.1), "5.250 ms, 0.150 above the 5.1 ms"),
    ],
)
def test_what_breaks_the_policy_is_refused_with_the_margin(found: Rebuilt, policy: Policy, line: str | None) -> None:
    broken = _told(found, policy)["broken"]
    assert broken is None if line is None else line in broken


def test_the_loss_to_the_old_bundle_has_a_margin_too() -> None:
    assert _told(_rebuilt(_beside(0.3)), Policy(0.01))["margins"]["loss to the old bundle"] == pytest.approx(
        0.01 - 0.298
    )


@pytest.mark.parametrize("fails", ["judged", "timed"])
def test_an_old_bundle_that_cannot_be_run_is_told_and_ends_nothing(fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quality = _beside(0.3).quality

    def judged(*asked: object) -> object:
        if fails == "judged":
            raise JobError("Gather: index 51")
        return quality

    def timed(*asked: object) -> object:
        raise JobError("Gather: index 51")

    monkeypatch.setattr(recipe, "bundle_side", lambda bundle, home: None)
    pairs: Any = SimpleNamespace(
        jobs=SimpleNamespace(recording=str), console=Console(True, True), evaluate=judged, benchmark=timed
    )
    made: Any = Recipe(None, None, POLICY)  # type: ignore[arg-type]
    found = recipe._beside_old(made, pairs, None, None)  # type: ignore[arg-type]
    assert found.trouble == "Gather: index 51" and found.latency is None
    assert found.quality is (None if fails == "judged" else quality), "what was judged counts"
    unknown = "quality and speed" if fails == "judged" else "; its speed"
    assert re.search(f"{unknown} .*Gather: index 51", recipe._told(_rebuilt(found), POLICY))


@pytest.mark.parametrize(
    ("kept", "today", "compared"),
    [("", "one", True), ("one", "one", True), ("other", "", True), ("other", "one", False)],
)
def test_an_old_bundle_of_another_encoding_is_not_compared(
    kept: str, today: str, compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On rows whose codes it takes for other values its loss would be large, whatever the checkpoint is worth."""
    both = _beside(0.3)
    monkeypatch.setattr(recipe, "bundle_side", lambda bundle, home: None)
    pairs: Any = SimpleNamespace(
        jobs=SimpleNamespace(recording=str, prepared=SimpleNamespace(encoding=today)), console=Console(True, True),
        evaluate=lambda *asked: both.quality, benchmark=lambda *asked: SimpleNamespace(latency=both.latency),
    )  # fmt: skip
    made: Any = Recipe(None, None, POLICY, encoding=kept)  # type: ignore[arg-type]
    found = recipe._beside_old(made, pairs, None, None)  # type: ignore[arg-type]
    assert (found == both) == compared and (found.trouble is None) == compared
    assert compared or "codes stand for other values" in recipe._told(_rebuilt(found), POLICY)


def test_a_bundle_tells_of_which_encoding_it_was_made(tmp_path: Path) -> None:
    prepared: Any = SimpleNamespace(encoding="one")
    assert recipe.recoded(recipe.encoding_of(tmp_path), prepared) is None, "there is no measurement"
    for kept, other in (
        ({}, False),
        ({"encoding": ""}, False),
        ({"encoding": "one"}, False),
        ({"encoding": "2"}, True),
    ):
        (tmp_path / MEASUREMENT).write_text(json.dumps({"recipe": kept}))
        assert (recipe.recoded(recipe.encoding_of(tmp_path), prepared) is not None) == other


def test_a_meter_that_dies_beside_the_old_bundle_ends_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be replaced when the two could not be compared."""

    def judged(*asked: object) -> object:
        raise LostJobError("The meter was ended by SIGKILL")

    monkeypatch.setattr(recipe, "bundle_side", lambda bundle, home: None)
    pairs: Any = SimpleNamespace(jobs=None, console=Console(True, True), evaluate=judged)
    with pytest.raises(LostJobError):
        recipe._beside_old(Recipe(None, None, POLICY), pairs, None, None)  # type: ignore[arg-type]


class BuiltError(Exception):
    """The recipe was applied."""


def _unchanged(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    width: str = "int4",
    here: int = 8,
    policy: Policy = POLICY,
    damaged: str | None = None,
) -> bool:
    """Return whether nothing is built from the checkpoint that a bundle with int8 weights of 8 bits was made of.

    Args:
        here: bits of the weights in int8 products on this machine
        policy: of the bundle in the folder
        damaged: what is wrong with the folder's files
    """

    def measured(*asked: object) -> object:
        raise BuiltError

    def read(folder: Path) -> None:
        if damaged is not None:
            raise BundleError(damaged)

    candidate, prepared = Candidate(precision=Precision((("mlp", width),))), SimpleNamespace(key="checkpoint")
    of_bundle = made_of(prepared, candidate, None if width == "int4" else 8)  # type: ignore[arg-type]
    kept = {"recipe": {"made_of": of_bundle, "policy": to_plain(policy)}}
    (folder / "measurement.json").write_text(json.dumps(kept))
    (folder / "manifest.json").touch()
    for name, value in {
        "open_workers": lambda logs: nullcontext(SimpleNamespace(builder=None, meter=None)),
        "prepared_by": lambda *given: prepared,
        "jobs_of": lambda *given: None,
        "PairedComparison": lambda *given: None,
        "_number_look": lambda *given: 1,
        "_measured": measured,
        "int8_weight_bits": lambda: here,
        "read_bundle": read,
    }.items():
        monkeypatch.setattr(recipe, name, value)
    bundle, config = SimpleNamespace(candidate=candidate), SimpleNamespace(name="s", recommender="shop:factory")
    made: Any = SimpleNamespace(bundle=bundle, config=config, policy=POLICY, looks=1)
    home: Any = SimpleNamespace(logs=lambda name: folder)
    try:
        return recipe.rebuild(made, home, folder, None).unchanged  # type: ignore[arg-type]
    except BuiltError:
        return False


@pytest.mark.parametrize("width", ["int8-static", "int8-dynamic", "int4"])
@pytest.mark.parametrize("here", [7, 8])
def test_a_bundle_made_for_another_cpu_is_built_anew(
    width: str, here: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bundle is built again from the same checkpoint where its int8 weights have other bits than this CPU needs."""
    assert _unchanged(tmp_path, monkeypatch, width, here) == (width == "int4" or here == 8)


def test_a_bundle_that_is_damaged_or_was_held_to_another_policy_is_built_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _unchanged(tmp_path, monkeypatch)
    assert not _unchanged(tmp_path, monkeypatch, damaged="model.onnx was changed")
    assert not _unchanged(tmp_path, monkeypatch, policy=replace(POLICY, max_loss=0.02))


def test_a_folder_that_holds_something_else_is_told_before_anything_is_built(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    made: Any = SimpleNamespace(bundle=SimpleNamespace(candidate=Candidate()), config=None, policy=POLICY, looks=1)
    for out, why in ((tmp_path, "holds something that is no bundle"), (tmp_path / "notes.txt", "is a file")):
        with pytest.raises(BundleError, match=why):
            recipe.rebuild(made, None, out, None)  # type: ignore[arg-type]


def _nights(folder: Path, checkpoints: str, monkeypatch: pytest.MonkeyPatch, losing: str = "") -> list[RebuildResult]:
    """The results of one build a night, from checkpoints by letters; those that lose too much are refused.

    Each starts from the bundle that the study chose after two looks, as where builds go to folders of their own.
    """
    made = complete_outcome().artifact
    today: list[str] = []

    def judged(ours: object, part: str, level: float, *more: object) -> Any:
        found = complete_outcome(loss=0.3 if today[0] in losing else 0.0).measurement
        assert found is not None and part == "test"
        return replace(found.quality, confidence=level)

    def timed(*asked: object) -> BenchmarkResponse:
        found = complete_outcome().measurement
        assert found is not None
        return BenchmarkResponse(found.latency, found.throughput, found.footprint)

    pairs = SimpleNamespace(
        jobs=SimpleNamespace(recording=str), console=Console(True, True), built=lambda candidate: made,
        evaluate=judged, benchmark=timed,
    )  # fmt: skip
    names = {
        "open_workers": lambda logs: nullcontext(SimpleNamespace(builder=None, meter=None)),
        "prepared_by": lambda *given: today[0], "made_of": lambda of, *asked: of,
        "jobs_of": lambda *given: None, "PairedComparison": lambda *given: pairs,
        "_beside_old": lambda *given: BesideOld(trouble="another day"), "bundle_up": lambda *given: None,
    }  # fmt: skip
    for name, put in names.items():
        monkeypatch.setattr(recipe, name, put)
    bundle: Any = SimpleNamespace(candidate=Candidate(), name="shop")
    settings: Any = SimpleNamespace(name="shop", recommender="shop:factory")
    results = []
    for name in checkpoints:
        today[:] = [name]
        made_of = Recipe(bundle, settings, Policy(0.01), looks=2)
        results.append(recipe.rebuild(made_of, Home(folder), folder / "out" / name, Console(True, True)))
    return results


def test_looks_at_test_are_counted_over_the_nights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are counted from the study's own choice on; a refused build is one, the same checkpoint again is none."""
    found = _nights(tmp_path, "abcab", monkeypatch, losing="b")
    assert [one.look for one in found] == [3, 4, 5, 3, 4]
    assert [one.accepted for one in found] == [True, False, True, True, False]
    assert [one.confidence for one in found[:3]] == pytest.approx([1 - 0.05 / 12, 1 - 0.05 / 20, 1 - 0.05 / 30])
    (later,) = _nights(tmp_path, "d", monkeypatch)
    assert later.look == 6, "another process finds what the first has counted"
    (elsewhere,) = _nights(tmp_path / "other", "d", monkeypatch)
    assert elsewhere.look == 3
