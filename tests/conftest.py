"""Databases that do not wait for the disk, and a study's front as `leanrec front STUDY --json` prints it."""

from __future__ import annotations

import copy
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from sqlalchemy import Engine, event

from search.front import hypervolume, resolved_front, unit_objectives
from search.home import Home

MAX_LOSS = 0.01
BASELINE_MS = 1.34
BASELINE_RPS = 520.0
FULL_BYTES = 4_412_345
NOT_MEASURED: dict[str, Any] = {
    "quality": dict.fromkeys(("metric", "value", "loss", "loss_interval")),
    "latency_ms": {
        **dict.fromkeys(("p50", "p95", "p99", "service_p50", "service_p50_ratio", "service_p50_ratio_interval")),
        **dict.fromkeys(("p95_ratio", "p95_ratio_interval")),
    },
    "throughput_rps": None,
    "throughput_ratio": None,
    "throughput_ratio_interval": None,
    "capacity_ratio": None,
    "capacity_ratio_interval": None,
    "model_bytes": None,
    "peak_memory_bytes": None,
}
FAILURES = (
    ("stopped", "its graph, timed before training, was dominated by trial 7"),
    ("stopped", "its validation loss after one pass was 0.062, more than 3 times max_loss"),
    ("failed", "export: torch.onnx could not convert aten::grid_sampler for <group 'cross'>"),
    ("failed", "time: the machine was disturbed in 3 of 3 runs (arrivals lagged by 4.1 ms at p95)"),
)


# The machine may be busy.
settings.register_profile("quick", deadline=None, max_examples=50)
settings.load_profile("quick")


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, record: Any) -> None:
    """Do not wait for the disk: a killed process loses nothing by it; only a power cut would."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database: its migrations take seconds, so it is made once and copied."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def home(migrated: Path, tmp_path: Path) -> Home:
    """A home that has MLflow's database already."""
    found = Home(tmp_path)
    found.claim()
    shutil.copy(migrated, found.mlruns / "mlflow.db")
    return found


def measured(p95: float, throughput: float, loss: float, size: float, noise: float) -> dict[str, Any]:
    return {
        "quality": {
            "metric": "auc",
            "value": 0.7921 * (1 - loss),
            "loss": loss,
            "loss_interval": [loss - 0.0016, loss + 0.0018] if noise else [0.0, 0.0],
        },
        "latency_ms": {
            "p50": 0.62 * BASELINE_MS * p95,
            "p95": BASELINE_MS * p95,
            "p99": 1.7 * BASELINE_MS * p95,
            "service_p50": 0.5 * BASELINE_MS * p95,
            "p95_ratio": p95,
            "p95_ratio_interval": [p95 * (1 - noise), p95 * (1 + 1.2 * noise)],
            "service_p50_ratio": p95,
            "service_p50_ratio_interval": [p95 * (1 - noise / 2), p95 * (1 + noise / 2)],
        },
        "throughput_rps": BASELINE_RPS * throughput,
        "throughput_ratio": throughput,
        "throughput_ratio_interval": [throughput * (1 - 1.5 * noise), throughput * (1 + noise)],
        "capacity_ratio": throughput,
        "capacity_ratio_interval": [throughput * (1 - noise), throughput * (1 + noise)],
        "model_bytes": int(size),
        "peak_memory_bytes": int(58e6 + 3 * size),
    }


def draw_knobs(rng: np.random.Generator) -> dict[str, Any]:
    origin = str(rng.choice(["baseline", "student", "pruned"], p=[0.2, 0.4, 0.4]))
    knobs: dict[str, Any] = {"weights.origin": origin}
    if origin == "student":
        knobs["architecture.cross_layers"] = int(rng.integers(1, 4))
        knobs["architecture.deep_width"] = int(rng.choice([32, 64, 128, 256]))
        knobs["architecture.embedding_width"] = int(rng.choice([8, 16, 32]))
    if origin == "pruned":
        knobs["pruning.cross"] = float(rng.uniform(0.1, 0.8))
        knobs["pruning.deep"] = float(rng.uniform(0.1, 0.9))
    if origin != "baseline":
        knobs["distillation.temperature"] = float(rng.uniform(1, 6))
        knobs["distillation.teacher_weight"] = float(rng.uniform(0, 1))
        knobs["distillation.epochs"] = 3
    knobs["precision.cross"] = str(rng.choice(["fp32", "int8-dynamic", "int8-static"]))
    knobs["precision.deep"] = str(rng.choice(["fp32", "int8-dynamic", "int8-static"]))
    knobs["precision.tables"] = str(rng.choice(["fp32", "fp16", "int8"]))
    knobs["precision.compute"] = "fp32"
    knobs["placement.engine"] = str(rng.choice(["onnxruntime", "openvino"]))
    knobs["placement.device"] = "cpu"
    knobs["placement.replicas"] = int(rng.choice([1, 2]))
    knobs["placement.threads"] = "auto" if rng.random() < 0.3 else int(rng.choice([1, 2]))
    return knobs


