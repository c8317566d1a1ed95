"""A whole study through real servers, by the real commands: the baseline beside itself, the choice, another path."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from objectives.measurement.recording import read_recording

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).resolve().parents[2]
# Two tables and a product: no layer to train or to quantize, so that few are measured. Each visit opens a server for
# each.
FACTORY = """
import torch
from torch import nn


class Product(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.user, self.item = nn.Embedding(300, 64), nn.Embedding(500, 64)

    def forward(self, user, item):
        return (self.user(user) * self.item(item)).sum(1)


class Dot:
    name, metric, loss = "dot", "auc", nn.BCEWithLogitsLoss()

    def __init__(self):
        self.model = Product()

    def batches(self, split):
        random = torch.Generator().manual_seed({"train": 1, "validation": 2, "test": 3}[split])
        user, item = (torch.randint(size, (2000,), generator=random) for size in (300, 500))
        with torch.no_grad():
            noise = 8 * torch.randn(2000, generator=random)
            yield {"user": user, "item": item}, (self.model(user, item) + noise > 0).float(), user

    def requests(self, seed):
        for user in range(100):
            yield {"user": torch.full((100 + user,), user), "item": torch.arange(100 + user)}
"""
STUDY = """
name: served
recommender: dot:Dot
quality: {max_loss: 0.1}
traffic: {through: http, overhead_ms: 2}
space:
  focus: 0
  tables: {form: [full]}
  precision: {tables: [fp32, int8], compute: [fp32]}
  placement: {engines: [onnxruntime], layouts: [1xauto, 1x1], pinned: [false], inline: [false], batch_rows: [0],
              split_rows: [0], route_rows: [0], embedding_device: [same], user_once: [false]}
timing: {final_blocks: 20, confirm_blocks: 20, patience_seconds: 2}
budget: {minutes: 10, trials: 1}
workers: {job_seconds: 400}
"""


class Served:
    """A home with the study, and the commands run in it."""

    def __init__(self, home: Path) -> None:
        self.home, self.study = home, home / "served.yaml"
        self.study.write_text(STUDY)
        (home / "dot.py").write_text(FACTORY)
        self.environment = {**os.environ, "LEANREC_HOME": str(home), "PYTHONPATH": str(ROOT)}
        self.environment.pop("MLFLOW_TRACKING_URI", None)

    def command(self, name: str, *options: str, status: int = 0) -> tuple[str, str]:
        """Output of a command on both streams."""
        done = subprocess.run(
            [sys.executable, "-m", "leanrec", name, str(self.study), *options],
            env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=500,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        return done.stdout, done.stderr

    def json(self, name: str, *options: str) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(self.command(name, "--json", *options)[0])
        return plain


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    found = Served(tmp_path_factory.mktemp("served"))
    found.command("run")
    return found


@pytest.fixture(scope="module")
def front(served: Served) -> dict[str, Any]:
    return served.json("front")


def holds_one(interval: list[float]) -> bool:
    """Return whether an interval of twice the width in the logarithm holds 1; luck alone seldom leads outside."""
    low, high = map(math.log, interval)
    half = (high - low) / 2
    return low - half <= 0 <= high + half


def test_the_baseline_beside_itself_has_ratios_of_1(front: dict[str, Any]) -> None:
    """A/A: trial 0 is the baseline, both sides behind servers of their own."""
    row = front["baseline"]
    assert holds_one(row["latency_ms"]["p95_ratio_interval"]), row["latency_ms"]
    assert holds_one(row["latency_ms"]["service_p50_ratio_interval"]), row["latency_ms"]
    assert holds_one(row["capacity_ratio_interval"]) and holds_one(row["with_overhead"]["p95_ratio_interval"])


def test_every_number_says_that_it_came_through_http(served: Served, front: dict[str, Any]) -> None:
    assert (front["through"], front["overhead_ms"]) == ("http", 2.0)
    measured = [row for row in front["rows"] if row["state"] == "complete"]
    assert measured and all(row["through"] == "http" for row in measured)
    for row in measured:
        assert read_recording(served.home / row["timings"]).through == "http"
        assert row["with_overhead"]["overhead_ms"] == 2.0
    client = MlflowClient(f"sqlite:///{served.home}/mlruns/mlflow.db")
    experiment = client.get_experiment_by_name("served")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.through = 'http'")
    assert {int(run.data.tags["leanrec.trial"]) for run in runs} == {row["trial"] for row in measured}


def test_ratios_with_overhead_are_those_of_the_sums(served: Served, front: dict[str, Any]) -> None:
    """The raw timings tell: every latency of both sides is 2 ms longer."""
    for row in front["rows"]:
        if row["state"] != "complete":
            continue
        ratios = []
        for visit in read_recording(served.home / row["timings"]).visits:
            kept = visit.timings.kept()
            ours, theirs = (sorted((side + 2.0).ravel()) for side in (kept.candidate, kept.baseline))
            rank = math.ceil(0.95 * len(ours)) - 1
            ratios.append(ours[rank] / theirs[rank])
        expected = math.prod(ratios) ** (1 / len(ratios))
        assert row["with_overhead"]["p95_ratio"] == pytest.approx(expected, rel=1e-9)


def test_what_http_adds_is_part_of_the_simulation(served: Served) -> None:
    """The time that HTTP adds is measured once, before the first service curve."""
    lines = (served.home / "mlruns").rglob("*.jsonl")
    texts = [json.loads(line) for file in lines for line in file.read_text().splitlines() if line]
    (transport,) = (line["transport"] for line in texts if "transport" in line)
    assert transport["transport_ms"] >= 0 and transport["pace_ms"] > 0


def test_a_study_does_not_go_on_by_another_path(served: Served) -> None:
    _, err = served.command("run", "--set", "traffic.through=pool", status=2)
    assert 'traffic.through was "http", now "pool"' in err.replace("'", '"') and len(err.strip().splitlines()) == 1
    _, err = served.command("run", "--set", "traffic.overhead_ms=3", status=2)
    assert "traffic.overhead_ms was 2.0, now 3" in err


def test_a_choice_is_confirmed_and_timed_again_by_the_same_path(served: Served, front: dict[str, Any]) -> None:
    if front["front_size"] == 1 and front["rows"][0]["on_front"]:
        pytest.skip("nothing but the baseline is on the front of this machine")
    chosen = served.json("choose", "--prefer", "latency")
    assert chosen["confirmed"]["through"] == "http" and chosen["confirmed"]["with_overhead"]["overhead_ms"] == 2.0
    bundle = Path(chosen["bundle"])
    assert json.loads((bundle / "measurement.json").read_text())["latency"]["through"] == "http"
    card = (bundle / "README.md").read_text()
    assert "through the HTTP server" in card and "p95 with 2 ms spent elsewhere" in card
    again = served.json("remeasure")
    assert [row["now"]["through"] for row in again["rows"] if row["now"]] == ["http"] * len(again["rows"])
