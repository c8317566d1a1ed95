"""Verdict of an ablation in words, from the measured effects of a trial's techniques and the profile's shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from objectives.held_out_rows import HeldPart
from objectives.records import Interval, Quality
from search.ablation.records import Ablation, AblationSummary, Difference, DistillationGain, Effect, TechniqueSummary
from search.format import column_percent, listed, metric_name, percent, ranged, times
from search.profile.study_profile import StudyProfile
from spaces.ablations import techniques
from spaces.candidate import Candidate

# They change what a model has learned, neither its size nor how it runs: against what they were compared.
_LEARNING = {
    "distillation": "learning from the labels alone for as long",
    "learning with rounding": "the same widths rounded after training",
}
_NO_LAYERS = ("other", "engine")


def ablation_summary(study: str, ablation: Ablation, profile: StudyProfile | None) -> AblationSummary:
    """The effects of a trial's techniques with the verdict on each."""
    candidate = ablation.candidate
    parts = []
    for part in techniques(candidate):
        without = ablation.found(part.name, part.group, "without")
        alone = ablation.found(part.name, part.group, "alone")
        groups = groups_of(part.name, part.group, candidate)
        said = technique_verdict(part.name, without, alone, groups, profile)
        parts.append(TechniqueSummary(part.name, part.group, label(part.name, part.group), said, without, alone))
    control = ablation.found("distillation", None, "without")
    gain = None
    if control is not None and control.difference is not None:
        gain = distillation_gain(control.difference.quality, "validation", control.difference.seeds)
    return AblationSummary(study, ablation.trial, candidate.id, ablation.machine, gain, tuple(parts))


def label(technique: str, group: str | None) -> str:
    return technique if group is None else f"{technique}: {group}"


def technique_verdict(
    technique: str,
    without: Effect | None,
    alone: Effect | None,
    groups: Sequence[str] | None,
    profile: StudyProfile | None,
) -> str:
    """Describe the effect of a technique in one sentence.

    The effect is that at the trial or, where it was not measured, that of the technique alone.

    Args:
        groups: layer groups that the technique changes; None where it changes how the model is run
    """
    at_hand = [effect for effect in (without, alone) if effect is not None]
    measured = next((effect for effect in at_hand if effect.difference is not None), None)
    if measured is None:
        return f"Not measured: {(at_hand[0].reason or '').rstrip('.')}." if at_hand else "Not measured yet."
    difference = measured.difference
    assert difference is not None
    if technique in _LEARNING and measured is without:
        said = [gained(difference.quality, technique)]
    else:
        said = [*_gains(difference, groups, profile), _cost(difference.quality)]
    said += _by_slice(difference.quality)
    if measured is without:
        return _sentence("; ".join(said))
    missing = "" if without is None else f"taken back, it was not measured ({without.reason}); "
    return _sentence(f"{missing}alone, it {'; '.join(said)}")


def told(difference: Difference) -> str:
    """The numbers in a line of progress."""
    latency, quality = difference.latency, difference.quality
    return (
        f"p95 ratio {ranged(latency.p95_ratio, latency.p95_ratio_interval)}, "
        f"service p50 ratio {ranged(latency.service_p50_ratio, latency.service_p50_ratio_interval)}, "
        f"loss {ranged(quality.loss, quality.loss_interval, '+.2%')}, bytes ratio {difference.bytes_ratio:.3f}"
    )


def gained(quality: Quality, technique: str = "distillation") -> str:
    """Describe the gain of this training over the other one, with its interval."""
    metric, other = metric_name(quality.metric), _LEARNING[technique]
    if _holds(quality.loss_interval, 0.0):
        gain, interval = _turned(quality)
        brackets = _brackets(interval, column_percent)
        return f"gained no {metric} that this data can show over {other}: {column_percent(gain)} {brackets}"
    verb, beside = ("lost", "against") if quality.loss > 0 else ("gained", "over")
    return f"{verb} {_unsigned(quality.loss, quality.loss_interval, metric)} {beside} {other}"


def groups_of(technique: str, group: str | None, candidate: Candidate) -> Sequence[str] | None:
    """The layer groups that a technique changes; () for all of them, None where it changes how the model is run."""
    if group is not None:
        return (group,)
    weights = candidate.weights
    named: Mapping[str, Sequence[str]] = {
        "learning with rounding": weights.quantization_aware,
        **dict.fromkeys(("lighter architecture", "sparse attention", "distillation", "computing in bf16"), ()),
    }
    return named.get(technique)


