"""Evaluation of one candidate's quality: by the meter, or, for a custom metric, by a builder on the meter's scores."""

from __future__ import annotations

from collections.abc import Callable

from objectives.held_out_rows import HeldPart
from objectives.measurement.metrics.paired_loss import resamples_for
from objectives.records import Artifact, Quality
from objectives.serving.devices import cores_allowed
from search.workers.meter_jobs import MeterJobs, Side
from search.workers.processes import Worker, call
from spaces.candidate import Candidate


def judged(
    jobs: MeterJobs,
    meter: Worker,
    builder: Worker,
    ours: tuple[Artifact, Candidate],
    part: HeldPart,
    confidence: float,
    say: Callable[[str], None],
    beside: Side | None = None,
) -> Quality:
    """Evaluate a candidate, and wait for its quality.

    Args:
        builder: asked only where the metric is the user's own
        beside: as in `MeterJobs.evaluate`

    Raises:
        JobError: the evaluation failed.
    """
    # A ranking of many users takes minutes, as training does; a higher confidence needs proportionally more resamples.
    limit = jobs.config.workers.fit_seconds * max(1.0, resamples_for(confidence) / resamples_for(0.95))
    if not jobs.prepared.custom_metric:
        return call(meter, jobs.evaluate(*ours, part, confidence, beside), limit, say).quality
    scored = call(meter, jobs.score(*ours, part, beside), limit, say)
    return call(builder, jobs.evaluate_custom_metric(scored, part, confidence, cores_allowed()), limit, say).quality
