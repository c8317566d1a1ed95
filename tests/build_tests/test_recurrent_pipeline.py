"""A recurrent model with histories of different lengths goes through every stage of a dry run and a builder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.build.stages import prepare as prepare_stage
from objectives.build.stages.opened import open_once
from objectives.recommenders.user_model import load as opening
from objectives.task import Task
from spaces.techniques.distillation import Distillation
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.build_tests import staged
from tests.build_tests.staged import Form
from tests.model_structure_tests.recurrent_models import HIDDEN, INPUTS, LENGTH, Recurrent, rows, seeded

STEPS = 4


class Sessions:
    """Sessions that are padded in batches, and as long as they are in requests."""

    name, metric = "sessions", "auc"

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        self.model: nn.Module = seeded(Recurrent, kind)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        for number in range(2):
            inputs = rows(40, seed=number)
            yield inputs, (torch.arange(40) % 2).float(), inputs["item"]

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        for number in range(30):
            steps = (2, STEPS, LENGTH)[number % 3]
            request = {name: values.numpy() for name, values in rows(20, seed=number, steps=steps).items()}
            for name in ("history", "length"):
                request[name] = np.repeat(request[name][:1], 20, axis=0)
            yield request


@pytest.fixture(params=[nn.GRU, nn.LSTM])
def task(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(opening, "load_factory", lambda spec, _: lambda: Sessions(request.param))
    return Task(str(tmp_path), "sessions:factory", "", "", 200, 0.6, 1000, 0)


@pytest.mark.slow
def test_what_a_dry_run_takes_a_builder_takes(task: Task, tmp_path: Path) -> None:
    found = staged.prepare(replace(task, dry_run=str(tmp_path / "dry_run")), _quiet)
    assert found.user_once_refused is None
    of_encoder = {one.technique: one.refused for one in found.tried if one.group == "encoder"}
    assert of_encoder.pop("pruning") is None
    prepared, recommender = staged.prepare(task, _quiet), open_once(task, _quiet)
    gates = 4 if isinstance(recommender.model.encoder, nn.LSTM) else 3
    assert [refused is None for refused in of_encoder.values()] == [gates == 4], "there is an LSTM in int8, and no GRU"
    once = STEPS * gates * HIDDEN * (INPUTS + HIDDEN) + HIDDEN * INPUTS
    assert (prepared.refused(("encoder",), "int8-lstm") is None) == (gates == 4), "what the space offers"
    assert prepared.user_once_refused is None
    assert prepared.user_once_share == pytest.approx(once / (20 * once)), "of 20 rows, one"
    distilled = Weights(pruning=Pruning((("encoder", 0.5),), multiple=1), distillation=Distillation(2.0, 0.5, 1))
    staged.fit(task, distilled, _quiet)
    narrow = [("tables", "int8"), ("out", "int8-static"), *([("encoder", "int8-lstm")] if gates == 4 else [])]
    for weights in (Weights(), distilled):
        for precision in (Precision(), Precision(tuple(narrow))):
            for form in (Form(user_once=True), Form(user_once=True, split_embeddings=True)):
                artifact, _ = staged.export(task, weights, precision, form, _quiet)
                expected = dict(precision.widths).get("encoder", "fp32")
                assert artifact.widths["encoder"] == expected
                assert artifact.units["encoder"] == (HIDDEN if weights == Weights() else HIDDEN // 2,)


@pytest.mark.slow
def test_a_size_that_is_not_known_ends_nothing(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any) -> int:
        raise ValueError("Products have known shapes, but got (None,) -> (None,) in 'product'.")

    monkeypatch.setattr(prepare_stage, "multiply_adds", unknown)
    prepared = staged.prepare(replace(task, seed=1), _quiet)
    assert (prepared.user_once_refused, prepared.user_once_share) == (None, None)


def _quiet(line: str) -> None:
    """Report no progress."""
