"""The study as one plain document: what `front --json` prints, and what the report, the table and the verdict read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.trial import FrozenTrial

from objectives.measurement.footprint import money_per_million
from objectives.records import Measurement
from search.ablation.records import ablations
from search.ablation.verdict import ablation_document
from search.config.sections import StudyConfig
from search.explore.reference_points import TUNED, beside_tuned, tuned_baseline
from search.front import hypervolume, unit_objectives
from search.interference_warnings import interference_warnings
from search.study import candidate_of, front_of, outcome_of, reference_of
from search.verdict import doubts
from spaces.serialization import to_plain

Document = dict[str, Any]
Row = dict[str, Any]


def document(config: StudyConfig, trials: Sequence[FrozenTrial], facts: Mapping[str, Any]) -> Document:
    """DESIGN's JSON of a front, with more keys for the report. Trials whose choice was never settled are left out."""
    measured = [(trial, _measurement(trial)) for trial in trials if candidate_of(trial) is not None]
    max_loss = config.quality.max_loss
    limits = config.quality.limits
    feasible = [m is not None and limits.kept(m.quality) for _, m in measured]
    kept = [m for (_, m), ok in zip(measured, feasible, strict=True) if m is not None and ok]
    resolution = facts.get("resolution")
    members = iter(front_of(kept, config.objectives, resolution or 0.0))
    on_front = [ok and next(members) for ok in feasible]
    rows = [
        _row(trial, m, ok, member, config.price_per_hour)
        for (trial, m), ok, member in zip(measured, feasible, on_front, strict=True)
    ]
    tuned = _name_references(rows, measured)
    counts = {state: sum(row["state"] == state for row in rows) for state in ("complete", "stopped", "failed")}
    points = unit_objectives(
        [m.latency.p95_ratio for m in kept],
        [m.throughput.ratio for m in kept],
        [m.quality.loss for m in kept],
        max_loss,
    )
    prepared = facts.get("prepared", {})
    baseline = next((row for row in rows if row["trial"] == 0 and row["state"] == "complete"), None)
    references = dict(prepared.get("references", {}))
    found: Document = {
        "study": config.name,
        "hypervolume": hypervolume(points),
        "minutes": facts.get("search_seconds", 0.0) / 60,
        "resolution": resolution,
        "baseline": baseline,
        "rows": rows,
        "max_loss": max_loss,
        "objectives": list(config.objectives),
        "machine": facts.get("machine", ""),
        "rate_rps": _middle([m.latency.rate_rps for _, m in measured if m is not None]),
        "slo_ms": config.slo.ms or _middle([m.throughput.slo_ms for _, m in measured if m is not None]),
        "bayes_auc": references.pop("bayes_optimal", None),
        "references": references,
        "tuned_baseline": tuned,
        "reference_points": [row for row in rows if row["reference"] is not None and row["state"] == "complete"],
        "reference_metric": prepared.get("reference_metric", "auc"),
        "split": prepared.get("split", ""),
        "undertrained": prepared.get("undertrained"),
        "left_alone": dict(prepared.get("left_alone") or {}),
        "front_size": sum(on_front),
        "counts": counts,
        "chosen": facts.get("chosen"),
        "ablation": _ablation(config.name, rows, facts),
    }
    return found | {"warnings": list(doubts(found))}


def _name_references(rows: Sequence[Row], measured: Sequence[tuple[FrozenTrial, Measurement | None]]) -> Row | None:
    """Name the rows that others are held against, give every measured row its ratios to the tuned baseline, and give
    the row of that: the baseline's own model in the best placement that was measured so far, by whichever trial."""
    names = {
        row["candidate"]: name for (trial, _), row in zip(measured, rows, strict=True) if (name := reference_of(trial))
    }
    candidates = [(t.number, candidate_of(t), m) for t, m in measured]
    number = tuned_baseline((n, c, m) for n, c, m in candidates if c is not None and m is not None)
    tuned = next((row for row in rows if row["trial"] == number), None)
    for row in rows:
        name = names.get(row["candidate"])
        row["reference"] = TUNED if row is tuned else None if name == TUNED else name
        row["tuned"] = None if tuned is None or row["state"] != "complete" else beside_tuned(row, tuned)
    return tuned


