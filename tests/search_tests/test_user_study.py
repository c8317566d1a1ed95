"""The README's example, a model outside our packages.

Covers the dry run, search, choice, and builds from newer checkpoints, by the commands and from Python.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from objectives.bags import Bags
from search.cli.validation import UserInput, ValidationReport, conclusion
from tests.benchmarks.nightly import CHECKPOINTS

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).resolve().parents[2]
STUDY = """
name: shop
recommender: shop:factory
quality: {max_loss: 0.1, slices: {users with little history: 0.3}}
space:
  distillation: {epochs: 1}
  pruning: {}
  low_rank: {}
  # Nothing so fast that a load generator on the same cores could not keep to its schedule.
  architecture: {width: [256, 384]}
  precision: {tables: [fp32], gate: [fp32], tower: [fp32], compute: [fp32]}
  placement: {engines: [onnxruntime], layouts: [1xauto, 1x1]}
timing: {final_blocks: 20, confirm_blocks: 20, patience_seconds: 3}
budget: {minutes: 10, trials: 2}
"""
MORE = """
def retrained():
    return shop.Shop(seed=1)

def broken():
    return shop.clicks()
"""


BUNDLE = "reports/shop/bundle"


class Shop:
    """A folder as a user has it, and what is run there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("shop.py", "shop_study.py"):
            shutil.copy(ROOT / "examples" / name, folder)
        (folder / "shop.yaml").write_text(STUDY)
        (folder / "checkpoints.py").write_text(CHECKPOINTS + MORE)
        self.environment = {**os.environ, "LEANREC_HOME": str(folder), "PYTHONPATH": str(ROOT)}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=600
        )

    def leanrec(self, *words: str, status: int = 0) -> str:
        done = self.run("-m", "leanrec", *words)
        assert done.returncode == status, done.stderr
        return done.stdout if status == 0 else done.stderr

    def build(self, *words: str, status: int = 0) -> dict[str, Any]:
        done = self.run("-m", "leanrec", "build", BUNDLE, "--json", "--quiet", *words)
        assert done.returncode == status, done.stderr
        assert done.stderr == "", "fit for a nightly job"
        return json.loads(done.stdout)  # type: ignore[no-any-return]

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / BUNDLE).iterdir()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def searched(shop: Shop) -> Shop:
    done = shop.run("shop_study.py")
    assert done.returncode == 0, done.stderr
    shop.printed = done.stdout  # type: ignore[attr-defined]
    return shop


@pytest.mark.slow
def test_a_dry_run_says_what_can_be_done(shop: Shop) -> None:
    found = json.loads(shop.leanrec("validate", "shop.yaml", "--json", "--quiet"))["preflight"]
    groups = {group["name"]: (group["kind"], set(group["can"])) for group in found["groups"]}
    narrow = {"int8-dynamic", "int8-static", "int4", "int4-dynamic"}
    stored = {f"{width}{of}" for width in ("fp16", "int8", "int4", "int2") for of in ("", " of user", " of item")}
    assert groups == {
        "tables": (
            "table",
            {
                "pruning",
                "quotient-remainder of user",
                "quotient-remainder of item",
                "mixed-dimensions of item",
                *stored,
            },
        ),
        "gate": ("linear", {"low rank", "learned rounding", *narrow}),
        "tower": ("linear", {"pruning", "low rank", "learned rounding", *narrow}),
    }
    refused = {one["technique"]: one["reason"] for group in found["groups"] for one in group["cannot"]}
    assert refused.keys() == {"pruning", "mixed-dimensions of user"}
    assert "tables" in refused["pruning"]
    assert [one["module"] for one in found["left_alone"]] == ["score"]
    assert found["parity"] < 1e-4 and found["trials"] >= 1
    assert found["user_inputs"] == [{"name": "user", "inferred": True}]


