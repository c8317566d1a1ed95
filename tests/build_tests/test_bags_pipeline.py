"""A model of flat ids with offsets, from its factory to a bundle that takes its requests as they are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from objectives.bags import Bags, padded
from objectives.build.baseline_checks import unlearnable
from objectives.build.evaluate import evaluate
from objectives.build.stages.opened import open_once
from objectives.build.stages.weights import fitted_weights
from objectives.held_out_rows import read_requests
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.recommenders.user_model.padded_forward import own_forward
from objectives.recommenders.user_model.recommender import UserRecommender
from objectives.serving.bundle import verify, write_bundle
from objectives.task import Task
from spaces.candidate import Candidate
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.build_tests import staged
from tests.build_tests.staged import Form

DLRM = """
import numpy as np, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = nn.EmbeddingBag(60, 8, mode="mean", include_last_offset=True)
        self.tags = nn.EmbeddingBag(40, 8, mode="sum")
        self.user = nn.Linear(8, 8)
        self.dense = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))
        self.tower = nn.Sequential(nn.Linear(27, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, dense, seen, seen_offsets, tags, tag_offsets, weights):
        user = self.user(self.seen(seen % 60, seen_offsets))
        x = torch.stack([self.dense(dense), user, self.tags(tags, tag_offsets, per_sample_weights=weights)], 1)
        return self.tower(torch.cat([x.flatten(1), (x @ x.mT)[:, (0, 0, 1), (1, 2, 2)]], 1)).squeeze(1)

def flat(random, rows, user_once):
    "What the model takes; ids seen are of one user, else of a user for each row."
    sizes = random.integers(0, 6, rows)
    seen = np.repeat(random.integers(0, 6), rows) if user_once else random.integers(0, 6, rows)
    ids = np.tile(random.integers(0, 900, seen[0]), rows) if user_once else random.integers(0, 900, seen.sum())
    return {
        "dense": random.standard_normal((rows, 3)).astype(np.float32),
        "seen": ids,
        "seen_offsets": np.concatenate([[0], seen.cumsum()]),
        "tags": random.integers(0, 40, sizes.sum()),
        "tag_offsets": sizes.cumsum() - sizes,
        "weights": random.random(sizes.sum()).astype(np.float32),
    }

class Shop:
    name, metric, loss = "shop", "auc", nn.BCEWithLogitsLoss()

    def __init__(self):
        torch.manual_seed(0)
        self.model = Net()

    def batches(self, split):
        for number in range({"train": 20, "validation": 6, "test": 6}[split]):
            random = np.random.default_rng([number, len(split)])
            inputs = flat(random, 50, False)
            clicked = (inputs["dense"][:, 0] + random.standard_normal(50) > 0).astype(np.float32)
            yield inputs, torch.from_numpy(clicked), random.integers(0, 20, 50)

    def requests(self, seed):
        random = np.random.default_rng(seed)
        return (flat(random, int(random.integers(3, 30)), True) for _ in range(40))
"""


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    (tmp_path / "dlrm_shop.py").write_text(DLRM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return Task(str(tmp_path), "dlrm_shop:Shop", "", "", 200, 0.6, 1000, 0)


def _quiet(line: str) -> None:
    pass


def tensors(inputs: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in inputs.items()}


@pytest.mark.slow
def test_a_model_of_flat_bags_is_served_as_its_client_asks(task: Task, tmp_path: Path) -> None:
    found = staged.prepare(task, _quiet)
    bags = (Bags("tag_offsets", ("tags", "weights"), inferred=True), Bags("seen_offsets", ("seen",), True, True))
    specs = {spec.name: (spec.dtype, spec.shape, spec.side, spec.bags) for spec in found.inputs}
    assert specs == {
        "dense": ("float32", (3,), "item", None),
        "seen": ("int64", (None,), "user", None),
        "seen_offsets": ("bool", (None,), "user", bags[1]),
        "tags": ("int64", (None,), "item", None),
        "tag_offsets": ("bool", (None,), "item", bags[0]),
        "weights": ("float32", (None,), "item", None),
    }
    assert found.baseline.parity < 1e-4 and found.user_once_refused is None and (found.user_once_share or 1) < 1
    assert {group.name for group in found.structure.groups} == {"tables", "user", "dense", "tower"}
    recommender = open_once(task, _quiet)
    assert isinstance(recommender, UserRecommender)
    assert unlearnable(recommender, 0) is None

    weights = Weights(pruning=Pruning((("tower", 0.5),), multiple=8), distillation=Distillation(2.0, 0.5, 2))
    staged.fit(task, weights, _quiet)
    model = fitted_weights(task, recommender, weights).model
    assert model.get_submodule("tower.0").out_features == 16
    deployed = []
    for precision, form in (
        (Precision((("tables", "int8"), ("tower", "int8-dynamic"))), Form()),
        (Precision(), Form(user_once=True)),
    ):
        artifact, _ = staged.export(task, weights, precision, form, _quiet)
        deployed.append(Deployment(artifact, f"{task.home}/{artifact.path}", Placement(), "fp32"))
    base = Deployment(found.baseline, f"{task.home}/{found.baseline.path}", Placement(), "fp32")
    scores = ScoreRequest(deployed[0], base, str(task.cache), found.holdout, "test")
    quality = evaluate(EvaluateRequest(scores, "auc", 0, 0.95)).quality
    own = own_forward(recommender.model)
    with torch.no_grad():
        held = [(own(**tensors(inputs)), labels) for inputs, labels, _ in recommender.given.batches("test")]
    scores, labels = (torch.cat(of).numpy() for of in zip(*held, strict=True))
    assert quality.baseline == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)

    example = read_requests(Path(found.holdout))[0]
    placement = Placement(InstanceGroup(replicas=2), split_rows=10, user_once=True)
    write_bundle(
        tmp_path / "bundle", "shop", Path(deployed[1].model), Candidate(placement=placement), {},
        found.inputs, "# shop\n", example,
    )  # fmt: skip
    bundle, difference = verify(tmp_path / "bundle")
    assert difference == 0.0
    (told,) = (spec.bags for spec in bundle.manifest.inputs if spec.name == "tag_offsets")
    assert told == bags[0]
    flat: Any = importlib.import_module("dlrm_shop").flat
    random = np.random.default_rng(9)
    with bundle.open() as pool, torch.no_grad():
        for rows in (1, 2, 9, 40):
            request = flat(random, rows, True)
            expected = own_forward(model)(**tensors(request))
            for asked in (request, padded(request, bags)):
                assert np.allclose(pool.submit(asked).result(timeout=30), expected, atol=1e-5)
        with pytest.raises(ValueError, match="seen_offsets: must ascend from 0 and fit seen"):
            pool.submit({**request, "seen_offsets": request["seen_offsets"][1:]})
