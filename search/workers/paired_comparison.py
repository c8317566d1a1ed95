"""Paired comparison of a candidate with another: both are built, evaluated on the same rows, and timed in one run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, variance
from typing import TypeVar

from objectives.held_out_rows import HeldPart
from objectives.jobs.requests import BenchmarkResponse, ExportRequest, FitRequest
from objectives.measurement.metrics.paired_loss import resamples_for
from objectives.records import Artifact, Interval, Quality, SliceQuality
from objectives.serving.devices import cores_allowed
from search.ablation.records import Difference
from search.cli.console import Console
from search.workers.meter_jobs import Length, MeterJobs, Side
from search.workers.processes import Worker, call
from spaces.candidate import Candidate

Q = TypeVar("Q", Quality, SliceQuality)
# Trainings of either side whose mean is compared: the luck of a seed is part of the interval.
SEEDS = 3


@dataclass(frozen=True)
class PairedComparison:
    """Workers that build and measure the two sides of a comparison, one after the other; JobError where a job fails."""

    jobs: MeterJobs
    builder: Worker
    meter: Worker
    console: Console

    def built(self, candidate: Candidate) -> Artifact:
        """Return a candidate's model file, built or from the cache."""
        limits, threads, say = self.jobs.config.workers, cores_allowed(), self.console.say
        if candidate.weights.distillation is not None:
            limit = self.jobs.fit_limit_seconds(candidate.weights)
            call(self.builder, FitRequest(self.jobs.task, candidate.weights, threads), limit, say)
        return call(self.builder, ExportRequest(self.jobs.task, candidate, threads), limits.job_seconds, say).artifact

    def evaluate(self, ours: Side, part: HeldPart, confidence: float = 0.95, beside: Side | None = None) -> Quality:
        """Evaluate a candidate; `beside` is as in `MeterJobs.score`."""
        jobs, say = self.jobs, self.console.say
        # A ranking of many users takes as long as training; a higher confidence needs proportionally more resamples.
        limit = jobs.config.workers.fit_seconds * max(1.0, resamples_for(confidence) / resamples_for(0.95))
        scores = jobs.score(ours, part, beside)
        if not jobs.prepared.custom_metric:
            return call(self.builder, jobs.evaluate(scores, confidence), limit, say).quality
        scored = call(self.builder, scores, limit, say)
        asked = jobs.evaluate_custom_metric(scored, part, confidence, cores_allowed())
        return call(self.builder, asked, limit, say).quality

    def benchmark(self, ours: Side, length: Length, recording: str, beside: Side | None = None) -> BenchmarkResponse:
        """Benchmark a candidate, with requests of another seed than the search's; arguments as in `MeterJobs.time`."""
        asked = self.jobs.time(ours, length, self.jobs.config.seed + 1, recording, beside)
        return call(self.meter, asked, self.jobs.config.workers.job_seconds, self.console.say)

    def quality(self, ours: Side, theirs: Side, part: HeldPart) -> Quality:
        """Evaluate the first side relative to the second, over several seeds of training where their weights differ."""
        seeds = seeds_of(ours[1], theirs[1])
        found = []
        for seed in range(seeds):
            if seed:
                self.console.say(f"training both sides from another seed ({seed + 1} of {seeds})")
            sides = [self._trained_with(side, seed) for side in (ours, theirs)]
            found.append(self.evaluate(sides[0], part, beside=sides[1]))
        return over_seeds(found)

    def _trained_with(self, side: Side, seed: int) -> Side:
        """Return a side trained from another seed, counted from its own seed."""
        learning = side[1].weights.distillation
        if learning is None or seed == 0:
            return side
        candidate = side[1].trained_with(learning.seed + seed)
        return self.built(candidate), candidate

    def difference(self, ours: Side, theirs: Side, length: Length, recording: str) -> Difference:
        """Measure the difference of the first side to the second, on validation; the recording is as in `benchmark`."""
        quality = self.quality(ours, theirs, "validation")
        timed = self.benchmark(ours, length, recording, theirs)
        bytes_ratio, seeds = ours[0].model_bytes / theirs[0].model_bytes, seeds_of(ours[1], theirs[1])
        return Difference(quality, timed.latency, timed.throughput, bytes_ratio, seeds)


def seeds_of(ours: Candidate, theirs: Candidate) -> int:
    """Trainings that a comparison of quality takes: one where both sides hold the same weights."""
    return 1 if ours.weights == theirs.weights else SEEDS


def over_seeds(found: Sequence[Quality]) -> Quality:
    """Average trainings that differ only in their seed, `SEEDS` or a single one, evaluated on the same rows.

    The rows are one source of error and the seeds another. The rows are the same for all seeds, so their half of the
    interval is the mean of the bootstrap's, in squares; that of the seeds is Student's. Being independent, both halves
    add in squares.
    """
    if len(found) == 1:
        return found[0]
    if len(found) != SEEDS:
        raise ValueError(f"A loss is told over 1 or {SEEDS} seeds, but got {len(found)}.")
    confidence = found[0].confidence
    slices, others = (
        tuple(_mean(parts, confidence) for parts in zip(*each, strict=True))
        for each in ([q.slices for q in found], [q.others for q in found])
    )
    return replace(_mean(found, confidence), slices=slices, others=others)


def _mean(found: Sequence[Q], confidence: float) -> Q:
    """Combine the qualities of the same rows; a part that is undefined for one seed has that seed's reason."""
    losses = [one.loss for one in found if one.loss is not None]
    intervals = [one.loss_interval for one in found if one.loss_interval is not None]
    if len(losses) < len(found):
        return next(one for one in found if one.loss is None)
    return replace(
        found[0],
        value=fmean(one.value for one in found if one.value is not None),
        baseline=fmean(one.baseline for one in found if one.baseline is not None),
        loss=fmean(losses),
        loss_interval=_interval(losses, intervals, confidence),
    )


def _interval(losses: Sequence[float], intervals: Sequence[Interval], confidence: float) -> Interval:
    # The upper quantile of Student's t with two degrees of freedom, SEEDS - 1, has a closed form.
    tail = (1 - confidence) / 2
    student = (1 - 2 * tail) / math.sqrt(2 * tail * (1 - tail))
    middle, seeds = fmean(losses), student * math.sqrt(variance(losses) / SEEDS)
    below = fmean((loss - low) ** 2 for loss, (low, _) in zip(losses, intervals, strict=True))
    above = fmean((high - loss) ** 2 for loss, (_, high) in zip(losses, intervals, strict=True))
    return middle - math.hypot(math.sqrt(below), seeds), middle + math.hypot(math.sqrt(above), seeds)
