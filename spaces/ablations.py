"""Enumerate the techniques by which a candidate differs from the baseline, each removed or applied alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from spaces.candidate import Candidate
from spaces.techniques.placement import Placement
from spaces.techniques.quantization import STATIC, Precision
from spaces.weights import Weights

_Change = Callable[[Candidate, Candidate], Candidate]
# Names of the parts of a placement in reports.
_PLACED = {
    "batching": "batching",
    "split_rows": "splitting",
    "route": "routing",
    "inline": "inline answers",
    "embedding_device": "tables elsewhere",
    "user_once": "the user's side once",
    "score_catalogue": "the whole catalogue scored",
    "keep_warm_ms": "kept warm",
    "admission": "admission",
}


@dataclass(frozen=True)
class Technique:
    """One technique of a candidate, with the candidates of its ablation.

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

    Where a stage needs training, both candidates of its ablation are trained with the candidate's distillation.
    """
    baseline = Candidate()
    found = []
    for (name, group), give in _changes(candidate).items():
        without, alone = give(candidate, baseline), give(baseline, candidate)
        if without != candidate and alone != baseline:
            found.append(Technique(name, group, without, alone))
    return tuple(found)


def _changes(candidate: Candidate) -> Mapping[tuple[str, str | None], _Change]:
    """Return a change for each technique; it gives its first candidate the value of the second."""
    weights, learning = candidate.weights, candidate.weights.distillation
    changes: dict[tuple[str, str | None], _Change] = {
        (technique.ablated, group): partial(_reshaped, field, group)
        for field, techniques in weights.reshaping.items()
        for technique in techniques
        for group in technique.groups
    }
    # Without the teacher's terms the model learns from the labels alone.
    if learning is not None and (learning.teacher_weight > 0 or learning.feature_weight > 0):
        changes["distillation", None] = _distilled
    if weights.quantization_aware:
        changes["learning with rounding", None] = _learned
    for group, width in candidate.precision.widths:
        if width != "fp32":
            changes["narrower weights", group] = partial(_narrowed, group)
    if candidate.precision.compute != "fp32":
        changes["computing in bf16", None] = _computed
    default = Placement()
    for part, name in _PLACED.items():
        if getattr(candidate.placement, part) != getattr(default, part):
            changes[name, None] = partial(_placed, part)
    if candidate.placement.instance_group != default.instance_group:
        changes["engine and threads", None] = _seated
    return changes


def _reshaped(field: str, group: str | None, target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's technique on one group; the target's distillation stays, or else is the source's."""
    kept = (one.within({*one.groups} - {group}) for one in target.weights.reshaping.get(field, ()))
    given = (one.within({group}) for one in source.weights.reshaping.get(field, ()))
    found = tuple(one for one in (*kept, *given) if one is not None)
    values: dict[str, Any] = {field: found if getattr(Weights(), field) == () else next(iter(found), None)}
    learning = target.weights.distillation or source.weights.distillation
    return replace(target, weights=_needed(replace(target.weights, distillation=learning, **values)))


def _distilled(target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's distillation; without one, the model trains separately, as long, on the labels."""
    learning = source.weights.distillation
    if learning is None:
        own = target.weights.distillation
        assert own is not None
        # The temperature is that of the search's own trainings without a teacher, so that their weights are the same.
        learning = replace(own.separate(), temperature=1.0, teacher_weight=0.0, feature_weight=0.0)
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


def _narrowed(group: str, target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's width of one group, learned in training where the source's is."""
    # Tables that have a width of their own keep the target's where it is their group that is narrowed.
    own = {name: target.precision.width(name) for name, _ in source.precision.widths}
    widths = {**own, **dict(target.precision.widths), group: source.precision.width(group)}
    weights = target.weights
    learned = (set(weights.quantization_aware) - {group}) | ({group} & set(source.weights.quantization_aware))
    if learned != set(weights.quantization_aware):
        learning = weights.distillation or source.weights.distillation
        weights = _needed(replace(weights, quantization_aware=tuple(learned), distillation=learning))
    calibration = source.precision.calibration if target.precision == Precision() else target.precision.calibration
    precision = replace(target.precision, widths=tuple(widths.items()), calibration=calibration)
    return Candidate(weights, precision, target.placement)


def _computed(target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's compute type, together with the engine that computes it."""
    precision, given = replace(target.precision, compute=source.precision.compute), source.placement.instance_group
    instance_group = replace(target.placement.instance_group, engine=given.engine, device=given.device)
    return replace(target, precision=precision, placement=replace(target.placement, instance_group=instance_group))


def _placed(part: str, target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's value, with what that needs.

    Splitting over replicas brings the source's replicas along, and scoring the catalogue its user's side once.
    """
    given = getattr(source.placement, part)
    several = part == "split_rows" and given is not None and target.placement.instance_group.replicas < 2
    values: dict[str, Any] = {"instance_group": source.placement.instance_group} if several else {}
    if part == "score_catalogue":
        values["user_once"] = target.placement.user_once or source.placement.user_once
    if part == "user_once" and not given:
        values["score_catalogue"] = False
    return replace(target, placement=replace(target.placement, **values, **{part: given}))


def _seated(target: Candidate, source: Candidate) -> Candidate:
    """Give the target the source's instance group; its widths keep their engine, and settings that no longer fit go."""
    instance_group, own = source.placement.instance_group, target.placement.instance_group
    if target.precision.compute != "fp32" or target.precision.packed:
        instance_group = replace(instance_group, engine=own.engine, device=own.device)
    split = target.placement.split_rows if instance_group.replicas > 1 else None
    inline = target.placement.inline and instance_group.replicas == 1
    return replace(
        target, placement=replace(target.placement, instance_group=instance_group, split_rows=split, inline=inline)
    )
