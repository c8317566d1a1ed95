"""Arguments of the workers' jobs, the same in the search, in the choice and after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from objectives.held_out_rows import HeldPart
from objectives.measure.benchmark import Load
from objectives.measure.deployment import Deployment
from objectives.measurement.arrivals import Traffic
from objectives.measurement.latency import FEWEST_BLOCKS, Window
from objectives.measurement.recording import NO_RATIO_NOISE, RatioNoise
from objectives.records import Artifact, Prepared
from objectives.task import Task
from search.config.sections import StudyConfig
from spaces.candidate import Candidate
from spaces.serialization import to_plain

_WEIGHED = {"peak_memory_bytes", "cpu_seconds_per_1000"}
# Number of rates that a visit tries for the rate under the SLO.
_PROBES = {"screen": 3, "near": 4}
# screen: one visit; near: several visits in one job; visit: one of those in a separate job; confirm: more visits.
Length = Literal["screen", "near", "visit", "confirm"]
# The model file of a candidate, and the candidate.
Side = tuple[Artifact, Candidate]


def building(task: Task, candidate: Candidate, stage: Literal["fit", "export"], threads: int) -> dict[str, Any]:
    """Return the arguments of a builder's job for a candidate's model file."""
    arguments = {"task": to_plain(task), "weights": to_plain(candidate.weights), "threads": threads}
    if stage == "fit":
        return arguments
    form = {
        "user_once": candidate.placement.user_once,
        "split_embeddings": candidate.placement.embedding_device is not None,
    }
    return {**arguments, "precision": to_plain(candidate.precision), **form}


@dataclass(frozen=True)
class MeterJobs:
    """Arguments of the jobs of `objectives.measure.__main__`, for one study.

    noise: variance of the ratios between visits, from the study's earlier benchmarks
    """

    config: StudyConfig
    task: Task
    prepared: Prepared
    traffic: Traffic
    noise: RatioNoise = NO_RATIO_NOISE

    def evaluate(
        self,
        artifact: Artifact,
        candidate: Candidate,
        part: HeldPart,
        confidence: float,
        beside: Side | None = None,
        reject_above: float | None = None,
        threads: int | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of an evaluation.

        Args:
            beside: the other side of the comparison; None for the baseline
            reject_above: a loss above which its exact value is not needed
            threads: threads of the engine, given where builders run at the same time
        """
        return {
            **self.score(artifact, candidate, part, beside, threads),
            "metric": self.prepared.metric,
            "seed": self.config.seed,
            "confidence": confidence,
            "reject_above": reject_above,
        }

    def score(
        self,
        artifact: Artifact,
        candidate: Candidate,
        part: HeldPart,
        beside: Side | None = None,
        threads: int | None = None,
    ) -> dict[str, Any]:
        """Return the arguments of scoring, for a metric that `evaluate_custom_metric` computes elsewhere."""
        other, partner = self._other(beside)
        return {
            "candidate": {
                "artifact": to_plain(artifact),
                "deployment": to_plain(self._deployment(artifact, candidate)),
            },
            "baseline": {"artifact": to_plain(other), "deployment": to_plain(self._deployment(other, partner))},
            "cache": str(self.task.cache),
            "holdout": self.prepared.holdout,
            "part": part,
            "threads": threads,
        }

    def evaluate_custom_metric(
        self, scored: Mapping[str, Any], part: HeldPart, confidence: float, threads: int
    ) -> dict[str, Any]:
        """Return the arguments of a builder's job that evaluates the custom metric on the result of `score`."""
        return {
            "task": to_plain(self.task),
            "threads": threads,
            "holdout": self.prepared.holdout,
            "part": part,
            "candidates": scored["candidates"],
            "baseline": scored["baseline"],
            "seed": self.config.seed,
            "confidence": confidence,
        }

    def time(
        self,
        artifact: Artifact,
        candidate: Candidate,
        length: Length,
        seed: int,
        recording: str,
        beside: Side | None = None,
        append: bool = False,
    ) -> dict[str, Any]:
        """Return the arguments of a benchmark.

        Args:
            recording: path of the recording, relative to the home
            beside: the other side of the comparison, as in `evaluate`
            append: extend the recording's visits
        """
        load = Load(self.traffic, self.config.traffic.load, self.config.slo.percentile, self.config.slo.ms)
        return {
            "holdout": self.prepared.holdout,
            "artifact": to_plain(artifact),
            "candidate": to_plain(self._deployment(artifact, candidate)),
            "baseline": to_plain(self._deployment(*self._other(beside))),
            "load": to_plain(load),
            "window": to_plain(self._window(length)),
            "seed": seed,
            "recording": f"{self.task.home}/{recording}",
            "weighed": beside is None and not append and self._weighed(candidate, length),
            "noise": to_plain(self.noise),
            "append": append,
        }

    def quick_benchmark(self, artifact: Artifact, candidate: Candidate) -> dict[str, Any]:
        return {
            "holdout": self.prepared.holdout,
            "candidate": to_plain(self._deployment(artifact, candidate)),
            "baseline": to_plain(self._deployment(*self._other(None))),
        }

    def _weighed(self, candidate: Candidate, length: Length) -> bool:
        """Return whether to measure the footprint, which takes a separate process: for every trial only if the
        objectives need it.
        """
        return length != "screen" or candidate.is_baseline or bool(_WEIGHED & set(self.config.objectives))

    def limit_seconds(self, length: Length) -> float:
        """Return the longest duration of a benchmark in seconds, including the wait for undisturbed blocks."""
        visits = self._window(length).visits
        return visits * (self.config.workers.job_seconds + self.config.timing.patience_seconds)

    @property
    def near_visits(self) -> int:
        """Number of visits of a point that would enter the front."""
        return self._window("near").visits

    def _window(self, length: Length) -> Window:
        """Return the window with enough samples for the percentiles of the SLO and of the objectives."""
        timing, percent = self.config.timing, self.config.slo.percentile
        blocks = {"screen": timing.screen_blocks, "confirm": timing.confirm_blocks}.get(length, timing.near_blocks)
        visits = 1 if length == "screen" else max(1, blocks // FEWEST_BLOCKS)
        window = Window(
            -(-blocks // visits),
            probes=_PROBES["screen" if length == "screen" else "near"],
            visits=1 if length == "visit" else visits,
            patience_seconds=timing.patience_seconds,
        )
        return window.extended(99 if "latency_p99" in self.config.objectives else percent)

    def profile(self) -> dict[str, Any]:
        return {
            "model": self._deployment(*self._other(None)).model,
            "groups": to_plain(self.prepared.structure.groups),
            "holdout": self.prepared.holdout,
        }

    def recording(self, name: str) -> str:
        """Return the path of the raw timings of a trial, or of its repetition, relative to the home."""
        return f"mlruns/timings/{self.config.name}/{name}.npz"

    def _deployment(self, artifact: Artifact, candidate: Candidate) -> Deployment:
        return Deployment(f"{self.task.home}/{artifact.path}", candidate.placement, candidate.precision.compute)

    def _other(self, beside: Side | None) -> Side:
        """Return the other side, by default the baseline: fp32, ONNX Runtime's own defaults, one replica."""
        return beside or (self.prepared.baseline, Candidate())
