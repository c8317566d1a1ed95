"""Records of measurements: frozen, finite, with the unit in each name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sized
from dataclasses import dataclass, field, fields
from typing import Literal

from objectives.bags import Bags
from objectives.int8_weights import Int8WeightBits
from spaces.domains import Scalar
from spaces.model_structure import ModelStructure

Interval = tuple[float, float]
State = Literal["complete", "stopped", "failed"]
# How requests reach a deployment under measurement: in its pool's own process, or over HTTP as a client's do.
Through = Literal["pool", "http"]


def rows_of(request: Mapping[str, Sized]) -> int:
    """Return the rows of a request: those of its longest input, since the user's inputs may be given once."""
    return max(len(values) for values in request.values())


# Names of techniques, in addition to those of widths and of the forms of tables.
PRUNING, LOW_RANK, LEARNED_ROUNDING = "pruning", "low rank", "learned rounding"


@dataclass(frozen=True)
class Tried:
    """Result of one technique on one group or table; `refused` is the reason why it cannot be applied, if any."""

    group: str
    technique: str
    refused: str | None = None


class NotFiniteError(ValueError):
    """A measured number is NaN or infinite."""


class _Finite:
    """Refuses NaN and infinity in any field, inside pairs too."""

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, f.name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, float) and not math.isfinite(number):
                    raise NotFiniteError(f"{type(self).__name__}.{f.name} must be finite, but got {value}.")


@dataclass(frozen=True)
class SliceQuality(_Finite):
    """The same metric and loss on some of the held-out rows; or the reason why they are undefined there."""

    name: str
    rows: int
    groups: int
    value: float | None = None
    baseline: float | None = None
    loss: float | None = None
    loss_interval: Interval | None = None
    reason: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        numbers = (self.value, self.baseline, self.loss, self.loss_interval)
        missing = [number is None for number in numbers]
        if any(missing) != all(missing) or all(missing) != (self.reason is not None):
            raise ValueError(f"A slice has all its numbers or a reason, but got {numbers} and {self.reason!r}.")


@dataclass(frozen=True)
class Quality(_Finite):
    """A metric on held-out rows and its relative loss against the baseline (positive is worse).

    slices: the same on parts of the rows, each interval at the same confidence, not adjusted for their number
    others: the same of a model's other outputs
    """

    metric: str
    value: float
    baseline: float
    loss: float
    loss_interval: Interval
    rows: int
    groups: int
    confidence: float = 0.95
    slices: tuple[SliceQuality, ...] = ()
    others: tuple[SliceQuality, ...] = ()

    @property
    def parts(self) -> tuple[SliceQuality, ...]:
        """Qualities reported in addition to the whole: slices, and a model's other outputs."""
        return (*self.slices, *self.others)


@dataclass(frozen=True)
class Percentiles(_Finite):
    """Percentiles of open-loop latency, from the scheduled arrival, and of closed-loop service time, in milliseconds.

    Intervals are those of order statistics, at 95%, for the percentile of these samples. The interval of the p95, which
    a policy may use as a limit, is widened to that of the p95s of the visits. The p99 is None with too few samples.
    `refused_share` is the share of refused requests.
    """

    p50_ms: float
    p95_ms: float
    p99_ms: float | None
    service_p50_ms: float
    p50_interval_ms: Interval | None = None
    p95_interval_ms: Interval | None = None
    p99_interval_ms: Interval | None = None
    refused_share: float = 0.0


@dataclass(frozen=True)
class OverheadRatios(_Finite):
    """Paired ratios of latency, as in `Latency`, with a fixed time added to each request of both deployments.

    overhead_ms: that time, which is spent elsewhere
    """

    overhead_ms: float
    p50_ratio: float
    p50_ratio_interval: Interval
    p95_ratio: float
    p95_ratio_interval: Interval
    p99_ratio: float | None
    p99_ratio_interval: Interval | None
    p50_visits: tuple[float, ...] = ()
    p95_visits: tuple[float, ...] = ()
    p99_visits: tuple[float, ...] = ()


