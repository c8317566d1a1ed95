"""Plans of two variants as plan.json has them, and their bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spaces.candidate import Candidate
from spaces.serialization import to_plain
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.techniques.quantization import Precision
from tests.serve_tests.bundles import write_toy

PLACEMENT = Placement(InstanceGroup(threads=1))
FAST = Precision((("mlp", "int8"),))


def offer(
    number: int, precision: Precision, loss: float, capacity_rps: float, machine: str = "small"
) -> dict[str, Any]:
    """An offer of one replica or two."""
    return {
        "offer": number,
        "trial": 10 + number,
        "variant": Candidate(precision=precision).variant_id,
        "machine": machine,
        "most": 4,
        "copies": 2,
        "cores": 1,
        "replicas": 2,
        "placement": {"threads": 1},
        "start_seconds": 1.0,
        "memory_bytes": None,
        "capacity_rps": {"1": 2 * capacity_rps},
        "machine_cores": 2,
        "machine_speed": 1.0,
        "loss": loss,
        "price_per_hour": 1.0,
        "load_seconds": 0.1,
        "deployed": to_plain(PLACEMENT),
        "layouts": [
            {"replicas": n, "cores": n, "capacity_rps": n * capacity_rps, "load_seconds": n * 0.1} for n in (1, 2)
        ],
    }


def document(
    phases: list[tuple[int, float]], start_s: float | None = None, phase_s: float = 60.0, exact_rps: float = 20.0
) -> dict[str, Any]:
    """A plan of an exact variant of `exact_rps` a replica and of a fast one of 100; phases have offer and rate."""
    return {
        "study": "toy",
        "source": "requests.csv",
        "seed": 0,
        "max_loss": 0.01,
        "max_money": None,
        "headroom": 0.9,
        "left_out": {},
        "money": 1.0,
        "loss": 0.0,
        "gap": 0.0,
        "policies": [],
        "warnings": [],
        "slo_ms": 5000.0,  # which a busy machine keeps too
        "percent": 95,
        "phase_seconds": phase_s,
        "start_s": start_s,
        "forecast": {
            "model": "seasonal naive",
            "reason": None,
            "scores": [],
            "held_out_model": "seasonal naive",
            "mape": 0.1,
            "coverage": {"0.9": 0.9},
        },
        "offers": [offer(0, Precision(), -0.001, exact_rps), offer(1, FAST, 0.01, 100.0)],
        "phases": [
            {"start_s": number * phase_s, "offer": at, "trial": 10 + at, "machine": "small", "machines": 1}
            | {"demand_rps": rate, "expected_rps": rate, "capacity_rps": 200.0, "alone_rps": 200.0}
            | {"machines_started": 0, "replicas": 2, "short": False}
            for number, (at, rate) in enumerate(phases)
        ],
    }


def write_plan(path: Path, plan: dict[str, Any]) -> Path:
    path.write_text(json.dumps(plan))
    return path


def write_bundles(folder: Path) -> tuple[Path, Path]:
    """Write the exact and the fast bundle, whose scores differ."""
    exact = write_toy(folder / "exact", PLACEMENT, seed=0)
    return exact, write_toy(folder / "fast", PLACEMENT, seed=1, precision=FAST)