def outcome(knobs: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """A plausible cost model: narrower is faster and loses more, int8 helps, replicas carry more."""
    width = knobs.get("architecture.deep_width", 256) / 256 * (1 - knobs.get("pruning.deep", 0.0))
    int8 = sum(str(knobs[f"precision.{group}"]).startswith("int8") for group in ("cross", "deep", "tables"))
    p95 = (0.06 + 0.9 * width**0.7) * 0.8**int8 * (0.8 if knobs["placement.engine"] == "openvino" else 1)
    p95 *= float(rng.lognormal(0, 0.12)) * (1.1 if knobs["placement.replicas"] == 2 else 1)
    throughput = p95**-0.9 * (1.6 if knobs["placement.replicas"] == 2 else 1) * float(rng.lognormal(0, 0.1))
    loss = 0.0095 * (1 - width) ** 2 + 0.0006 * int8 + float(rng.normal(0, 0.0012))
    if rng.random() < 0.1:
        loss += float(rng.uniform(0.02, 0.12))
    return measured(p95, throughput, loss, FULL_BYTES * (0.1 + 0.9 * width) * 0.7**int8, float(rng.uniform(0.02, 0.08)))


def mark_front(document: dict[str, Any]) -> dict[str, Any]:
    """Fill in `feasible`, `on_front`, `hypervolume`, `counts` and `front_size`, as the study would."""
    rows = document["rows"]
    for row in rows:
        row["on_front"] = False
        row["feasible"] = row["state"] == "complete" and row["quality"]["loss"] <= document["max_loss"]
    able = [row for row in rows if row["feasible"]]
    triples = [(row["latency_ms"]["p95_ratio"], row["throughput_ratio"], row["quality"]["loss"]) for row in able]
    table = np.array(triples).reshape(-1, 3)
    for row, on_front in zip(able, resolved_front(table * [1, -1, 1], 2, document["resolution"] or 0.0), strict=True):
        row["on_front"] = bool(on_front)
    cube = unit_objectives(table[:, 0], table[:, 1], table[:, 2], MAX_LOSS)
    document["hypervolume"] = hypervolume(cube)
    document["front_size"] = sum(row["on_front"] for row in rows)
    states = [row["state"] for row in rows]
    document["counts"] = {state: states.count(state) for state in ("complete", "stopped", "failed")}
    return document


def build_document(trials: int = 60, seed: int = 3, measured_share: float = 0.75) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    standard = {
        "weights.origin": "baseline",
        **{f"precision.{name}": "fp32" for name in ("cross", "deep", "tables", "compute")},
        "placement.engine": "onnxruntime",
        "placement.device": "cpu",
        "placement.replicas": 1,
        "placement.threads": "auto",
    }
    rows = []
    for trial in range(trials):
        knobs = draw_knobs(rng) if trial else standard
        ending = ("complete", None) if not trial or rng.random() < measured_share else FAILURES[int(rng.integers(4))]
        numbers = outcome(knobs, rng) if trial else measured(1.0, 1.0, 0.0, FULL_BYTES, 0.0)
        rows.append(
            {
                "trial": trial,
                "candidate": f"c{trial:012x}",
                "weights": f"w{trial // 3:012x}",
                "variant": f"v{trial // 2:012x}",
                "state": ending[0],
                "reason": ending[1],
                "origin": knobs["weights.origin"],
                "minutes": float(10 * trial / 60 + rng.uniform(0, 0.1)) if trial else None,
                "widths": {group: knobs[f"precision.{group}"] for group in ("cross", "deep", "tables")},
                "seconds": {"fit": 21.0, "export": 1.2, "judge": 0.4, "time": 3.0},
                "reused": ["fit"] if trial % 3 else [],
                "knobs": knobs,
                "final": True,
                **(numbers if ending[0] == "complete" else copy.deepcopy(NOT_MEASURED)),
            }
        )
    document = {
        "study": "ml-100k",
        "minutes": 10.0,
        "resolution": 0.003,
        "max_loss": MAX_LOSS,
        "objectives": ["latency_p95", "throughput", "quality"],
        "machine": "2 cores of AMD EPYC 9B14 (AVX-512, VNNI), 8 GB, Linux 6.8, onnxruntime 1.23.2",
        "rate_rps": 312.0,
        "slo_ms": 1.34,
        "references": {"popularity": 0.702, "logistic_regression": 0.771, "baseline": 0.792},
        "warnings": ["The baseline is slightly under-trained: one more pass of its own loss improves AUC by 0.1%."],
        "chosen": None,
        "baseline": rows[0],
        "rows": rows,
    }
    return mark_front(document)


def build_choice(
    document: dict[str, Any], trial: int, loss_interval: tuple[float, float], looks: int = 1
) -> dict[str, Any]:
    row = document["rows"][trial]
    return {
        "bundle": f"reports/ml-100k/bundles/{row['candidate']}",
        "row": row,
        "confirmed": {
            "loss": sum(loss_interval) / 2,
            "loss_interval": list(loss_interval),
            "looks": looks,
            "value": 0.79,
            "baseline": 0.792,
            "rows": 4000,
            "users": 300,
            "p95_ms": row["latency_ms"]["p95"],
            "baseline_p95_ms": BASELINE_MS,
            "service_p50_ms": row["latency_ms"]["service_p50"],
            "slo_ms": document["slo_ms"],
            **{
                name: row["latency_ms"][name]
                for name in ("p95_ratio", "p95_ratio_interval", "service_p50_ratio", "service_p50_ratio_interval")
            },
            **{
                name: row[name]
                for name in (
                    "throughput_rps",
                    "throughput_ratio",
                    "throughput_ratio_interval",
                    "capacity_ratio",
                    "capacity_ratio_interval",
                )
            },
        },
        "control": None,
        "reason": f"Trial {trial} is the knee among 5 finalists, and on test its loss stays below 1%.",
        "registered": {"name": "ml-100k", "version": "3", "alias": "champion"},
    }


@pytest.fixture
def front_document() -> dict[str, Any]:
    """About 60 trials: complete, stopped and failed; trial 0 is the baseline; nothing chosen yet."""
    return build_document()


@pytest.fixture
def choose_trial() -> Callable[..., dict[str, Any]]:
    """A function of document, trial, loss interval on test and looks: the document of `leanrec choose --json`."""
    return build_choice


@pytest.fixture
def refresh_front() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A function that fills in feasibility, front, hypervolume and counts again after a test has changed the rows."""
    return mark_front
