"""A user's model through a builder's and a meter's stages: lengths that differ, several outputs, a custom metric."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from objectives.build.custom_metric import evaluate_custom_metric
from objectives.build.evaluate import evaluate, score
from objectives.build.stages import opened as opened_stage
from objectives.build.stages.opened import open_once
from objectives.compression import export, traced_graphs
from objectives.held_out_rows import HeldOut, read_held_out, read_requests
from objectives.jobs.requests import CustomMetricRequest, EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.parity import ParityError
from objectives.recommenders.user_model.factory import FactoryError
from objectives.records import Artifact, Prepared
from objectives.serving.bundle import verify, write_bundle
from objectives.serving.engines import open_replica
from objectives.serving.pool import Pool
from objectives.task import Task
from spaces.candidate import Candidate
from spaces.techniques.distillation import Distillation
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import LINEAR_WIDTHS, Precision
from spaces.weights import Weights
from tests.build_tests import staged
from tests.build_tests.staged import Form
from tests.protos import run_onnx

SHOP = """
import numpy as np, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(30, 8), nn.Embedding(50, 8)
        self.tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.click, self.like = nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, user, item, history):
        x = torch.cat([self.user(user) + self.item(history).mean(1), self.item(item)], 1)
        x = self.tower(x)
        return {"like": self.like(x).squeeze(1), "click": self.click(x).squeeze(1)}

def worse(scores, labels, groups):
    "Minus the log loss, above a floor: higher is better."
    p = np.clip(1 / (1 + np.exp(-scores)), 1e-6, 1 - 1e-6)
    return 2 + float(np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p)))

class Shop:
    name, metric, output = "shop", "auc", "click"

    def __init__(self):
        torch.manual_seed(0)
        self.model = Net()

    def loss(self, outputs, labels):
        return sum(nn.functional.binary_cross_entropy_with_logits(outputs[n], labels[n]) for n in outputs)

    def batches(self, split):
        for number in range({"train": 20, "validation": 6, "test": 6}[split]):
            random = np.random.default_rng([number, len(split)])
            user, item = random.integers(30, size=50), random.integers(50, size=50)
            history = random.integers(50, size=(50, 2 + number % 3))
            click = ((user + item) % 3 == 0) ^ (random.random(50) < 0.2)
            inputs = {"user": user, "item": item, "history": history}
            inputs = {name: torch.from_numpy(values) for name, values in inputs.items()}
            labels = {"click": torch.from_numpy(click).float(), "like": torch.from_numpy(item % 2).float()}
            yield inputs, labels, user

    def requests(self, seed):
        random = np.random.default_rng(seed)
        for _ in range(40):
            rows, length = int(random.integers(3, 30)), int(random.integers(1, 6))
            yield {
                "user": np.repeat(random.integers(30), rows),
                "item": random.integers(50, size=rows),
                "history": np.repeat(random.integers(50, size=(1, length)), rows, axis=0),
            }

def factory():
    return Shop()

def graded():
    shop = Shop()
    shop.metric = worse
    return shop

calls = iter(range(100))

def drawn():
    shop = Shop()
    torch.manual_seed(next(calls))
    shop.model = Net()
    return shop

def minus(scores, labels, groups):
    return worse(scores, labels, groups) - 2

def lower():
    shop = Shop()
    shop.metric = minus
    return shop

def declared():
    shop = Shop()
    shop.user_inputs = ["history"]
    return shop

class Odd(Shop):
    "The rows of one split are all of one user, or all clicked."

    def __init__(self, odd, part):
        super().__init__()
        self.odd, self.part = odd, part

    def batches(self, split):
        for inputs, labels, user in super().batches(split):
            if split == self.odd and self.part == "user":
                user = np.zeros_like(user)
            if split == self.odd and self.part == "click":
                labels = labels | {"click": torch.ones(len(user))}
            yield inputs, labels, user

def one_user():
    return Odd("test", "user")

def one_validating_user():
    return Odd("validation", "user")

def all_clicked():
    return Odd("test", "click")

class Ended(nn.Module):
    def __init__(self, end):
        super().__init__()
        self.net, self.end = Net(), end

    def forward(self, user, item, history):
        return {name: self.end(logits) for name, logits in self.net(user, item, history).items()}

class Values(Shop):
    "Told by squares, whatever the model gives."

    def __init__(self, end):
        super().__init__()
        self.model, self.metric = Ended(end), near

    def loss(self, outputs, labels):
        return sum((outputs[n] - labels[n]).square().mean() for n in outputs)