def _ablation(study: str, rows: Sequence[Row], facts: Mapping[str, Any]) -> Document | None:
    """Return the ablation of the chosen trial, if measured, else the last one measured."""
    candidates = {row["trial"]: row["candidate"] for row in rows}
    # A study begun anew has other candidates under the same numbers.
    known = [ablation for ablation in ablations(facts) if candidates.get(ablation.trial) == ablation.candidate.id]
    chosen = (facts.get("chosen") or {}).get("row", {}).get("trial")
    known.sort(key=lambda ablation: ablation.trial == chosen)
    return ablation_document(study, known[-1], facts.get("profile")) if known else None


def front_numbers(document: Document) -> list[int]:
    return [row["trial"] for row in document["rows"] if row["on_front"]]


def _measurement(trial: FrozenTrial) -> Measurement | None:
    outcome = outcome_of(trial)
    return None if outcome is None else outcome.measurement


def _middle(numbers: Sequence[float]) -> float | None:
    """Rate and limit follow the baseline in each trial's own run; the middle one stands for all."""
    return float(np.median(numbers)) if numbers else None


def _row(
    trial: FrozenTrial, measurement: Measurement | None, feasible: bool, on_front: bool, price: float | None
) -> Row:
    candidate, outcome = candidate_of(trial), outcome_of(trial)
    assert candidate is not None and outcome is not None
    m = measurement
    return {
        "trial": trial.number,
        "candidate": candidate.id,
        "weights": candidate.weights.id,
        "variant": candidate.variant_id,
        "state": outcome.state,
        "reason": outcome.reason,
        "on_front": on_front,
        "feasible": feasible,
        "quality": {
            "metric": m and m.quality.metric,
            "value": m and m.quality.value,
            "loss": m and m.quality.loss,
            "loss_interval": m and list(m.quality.loss_interval),
            "slices": [to_plain(part) for part in m.quality.parts] if m else [],
        },
        "latency_ms": {
            "p50": m and m.latency.candidate.p50_ms,
            "p95": m and m.latency.candidate.p95_ms,
            "p99": m and m.latency.candidate.p99_ms,
            "service_p50": m and m.latency.candidate.service_p50_ms,
            "p95_ratio": m and m.latency.p95_ratio,
            "p95_ratio_interval": m and list(m.latency.p95_ratio_interval),
            "p95_ratio_all": m and m.latency.p95_ratio_all,
            "p95_interval": m and m.latency.candidate.p95_interval_ms and list(m.latency.candidate.p95_interval_ms),
            "p99_ratio": m and m.latency.p99_ratio,
            "service_p50_ratio": m and m.latency.service_p50_ratio,
            "service_p50_ratio_interval": m and list(m.latency.service_p50_ratio_interval),
        },
        "throughput_rps": m and m.throughput.rps,
        "throughput_ratio": m and m.throughput.ratio,
        "throughput_ratio_interval": m and list(m.throughput.ratio_interval),
        "model_bytes": m and m.footprint.model_bytes,
        "throughput_interval": m and m.throughput.rps_interval and list(m.throughput.rps_interval),
        "saturated_ratio": m and m.throughput.capacity_ratio,
        "capacity_ratio": m and m.throughput.capacity_ratio,
        "capacity_ratio_interval": m and list(m.throughput.capacity_ratio_interval),
        "peak_memory_bytes": m and m.footprint.peak_memory_bytes,
        "cpu_seconds_per_1000": m and m.footprint.cpu_seconds_per_1000,
        "money_per_million": (m and price and m.throughput.rps and money_per_million(m.throughput.rps, price)) or None,
        "repeated_blocks": m and m.latency.repeated_blocks,
        "visits": m and len(m.latency.p95_visits),
        "warnings": interference_warnings(m.latency) if m else [],
        "timings": outcome.timings,
        "seconds": {stage: outcome.seconds.get(stage) for stage in ("fit", "export", "judge", "time")},
        "reused": list(outcome.reused),
        "knobs": candidate.knobs(),
        "minutes": trial.user_attrs.get("minutes"),
        "origin": candidate.weights.origin,
        "widths": {} if outcome.artifact is None else dict(outcome.artifact.widths),
        "units": {} if outcome.artifact is None else to_plain(outcome.artifact.units),
    }
