"""Ablation of distillation: the gain of a model over the same one trained on the labels alone for as many epochs."""

from __future__ import annotations

from search.ablation.records import DistillationGain
from search.ablation.verdict import distillation_gain
from search.choose.training_seeds import SEEDS
from search.errors import JobError
from search.workers.meter_jobs import Side
from search.workers.paired_comparison import PairedComparison
from spaces.ablations import techniques


def control(pairs: PairedComparison, chosen: Side) -> DistillationGain | None:
    """Measure the gain of distillation on test.

    Returns:
        None if the model learned nothing from the baseline, or if the control failed, which is reported.
    """
    without = next((part.without for part in techniques(chosen[1]) if part.name == "distillation"), None)
    if without is None:
        return None
    say = pairs.console.say
    say(f"control: the same model, learning from the labels alone for as long; both from {SEEDS} seeds")
    try:
        quality = pairs.quality(chosen, (pairs.built(without), without), "test")
    except (JobError, ValueError) as error:
        say(f"control: not measured: {error}")
        return None
    return distillation_gain(quality, "test", SEEDS)
