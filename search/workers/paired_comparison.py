"""Paired comparison of a candidate with another, or with the baseline: both are built, evaluated on the same rows, and
benchmarked in one run.
"""

from __future__ import annotations

from dataclasses import dataclass

from objectives.held_out_rows import HeldPart
from objectives.measure.quick_benchmark import QuickBenchmark
from objectives.records import Artifact, Quality
from objectives.serving.devices import cores_allowed
from search.ablation.records import Difference
from search.choose.training_seeds import over_seeds, seeds_of
from search.cli.console import Console
from search.errors import JobError
from search.workers.evaluation import judged
from search.workers.meter_jobs import Length, MeterJobs, Side, export_request, fit_request
from search.workers.processes import Worker, call
from spaces.candidate import Candidate
from spaces.techniques.placement import Placement


@dataclass(frozen=True)
class PairedComparison:
    """Workers that build and measure the two sides of a comparison, one after the other."""

    jobs: MeterJobs
    builder: Worker
    meter: Worker
    console: Console

    @property
    def baseline(self) -> Side:
        return self.jobs.prepared.baseline, Candidate()

    def built(self, candidate: Candidate) -> Artifact:
        """Return a candidate's model file, built or from the cache.

        Raises:
            JobError: it cannot be built.
        """
        limits, threads, say = self.jobs.config.workers, cores_allowed(), self.console.say
        if candidate.weights.distillation is not None:
            call(self.builder, fit_request(self.jobs.task, candidate, threads), limits.fit_seconds, say)
        return call(self.builder, export_request(self.jobs.task, candidate, threads), limits.job_seconds, say).artifact

    def quick(self, placement: Placement) -> QuickBenchmark:
        """Run a quick benchmark of the baseline's own model in another placement.

        Raises:
            ValueError: it cannot be run in this placement.
        """
        candidate, limits = Candidate(placement=placement), self.jobs.config.workers
        try:
            asked = self.jobs.quick_benchmark(self.built(candidate), candidate)
            return call(self.meter, asked, limits.job_seconds, self.console.say)
        except JobError as error:
            self.console.say(f"not benchmarked in another placement: {error}")
            raise ValueError(str(error)) from error

    def quality(self, ours: Side, theirs: Side, part: HeldPart) -> Quality:
        """Evaluate the first side relative to the second; where they differ in their weights, over trainings of both
        from several seeds.

        Raises:
            JobError: one of them cannot be built or evaluated.
        """
        seeds = seeds_of(ours[1], theirs[1])
        found = []
        for seed in range(seeds):
            if seed:
                self.console.say(f"training both sides from another seed ({seed + 1} of {seeds})")
            sides = [self._trained_with(side, seed) for side in (ours, theirs)]
            found.append(judged(self.jobs, self.meter, self.builder, sides[0], part, 0.95, self.console.say, sides[1]))
        return over_seeds(found)

    def _trained_with(self, side: Side, seed: int) -> Side:
        """Return a side trained from another seed, counted from its own seed."""
        learning = side[1].weights.distillation
        if learning is None or seed == 0:
            return side
        candidate = side[1].trained_with(learning.seed + seed)
        return self.built(candidate), candidate

    def difference(self, ours: Side, theirs: Side, length: Length, recording: str) -> Difference:
        """Measure the difference of the first side to the second, on validation.

        Args:
            recording: path of the recording, relative to the home

        Raises:
            JobError: one of the two cannot be evaluated or benchmarked.
        """
        config, say = self.jobs.config, self.console.say
        quality = self.quality(ours, theirs, "validation")
        timing = self.jobs.time(*ours, length, config.seed + 1, recording, theirs)
        timed = call(self.meter, timing, self.jobs.limit_seconds(length), say)
        return Difference(
            quality,
            timed.latency,
            timed.throughput,
            ours[0].model_bytes / theirs[0].model_bytes,
            seeds_of(ours[1], theirs[1]),
        )