def near(scores, labels, groups):
    return float(1 / (1 + np.abs(scores - labels).mean()))

def seldom(logits):
    return torch.sigmoid(logits - 7)

def rare():
    return Values(seldom)

def large(logits):
    return 3000 + 500 * logits

def thousands():
    return Values(large)

class Unseen(Shop):
    "Requests ask for an item that no batch has, and of which the model gives NaN."

    def __init__(self):
        super().__init__()
        with torch.no_grad():
            self.model.item.weight[:] = torch.randn(50, 8)
            self.model.item.weight[49] = float("nan")

    def batches(self, split):
        for inputs, labels, user in super().batches(split):
            yield inputs | {n: inputs[n].clamp(max=48) for n in ("item", "history")}, labels, user

    def requests(self, seed):
        for request in super().requests(seed):
            yield request | {"item": np.full_like(request["item"], 49)}
"""
LEARN = Distillation(2.0, 0.5, 2)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own")


@pytest.fixture
def task_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Task]:
    (home / "own_shop.py").write_text(SHOP)
    monkeypatch.chdir(home)
    monkeypatch.setattr(sys, "path", [*sys.path, str(home)])
    return lambda factory: Task(str(home), f"own_shop:{factory}", "", "", 200, 0.6, 1000, 0)


def _quiet(line: str) -> None:
    pass


def _deployment(task: Task, artifact: Artifact) -> Deployment:
    return Deployment(artifact, f"{task.home}/{artifact.path}", Placement(), "fp32")


def _judged(task: Task, found: Prepared, artifact: Artifact) -> Any:
    ours, base = (_deployment(task, of) for of in (artifact, found.baseline))
    scores = ScoreRequest(ours, base, str(task.cache), found.holdout, "test")
    return evaluate(EvaluateRequest(scores, found.metric, 0, 0.95)).quality


def _by_group(graph: onnx.ModelProto, held: HeldOut) -> np.ndarray[Any, Any]:
    """Scores of each block's rows, those of a group run together."""
    parts, start = [], 0
    for block in held.inputs:
        owners = held.groups[start : start + len(block["user"])]
        scores = np.empty((len(owners), 1 + len(held.others)), np.float32)
        for group in np.unique(owners):
            rows = owners == group
            scores[rows] = run_onnx(graph, {name: values[rows] for name, values in block.items()})
        parts.append(scores)
        start += len(owners)
    return np.concatenate(parts)


def test_a_model_is_prepared_as_it_is(task_of: Callable[[str], Task]) -> None:
    task = task_of("factory")
    found = staged.prepare(task, _quiet)
    assert (found.metric, found.custom_metric, found.built, found.featured) == ("auc", False, False, False)
    assert [g.name for g in found.structure.groups] == ["tables", "tower"]
    specs = {spec.name: (spec.shape, spec.vocabulary, spec.side) for spec in found.inputs}
    assert specs == {"user": ((), 30, "user"), "item": ((), 50, "item"), "history": ((None,), 50, "user")}
    assert {"click", "like", "all layers (learned rounding)"} == set(found.left_alone) and found.baseline.parity < 1e-5
    graph = onnx.load(str(Path(task.home) / found.baseline.path))
    recommender = open_once(task, _quiet)
    for request in read_requests(Path(found.holdout))[:10]:
        with torch.inference_mode():
            expected = recommender.model(**{n: torch.from_numpy(v) for n, v in request.items()})
        got = run_onnx(graph, request)
        assert np.allclose(got[:, 0], expected["click"], atol=1e-5) and np.allclose(
            got[:, 1], expected["like"], atol=1e-5
        )


def test_it_is_pruned_distilled_narrowed_and_judged_on_all_its_outputs(task_of: Callable[[str], Task]) -> None:
    task = task_of("factory")
    found = staged.prepare(task, _quiet)
    weights = Weights(pruning=Pruning((("tower", 0.5),), multiple=8), distillation=LEARN)
    staged.fit(task, weights, _quiet)
    precision = Precision((("tower", "int8-dynamic"), ("tables", "int8")))
    artifact, _ = staged.export(task, weights, precision, Form(), _quiet)
    assert artifact.widths == {"tower": "int8-dynamic", "tables": "int8"}
    assert artifact.model_bytes < found.baseline.model_bytes
    quality = _judged(task, found, artifact)
    held = read_held_out(Path(found.holdout), "test")
    graph = onnx.load(str(Path(task.home) / artifact.path))
    scores = _by_group(graph, held)  # ranges are those of a request's rows
    assert quality.value == pytest.approx(roc_auc_score(held.labels, scores[:, 0]), abs=1e-6)
    (like,) = quality.others
    assert like.name == "output like" and like.value == pytest.approx(
        roc_auc_score(held.others["like"], scores[:, 1]), abs=1e-6
    )
    named = {"users with little history", "users with more history", "rare items", "popular items"}
    assert {part.name for part in quality.slices} <= named


