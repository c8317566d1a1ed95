"""Study files and bundles of the version before are read under the names of this one."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.config.study_file import load, parse
from search.errors import ConfigError, RenamedKeyWarning
from spaces.candidate import Candidate
from spaces.serialization import from_plain, to_plain
from spaces.techniques.distillation import Distillation
from spaces.techniques.embeddings import QuotientRemainder
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup, Placement, Route
from spaces.techniques.quantization import Precision
from spaces.weights import Weights

OLD = """\
recommender: dcn-v2
data: {source: ml-100k}
space:
  tables: {form: [full, shared-rows], own: 0.5}
  distillation: {passes: 3}
  quantisation_aware: [false, true]
  placement: {lookup: [same, openvino]}
"""
NEW = (
    OLD.replace("shared-rows", "quotient-remainder").replace("own:", "full_rows_share:").replace("passes", "epochs")
    .replace("quantisation", "quantization").replace("lookup", "embedding_device")
)  # fmt: skip


def test_a_study_file_with_old_names_is_the_same_study_and_each_name_is_told_once(tmp_path: Path) -> None:
    for name, text in (("old", OLD), ("new", NEW)):
        (tmp_path / f"{name}.yaml").write_text(f"name: renamed\n{text}")
    with pytest.warns(RenamedKeyWarning) as told:
        old = load(str(tmp_path / "old.yaml"))
    assert old == load(str(tmp_path / "new.yaml"))
    new_names = {str(one.message).partition(" is now ")[2].partition(";")[0] for one in told}
    assert new_names == {
        "space.tables.full_rows_share", "quotient-remainder", "space.distillation.epochs", "space.quantization_aware",
        "space.placement.embedding_device",
    }  # fmt: skip
    assert len(told) == len(new_names)


def test_an_override_may_have_an_old_name(tmp_path: Path) -> None:
    with pytest.warns(RenamedKeyWarning):
        config = load("ml-100k", ["space.distillation.passes=7"])
    assert config.space.distillation.epochs == 7


def test_both_names_at_once_are_refused(tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text(f"name: both\n{NEW.replace('epochs: 3', 'epochs: 3, passes: 3')}")
    with pytest.raises(ConfigError, match=r"space\.distillation\.passes"):
        load(str(tmp_path / "both.yaml"))


def test_a_candidate_that_was_written_under_old_names_is_read() -> None:
    group = InstanceGroup("openvino", "cpu", 2, 1)
    candidate = Candidate(
        Weights(
            quotient_remainder=(QuotientRemainder("tables", 0.25),),
            distillation=Distillation(2.0, 0.5, 3),
            quantization_aware=("mlp",),
        ),
        Precision((("mlp", "int8-static"),)),
        placement=Placement(group, route=Route(8, group), embedding_device=EmbeddingDevice("onnxruntime")),
    )
    plain = to_plain(candidate)
    weights, placement = plain["weights"], plain["placement"]
    weights["shared_rows"] = [
        {"group": one["group"], "own": one["full_rows_share"]} for one in weights.pop("quotient_remainder")
    ]
    weights["distillation"]["passes"] = weights["distillation"].pop("epochs")
    weights["quantisation_aware"] = weights.pop("quantization_aware")
    placement["seat"] = placement.pop("instance_group")
    placement["route"]["seat"] = placement["route"].pop("instance_group")
    placement["lookup"] = placement.pop("embedding_device")
    assert from_plain(Candidate, plain) == candidate


def test_settings_that_a_bundle_holds_under_old_names_are_read() -> None:
    plain = load("ml-100k").model_dump(mode="json")
    old = {**plain, "space": {**plain["space"], "distillation": {"passes": 3}}}
    with pytest.warns(RenamedKeyWarning):
        assert parse(old).space.distillation.epochs == 3
