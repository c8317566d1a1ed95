"""One candidate beside another, or beside the baseline: both built, judged on the same rows, timed in one run."""

from __future__ import annotations

from dataclasses import dataclass

from objectives.record import Artifact, Latency, Throughput
from objectives.serving.devices import cores_allowed
from search.console import Console
from search.effects import Difference
from search.jobs import Length, MeterJobs, Side, building
from search.judged import judged
from search.workers import Worker, call
from spaces.candidate import Candidate
from spaces.canonical import from_plain


@dataclass(frozen=True)
class Pairs:
    """Where the two sides of a comparison are built and measured, one after the other."""

    jobs: MeterJobs
    builder: Worker
    meter: Worker
    console: Console

    @property
    def baseline(self) -> Side:
        return self.jobs.prepared.baseline, Candidate()

    def built(self, candidate: Candidate) -> Artifact:
        """A candidate's model file, from the cache where it is there.

        Raises:
            JobError: it cannot be built.
        """
        limits, threads, say = self.jobs.config.workers, cores_allowed(), self.console.say
        if candidate.weights.distillation is not None:
            fit = building(self.jobs.task, candidate, "fit", threads)
            call(self.builder, "fit", fit, limits.fit_seconds, say)
        export = building(self.jobs.task, candidate, "export", threads)
        answer = call(self.builder, "export", export, limits.job_seconds, say)
        return from_plain(Artifact, answer["artifact"])

    def difference(self, ours: Side, theirs: Side, length: Length, recording: str) -> Difference:
        """Of the first side to the second, on validation; the recording's path is relative to the home.

        Raises:
            JobError: one of the two cannot be judged or timed.
        """
        config, say = self.jobs.config, self.console.say
        quality = judged(self.jobs, self.meter, self.builder, ours, "validation", 0.95, say, theirs)
        timing = self.jobs.time(*ours, length, config.seed + 1, recording, theirs)
        timed = call(self.meter, "time", timing, self.jobs.limit_seconds(length), say)
        return Difference(
            quality,
            from_plain(Latency, timed["latency"]),
            from_plain(Throughput, timed["throughput"]),
            ours[0].model_bytes / theirs[0].model_bytes,
        )
