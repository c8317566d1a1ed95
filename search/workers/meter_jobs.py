"""What the workers are asked, the same words in the search, at the choice and after it."""

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
# Rates that a visit tries for the rate under the SLO.
_PROBES = {"screen": 3, "near": 4}
# Screen: one visit; near: several, in one job; visit: one of those, in a job of its own; confirm: more.
Length = Literal["screen", "near", "visit", "confirm"]
# A candidate and what was built of it.
Side = tuple[Artifact, Candidate]


def building(task: Task, candidate: Candidate, stage: Literal["fit", "export"], threads: int) -> dict[str, Any]:
    """Arguments of a builder's job on the way to a candidate's model file."""
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

    noise: how ratios differ between visits, by the study's earlier benchmarks
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
        """`beside` stands where the baseline does; None for the baseline itself. `hopeless` is a loss beyond which
        nobody need know it exactly. `threads` are the engine's where builders are at work."""
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
        """Where the metric is evaluated elsewhere, by `grade`."""
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
        """Of a builder, on what `score` answered."""
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
        """The recording's path is relative to the home, its visits go on where `append`; `beside` is as in `judge`."""
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
        """It takes a process of its own: for every trial only where the search needs it."""
        return length != "screen" or candidate.is_baseline or bool(_WEIGHED & set(self.config.objectives))

    def limit_seconds(self, length: Length) -> float:
        """The longest that a timing may take, what it waits for a calm machine included."""
        visits = self._window(length).visits
        return visits * (self.config.workers.job_seconds + self.config.timing.patience_seconds)

    @property
    def near_visits(self) -> int:
        """Visits of a point that would enter the front."""
        return self._window("near").visits

    def _window(self, length: Length) -> Window:
        """With answers enough for the SLO's percentile and the objectives'."""
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
        """Where the raw timings of a trial, or of another look at one, are kept; relative to the home."""
        return f"mlruns/timings/{self.config.name}/{name}.npz"

    def _deployment(self, artifact: Artifact, candidate: Candidate) -> Deployment:
        return Deployment(f"{self.task.home}/{artifact.path}", candidate.placement, candidate.precision.compute)

    def _other(self, beside: Side | None) -> Side:
        """The baseline: fp32, ONNX Runtime's own defaults, one replica."""
        return beside or (self.prepared.baseline, Candidate())
