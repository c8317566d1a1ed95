"""Tables beyond what one ONNX file holds, from the factory to the served bundle, with their weights in one file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray

from objectives import onnx_graph
from objectives.build.evaluate import evaluate
from objectives.build.stages.opened import open_once
from objectives.compression.quantization.rounding import int8_codes
from objectives.held_out_rows import read_requests
from objectives.jobs.requests import EvaluateRequest, ScoreRequest
from objectives.measure.deployment import Deployment
from objectives.records import WEIGHTS, Artifact, Prepared
from objectives.serving.bundle import read_bundle, verify, write_bundle
from objectives.serving.bundle_files import BundleError, model_files
from objectives.serving.devices import ENGINES, engines_here
from objectives.serving.pool import Pool
from objectives.task import Task
from spaces.candidate import Candidate
from spaces.techniques.placement import EmbeddingDevice, InstanceGroup, Placement
from spaces.techniques.quantization import Precision
from spaces.weights import Weights
from tests.build_tests import staged
from tests.build_tests.staged import Form

ROOT = Path(__file__).resolve().parents[2]
SHOP = """
import os
import numpy as np, torch
from torch import nn

ROWS, DIM = int(os.environ.get("SHOP_ROWS", "3000")), 64

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        # Each row is made from its number, cheaply.
        table = torch.empty(ROWS, DIM)
        for start in range(0, ROWS, 1 << 20):
            rows = torch.arange(start, min(ROWS, start + (1 << 20)), dtype=torch.float32)
            table[start : start + len(rows)] = torch.sin(rows[:, None] * torch.arange(1.0, DIM + 1) * 0.37)
        self.item = nn.Embedding(ROWS, DIM, _weight=table, sparse=True)
        self.user = nn.Embedding(40, DIM)
        self.tower = nn.Sequential(nn.Linear(2 * DIM, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, user, item):
        return self.tower(torch.cat([self.user(user), self.item(item)], 1)).squeeze(1)

class Shop:
    name, metric = "large", "auc"

    def __init__(self):
        torch.manual_seed(0)
        self.model = Net()

    def loss(self, outputs, labels):
        return nn.functional.binary_cross_entropy_with_logits(outputs, labels)

    def optimizer(self, parameters):
        "Without a state, and for sparse gradients: a table of gigabytes is trained so."
        return torch.optim.SGD(parameters, lr=0.01)

    def batches(self, split):
        for number in range({"train": 4, "validation": 2, "test": 2}[split]):
            random = np.random.default_rng([number, len(split)])
            user, item = random.integers(40, size=200), random.integers(ROWS, size=200)
            label = ((user + item) % 3 == 0) ^ (random.random(200) < 0.2)
            inputs = {"user": torch.from_numpy(user), "item": torch.from_numpy(item)}
            yield inputs, torch.from_numpy(label).float(), user

    def requests(self, seed):
        random = np.random.default_rng(seed)
        for _ in range(30):
            rows = int(random.integers(3, 60))
            yield {"user": np.repeat(random.integers(40), rows), "item": random.integers(ROWS, size=rows)}

def factory():
    return Shop()
"""


def _quiet(line: str) -> None:
    pass


def _task(home: Path) -> Task:
    return Task(str(home), "large_shop:factory", "", "", 200, 0.6, 1000, 0)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Task]:
    """The task of a table of 768 KB, which counts as too large here, as one of 2.5 GB does otherwise."""
    home = tmp_path_factory.mktemp("large")
    (home / "large_shop.py").write_text(SHOP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "LARGEST", 100_000)
        patch.chdir(home)
        patch.setattr(sys, "path", [*sys.path, str(home)])
        yield _task(home)


def _model(task: Task, artifact: Artifact) -> Path:
    return Path(task.home) / artifact.path


def _expected(task: Task, request: Any, table: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Scores by torch, with other rows of the table where they are given."""
    net = open_once(task, _quiet).model
    given = {name: torch.from_numpy(values) for name, values in request.items()}
    with torch.inference_mode():
        rows = net.item(given["item"]) if table is None else torch.from_numpy(table)
        scores: Any = net.tower(torch.cat([net.user(given["user"]), rows], 1)).squeeze(1)
    return np.asarray(scores)


def _rounded(task: Task, request: Any) -> NDArray[np.float32]:
    """The looked-up rows as int8 rows hold them."""
    net = open_once(task, _quiet).model
    codes, scale = int8_codes(net.item.weight.detach()[torch.from_numpy(request["item"])].numpy(), axis=1)
    return np.asarray(codes * scale, np.float32)


def _check_bundle(task: Task, found: Prepared, artifact: Artifact, candidate: Candidate, folder: Path) -> None:
    """The bundle serves what it was verified with, and a single flipped byte of any of its files is refused."""
    request = {name: values[:4] for name, values in read_requests(Path(found.holdout))[0].items()}
    write_bundle(folder, "large", _model(task, artifact), candidate, {}, found.inputs, "# large\n", request)
    bundle, difference = verify(folder)
    assert difference == 0 and WEIGHTS in bundle.manifest.files
    assert set(model_files(candidate.placement, folder)) <= set(bundle.manifest.files)
    size = (folder / WEIGHTS).stat().st_size
    for place in (0, size // 2, size - 1):
        _flip(folder / WEIGHTS, place)
        with pytest.raises(BundleError, match=WEIGHTS):
            read_bundle(folder)
        _flip(folder / WEIGHTS, place)
    assert verify(folder)[1] == 0
    (folder / WEIGHTS).rename(folder / "elsewhere.bin")
    with pytest.raises(BundleError, match=WEIGHTS):
        read_bundle(folder)
    (folder / WEIGHTS).symlink_to(folder / "elsewhere.bin")
    with pytest.raises(BundleError, match=WEIGHTS):
        read_bundle(folder)


def _flip(file: Path, place: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        byte = stream.read(1)
        stream.seek(place)
        stream.write(bytes([byte[0] ^ 1]))


@pytest.mark.slow
def test_a_large_model_is_prepared_evaluated_and_served(task: Task, tmp_path: Path) -> None:
    found = staged.prepare(task, _quiet)
    model, table = _model(task, found.baseline), 4 * 3000 * 64
    assert found.baseline.parity < 1e-5 and found.baseline.model_bytes >= table
    assert (model.with_name(WEIGHTS)).stat().st_size >= table > model.stat().st_size
    held = onnx.load(str(model))  # by the library, from the file beside it
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in held.graph.initializer}
    assert np.array_equal(weights["model.item.weight"], open_once(task, _quiet).model.item.weight.detach().numpy())
    with Pool.open(model, Placement()) as pool:
        for request in read_requests(Path(found.holdout))[:5]:
            assert np.allclose(pool.submit(request).result(timeout=30), _expected(task, request), atol=1e-5)
    base = Deployment(found.baseline, str(model), Placement(), "fp32")
    scores = ScoreRequest(base, base, str(task.cache), found.holdout, "test")
    assert evaluate(EvaluateRequest(scores, "auc", 0, 0.95)).quality.loss == 0
    _check_bundle(task, found, found.baseline, Candidate(), tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "limit"), [("fp16", 0.01), ("int8", 0.05), ("int4", 0.6)])
def test_a_large_table_is_narrowed_and_evaluated(task: Task, width: str, limit: float, tmp_path: Path) -> None:
    found = staged.prepare(task, _quiet)
    precision = Precision((("tables", width),))
    artifact, _ = staged.export(task, Weights(), precision, Form(), _quiet)
    assert artifact.widths["tables"] == width and artifact.model_bytes < 0.6 * found.baseline.model_bytes
    with Pool.open(_model(task, artifact), Placement()) as pool:
        for request in read_requests(Path(found.holdout))[:5]:
            scores, exact = pool.submit(request).result(timeout=30), _expected(task, request)
            assert np.abs(scores - exact).max() < limit * exact.std()
            if width == "int8":
                rows = _expected(task, request, _rounded(task, request))
                assert np.allclose(scores, rows, atol=0.02 * exact.std())  # the users' rows are rounded too
    _check_bundle(task, found, artifact, Candidate(precision=precision), tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_both_halves_of_a_large_model_share_its_weights(task: Task, engine: str, tmp_path: Path) -> None:
    if engine not in engines_here():
        pytest.skip(f"{engine} is not installed")
    found = staged.prepare(task, _quiet)
    artifact, _ = staged.export(task, Weights(), Precision(), Form(user_once=True, split_embeddings=True), _quiet)
    model = _model(task, artifact)
    assert model.with_name(WEIGHTS).stat().st_size < 1.5 * found.baseline.model_bytes, "no table is there twice"
    placement = Placement(InstanceGroup(engine), embedding_device=EmbeddingDevice("onnxruntime"), user_once=True)
    with Pool.open(model, placement) as pool:
        for request in read_requests(Path(found.holdout))[:5]:
            assert np.allclose(pool.submit(request).result(timeout=30), _expected(task, request), atol=1e-4)
    _check_bundle(task, found, artifact, Candidate(placement=placement), tmp_path / "bundle")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_read_large_weights(task: Task, engine: str) -> None:
    if engine not in engines_here():
        pytest.skip(f"{engine} is not installed")
    found = staged.prepare(task, _quiet)
    with Pool.open(_model(task, found.baseline), Placement(InstanceGroup(engine))) as pool:
        request = read_requests(Path(found.holdout))[0]
        assert np.allclose(pool.submit(request).result(timeout=30), _expected(task, request), atol=1e-4)


@pytest.mark.slow
def test_a_loaded_graph_names_its_tensors_and_holds_none(task: Task) -> None:
    found = staged.prepare(task, _quiet)
    graph = onnx_graph.load_graph(_model(task, found.baseline))
    table = graph.graph.initializers["model.item.weight"].const_value
    assert isinstance(table, ir.ExternalTensor) and ir.to_proto(graph).ByteSize() < 20_000
    values = table.numpy()
    assert values.shape == (3000, 64) and not values.flags["OWNDATA"]


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_table_of_two_and_a_half_gigabytes(tmp_path: Path) -> None:
    """The full size runs in a process of its own, whose peak memory is checked."""
    if not Path("/proc/self/status").exists():
        pytest.skip("the system does not tell a process's own memory")
    (tmp_path / "large_shop.py").write_text(SHOP)
    rows = 2_500_000_000 // (4 * 64)
    env = {**os.environ, "SHOP_ROWS": str(rows), "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-m", "tests.build_tests.test_large_tables", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["table_bytes"] > 2_400_000_000 and told["peak_bytes"] < 9e9, told


class _Peak(threading.Thread):
    """The most memory of this process, without the files that it has mapped, which the kernel may drop."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            now = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, 1024 * now)
            time.sleep(0.05)


def _large(home: Path) -> dict[str, int]:
    """Run every stage of a large model: prepared, narrowed, evaluated, bundled and verified."""
    seen = _Peak()
    seen.start()
    task = _task(home)
    found = staged.prepare(task, _quiet)
    table = open_once(task, _quiet).model.item.weight.nbytes
    assert found.baseline.parity < 1e-4 and found.baseline.model_bytes > table
    precision = Precision((("tables", "int8"),))
    artifact, _ = staged.export(task, Weights(), precision, Form(), _quiet)
    assert artifact.widths["tables"] == "int8"
    ours, base = (Deployment(of, str(_model(task, of)), Placement(), "fp32") for of in (artifact, found.baseline))
    scores = ScoreRequest(ours, base, str(task.cache), found.holdout, "test")
    assert abs(evaluate(EvaluateRequest(scores, "auc", 0, 0.95)).quality.loss) < 0.05
    request = read_requests(Path(found.holdout))[0]
    for of in (artifact, found.baseline):
        with Pool.open(_model(task, of), Placement()) as pool:
            exact = _expected(task, request)
            assert np.allclose(pool.submit(request).result(timeout=60), exact, atol=0.1 * exact.std())
    _check_bundle(task, found, found.baseline, Candidate(), home / "bundle")
    return {"table_bytes": table, "peak_bytes": seen.bytes}


if __name__ == "__main__":
    print(json.dumps(_large(Path(sys.argv[1]))))
