"""Enumerate the techniques by which a candidate differs from the baseline, each removed or applied alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from spaces.candidate import Candidate
from spaces.techniques.low_rank import LowRank
from spaces.techniques.placement import Placement
from spaces.techniques.pruning import Pruning
from spaces.techniques.quantization import STATIC, Precision
from spaces.weights import Weights

_Change = Callable[[Candidate, Candidate], Candidate]


@dataclass(frozen=True)
class Technique:
    """One technique of a candidate, with the candidates of its ablation.

    name: the technique's name in reports
    group: the layer group that it concerns, None for the whole model
    without: the candidate with the technique set back to the baseline's value
    alone: the baseline with this technique and no other
    """

    name: str
    group: str | None
    without: Candidate
    alone: Candidate


def techniques(candidate: Candidate) -> tuple[Technique, ...]:
    """List the techniques in which a candidate differs from the baseline, in the order in which they are applied.

    `without` is the candidate with the technique set back to the baseline's value; `alone` is the baseline with this
    technique and no other. Where a stage needs training, both are trained with the candidate's distillation.
    """
    baseline = Candidate()
    changes = {**_weights(candidate), **_precision(candidate), **_placement(candidate)}
    found = []
    for (name, group), give in changes.items():
        without, alone = give(candidate, baseline), give(baseline, candidate)
        if without != candidate and alone != baseline:
            found.append(Technique(name, group, without, alone))
    return tuple(found)


def _weights(candidate: Candidate) -> Mapping[tuple[str, str | None], _Change]:
    """Return a change for each technique of the weights; it gives its first candidate the value of the second."""
    weights = candidate.weights
    changes: dict[tuple[str, str | None], _Change] = {}
    if weights.architecture:
        changes["lighter architecture", None] = _reshaped("architecture")
    changes |= {
        ("quotient-remainder tables", form.group): _formed("quotient_remainder", form.group)
        for form in weights.quotient_remainder
    }
    changes |= {("mixed dimensions", f.group): _formed("mixed_dimensions", f.group) for f in weights.mixed_dimensions}
    if weights.attention:
        changes["sparse attention", None] = _reshaped("attention")
    changes |= {("pruning", g): _cut("pruning", "ratios", g) for g in _groups(weights.pruning, "ratios")}
    changes |= {("low rank", g): _cut("low_rank", "shares", g) for g in _groups(weights.low_rank, "shares")}
    if weights.distillation is not None and _taught(weights):
        changes["distillation", None] = _distilled
    if weights.quantization_aware:
        changes["learning with rounding", None] = _learned
    return changes


def _taught(weights: Weights) -> bool:
    """True if the model learns from the teacher, not from the labels alone."""
    learning = weights.distillation
    return learning is not None and (learning.teacher_weight > 0 or learning.feature_weight > 0)


def _reshaped(part: str) -> _Change:
    return lambda target, source: _with(target, source, part, getattr(source.weights, part))


def _formed(part: str, group: str) -> _Change:
    """Return a change that gives one group's tables the source's form."""

    def change(target: Candidate, source: Candidate) -> Candidate:
        others = (form for form in getattr(target.weights, part) if form.group != group)
        own = (form for form in getattr(source.weights, part) if form.group == group)
        return _with(target, source, part, (*others, *own))

    return change


def _cut(part: str, by_group: str, group: str) -> _Change:
    """Return a change that prunes or factorises one group as the source; the target's rule keeps its other settings."""

    def change(target: Candidate, source: Candidate) -> Candidate:
        own, other = getattr(target.weights, part), getattr(source.weights, part)
        left = {name: much for name, much in _groups(own, by_group).items() if name != group}
        left |= {name: much for name, much in _groups(other, by_group).items() if name == group}
        return _with(target, source, part, replace(own or other, **{by_group: tuple(left.items())}) if left else None)

    return change


def _groups(rule: Pruning | LowRank | None, by_group: str) -> dict[str, float]:
    return {} if rule is None else dict(getattr(rule, by_group))


def _with(target: Candidate, source: Candidate, part: str, value: object) -> Candidate:
    """Return the target with another value of one field of its weights, and with the target's distillation or else the
    source's.
    """
    given: dict[str, Any] = {part: value, "distillation": target.weights.distillation or source.weights.distillation}
    return replace(target, weights=_needed(replace(target.weights, **given)))