def test_a_metric_of_ones_own_is_graded_on_the_engines_scores(task_of: Callable[[str], Task]) -> None:
    task = task_of("graded")
    found = staged.prepare(task, _quiet)
    assert found.custom_metric and found.metric == "worse"
    artifact, _ = staged.export(task, Weights(), Precision((("tower", "int8-dynamic"),)), Form(), _quiet)
    pair = (_deployment(task, of) for of in (artifact, found.baseline))
    scored = score(ScoreRequest(*pair, str(task.cache), found.holdout, "test"))
    ours, theirs = scored.candidates, scored.baseline
    asked = CustomMetricRequest(task, 1, scored, found.holdout, "test", 0, 0.95)
    quality = evaluate_custom_metric(open_once(task, _quiet), asked)
    held = read_held_out(Path(found.holdout), "test")
    expected = [2 - log_loss(held.labels, 1 / (1 + np.exp(-np.load(path)[:, 0]))) for path in (*ours, theirs)]
    assert (quality.value, quality.baseline) == (
        pytest.approx(expected[0], rel=1e-4),
        pytest.approx(expected[1], rel=1e-4),
    )
    assert quality.loss_interval[0] <= quality.loss <= quality.loss_interval[1]
    (like,) = quality.others
    expected = 2 - log_loss(held.others["like"], 1 / (1 + np.exp(-np.load(ours[0])[:, 1])))
    assert like.name == "output like" and like.value == pytest.approx(expected, rel=1e-4)


def test_a_metric_that_is_better_when_it_is_lower_is_refused(task_of: Callable[[str], Task], home: Path) -> None:
    task = task_of("lower")
    line = "metric minus .*validation, .*-0"
    with pytest.raises(FactoryError, match=line):
        staged.prepare(task, _quiet)
    with pytest.raises(FactoryError, match=line):
        staged.prepare(replace(task, dry_run=str(home / "lower")), _quiet)


@pytest.mark.parametrize(
    ("factory", "line"),
    [
        ("one_user", "metric auc .*groups.* test .*1"),
        ("one_validating_user", "metric auc .*groups.* validation .*1"),
        ("all_clicked", "metric auc .*labels.* test .*1"),
    ],
)
def test_held_out_rows_that_tell_no_loss_are_refused_before_a_search(
    factory: str, line: str, task_of: Callable[[str], Task], home: Path
) -> None:
    """`prepare` refuses an undefined loss.

    Otherwise it would show only when a candidate is evaluated or a choice confirmed on test.
    """
    task = task_of(factory)
    for asked in (replace(task, dry_run=str(home / factory)), task):
        with pytest.raises(FactoryError, match=line):
            staged.prepare(asked, _quiet)


@pytest.mark.parametrize(("factory", "refused"), [("factory", False), ("drawn", True)])
def test_a_factory_that_gives_another_model_each_time_is_refused(
    factory: str, refused: bool, task_of: Callable[[str], Task]
) -> None:
    """The factory is called anew, as in another builder's process."""
    task = task_of(factory)
    expecting = replace(task, expected=open_once(task, _quiet).key)
    assert open_once(expecting, _quiet) is open_once(task, _quiet), "not called again in this one"
    opened_stage._opened.clear()
    if not refused:
        assert open_once(expecting, _quiet).key == expecting.expected
        return
    with pytest.raises(FactoryError, match=r"own_shop:drawn: "):
        staged.export(expecting, Weights(), Precision(), Form(), _quiet)