@dataclass(frozen=True)
class Latency(_Finite):
    """Latency of candidate and baseline under the same requests at the same times, and their paired ratios.

    Percentiles are pooled over the undisturbed pairs of blocks of all visits; a ratio is the geometric mean of those of
    the visits, and its interval includes how the visits differ.

    rate_rps: of the arrivals, the median over the pairs
    requests, blocks: that count, of each deployment
    p95_ratio_all: over all pairs, the disturbed ones too; None where too many of their requests were refused
    pairs: that were run
    visits: in which both deployments were opened anew
    busy_share: CPU time of other processes and of the hypervisor over the wall time; 1 is one core
    drift: how many times slower the baseline became within a visit, at most
    lateness: the load generator's p95 lag as a share of the p95 latency; latency counts from the scheduled arrival, so
        it is part of both
    p50_visits, p95_visits, service_p50_visits, p99_visits: the ratio of each visit
    through: how the requests reached both deployments, here and for the throughput
    with_overhead: the ratios with the time that is spent elsewhere, None where none was given
    """

    candidate: Percentiles
    baseline: Percentiles
    p50_ratio: float
    p95_ratio: float
    p95_ratio_interval: Interval
    p99_ratio: float | None
    service_p50_ratio: float
    service_p50_ratio_interval: Interval
    rate_rps: float
    requests: int
    blocks: int
    lag_p95_ms: float
    p99_ratio_interval: Interval | None = None
    p95_ratio_all: float | None = None
    pairs: int = 0
    busy_share: float = 0.0
    drift: float = 1.0
    lateness: float = 0.0
    p95_visits: tuple[float, ...] = ()
    service_p50_visits: tuple[float, ...] = ()
    p99_visits: tuple[float, ...] = ()
    p50_visits: tuple[float, ...] = ()
    p50_ratio_interval: Interval | None = None
    through: Through = "pool"
    with_overhead: OverheadRatios | None = None

    @property
    def repeated_blocks(self) -> int:
        """Number of disturbed pairs of blocks, which were measured and left out."""
        return self.pairs - self.blocks


@dataclass(frozen=True)
class Throughput(_Finite):
    """Highest open-loop rate whose percentile stays within the SLO, and capacity, of candidate and baseline.

    Both were searched in the same way in the same visits; no rate is above the capacity of its own deployment.

    rps, baseline_rps: requests per second under the SLO
    slo_ms: the part of the SLO that is measured, without any overhead; the same for both, the mean over the visits
    capacity_rps, baseline_capacity_rps: requests per second when saturated
    ratio_visits, capacity_visits: the ratio of each visit
    """

    rps: float
    baseline_rps: float
    ratio: float
    ratio_interval: Interval
    slo_ms: float
    capacity_rps: float
    baseline_capacity_rps: float
    capacity_ratio: float
    capacity_ratio_interval: Interval
    rps_interval: Interval | None = None
    ratio_visits: tuple[float, ...] = ()
    capacity_visits: tuple[float, ...] = ()


@dataclass(frozen=True)
class Footprint(_Finite):
    """Bytes of a model file, and of a process with its deployment only: peak memory, CPU seconds per 1000 requests."""

    model_bytes: int
    peak_memory_bytes: int | None = None
    cpu_seconds_per_1000: float | None = None


@dataclass(frozen=True)
class Measurement:
    quality: Quality
    latency: Latency
    throughput: Throughput
    footprint: Footprint


# File of the weights next to a model file, for weights too large to be stored in it.
WEIGHTS = "weights.bin"


@dataclass(frozen=True)
class Artifact:
    """One exported model file, with facts read back from its graph; large weights are in a file next to it.

    path: relative to the home
    parity: the largest difference of its scores from those expected, in standard deviations of these
    units: of the widths of each group that can be pruned, by group, as they are in the fitted model
    int8_weight_bits: of its int8 products, None where it has none
    """

    key: str
    path: str
    widths: Mapping[str, str]
    model_bytes: int
    parity: float
    units: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    int8_weight_bits: Int8WeightBits | None = None