def _distilled(target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's distillation: removed, the model trains as long on the labels alone; applied alone,
    the baseline's shape is trained again.
    """
    learning = source.weights.distillation
    if learning is None:
        own = target.weights.distillation
        assert own is not None
        learning = replace(own, teacher_weight=0.0, feature_weight=0.0)
    return replace(target, weights=replace(target.weights, distillation=learning))


def _learned(target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's quantization-aware groups, together with the static int8 that they require."""
    groups = source.weights.quantization_aware
    learning = target.weights.distillation or source.weights.distillation
    weights = replace(target.weights, quantization_aware=groups, distillation=learning)
    if not groups:
        return replace(target, weights=_needed(weights))
    widths = {**dict(target.precision.widths), **dict.fromkeys(groups, STATIC)}
    return Candidate(weights, replace(target.precision, widths=tuple(widths.items())), target.placement)


def _needed(weights: Weights) -> Weights:
    """Return the baseline's own weights where no remaining technique requires training."""
    return weights if weights.reshaped or weights.quantization_aware else Weights()


def _precision(candidate: Candidate) -> Mapping[tuple[str, str | None], _Change]:
    changes: dict[tuple[str, str | None], _Change] = {
        ("narrower weights", group): _narrowed(group) for group, width in candidate.precision.widths if width != "fp32"
    }
    if candidate.precision.compute != "fp32":
        changes["computing in bf16", None] = _computed
    return changes


def _narrowed(group: str) -> _Change:
    def change(target: Candidate, source: Candidate) -> Candidate:
        # Tables that have a width of their own keep the target's where it is their group that is narrowed.
        own = {name: target.precision.width(name) for name, _ in source.precision.widths}
        widths = {**own, **dict(target.precision.widths), group: source.precision.width(group)}
        learned = set(target.weights.quantization_aware) - {group}
        if group in source.weights.quantization_aware:
            learned.add(group)
        weights = target.weights
        if learned != set(weights.quantization_aware):
            learning = weights.distillation or source.weights.distillation
            weights = _needed(replace(weights, quantization_aware=tuple(learned), distillation=learning))
        calibration = source.precision.calibration if target.precision == Precision() else target.precision.calibration
        precision = replace(target.precision, widths=tuple(widths.items()), calibration=calibration)
        return Candidate(weights, precision, target.placement)

    return change


def _computed(target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's compute type, together with the engine that computes it."""
    precision = replace(target.precision, compute=source.precision.compute)
    instance_group = replace(
        target.placement.instance_group,
        engine=source.placement.instance_group.engine,
        device=source.placement.instance_group.device,
    )
    return replace(target, precision=precision, placement=replace(target.placement, instance_group=instance_group))


def _placement(candidate: Candidate) -> Mapping[tuple[str, str | None], _Change]:
    default, chosen = Placement(), candidate.placement
    names = {
        "batching": "batching",
        "splitting": "split_rows",
        "routing": "route",
        "inline answers": "inline",
        "tables elsewhere": "embedding_device",
        "the user's side once": "user_once",
        "admission": "admission",
    }
    changes: dict[tuple[str, str | None], _Change] = {
        (name, None): _placed(part) for name, part in names.items() if getattr(chosen, part) != getattr(default, part)
    }
    if chosen.instance_group != default.instance_group:
        changes["engine and threads", None] = _seated
    return changes


def _placed(part: str) -> _Change:
    def change(target: Candidate, source: Candidate) -> Candidate:
        """Give the target the source's value; splitting over replicas brings the source's replicas along."""
        given = getattr(source.placement, part)
        several = part == "split_rows" and given is not None and target.placement.instance_group.replicas < 2
        instance_group = source.placement.instance_group if several else target.placement.instance_group
        return replace(target, placement=replace(target.placement, instance_group=instance_group, **{part: given}))

    return change


def _seated(target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's instance group; keep an engine that the target's widths need, and drop settings that
    do not fit the new replicas.
    """
    instance_group, own = source.placement.instance_group, target.placement.instance_group
    if target.precision.compute != "fp32" or target.precision.packed:
        instance_group = replace(instance_group, engine=own.engine, device=own.device)
    split = target.placement.split_rows if instance_group.replicas > 1 else None
    inline = target.placement.inline and instance_group.replicas == 1
    return replace(
        target, placement=replace(target.placement, instance_group=instance_group, split_rows=split, inline=inline)
    )
