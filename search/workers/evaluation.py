"""One candidate's quality, waited for: the meter judges it, or scores it for a builder that knows the user's metric."""

from __future__ import annotations

from collections.abc import Callable

from objectives.held_out_rows import HeldPart
from objectives.measurement.metrics.paired_loss import resamples_for
from objectives.records import Artifact, Quality
from objectives.serving.devices import cores_allowed
from search.workers.meter_jobs import MeterJobs, Side
from search.workers.processes import Worker, call
from spaces.candidate import Candidate
from spaces.serialization import from_plain


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
    """
    Args:
        builder: asked only where the metric is the user's own
        beside: as in `MeterJobs.judge`

    Raises:
        JobError: it cannot be judged.
    """
    # A ranking of many users takes minutes, as learning does; and a higher confidence as many times more resamples.
    limit = jobs.config.workers.fit_seconds * max(1.0, resamples_for(confidence) / resamples_for(0.95))
    if not jobs.prepared.custom_metric:
        return from_plain(
            Quality, call(meter, "evaluate", jobs.evaluate(*ours, part, confidence, beside), limit, say)["quality"]
        )
    scored = call(meter, "score", jobs.score(*ours, part, beside), limit, say)
    asked = jobs.evaluate_custom_metric(scored, part, confidence, cores_allowed())
    return from_plain(Quality, call(builder, "custom_metric", asked, limit, say)["quality"])
