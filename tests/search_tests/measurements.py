"""Outcomes with given numbers and a small space, for tests of the study, the search, the ledger and the choice."""

from __future__ import annotations

from typing import Any

from optuna.storages import InMemoryStorage

from objectives.records import Artifact, Footprint, Latency, Measurement, Outcome, Percentiles, Quality, Throughput
from spaces.domains import Choice, Float
from spaces.search_space import SearchSpace
from spaces.techniques.placement import PlacementSpace, layouts
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import WeightsSpace


def in_memory() -> Any:
    """A storage of studies without a database; `test_study.py` has those that are reopened."""
    return InMemoryStorage()


def complete_outcome(p95_ratio: float = 0.5, throughput: float = 2.0, loss: float = 0.001, key: str = "a") -> Outcome:
    """A complete trial; intervals are 10% wide."""
    ours, theirs = (
        Percentiles(0.5 * r, r, 2 * r, 0.4 * r, p95_interval_ms=(0.95 * r, 1.05 * r)) for r in (10 * p95_ratio, 10.0)
    )
    around = (p95_ratio * 0.95, p95_ratio * 1.05)
    measurement = Measurement(
        Quality("auc", 0.8 * (1 - loss), 0.8, loss, (loss - 0.002, loss + 0.002), 1000, 100),
        Latency(ours, theirs, p95_ratio, p95_ratio, around, p95_ratio, p95_ratio, around, 100.0, 700, 20, 0.02),
        Throughput(
            100 * throughput,
            100.0,
            throughput,
            (throughput * 0.95, throughput * 1.05),
            10.0,
            200 * throughput,
            200.0,
            throughput,
            (throughput * 0.98, throughput * 1.02),
        ),
        Footprint(1000),
    )
    artifact = Artifact(key, f"{key}/model.onnx", {"mlp": "fp32"}, 1000, 1e-6, {"mlp": (32, 16)})
    return Outcome("complete", None, measurement, artifact, {"fit": 1.0, "time": 2.0}, ("fit",))


def small_space() -> SearchSpace:
    """Students of one group in two widths, on two cores."""
    learning = {"temperature": Float(1.0, 8.0, log=True), "teacher_weight": Float(0.0, 1.0)}
    return SearchSpace(
        WeightsSpace({}, {"mlp": Float(0.25, 0.75)}, {**learning, "feature_weight": Choice((0.0,))}, epochs=2),
        PrecisionSpace({"mlp": Choice(("fp32", "int8-dynamic"))}),
        PlacementSpace(Choice(("onnxruntime",)), Choice(layouts(2))),
    )
