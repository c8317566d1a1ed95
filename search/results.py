"""A study's result as frozen records: its trials, its front, its choice; JSON is made of them here, at the edge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from objectives.records import (
    EarlyLoss,
    Interval,
    Latency,
    Measurement,
    OverheadRatios,
    SimulatedRatios,
    SliceQuality,
    State,
    Through,
    Throughput,
)
from search.ablation.records import AblationSummary, DistillationGain
from search.samplers.knob_importance import KnobImportance
from spaces.domains import Scalar
from spaces.serialization import Json, fields_in, from_plain, to_plain

TUNED = "tuned baseline"
STATES: tuple[State, ...] = ("complete", "stopped", "failed")


@dataclass(frozen=True, kw_only=True)
class TunedRatios:
    """Ratios to the tuned baseline, which is this trial; None where the tuned baseline's own number is 0."""

    trial: int
    p95_ratio: float
    p95_ratio_interval: Interval | None
    service_p50_ratio: float
    service_p50_ratio_interval: Interval | None
    throughput_ratio: float | None
    throughput_ratio_interval: Interval | None
    capacity_ratio: float | None = None
    capacity_ratio_interval: Interval | None = None


@dataclass(frozen=True, kw_only=True)
class PointQuality:
    """The metric on validation, and the loss to the baseline."""

    metric: str
    value: float
    loss: float
    loss_interval: Interval
    slices: tuple[SliceQuality, ...] = ()


@dataclass(frozen=True, kw_only=True)
class PointLatency:
    """Milliseconds, and the ratios to the baseline's."""

    p50: float
    p95: float
    p99: float | None
    service_p50: float
    p95_ratio: float
    p95_ratio_interval: Interval
    service_p50_ratio: float
    service_p50_ratio_interval: Interval
    p50_ratio: float | None = None
    p50_ratio_interval: Interval | None = None
    p99_ratio: float | None = None
    p99_ratio_interval: Interval | None = None
    p95_ratio_all: float | None = None
    p95_interval: Interval | None = None