def distillation_gain(quality: Quality, part: HeldPart, seeds: int) -> DistillationGain:
    """Compute the gain of distillation from a model's quality against the same model without it.

    Args:
        part: of the data
        seeds: trainings of both models that the quality is a mean of
    """
    mean = f", the mean of {seeds} seeds" if seeds > 1 else ""
    gain, interval = _turned(quality)
    return DistillationGain(quality.metric, gain, interval, seeds, f"On {part}, distilling {gained(quality)}{mean}.")


def _turned(quality: Quality) -> tuple[float, Interval]:
    low, high = quality.loss_interval
    return 0.0 - quality.loss, (0.0 - high, 0.0 - low)


def _gains(difference: Difference, groups: Sequence[str] | None, profile: StudyProfile | None) -> list[str]:
    """Describe time, load and bytes; where none of them is better or worse, say so, and why."""
    latency, throughput, saved = difference.latency, difference.throughput, 1 - difference.bytes_ratio
    moved = []
    if p95 := _changed("p95", latency.p95_ratio, latency.p95_ratio_interval):
        moved.append(p95)
    elif service := _changed("service p50", latency.service_p50_ratio, latency.service_p50_ratio_interval):
        moved.append(f"{service}, which p95 does not show")
    if not _holds(throughput.ratio_interval, 1.0):
        moved.append(f"carries {times(throughput.ratio)} the load {_brackets(throughput.ratio_interval, times)}")
    # A graph's own few bytes more or less are not worth a word.
    counts = abs(saved) >= 0.005
    if not moved:
        moved.append(f"gained {'no time' if counts else 'nothing'} on this machine{_why(groups, profile)}")
    if counts:
        moved.append(f"saves {percent(saved)} of the bytes" if saved > 0 else f"adds {percent(-saved)} to the bytes")
    return moved


def _changed(what: str, ratio: float, interval: Interval) -> str | None:
    if _holds(interval, 1.0):
        return None
    harm = _unsigned(ratio - 1, (interval[0] - 1, interval[1] - 1), word=percent)
    return f"{'helps' if ratio < 1 else 'harms'} {what} by {harm}"


def _cost(quality: Quality) -> str:
    metric = metric_name(quality.metric)
    if quality.loss_interval == (0.0, 0.0):
        return f"leaves {metric} as it was"
    if _holds(quality.loss_interval, 0.0):
        return f"costs no {metric} that this data can show {_brackets(quality.loss_interval, column_percent)}"
    verb = "costs" if quality.loss > 0 else "gains"
    return f"{verb} {_unsigned(quality.loss, quality.loss_interval, metric)}"


def _by_slice(quality: Quality) -> list[str]:
    """Slices whose interval excludes 0."""
    said = []
    for part in quality.slices:
        if part.loss is None or part.loss_interval is None or _holds(part.loss_interval, 0.0):
            continue
        verb = "lose" if part.loss > 0 else "gain"
        said.append(f"{part.name} {verb} {_unsigned(part.loss, part.loss_interval)}")
    return said


def _why(groups: Sequence[str] | None, profile: StudyProfile | None) -> str:
    if profile is None:
        return ""
    known = {group.name: group for group in profile.groups}
    if groups is None:
        own = known.get("engine")
        return "" if own is None else f": the engine's own time is {percent(own.time_share)} of a request's"
    # A table by itself has its group's shares.
    tables = [name for name, group in known.items() if group.kind == "table"]
    named = dict.fromkeys(found for name in groups for found in ([name] if name in known else tables))
    names = list(named) or [name for name in known if name not in _NO_LAYERS]
    time, held = sum(known[name].time_share for name in names), sum(known[name].weight_share for name in names)
    verb = "takes" if len(names) == 1 else "take"
    return f": {listed(names)} {verb} {percent(time)} of the time and {percent(held)} of the bytes"


def _unsigned(loss: float, interval: Interval, metric: str = "", word: Callable[[float], str] = column_percent) -> str:
    """A loss, or a gain as a positive number, with its interval."""
    low, high = interval if loss > 0 else (0.0 - interval[1], 0.0 - interval[0])
    of = f" of {metric}" if metric else ""
    return f"{word(abs(loss))}{of} {_brackets((low, high), word)}"


def _holds(interval: Interval, value: float) -> bool:
    return bool(interval[0] <= value <= interval[1])


def _brackets(interval: Interval, word: Callable[[float], str]) -> str:
    return f"[{word(interval[0])}, {word(interval[1])}]"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