@dataclass(frozen=True)
class InputSpec:
    """One named input of a model.

    dtype: name of the NumPy dtype
    shape: shape after the rows' dimension, None where requests differ
    vocabulary: number of codes, from 0; None where it is no code
    unseen: the code of ids that training has not seen; None where a request with any other than the vocabulary's is
        refused
    side: an input of the user's side is the same in all rows of a request
    inferred: True where the side is inferred from requests and not declared
    bags: of the mask of padded bags, the bags, which a request may also give flat with offsets
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    vocabulary: int | None
    side: Literal["user", "item"] = "item"
    inferred: bool = False
    bags: Bags | None = None
    unseen: int | None = None


@dataclass(frozen=True)
class Prepared:
    """Facts that the search needs about a recommender; `holdout` is the folder of arrays that the meter reads.

    user_once_refused: the reason why the user's side cannot be computed once a request, None where it can
    user_once_share: share of the baseline's multiply-adds, at the median rows, that is left if it is
    catalogue_refused: the reason why a whole table is not multiplied with the request's vector, None where it may pay
    rows_interact: the reason why requests can be neither split nor batched, None where the rows' scores are independent
    history: positions of the history that the model reads, None where it reads none
    once: inputs that a request gives once, by the model's own form
    left_alone: parts that some or all techniques cannot be applied to, each with the reason
    tried: each technique on each part of the model, with the reason where it cannot be applied
    metric: name of the metric
    custom_metric: True where the metric is a function of the user's own, which a builder evaluates
    median_rows: median number of rows of the requests
    featured: True where a module is known whose outputs are features to distil
    softened: True where an output has a temperature; values have none
    built: True where smaller siblings can be built, of the sizes in `student` or of those that the study file names
    nested: True where the tensors of such siblings are known to be parts of the model's, as an elastic network needs
    warnings: what is probably not meant in a user's model or loss, as a dry run finds it
    split_refused: the reason why the graph cannot be split behind its tables, as a dry run finds it
    batches_per_epoch: number of batches of an epoch of train, as a dry run finds it
    epoch_seconds: seconds of an epoch of a user's model, as the convergence check took them; 0 where it is not made
    unlearnable: the reason why the model cannot be trained quantization-aware, None where it can
    undertrained: the improvement by one more epoch of training, where it is significant
    even_tables: large tables whose rows are looked up about equally often
    columns: names of a model's outputs, the main one first, where there are several
    parts: names of the slices and of the other outputs whose loss is reported in addition to that of all rows
    sizes: the baseline's values of the sizes that a student chooses
    references: the reference metric on test, of the baseline and of simple rules; None where one does not apply
    simple: rules that can be exported and measured as candidates
    encoding: hash of what codes of the inputs stand for, where the data decide it; else empty
    """

    key: str
    holdout: str
    structure: ModelStructure
    student: Mapping[str, tuple[Scalar, ...]]
    inputs: tuple[InputSpec, ...]
    baseline: Artifact
    split: str
    rows: Mapping[str, int]
    users: int
    training: Mapping[str, object]
    references: Mapping[str, float | None]
    user_once_refused: str | None = None
    user_once_share: float | None = None
    catalogue_refused: str | None = None
    history: int | None = None
    once: tuple[str, ...] = ()
    left_alone: Mapping[str, str] = field(default_factory=dict)
    tried: tuple[Tried, ...] = ()
    metric: str = "auc"
    custom_metric: bool = False
    median_rows: int = 200
    featured: bool = True
    softened: bool = True
    built: bool = True
    nested: bool = False
    unlearnable: str | None = None
    undertrained: str | None = None
    even_tables: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    sizes: Mapping[str, Scalar] = field(default_factory=dict)
    reference_metric: str = "auc"
    simple: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    split_refused: str | None = None
    batches_per_epoch: int = 0
    epoch_seconds: float = 0.0
    rows_interact: str | None = None
    encoding: str = ""

    def refused(self, modules: Collection[str], technique: str) -> str | None:
        """Return the reason why the technique cannot be applied to all of these modules, None where it can."""
        parts = self.structure.stored(self.structure.heavy_tables())
        tried = (one for one in self.tried if one.technique == technique and one.refused is not None)
        return next((one.refused for one in tried if not set(modules).isdisjoint(parts.get(one.group, ()))), None)


@dataclass(frozen=True)
class SimulatedRatios(_Finite):
    """Ratios of candidate to baseline from a simulation with measured service times.

    They are of latency one request at a time and at the study's load, of the rate under the SLO, and of capacity. A
    ratio is None where requests are refused, or the baseline keeps the SLO at no rate. There are no intervals, and no
    ratio is reported as a measurement.

    model_bytes: of the model file, untrained or not; None where it was not noted
    """

    service_p50_ratio: float
    capacity_ratio: float
    p50_ratio: float | None
    p95_ratio: float | None
    p99_ratio: float | None
    throughput_ratio: float | None
    model_bytes: int | None = None


@dataclass(frozen=True)
class EarlyLoss(_Finite):
    """Loss after the first epochs of a training.

    expected, least: loss at its end as others ended, in the median and for the luckiest tenth; None before there are
        enough
    prunable: whether with the least one it could not enter the front, so that it is stopped; a tenth of such trainings
        goes on all the same
    """

    loss: float
    expected: float | None = None
    least: float | None = None
    prunable: bool = False


@dataclass(frozen=True)
class Outcome:
    """Outcome of one trial: complete with a measurement, or stopped on purpose or failed with a reason in one line.

    timings: path of the file of raw timings, relative to the home
    simulated: its cost, where that was simulated before the benchmark
    quality: of a trial that was evaluated and not measured
    early: its loss after the first epochs of its training, where that was looked at
    """

    state: State
    reason: str | None = None
    measurement: Measurement | None = None
    artifact: Artifact | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    reused: tuple[str, ...] = ()
    timings: str | None = None
    simulated: SimulatedRatios | None = None
    quality: Quality | None = None
    early: EarlyLoss | None = None

    @property
    def evaluated(self) -> Quality | None:
        """Quality of the trial, if it was evaluated."""
        return self.quality if self.measurement is None else self.measurement.quality

    @property
    def informative(self) -> bool:
        """True if the candidate was built or half trained, or its cost simulated, so that the trial says something."""
        return self.artifact is not None or self.simulated is not None or self.early is not None

    def __post_init__(self) -> None:
        if (self.state == "complete") != (self.measurement is not None):
            raise ValueError(f"An outcome is complete exactly when it is measured, but got {self.state!r}.")
        if (self.state == "complete") == (self.reason is not None):
            raise ValueError(f"An outcome that is not complete has a reason, but got {self.state!r}, {self.reason!r}.")
