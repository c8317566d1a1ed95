"""The jobs of the workers: one frozen request and one frozen response each."""

from __future__ import annotations

from dataclasses import dataclass, field

from objectives.held_out_rows import HeldPart
from objectives.jobs.protocol import Request
from objectives.measure.deployment import Deployment
from objectives.measurement.latency import Load, Window
from objectives.measurement.profile.profile import Profile
from objectives.measurement.profile.roofline import Roofline
from objectives.measurement.service_curve import ServiceCurve
from objectives.measurement.visits import NO_RATIO_NOISE, RatioNoise
from objectives.records import Artifact, Footprint, InputSpec, Latency, Prepared, Quality, Throughput
from objectives.task import Task
from spaces.candidate import Candidate
from spaces.model_structure import Group
from spaces.serialization import added_later
from spaces.techniques.placement import InstanceGroup
from spaces.weights import Weights


@dataclass(frozen=True)
class PrepareRequest(Request[Prepared]):
    """Train the baseline where it is not trained, check the techniques on it, export it."""

    task: Task
    threads: int


@dataclass(frozen=True)
class FitResponse:
    """Result of a fit.

    reused: True if the weights were in the cache
    batch_seconds: mean seconds of a batch of their training, 0 where they were in the cache
    whole: of a training to be stopped, True if it is in the cache to its end
    """

    reused: bool
    batch_seconds: float = 0.0
    whole: bool = False


@dataclass(frozen=True)
class FitRequest(Request[FitResponse]):
    """Train a candidate's weights."""

    task: Task
    weights: Weights
    threads: int


@dataclass(frozen=True)
class FitNetworkResponse:
    """Result of an elastic network's training; `reused` is True if it was in the cache."""

    reused: bool


@dataclass(frozen=True)
class FitNetworkRequest(Request[FitNetworkResponse]):
    """Train the elastic network that weights are a slice of."""

    task: Task
    weights: Weights
    threads: int


@dataclass(frozen=True)
class ExportResponse:
    artifact: Artifact
    reused: bool


@dataclass(frozen=True)
class ExportRequest(Request[ExportResponse]):
    """Write a candidate's model file, in the form that its placement needs."""

    task: Task
    candidate: Candidate
    threads: int


@dataclass(frozen=True)
class EvaluateResponse:
    """Quality of a candidate; `reused` if the scores of all its engines and of the baseline were cached."""

    quality: Quality
    reused: bool = False


@dataclass(frozen=True)
class ScoreResponse:
    """Files of scores: the candidate's for each engine that serves, the baseline's; `reused` if all were cached."""

    candidates: tuple[str, ...]
    baseline: str
    reused: bool = False


@dataclass(frozen=True)
class ScoreRequest(Request[ScoreResponse]):
    """Score held-out rows by a candidate and another model, through the engine that will serve.

    cache, holdout: folders
    threads: of the engine, fewer where other jobs run at the same time; None for its own choice
    """

    candidate: Deployment
    baseline: Deployment
    cache: str
    holdout: str
    part: HeldPart
    threads: int | None = None


@dataclass(frozen=True)
class EvaluateRequest(Request[EvaluateResponse]):
    """Evaluate the scores of a candidate beside those of another model.

    reject_above: a relative loss; the first users of a ranking whose loss's whole interval lies above it are enough
    """

    scores: ScoreRequest
    metric: str
    seed: int
    confidence: float
    reject_above: float | None = None


@dataclass(frozen=True)
class CustomMetricRequest(Request[EvaluateResponse]):
    """Evaluate the user's own metric on scores; of the engines that serve, the one with the larger loss counts."""

    task: Task
    threads: int
    scored: ScoreResponse
    holdout: str
    part: HeldPart
    seed: int
    confidence: float


@dataclass(frozen=True)
class ServiceCurveResponse:
    """Service curve of a deployment, and the machine's pace meanwhile.

    pace_ms: milliseconds of a request to the baseline's model on one thread
    model_bytes: of the model file, whose size does not depend on trained weights; None where it is not known
    """

    curve: ServiceCurve
    pace_ms: float
    model_bytes: int | None = None


