"""The recorded study: every candidate of a space with what its stages showed and how long they took."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import polars as pl

from objectives.records import Prepared, SimulatedRatios
from search.config.sections import StudyConfig
from search.config.study_file import load
from spaces.candidate import Candidate
from spaces.domains import Choice, FixedValues, Scalar
from spaces.search_space import SearchSpace
from spaces.serialization import from_plain
from spaces.techniques.placement import PlacementSpace
from spaces.techniques.quantization import PrecisionSpace
from spaces.weights import WeightsSpace

FOLDER = Path(__file__).parent
STUDY, TABLE, FACTS = (FOLDER / f"ml-100k.{suffix}" for suffix in ("yaml", "parquet", "json"))
# Small enough to measure every candidate.
SPACE = SearchSpace(
    WeightsSpace(
        {
            "embedding_dim": Choice((4, 8)),
            "crosses": Choice((1, 2, 3)),
            "mlp": Choice(("16", "64", "64-32", "128-64")),
        },
        {},
        {"temperature": Choice((2.0,)), "teacher_weight": Choice((0.5,)), "feature_weight": Choice((0.0,))},
        epochs=5,
    ),
    PrecisionSpace(
        {
            "tables": Choice(("fp32", "int8")),
            "cross": Choice(("fp32", "int8-static")),
            "mlp": Choice(("fp32", "int8-static")),
        }
    ),
    PlacementSpace(Choice(("onnxruntime", "openvino")), Choice(("1xauto", "1x1", "2x1")), inline=Choice((False, True))),
)
_SIMULATED = tuple(name for name in SimulatedRatios.__dataclass_fields__ if name != "model_bytes")


@dataclass(frozen=True)
class Row:
    """Record of a candidate.

    cost_seconds: of the export of untrained weights, and of the service curve
    build_seconds: of training, which placements and widths share, export, and evaluation
    benchmarked: whether the ratios were measured; otherwise they are the simulated ones times the errors of another
        candidate's simulation
    """

    candidate: Candidate
    simulated: SimulatedRatios
    cost_seconds: tuple[float, float]
    build_seconds: tuple[float, float, float]
    loss: float
    loss_interval: tuple[float, float]
    p95_ratio: float
    throughput_ratio: float
    benchmarked: bool


@dataclass(frozen=True)
class RecordedStudy:
    """A study that can be replayed.

    rows: by the candidate's id
    benchmark_seconds: of a group of no candidates beside the baseline, and of each in it
    reused_seconds: of a job whose result is in the cache
    """

    config: StudyConfig
    prepared: Prepared
    resolution: float
    benchmark_seconds: tuple[float, float]
    reused_seconds: float
    rows: Mapping[str, Row]

    @cached_property
    def by_variant(self) -> Mapping[str, Row]:
        """A row of each model file, trained or not, by `variant_id`."""
        rows = self.rows.values()
        return {key: row for row in rows for key in (row.candidate.variant_id, row.candidate.untrained.variant_id)}

    @cached_property
    def by_weights(self) -> Mapping[str, Row]:
        return {row.candidate.weights.id: row for row in self.rows.values()}


def read_recorded_study(folder: Path = FOLDER) -> RecordedStudy:
    """Read the study that is committed beside this file, or another one."""
    facts = json.loads((folder / FACTS.name).read_text())
    rows = [_row(plain) for plain in pl.read_parquet(folder / TABLE.name).iter_rows(named=True)]
    measured = sorted((row for row in rows if row.benchmarked), key=lambda row: row.candidate.id)
    return RecordedStudy(
        load(str(folder / STUDY.name), []),
        from_plain(Prepared, facts["prepared"]),
        facts["resolution"],
        tuple(facts["benchmark_seconds"]),
        facts["reused_seconds"],
        {row.candidate.id: row if row.benchmarked else _expected(row, measured) for row in rows},
    )


def candidates_of(space: SearchSpace) -> Iterator[tuple[Mapping[str, Scalar], Candidate]]:
    """Yield each candidate of a space of choices, with its knobs, in a fixed order."""
    path: list[int] = []
    while True:
        suggester = _Path(path)
        yield suggester.knobs, space.suggest(suggester)
        path = [*suggester.taken]
        while path and path[-1] + 1 == suggester.sizes[len(path) - 1]:
            path.pop()
        if not path:
            return
        path[-1] += 1


@dataclass(eq=False)
class _Path:
    """Takes the choices of a path by their number, and the first ones after it."""

    path: Sequence[int]
    taken: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    knobs: dict[str, Scalar] = field(default_factory=dict)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name not in self.knobs:
            number = self.path[len(self.taken)] if len(self.taken) < len(self.path) else 0
            self.taken.append(number)
            self.sizes.append(len(choices))
            self.knobs[name] = choices[number]
        return self.knobs[name]

    def suggest_int(self, name: str, low: int, high: int, **scale: Any) -> int:
        raise ValueError(f"{name}: must be a choice, but got a range.")

    def suggest_float(self, name: str, low: float, high: float, **scale: Any) -> float:
        raise ValueError(f"{name}: must be a choice, but got a range.")


def _row(plain: Mapping[str, Any]) -> Row:
    knobs = {name: value for name, value in plain.items() if "." in name and value is not None}
    candidate = SPACE.suggest(FixedValues(knobs))
    simulated = SimulatedRatios(**{name: plain[f"simulated_{name}"] for name in _SIMULATED})
    assert simulated.p95_ratio is not None and simulated.throughput_ratio is not None
    measured = plain["p95_ratio"] is not None
    p95, rate = simulated.p95_ratio, simulated.throughput_ratio
    return Row(
        candidate,
        simulated,
        (plain["export_untrained_seconds"], plain["curve_seconds"]),
        (plain["fit_seconds"], plain["export_seconds"], plain["evaluate_seconds"]),
        plain["loss"],
        (plain["loss_low"], plain["loss_high"]),
        plain["p95_ratio"] if measured else p95,
        plain["throughput_ratio"] if measured else rate,
        measured,
    )


def _expected(row: Row, measured: Sequence[Row]) -> Row:
    """Return a row whose ratios were not measured, with the simulation errors of one whose ratios were.

    The measured row is of the same instance group where there is one, and always the same for a candidate.
    """
    group = row.candidate.placement.instance_group
    alike = [one for one in measured if one.candidate.placement.instance_group == group] or measured
    other = alike[int(sha256(row.candidate.id.encode()).hexdigest(), 16) % len(alike)]
    assert other.simulated.p95_ratio is not None and other.simulated.throughput_ratio is not None
    return replace(
        row,
        p95_ratio=row.p95_ratio * other.p95_ratio / other.simulated.p95_ratio,
        throughput_ratio=row.throughput_ratio * other.throughput_ratio / other.simulated.throughput_ratio,
    )
