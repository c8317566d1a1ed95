"""Whole short studies of models from packages that nobody here wrote: `pytest -m foreign`, with the extra `foreign`."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest

from tests.benchmarks.foreign import MODELS, best, leanrec, studied

pytestmark = [pytest.mark.foreign, pytest.mark.timeout(2400)]
PACKAGES = {
    "din": "torch_rechub",
    "autoint": "deepctr_torch",
    "ft_transformer": "rtdl_revisiting_models",
    "bert": "transformers",
    "gru4rec": "recbole.model.sequential_recommender",
    "finalmlp": "model_zoo.LongCTR.FinalMLP",
    "masknet": "torch",
}


@pytest.mark.parametrize("model", MODELS)
def test_a_packages_model_is_studied(model: str, tmp_path: Path) -> None:
    pytest.importorskip(PACKAGES[model], exc_type=ImportError)
    validated, front = studied(tmp_path, model, minutes=2)
    able = {group["name"] for group in validated["groups"] if group["can"]}
    assert able and validated["parity"] < 1e-4
    assert all(one["reason"] for one in validated["left_alone"])
    assert front is not None and front["rows"][0]["state"] == "complete"
    point = best(front["rows"])
    assert point is not None and point["quality"]["loss"] <= 0.01
    touched = {knob.split(".", 1)[1] for knob, value in point["knobs"].items() if knob.startswith("precision.")}
    storage = f"sqlite:///{tmp_path}/mlruns/optuna.db"
    (study,) = optuna.get_all_study_names(storage)
    structure = optuna.load_study(study_name=study, storage=storage).user_attrs["prepared"]["structure"]
    # Tables that hold most of the bytes have a width of their own.
    parts = {group["name"] for group in validated["groups"]} | {table["name"] for table in structure["tables"]}
    assert touched - {"compute", "calibration"} <= parts
    chosen = json.loads(leanrec(tmp_path, "choose", str(tmp_path / f"{model.replace('_', '-')}.yaml"), "--json"))
    assert chosen["confirmed"]["loss_interval"][1] <= 0.01 and (Path(chosen["bundle"]) / "model.onnx").exists()
