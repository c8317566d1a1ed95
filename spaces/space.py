"""The whole space: what each knob may be, and how one candidate is drawn from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from spaces.architecture import Architecture
from spaces.candidate import Candidate, Weights
from spaces.distillation import Distillation
from spaces.domains import Choice, Domain, Integer, Scalar, Suggester
from spaces.placement import Placement
from spaces.placement_space import PlacementSpace
from spaces.precision import Precision
from spaces.pruning import Pruning


@dataclass(frozen=True)
class SearchSpace:
    """Domains by knob: sizes of a student, ratio by group, temperature and teacher's weight, width by group, placement.

    The baseline's own value is in every domain: the weights' origin always offers it, widths hold fp32.
    """

    architecture: Mapping[str, Domain]
    pruning: Mapping[str, Domain]
    distillation: Mapping[str, Domain]
    precision: Mapping[str, Choice]
    compute: Choice
    placement: PlacementSpace
    passes: int

    def __post_init__(self) -> None:
        widths = {f"precision.{group}": domain for group, domain in self.precision.items()}
        for knob, domain in {**widths, "precision.compute": self.compute}.items():
            if "fp32" not in domain:
                raise ValueError(f"{knob} must offer the baseline's fp32, but got {list(domain.values)}.")
        if set(self.distillation) != {"temperature", "teacher_weight"}:
            raise ValueError(f"distillation has temperature and teacher_weight, but got {sorted(self.distillation)}.")

    @property
    def origins(self) -> tuple[str, ...]:
        student = ("student",) if self.architecture else ()
        return ("baseline", *student, *(("pruned",) if self.pruning else ()))

    def starts(self) -> tuple[dict[str, Scalar], ...]:
        """Knob values of the trials that come first: the baseline, then the middle of each road away from it."""
        widths = {f"precision.{group}": "fp32" for group in self.precision}
        baseline: dict[str, Scalar] = {"weights.origin": "baseline", **widths, "precision.compute": "fp32"}
        baseline |= self.placement.baseline()
        narrow = {f"precision.{g}": _middle(d) for g, d in self.precision.items() if len(d.values) > 1}
        layouts = self.placement.layout.values
        lean = {**baseline, **narrow, "placement.layout": layouts[min(1, len(layouts) - 1)]}
        starts = [baseline]
        learning = {f"distillation.{name}": _middle(domain) for name, domain in self.distillation.items()}
        roads = {"student": ("architecture", self.architecture), "pruned": ("pruning", self.pruning)}
        for origin, (prefix, domains) in roads.items():
            if domains:
                sizes = {f"{prefix}.{name}": _middle(domain) for name, domain in domains.items()}
                starts.append({**lean, **learning, **sizes, "weights.origin": origin})
        starts.append(lean)
        return tuple(starts)

    def suggest(self, suggester: Suggester) -> Candidate:
        precision = self.suggest_precision(suggester)
        return Candidate(self.suggest_weights(suggester), precision, self.suggest_placement(suggester, precision))

    def suggest_weights(self, suggester: Suggester) -> Weights:
        """Only the knobs that matter for the drawn origin are asked for."""
        origin = Choice(self.origins).suggest(suggester, "weights.origin")
        if origin == "baseline":
            return Weights()
        architecture = pruning = None
        if origin == "student":
            architecture = Architecture(_draw(self.architecture, suggester, "architecture"))
        else:
            ratios = _draw(self.pruning, suggester, "pruning")
            pruning = Pruning(tuple((group, float(ratio)) for group, ratio in ratios))
        distillation = dict(_draw(self.distillation, suggester, "distillation"))
        return Weights(
            architecture,
            pruning,
            Distillation(float(distillation["temperature"]), float(distillation["teacher_weight"]), self.passes),
        )

    def suggest_precision(self, suggester: Suggester) -> Precision:
        compute = "fp32"
        if len(self.compute.values) > 1:
            compute = self.compute.suggest(suggester, "precision.compute")
        widths = _draw(self.precision, suggester, "precision")
        return Precision(tuple((group, str(width)) for group, width in widths), "bf16" if compute == "bf16" else "fp32")

    def suggest_placement(self, suggester: Suggester, precision: Precision) -> Placement:
        return self.placement.suggest(suggester, precision.compute)


def _draw(domains: Mapping[str, Domain], suggester: Suggester, prefix: str) -> tuple[tuple[str, Scalar], ...]:
    return tuple((name, domains[name].suggest(suggester, f"{prefix}.{name}")) for name in sorted(domains))


def _middle(domain: Domain) -> Scalar:
    if isinstance(domain, Choice):
        return domain.values[len(domain.values) // 2 if len(domain.values) < 4 else (len(domain.values) - 1) // 2]
    if isinstance(domain, Integer):
        return domain.low + (domain.high - domain.low) // (2 * domain.step) * domain.step
    if domain.step is not None:
        return domain.low + round((domain.high - domain.low) / domain.step) // 2 * domain.step
    return math.sqrt(domain.low * domain.high) if domain.log else (domain.low + domain.high) / 2
