"""Random architectures through a dry run: each layer is compressed with parity or left alone with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from objectives.recommenders.user_model import load as opening
from objectives.records import Prepared
from objectives.task import Task
from tests.build_tests import staged
from tests.compression_tests.random_models import Attention, RandomModel, random_model, rows

# The heads of 43 are of a fixed number, those of 66 of a fixed size.
FEW, MANY = (43, 66), range(100)
UNPRUNABLE = (
    "its width is tied to that of ", "it meets something of a fixed size", "it is spread over an axis",
    "with a unit less the model fails",  # nn.MultiheadAttention asks for the dimension it was made with
)  # fmt: skip
# Layers inside a block, which nothing outside it reads.
HIDDEN = (".inner", ".down", ".both", ".score.0")


class Drawn:
    """A random model with clicks drawn at random."""

    name, metric = "drawn", "auc"

    def __init__(self, seed: int) -> None:
        self.model = random_model(seed)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)

    def batches(self, split: str) -> Iterator[tuple[dict[str, Tensor], Tensor, Tensor]]:
        for number in range(2):
            inputs = rows(40, seed=number)
            yield inputs, (torch.arange(40) % 2).float(), inputs["user"]

    def requests(self, seed: int) -> Iterator[dict[str, Any]]:
        for number in range(30):
            request = {name: values.numpy() for name, values in rows(5 + number, seed=number).items()}
            for name in ("user", "history"):
                request[name] = np.repeat(request[name][:1], 5 + number, axis=0)
            yield request


def _check_refusals(model: RandomModel, found: Prepared) -> None:
    """Nothing is refused but what the model's own form makes impossible, and for that reason."""
    if found.unlearnable is not None:
        assert found.unlearnable.startswith("its training cannot be one graph for all batches: ")
    attend = getattr(model, "attend", None)
    for one in (one for one in found.tried if one.refused is not None):
        reason = str(one.refused)
        if one.technique == "mixed-dimensions":
            assert one.group == "item" and "MixedDimensions" in reason, "drawn as often as each other"
        elif one.technique == "low rank" and isinstance(attend, nn.MultiheadAttention):
            assert one.group == "attend" and "no attribute 'weight'" in reason, one
        elif one.technique == "pruning" and isinstance(attend, Attention) and one.group == "attend":
            # Of one head there is none to spare; of a fixed number of a fixed size, no other reading.
            one_head = attend.heads == 1 and attend.form == "of a size"
            assert (one_head or attend.form == "of both") and "with a unit less the model fails" in reason, one
        elif one.technique == "pruning":
            assert reason.startswith(UNPRUNABLE), one
            layers = found.structure.group(one.group).modules
            assert not any(name.endswith(HIDDEN) for name in layers), one
        else:
            raise AssertionError(one)


def _check_dry_run(seed: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = Drawn(seed)
    before = {name: tensor.clone() for name, tensor in given.model.state_dict().items()}
    monkeypatch.setattr(opening, "load_factory", lambda spec, _: lambda: given)
    task = Task(str(folder), "drawn:factory", "", "", 200, 0.6, 1000, 0, dry_run=str(folder / "dry_run"))
    found = staged.prepare(task, lambda line: None)
    assert found.baseline.parity <= 1e-4
    assert {one.group for one in found.tried} >= {group.name for group in found.structure.groups}
    _check_refusals(given.model, found)
    grouped = {module for group in found.structure.groups for module in group.modules}
    norms = (nn.LayerNorm, nn.BatchNorm1d)
    for name, module in given.model.named_modules():
        held = any(True for _ in module.parameters(recurse=False))
        if held and not isinstance(module, norms):
            assert name in grouped or name in found.left_alone, f"{name} is neither compressed nor left alone"
    assert all(torch.equal(before[name], tensor) for name, tensor in given.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize("seed", FEW)
def test_a_random_model_passes_the_dry_run(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_dry_run(seed, tmp_path, monkeypatch)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", MANY)
def test_a_hundred_random_models_pass_the_dry_run(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _check_dry_run(seed, tmp_path, monkeypatch)