def test_what_is_taken_to_be_the_users_is_told() -> None:
    inputs = (UserInput("user", True), UserInput("hour", True))
    found = ValidationReport(
        "shop", "shop:factory", (), (), inputs, (), (), parity=1e-6, model_bytes=10, p50_ms=1.0, rows=200, trials=9,
        trials_range=(9, 12), seconds={"all": 1.0},
    )  # fmt: skip
    (line,) = (line for line in conclusion(found) if "of the user" in line)
    assert "inferred" in line and "user, hour" in line and "user_inputs" in line
    declared = tuple(replace(one, inferred=False) for one in inputs)
    (line,) = (line for line in conclusion(replace(found, user_inputs=declared)) if "of the user" in line)
    assert "inferred" not in line and "user, hour" in line
    assert not any("of the user" in line for line in conclusion(replace(found, user_inputs=())))
    offered = conclusion(replace(found, students={"width": (16, 32)}))
    assert "Students by build: width of 16, 32." in offered and not any("tudents" in line for line in conclusion(found))
    bags = (Bags("starts", ("ids", "weights")), Bags("of", ("words",), inferred=True))
    first, second = (line for line in conclusion(replace(found, bags=bags)) if "ags of" in line)
    assert "ids, weights" in first and "starts" in first and "inferred" not in first and "inferred" in second


@pytest.mark.slow
def test_a_factory_that_is_wrong_is_one_line_and_status_2(shop: Shop) -> None:
    error = shop.leanrec("validate", "shop.yaml", "--quiet", "--set", "recommender=checkpoints:broken", status=2)
    assert re.fullmatch("leanrec: checkpoints:broken: name .*\n", error)
    error = shop.leanrec("validate", "shop.yaml", "--quiet", "--set", "recommender=nowhere:factory", status=2)
    assert "no module 'nowhere'" in error and len(error.splitlines()) == 1


@pytest.mark.nightly
def test_a_limit_on_a_slice_that_there_is_not_is_one_line_and_status_2(shop: Shop) -> None:
    for command in ("validate", "run"):
        error = shop.leanrec(command, "shop.yaml", "--quiet", "--set", "quality.slices={nobody: 0.1}", status=2)
        assert re.match("leanrec: quality.slices: .*users with little history", error)


@pytest.mark.nightly
def test_a_study_from_python(searched: Shop) -> None:
    front = pd.read_csv(searched.folder / "front.csv", index_col="trial")
    assert len(front) >= 1 and {"p95_ratio", "throughput_ratio", "loss", "precision.tower"} <= set(front.columns)
    assert front["p95_ratio"].is_monotonic_increasing
    assert "Plotly.newPlot" in (searched.folder / "front.html").read_text()
    assert "Trial" in searched.printed  # type: ignore[attr-defined]


@pytest.mark.nightly
def test_the_same_checkpoint_changes_nothing(searched: Shop) -> None:
    before = searched.files()
    found = searched.build()
    assert found["accepted"] and found["unchanged"] and searched.files() == before


@pytest.mark.nightly
def test_a_poisoned_checkpoint_is_refused_with_the_margin(searched: Shop) -> None:
    before = searched.files()
    found = searched.build("--model", "checkpoints:poisoned", status=1)
    assert not found["accepted"] and searched.files() == before, "the old bundle stays"
    assert found["reason"].startswith("refused: ") and "10" in found["reason"], "the tolerated loss is told"
    assert found["margins"]["loss to the old bundle"] < 0


@pytest.mark.nightly
def test_a_newer_checkpoint_takes_the_bundles_place(searched: Shop) -> None:
    before = searched.files()
    found = searched.build("--model", "checkpoints:retrained")
    assert found["accepted"] and not found["unchanged"] and found["margins"]["loss"] >= 0
    after = searched.files()
    assert after["model.onnx"] != before["model.onnx"] and after["candidate.json"] == before["candidate.json"]
    searched.leanrec("verify", BUNDLE)
    again = searched.build("--model", "checkpoints:retrained")
    assert again["unchanged"] and searched.files() == after
