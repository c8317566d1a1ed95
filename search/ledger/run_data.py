"""Tags and metrics of a run, named so that MLflow's columns, charts and filters are of use.

Metrics without a prefix are those that trials are compared by. All others stand behind the name of their record, with a
slash, by which MLflow groups its charts.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from dataclasses import dataclass

from objectives.records import Measurement
from search.ablation.records import Difference
from search.results import Front
from search.trials import EndedTrial
from search.verdict import subject
from spaces.serialization import to_plain

# Tag of a run: version of these names, so that runs of an earlier one are written anew.
NAMES, NAMES_VERSION = "leanrec.names", "3"


@dataclass(frozen=True)
class Standing:
    """Standing of the trials of a study, by number."""

    front: Container[int]
    feasible: frozenset[int] = frozenset()
    chosen: int | None = None

    @classmethod
    def of(cls, members: Container[int], front: Front | None) -> Standing:
        if front is None:
            return cls(members)
        feasible = frozenset(point.trial for point in front.points if point.feasible)
        return cls(members, feasible, None if front.chosen is None else front.chosen.row.trial)

    def tags(self, number: int) -> dict[str, str]:
        """Return the tags of a trial."""
        words = {"on_front": number in self.front, "feasible": number in self.feasible, "chosen": number == self.chosen}
        return {name: "true" if true else "false" for name, true in words.items()}


def headline(found: Measurement) -> dict[str, float]:
    """Return the metrics that a trial is found, sorted and compared by."""
    latency, throughput, quality, footprint = found.latency, found.throughput, found.quality, found.footprint
    numbers: dict[str, float | None] = {
        "p95_ratio": latency.p95_ratio,
        "p95_ratio_with_overhead": None if latency.with_overhead is None else latency.with_overhead.p95_ratio,
        "p95_ms": latency.candidate.p95_ms,
        "throughput_ratio": throughput.ratio,
        "throughput_rps": throughput.rps,
        "capacity_ratio": throughput.capacity_ratio,
        "loss": quality.loss,
        "quality": quality.value,
        "model_bytes": footprint.model_bytes,
        "memory_bytes": footprint.peak_memory_bytes,
    }
    return {name: float(value) for name, value in numbers.items() if value is not None}


def measured(found: Measurement | Difference) -> dict[str, float]:
    """Return every number that was measured, by its record; intervals as .low and .high."""
    flattened = flat(to_plain(found))
    for part in found.quality.slices:
        flattened |= flat(to_plain(part), f"quality.slice.{accepted(part.name)}.")
    return _numbers(flattened)


def accepted(name: str) -> str:
    """Return a name of a slice without the characters that MLflow does not accept in keys, nor those with a meaning."""
    return re.sub(r"[^A-Za-z0-9_ -]", "_", name)


def trial_data(trial: EndedTrial) -> tuple[dict[str, str], dict[str, float]]:
    """Return the tags and the metrics of a trial's run."""
    candidate, outcome = trial.candidate, trial.outcome
    tags = {"state": outcome.state, "candidate": candidate.id, "weights": candidate.weights.id}
    tags |= {"variant": candidate.variant_id, NAMES: NAMES_VERSION}
    metrics = _numbers({f"seconds.{stage}": seconds for stage, seconds in outcome.seconds.items()})
    if outcome.reason is not None:
        tags["reason"] = outcome.reason
    if trial.reference is not None:
        tags["reference"] = trial.reference
    if outcome.reused:
        tags["reused"] = ", ".join(outcome.reused)
    if trial.minutes is not None:
        metrics["minutes"] = trial.minutes
    if trial.expected_loss is not None:
        metrics["expected_loss"] = trial.expected_loss
    if outcome.artifact is not None:
        metrics["quality/parity"] = outcome.artifact.parity
        metrics["model_bytes"] = float(outcome.artifact.model_bytes)
        tags |= {f"width.{group}": width for group, width in outcome.artifact.widths.items()}
        tags |= {f"units.{group}": "-".join(map(str, units)) for group, units in outcome.artifact.units.items()}
    if outcome.simulated is not None:
        metrics |= _numbers(flat(to_plain(outcome.simulated), "simulated."))
    if outcome.quality is not None:
        metrics |= {"loss": outcome.quality.loss, "quality": outcome.quality.value}
        metrics |= _numbers(flat(to_plain(outcome.quality), "quality."))
    if outcome.measurement is not None:
        tags["benchmark"] = "final" if trial.final else "search"
        tags["through"] = outcome.measurement.latency.through
        metrics |= headline(outcome.measurement) | measured(outcome.measurement)
    return tags, metrics


def study_metrics(front: Front) -> dict[str, float]:
    """Return the metrics of the parent run: the size of the front, and the point that the verdict is about."""
    metrics = {f"trials_{state}": float(number) for state, number in front.counts.items()}
    metrics |= {"hypervolume": front.hypervolume, "front_size": float(len(front.members)), "minutes": front.minutes}
    if (best := subject(front)) is not None:
        metrics |= {"best_p95_ratio": best.p95_ratio, "best_throughput_ratio": best.throughput_ratio}
        metrics["best_loss"] = best.quality.loss
    return metrics


def flat(data: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one of dotted names; the ends of intervals are .low and .high."""
    found: dict[str, object] = {}
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, list) and "_interval" in key:
            found |= {f"{name}.low": value[0], f"{name}.high": value[1]}
        else:
            found[name] = value
    return found


def _numbers(flattened: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers under their metrics' names: the record before a slash."""
    kept = {name: value for name, value in flattened.items() if isinstance(value, (int, float))}
    return {name.replace(".", "/", 1): float(value) for name, value in kept.items()}
