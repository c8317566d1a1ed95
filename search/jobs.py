"""What the meter is asked, the same words in the search and at the choice."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from objectives.measure import Arm
from objectives.record import Artifact, Prepared
from objectives.task import Task
from search.config import StudyConfig
from spaces.candidate import Candidate
from spaces.canonical import to_plain
from spaces.placement import Placement


@dataclass(frozen=True)
class MeterJobs:
    """Arguments of the jobs `judge` and `time` of `objectives.measure`, for one study."""

    config: StudyConfig
    task: Task
    prepared: Prepared

    def judge(
        self, artifact: Artifact, candidate: Candidate, part: Literal["validation", "test"], confidence: float
    ) -> dict[str, Any]:
        return {
            "candidate": {"artifact": to_plain(artifact), "arm": to_plain(self._arm(artifact, candidate))},
            "baseline": {"artifact": to_plain(self.prepared.baseline), "arm": to_plain(self._baseline())},
            "cache": str(self.task.cache),
            "holdout": self.prepared.holdout,
            "part": part,
            "metric": self.task.metric,
            "seed": self.config.seed,
            "confidence": confidence,
        }

    def time(
        self, artifact: Artifact, candidate: Candidate, length: Literal["screen", "confirm"], seed: int
    ) -> dict[str, Any]:
        return {
            "holdout": self.prepared.holdout,
            "candidate": to_plain(self._arm(artifact, candidate)),
            "baseline": to_plain(self._baseline()),
            "share": self.config.traffic.load,
            "slo_ms": self.config.slo.ms,
            "percent": self.config.slo.percentile,
            "length": length,
            "seed": seed,
        }

    def _arm(self, artifact: Artifact, candidate: Candidate) -> Arm:
        return Arm(f"{self.task.home}/{artifact.path}", candidate.placement, candidate.precision.compute)

    def _baseline(self) -> Arm:
        """fp32, ONNX Runtime's own defaults, one replica."""
        return Arm(f"{self.task.home}/{self.prepared.baseline.path}", Placement(), "fp32")