# What proposed a trial: the study itself, or the sampler, with weights that were trained before or with new ones.
Source = Literal["reference point", "starting point", "known weights", "new weights"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One trial: what was chosen, and how it ended.

    candidate, weights, variant: ids
    reference: name of the reference point that it is, None for one of the search
    suggested: the knobs as the search chose them, from which another study can start; none for a reference point
    source: what proposed it; None where that was not recorded
    minutes: of the search, when it ended
    seconds: by stage, None where a stage did not run
    timings: the file of raw timings, relative to the home
    simulated: ratios to the baseline that were simulated before training and benchmark
    early: loss after the first epochs of its training, where that was looked at
    loss: loss on validation, where it was evaluated
    expected_loss: loss that the sampler expected; None where it expected none, or knew it
    widths, units: read back from the exported graph, by layer group
    """

    trial: int
    candidate: str
    weights: str
    variant: str
    state: State
    reason: str | None = None
    on_front: bool = False
    feasible: bool = False
    reference: str | None = None
    origin: str
    knobs: Mapping[str, Scalar]
    suggested: Mapping[str, Scalar] = field(default_factory=dict)
    source: Source | None = None
    minutes: float | None = None
    seconds: Mapping[str, float | None] = field(default_factory=dict)
    reused: tuple[str, ...] = ()
    timings: str | None = None
    simulated: SimulatedRatios | None = None
    early: EarlyLoss | None = None
    loss: float | None = None
    expected_loss: float | None = None
    widths: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Point(Row):
    """A trial that was measured beside the baseline.

    tuned: its ratios to the tuned baseline
    repeated_blocks: pairs of blocks that were left out for a disturbance
    final: whether the numbers are those of a final benchmark, of the whole front in one run
    passed_over: whether a final benchmark left it out, so that it cannot be on the front
    warnings: what weakens its timing, in sentences
    through: how the requests reached it and the baseline
    with_overhead: the ratios of latency with the time that is spent elsewhere, None where none was given
    """

    quality: PointQuality
    latency_ms: PointLatency
    throughput_rps: float
    throughput_ratio: float
    throughput_ratio_interval: Interval
    throughput_interval: Interval | None = None
    capacity_ratio: float
    capacity_ratio_interval: Interval
    model_bytes: int
    peak_memory_bytes: int | None = None
    cpu_seconds_per_1000: float | None = None
    money_per_million: float | None = None
    repeated_blocks: int = 0
    visits: int = 0
    final: bool = False
    passed_over: bool = False
    warnings: tuple[str, ...] = ()
    tuned: TunedRatios | None = None
    through: Through = "pool"
    with_overhead: OverheadRatios | None = None

    @property
    def p95_ratio(self) -> float:
        return self.latency_ms.p95_ratio

    @property
    def p95_ratio_interval(self) -> Interval:
        return self.latency_ms.p95_ratio_interval


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Latency and throughput of one point, with their ratios to the baseline; the last two are as in `Point`."""

    p95_ms: float
    p95_ratio: float
    p95_ratio_interval: Interval
    throughput_rps: float
    throughput_ratio: float
    throughput_ratio_interval: Interval
    capacity_ratio: float
    capacity_ratio_interval: Interval
    through: Through = "pool"
    with_overhead: OverheadRatios | None = None


def timing_numbers(latency: Latency, throughput: Throughput) -> Json:
    """The numbers of a benchmark under the names that the records of a result have for them."""
    deployments = ("candidate", "baseline")  # other records have numbers of these names
    return {
        **vars(latency.candidate),
        **{name: value for name, value in vars(latency).items() if name not in deployments},
        "baseline_p95_ms": latency.baseline.p95_ms,
        "repeated_blocks": latency.repeated_blocks,
        "visits": len(latency.p95_visits),
        **vars(throughput),
        **{f"throughput_{name}": value for name, value in vars(throughput).items()},
        "throughput_interval": throughput.rps_interval,
    }


def numbers_of(measured: Measurement) -> Json:
    """All numbers of a measurement, named as in `timing_numbers`."""
    timing, quality = timing_numbers(measured.latency, measured.throughput), measured.quality
    return {**timing, **vars(measured.footprint), **vars(quality), "slices": quality.parts, "users": quality.groups}


@dataclass(frozen=True, kw_only=True)
class Confirmation(Timing):
    """A chosen point's numbers from a long window and from test.

    looks: number of evaluations on test until then, this one included
    tuned_baseline: ratios to the tuned baseline; None where the point was not timed beside it
    """

    loss: float
    loss_interval: Interval
    confidence: float = 0.95
    value: float
    baseline: float
    rows: int
    users: int
    slices: tuple[SliceQuality, ...] = ()
    looks: int = 1
    baseline_p95_ms: float
    service_p50_ms: float
    service_p50_ratio: float
    service_p50_ratio_interval: Interval
    slo_ms: float
    visits: int = 0
    warnings: tuple[str, ...] = ()
    peak_memory_bytes: int | None = None
    cpu_seconds_per_1000: float | None = None
    tuned_baseline: TunedRatios | None = None


@dataclass(frozen=True)
class Choice:
    """The point that was chosen and deployed as a bundle, as it was then.

    control: what distillation gained over the labels alone, if measured
    registered: name, version and alias in the registry of models, if there is one
    max_loss: that the policy tolerated; None in choices of earlier versions, where it is taken for the study's
    """

    bundle: str
    row: Point
    confirmed: Confirmation
    control: DistillationGain | None
    reason: str
    registered: Mapping[str, str] | None
    max_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Front:
    """The whole result of a study; `rows` are all settled trials by number.

    minutes: of search and final benchmark
    final_seconds: of the final benchmark
    resolution: the smallest loss that the data can show, None until that is known
    rate_rps, slo_ms: the median over the trials; of the SLO, the part that is measured
    slo_percentile: of the latencies, that which the SLO is about
    through: how requests reach the deployments that are measured
    overhead_ms: of each request, spent elsewhere; the SLO covers it
    bayes_auc: the best AUC that is possible, where the data are synthetic
    references: on test by `reference_metric`, of the baseline and of simple rules
    undertrained: what one more epoch of the baseline gains, where that is certain
    left_alone: modules that no technique reaches, with the reason
    importance: of the knobs, by objective, the largest first
    warnings: what weakens any conclusion from the study, in sentences
    """

    study: str
    rows: tuple[Row, ...]
    max_loss: float
    objectives: tuple[str, ...]
    hypervolume: float
    minutes: float
    final_seconds: float = 0.0
    resolution: float | None
    machine: str
    rate_rps: float | None
    slo_ms: float | None
    slo_percentile: int = 95
    through: Through = "pool"
    overhead_ms: float = 0.0
    bayes_auc: float | None = None
    references: Mapping[str, float | None] = field(default_factory=dict)
    reference_metric: str = "auc"
    split: str = ""
    undertrained: str | None = None
    left_alone: Mapping[str, str] = field(default_factory=dict)
    chosen: Choice | None = None
    ablation: AblationSummary | None = None
    importance: Mapping[str, tuple[KnobImportance, ...]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """All trials that were measured, the baseline among them."""
        return tuple(row for row in self.rows if isinstance(row, Point))

    @property
    def members(self) -> tuple[Point, ...]:
        """The points that no other dominates, by trial number."""
        return tuple(point for point in self.points if point.on_front)

    @property
    def baseline(self) -> Point | None:
        return next((point for point in self.points if point.trial == 0), None)

    @property
    def reference_points(self) -> tuple[Point, ...]:
        """The points that others are held against."""
        return tuple(point for point in self.points if point.reference is not None)

    @property
    def tuned_baseline(self) -> Point | None:
        """The baseline's own model in the best placement that was measured, by whichever trial."""
        return next((point for point in self.points if point.reference == TUNED), None)

    @property
    def counts(self) -> dict[State, int]:
        """Trials by how they ended."""
        return {state: sum(row.state == state for row in self.rows) for state in STATES}


def row_json(row: Row) -> Json:
    """JSON of a trial: the keys are the same whether or not it was measured, with null in the place of numbers."""
    plain = {**_NOT_MEASURED, **to_plain(row)}
    return plain | {"saturated_ratio": plain["capacity_ratio"]}


def _nulls(record: type[Point | PointQuality | PointLatency]) -> dict[str, None]:
    return dict.fromkeys(part.name for part in fields(record))


_NOT_MEASURED: Json = {
    **_nulls(Point),
    "quality": {**_nulls(PointQuality), "slices": []},
    "latency_ms": _nulls(PointLatency),
    "warnings": [],
}


def choice_json(choice: Choice) -> Json:
    """JSON of `leanrec choose`."""
    return {**to_plain(choice), "row": row_json(choice.row)}


def front_json(front: Front) -> Json:
    """JSON of `leanrec front`."""
    baseline, tuned = front.baseline, front.tuned_baseline
    return {
        **to_plain(front),
        "rows": [row_json(row) for row in front.rows],
        "baseline": None if baseline is None else row_json(baseline),
        "tuned_baseline": None if tuned is None else row_json(tuned),
        "reference_points": [row_json(point) for point in front.reference_points],
        "front_size": len(front.members),
        "counts": dict(front.counts),
        "chosen": None if front.chosen is None else choice_json(front.chosen),
    }


def read_choice(plain: Json) -> Choice:
    """The choice that `choice_json` wrote; ValueError where a key is missing, or there is one too many."""
    return from_plain(Choice, {**plain, "row": fields_in(Point, plain["row"])})