@dataclass(frozen=True)
class ServiceCurveRequest(Request[ServiceCurveResponse]):
    """Measure the service curve of a deployment of one instance group.

    A model of some milliseconds takes about a second.

    share: utilisation of the baseline at the study's load
    batch_rows: rows of the largest batches that will be simulated, None for none
    split_over: parts that requests will be split into, None for none
    beside: the other instance groups of the placement, which take time from this one
    baseline_ms: milliseconds of a request to the baseline's pool; None to take what this deployment takes
    transport_ms: milliseconds that HTTP adds to a request
    reference_pace_ms: the machine's pace at its reference speed, at which the other times hold and to which the curve
        is scaled; None to take those as they are and not to scale the curve
    blocks: most times that runs are measured, within some seconds; those of disturbed blocks do not count
    """

    holdout: str
    deployment: Deployment
    baseline: Deployment
    seed: int
    share: float
    batch_rows: int | None = None
    split_over: int | None = None
    beside: tuple[InstanceGroup, ...] = field(default=(), metadata=added_later())
    baseline_ms: float | None = None
    transport_ms: float = field(default=0.0, metadata=added_later())
    reference_pace_ms: float | None = None
    blocks: int = 1


@dataclass(frozen=True)
class TransportResponse:
    """Milliseconds that HTTP adds to a request of the baseline, and the machine's pace meanwhile.

    pace_ms: as in `ServiceCurveResponse`
    """

    transport_ms: float
    pace_ms: float


@dataclass(frozen=True)
class TransportRequest(Request[TransportResponse]):
    """Measure what the HTTP server in front of the baseline adds, beside its bare pool."""

    holdout: str
    baseline: Deployment
    served_inputs: tuple[InputSpec, ...]


@dataclass(frozen=True)
class BenchmarkResponse:
    latency: Latency
    throughput: Throughput
    footprint: Footprint


@dataclass(frozen=True)
class BenchmarkRequest(Request[BenchmarkResponse]):
    """Measure latency and throughput of two deployments side by side.

    recording: the file of raw timings
    weighed: whether memory and CPU time are measured as well
    noise: how ratios differ between visits, by earlier benchmarks
    """

    holdout: str
    candidate: Deployment
    baseline: Deployment
    load: Load
    window: Window
    seed: int
    recording: str
    weighed: bool
    noise: RatioNoise = NO_RATIO_NOISE


@dataclass(frozen=True)
class GroupBenchmarkResponse:
    """The numbers of each candidate, or the reason in one line why it has none."""

    benchmarks: tuple[BenchmarkResponse | None, ...]
    failures: tuple[str | None, ...]


@dataclass(frozen=True)
class GroupBenchmarkRequest(Request[GroupBenchmarkResponse]):
    """Measure latency and throughput of several deployments beside one baseline, in one visit.

    recordings: the file of raw timings of each candidate, written anew
    weighed: whether memory and CPU time are measured as well, of each candidate
    noise: how ratios differ between visits, by earlier benchmarks
    """

    holdout: str
    candidates: tuple[Deployment, ...]
    baseline: Deployment
    load: Load
    window: Window
    seed: int
    recordings: tuple[str, ...]
    weighed: tuple[bool, ...]
    noise: RatioNoise = NO_RATIO_NOISE


@dataclass(frozen=True)
class VisitResponse:
    """Number of visits in the recording of each candidate."""

    visits: tuple[int, ...]


@dataclass(frozen=True)
class VisitRequest(Request[VisitResponse]):
    """Measure one visit of several deployments beside one baseline, and append it to the recording of each.

    number: of the visit
    recordings: the file of raw timings of each candidate
    """

    holdout: str
    candidates: tuple[Deployment, ...]
    baseline: Deployment
    load: Load
    window: Window
    seed: int
    number: int
    recordings: tuple[str, ...]


@dataclass(frozen=True)
class WeighRequest(Request[Footprint]):
    """Measure memory and CPU time of a deployment in a process of its own."""

    holdout: str
    candidate: Deployment


@dataclass(frozen=True)
class ProfileResponse:
    profile: Profile
    roofline: Roofline


@dataclass(frozen=True)
class ProfileRequest(Request[ProfileResponse]):
    """Measure where a model's time goes at the median rows, in ONNX Runtime on the CPU.

    threads: of the engine; None for its default
    """

    model: str
    groups: tuple[Group, ...]
    holdout: str
    threads: int | None = None