def test_a_dry_run_tells_what_can_be_done(task_of: Callable[[str], Task], home: Path) -> None:
    task = replace(task_of("factory"), dry_run=str(home / "dry_run"))
    found = staged.prepare(task, _quiet)
    assert {(one.group, one.technique) for one in found.tried if one.refused is None} == {
        ("tables", "pruning"),
        *((table, width) for table in ("user", "item") for width in ("fp16", "int8", "int4", "int2")),
        ("tower", "pruning"),
        ("tower", "low rank"),
        *(("tower", width) for width in LINEAR_WIDTHS[1:]),
    }
    assert found.unlearnable is not None and "one graph" in found.unlearnable
    assert found.baseline.parity < 1e-5 and found.batches_per_epoch == 6 and found.split_refused is None
    assert len(read_requests(Path(found.holdout))) == 40
    weights = Weights(pruning=Pruning((("tower", 0.5),), multiple=8), distillation=LEARN)
    fitted, folder = staged.fit(task, weights, _quiet), home / "dry_run" / "weights"
    assert not fitted.reused and fitted.batch_seconds > 0 and len([*folder.glob("*/")]) == 1
    assert open_once(task, _quiet).train_rows().batches_per_epoch == 3


@pytest.mark.slow
@pytest.mark.parametrize(("factory", "size"), [("rare", 1e-3), ("thousands", 3e3)])
def test_a_dry_run_tells_a_wrong_graph_whatever_the_unit_of_the_scores(
    factory: str, size: float, task_of: Callable[[str], Task], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = replace(task_of(factory), dry_run=str(home / factory))
    assert staged.prepare(task, _quiet).baseline.parity < 1e-3

    def other(*of: Any) -> ir.Model:
        graph = export.optimized(*of)
        head = graph.graph.initializers["model.net.click.weight"]
        head.const_value = ir.tensor(head.const_value.numpy() * np.float32(1.02), name=head.name)
        return graph

    monkeypatch.setattr(traced_graphs, "optimized", other)
    with pytest.raises(ParityError, match=r"0\.001"):
        staged.prepare(replace(task, dry_run=str(home / f"{factory} again")), _quiet)


def test_a_dry_run_refuses_scores_that_are_not_finite(task_of: Callable[[str], Task], home: Path) -> None:
    with pytest.raises(ParityError, match=r"Scores .*\d+ of \d+ are NaN"):
        staged.prepare(replace(task_of("Unseen"), dry_run=str(home / "unseen")), _quiet)


@pytest.mark.filterwarnings("ignore:A request holds rows of several users")
@pytest.mark.parametrize(("factory", "users"), [("factory", {"user", "history"}), ("declared", {"history"})])
def test_a_bundle_with_the_users_side_once_scores_rows_of_several_users(
    factory: str, users: set[str], task_of: Callable[[str], Task], tmp_path: Path
) -> None:
    """Mixed requests: two users' rows; one user's with another history in the last row; each row another user's."""
    task = task_of(factory)
    found = staged.prepare(task, _quiet)
    once, _ = staged.export(task, Weights(), Precision(), Form(user_once=True), _quiet)
    placement = Placement(InstanceGroup(replicas=2), split_rows=100, user_once=True)
    requests = read_requests(Path(found.holdout))
    write_bundle(
        tmp_path / "bundle", "shop", Path(task.home) / once.path, Candidate(placement=placement), {}, found.inputs,
        "# shop\n", requests[0],
    )  # fmt: skip
    bundle, _ = verify(tmp_path / "bundle")
    listed = {spec.name: (spec.side, spec.inferred) for spec in bundle.inputs}
    assert listed == {
        name: ("user" if name in users else "item", factory == "factory") for name in ("user", "item", "history")
    }

    def asked(user: Any, history: Any) -> dict[str, np.ndarray]:
        return {"user": np.array(user), "item": np.arange(len(user)) % 50, "history": np.array(history)}

    mixed = [
        requests[1],
        asked([3, 9, 3, 9, 9], [[1, 2], [4, 5], [1, 2], [4, 5], [4, 5]]),
        asked([3, 3, 3], [[1, 2], [1, 2], [7, 2]]),
        asked(range(30), [[n, 49 - n, 7] for n in range(30)]),
        asked([8] * 150 + [9] * 150, [[1, 2]] * 300),  # in two parts, one for each replica
    ]
    model = open_once(task, _quiet).model
    with bundle.open() as ours, Pool.open(Path(task.home) / found.baseline.path, Placement()) as theirs:
        assert set(open_replica(tmp_path / "bundle/model.onnx", InstanceGroup(), None).once) == users
        for request in mixed:
            with torch.inference_mode():
                expected = model(**{n: torch.from_numpy(v) for n, v in request.items()})
            columns = np.stack([expected["click"], expected["like"]], axis=1)
            got, base = (pool.submit(request).result(timeout=30) for pool in (ours, theirs))
            assert np.allclose(base, columns, atol=1e-5) and np.allclose(got, base, atol=1e-5)
