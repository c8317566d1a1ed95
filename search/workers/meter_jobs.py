"""The requests to the workers, the same in the search, at the choice and after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from objectives.held_out_rows import HeldPart
from objectives.jobs import requests
from objectives.measure.deployment import Deployment
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import FEWEST_BLOCKS, Load, Window
from objectives.measurement.statistics import fewest_samples
from objectives.measurement.visits import PRIOR, LatencyNoise, RatioNoise, pooled_noise
from objectives.records import Artifact, Latency, Prepared, Through, Throughput
from objectives.task import Task
from search.config.sections import StudyConfig
from spaces.candidate import Candidate
from spaces.serialization import added_later
from spaces.techniques.placement import InstanceGroup, Placement
from spaces.weights import Weights

_WEIGHED = {"peak_memory_bytes", "cpu_seconds_per_1000"}
# Shapes that a step of an elastic network trains.
SHAPES_IN_STEP = 4
# Number of rates that a visit tries for the rate under the SLO.
_PROBES = {"screen": 3, "final": 3, "confirm": 4}
# brief: the fewest requests that show a percentile, for a dry run; screen: one visit, in the search; final: several
# visits, for the numbers of a front; confirm: more visits.
Length = Literal["brief", "screen", "final", "confirm"]
_BRIEF = Window(FEWEST_BLOCKS, requests=7, service_requests=2, probes=1, probe_requests=50, patience_seconds=1.0)
# A visit of the search, which only ranks: the final benchmark measures the front anew. Each block has fewer requests
# than there, a rate is tried with fewer, and fewer blocks are repeated. Where all of them take above a second there are
# fewer, down to what the percentiles need: a search learns more from two candidates than from one that is measured
# twice as long. The warm-up of a candidate near its capacity is short, since it lengthens the blocks of its whole
# group, and so is that of a rate near the capacity.
SCREEN = Window(requests=15, probe_requests=300, seconds=1.0, warm_up=1, most=1.25)
# `Window.seconds` of a visit of the final benchmark. Numbers of a candidate differ more between visits than those of a
# short visit err, so that two short ones tell more than one that is twice as long.
_FINAL_SECONDS = 2.0
# The model file of a candidate, and the candidate.
Side = tuple[Artifact, Candidate]


def ratio_noise(timings: Sequence[tuple[Latency, Throughput]]) -> RatioNoise:
    """Estimate the variances between the visits of each benchmark.

    They are pooled over the benchmarks of one study on one machine, and with what is believed before.
    """
    added = [latency.with_overhead for latency, _ in timings if latency.with_overhead is not None]
    return RatioNoise(
        p50=pooled_noise([latency.p50_visits for latency, _ in timings], PRIOR.p50),
        p95=pooled_noise([latency.p95_visits for latency, _ in timings], PRIOR.p95),
        p99=pooled_noise([latency.p99_visits for latency, _ in timings], PRIOR.p99),
        service_p50=pooled_noise([latency.service_p50_visits for latency, _ in timings], PRIOR.service_p50),
        throughput=pooled_noise([throughput.ratio_visits for _, throughput in timings], PRIOR.throughput),
        capacity=pooled_noise([throughput.capacity_visits for _, throughput in timings], PRIOR.capacity),
        with_overhead=LatencyNoise(
            p50=pooled_noise([ratios.p50_visits for ratios in added], PRIOR.with_overhead.p50),
            p95=pooled_noise([ratios.p95_visits for ratios in added], PRIOR.with_overhead.p95),
            p99=pooled_noise([ratios.p99_visits for ratios in added], PRIOR.with_overhead.p99),
        ),
    )


@dataclass(frozen=True)
class CurvePart:
    """Part of a placement that has a service curve of its own: an instance group, and the sizes of its runs.

    batch_rows, split_over, beside: as in `ServiceCurveRequest`
    """

    placement: Placement
    batch_rows: int | None
    split_over: int | None
    beside: tuple[InstanceGroup, ...] = field(default=(), metadata=added_later())


def curve_parts(placement: Placement) -> tuple[CurvePart, ...]:
    """Return the parts of a placement, one for each instance group."""
    return tuple(
        CurvePart(
            replace(
                placement.of_graph,
                instance_group=group,
                inline=placement.inline and number == 0,
                keep_warm_ms=placement.keep_warm_ms,
            ),
            None if placement.batching is None else placement.batching.rows,
            group.replicas if placement.split_rows is not None and group.replicas > 1 else None,
            tuple(other for at, other in enumerate(placement.instance_groups) if at != number),
        )
        for number, group in enumerate(placement.instance_groups)
    )


@dataclass(frozen=True)
class MeterJobs:
    """Requests about candidates, for one study; `noise` is how ratios vary between visits of its earlier benchmarks."""

    config: StudyConfig
    task: Task
    prepared: Prepared
    traffic: Traffic
    noise: RatioNoise = PRIOR

    def sent(self, through: Through) -> MeterJobs:
        """Return jobs whose requests reach the deployments in another way, whose variance this study does not know."""
        traffic = self.config.traffic.model_copy(update={"through": through})
        return replace(self, config=self.config.model_copy(update={"traffic": traffic}), noise=PRIOR)

    @property
    def baseline(self) -> Side:
        """Return the baseline, beside which candidates are measured: fp32, ONNX Runtime's own defaults, one replica."""
        return self.prepared.baseline, Candidate()

    def score(
        self, ours: Side, part: HeldPart, beside: Side | None = None, threads: int | None = None
    ) -> requests.ScoreRequest:
        """Ask for the scores of a candidate and of the baseline.

        Args:
            beside: stands where the baseline does; None for the baseline itself
            threads: the engine's, where builders are at work
        """
        return requests.ScoreRequest(*self._pair(ours, beside), str(self.task.cache), self._holdout, part, threads)

    def evaluate(
        self, scores: requests.ScoreRequest, confidence: float, reject_above: float | None = None
    ) -> requests.EvaluateRequest:
        """Ask for an evaluation of scores; `reject_above` is a loss beyond which nobody need know it exactly."""
        return requests.EvaluateRequest(scores, self.prepared.metric, self.config.seed, confidence, reject_above)

    def evaluate_custom_metric(
        self, scored: requests.ScoreResponse, part: HeldPart, confidence: float, threads: int
    ) -> requests.CustomMetricRequest:
        """Asks a builder for the metric on what was scored."""
        how = self._holdout, part, self.config.seed, confidence
        return requests.CustomMetricRequest(self.task, threads, scored, *how)

    def time(
        self, ours: Side, length: Length, seed: int, recording: str, beside: Side | None = None
    ) -> requests.BenchmarkRequest:
        """Ask for a benchmark; the recording is relative to the home, and `beside` is as in `score`."""
        return requests.BenchmarkRequest(
            self._holdout,
            *self._pair(ours, beside),
            self.load,
            self.window(length),
            seed,
            self._path(recording),
            beside is None,
            self.noise,
        )

    def time_group(self, sides: Sequence[Side], seed: int, recordings: Sequence[str]) -> requests.GroupBenchmarkRequest:
        """Ask for the benchmark of several candidates of the search beside the baseline; recordings as in `time`."""
        # The footprint takes a process of its own: it is measured of every trial only if the objectives need it.
        always = bool(_WEIGHED & set(self.config.objectives))
        return requests.GroupBenchmarkRequest(
            self._holdout,
            tuple(self._deployment(*side) for side in sides),
            self._deployment(*self.baseline),
            self.load,
            self.window("screen"),
            seed,
            tuple(map(self._path, recordings)),
            tuple(always or candidate.is_baseline for _, candidate in sides),
            self.noise,
        )

    def visit(
        self, sides: Sequence[Side], window: Window, seed: int, number: int, recordings: Sequence[str]
    ) -> requests.VisitRequest:
        """Ask for one visit of several candidates beside the baseline.

        There is a recording, as in `time`, of each candidate.
        """
        return requests.VisitRequest(
            self._holdout,
            tuple(self._deployment(*side) for side in sides),
            self._deployment(*self.baseline),
            self.load,
            window,
            seed,
            number,
            tuple(map(self._path, recordings)),
        )

    def weigh(self, ours: Side) -> requests.WeighRequest:
        return requests.WeighRequest(self._holdout, self._deployment(*ours))

    def service_curve(
        self,
        ours: Side,
        of: CurvePart,
        baseline_ms: float | None = None,
        transport_ms: float = 0.0,
        reference_pace_ms: float | None = None,
        blocks: int = 1,
    ) -> requests.ServiceCurveRequest:
        """Ask for a service curve; the times, in milliseconds, and `blocks` are as in the request."""
        artifact, candidate = ours
        return requests.ServiceCurveRequest(
            self._holdout,
            self._deployment(artifact, replace(candidate, placement=of.placement)),
            self._deployment(*self.baseline),
            self.config.seed,
            self.config.traffic.load,
            of.batch_rows,
            of.split_over,
            of.beside,
            baseline_ms,
            transport_ms,
            reference_pace_ms,
            blocks,
        )

    def transport(self) -> requests.TransportRequest | None:
        """Ask what HTTP adds to a request of the baseline; None where requests go to the pools directly."""
        inputs = self.load.served_inputs
        if inputs is None:
            return None
        return requests.TransportRequest(self._holdout, self._deployment(*self.baseline), inputs)

    def fit_limit_seconds(self, weights: Weights) -> float:
        """Return the longest duration of a fit, in seconds.

        It has `fit_seconds` for each cycle of a training, and for each shape that a step of an elastic network trains
        before a slice.
        """
        shapes = SHAPES_IN_STEP if weights.elastic else 0
        return (shapes + max(1, len(weights.trainings))) * self.config.workers.fit_seconds

    def window(self, length: Length) -> Window:
        """The window has enough samples for the percentiles of the SLO and of the objectives."""
        timing = self.config.timing
        # Every benchmark shows a p95.
        percent = 99 if "latency_p99" in self.config.objectives else max(95, self.config.slo.percentile)
        if length == "brief":
            return _BRIEF.extended(percent)
        blocks = {"screen": timing.screen_blocks, "final": timing.final_blocks}.get(length, timing.confirm_blocks)
        patience, probes = timing.patience_seconds, _PROBES[length]
        if length == "screen":
            window = replace(SCREEN, blocks=blocks, probes=probes, patience_seconds=patience)
        else:
            visits = max(1, blocks // FEWEST_BLOCKS)
            window = Window(-(-blocks // visits), probes=probes, visits=visits, patience_seconds=patience)
        counted = max(window.probe_requests, fewest_samples(percent))
        return replace(window, probe_requests=counted).extended(percent)

    @property
    def final_window(self) -> Window:
        """The window of visits that several candidates share, each beside the same baseline."""
        return replace(self.window("final"), seconds=_FINAL_SECONDS)

    def profile(self, of: Side | None = None, threads: int | None = None) -> requests.ProfileRequest:
        """Ask for the profile of a model on so many threads (None: the engine's default); by default the baseline's."""
        model = self._deployment(*(of or self.baseline)).model
        return requests.ProfileRequest(model, self.prepared.structure.groups, self._holdout, threads)

    def recording(self, name: str) -> str:
        """Return the path of the raw timings of a trial, or of its repetition, relative to the home."""
        return f"mlruns/timings/{self.config.name}/{name}.npz"

    @property
    def load(self) -> Load:
        slo, traffic = self.config.slo, self.config.traffic
        inputs = self.prepared.inputs if traffic.through == "http" else None
        return Load(self.traffic, traffic.load, slo.percentile, slo.ms, traffic.overhead_ms, inputs)

    @property
    def _holdout(self) -> str:
        return self.prepared.holdout

    def _path(self, recording: str) -> str:
        return f"{self.task.home}/{recording}"

    def _pair(self, ours: Side, beside: Side | None = None) -> tuple[Deployment, Deployment]:
        return self._deployment(*ours), self._deployment(*(beside or self.baseline))

    def _deployment(self, artifact: Artifact, candidate: Candidate) -> Deployment:
        path = f"{self.task.home}/{artifact.path}"
        return Deployment(artifact, path, candidate.placement, candidate.precision.compute)
