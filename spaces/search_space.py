"""The whole space: what each knob may be, and how one candidate is drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from spaces.candidate import Candidate
from spaces.domains import Choice, Scalar, Suggester
from spaces.techniques.placement_space import PlacementSpace
from spaces.techniques.quantization import STATIC
from spaces.techniques.quantization_space import PrecisionSpace
from spaces.weights import AWARE
from spaces.weights_space import WeightsSpace


@dataclass(frozen=True)
class SearchSpace:
    """Domains by knob. The baseline's own value is in every domain: the weights' origin always offers it, widths hold
    fp32. Where no width may be static int8, there is no rounding to learn."""

    weights: WeightsSpace
    precision: PrecisionSpace
    placement: PlacementSpace

    def __post_init__(self) -> None:
        if not any(STATIC in domain for domain in self.precision.widths.values()):
            object.__setattr__(self, "weights", replace(self.weights, quantization_aware=Choice((False,))))

    def starts(self) -> tuple[dict[str, Scalar], ...]:
        """Knob values of the trials that come first: the baseline, then some way along each road away from it and its
        own weights, narrowed; then all of these in fp32, since a width may cost more time than it saves; then the
        roads as the baseline is placed, since a small model of large requests has work enough for its threads."""
        baseline = {"weights.origin": "baseline", **self.precision.baseline(), **self.placement.baseline()}
        baseline |= self._unlearned()
        lean, narrow = self.placement.lean(), self.precision.narrow()
        ways: tuple[dict[str, Scalar], ...] = ({**lean, **narrow}, lean, {})
        roads: tuple[dict[str, Scalar], ...] = (*self.weights.starts(), {})
        starts = [baseline, *({**baseline, **way, **road} for way in ways for road in roads)]
        return tuple(start for i, start in enumerate(starts) if start not in starts[:i])

    def weights_knobs(self, knobs: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Those of a candidate's knobs that settle its weights; the width of a group that learned with its rounding is
        among them, and no other group may."""
        learned = {f"precision.{g}" for g in self.precision.widths if knobs.get(f"{AWARE}.{g}", False)}
        free = ("placement.", "precision.")
        return self._unlearned() | {n: v for n, v in knobs.items() if n in learned or not n.startswith(free)}

    def _unlearned(self) -> dict[str, Scalar]:
        return {f"{AWARE}.{group}": False for group, domain in self.precision.widths.items() if STATIC in domain}

    def suggest(self, suggester: Suggester) -> Candidate:
        """Widths come first: which groups may learn with rounding, and which engines there are, hangs on them."""
        precision = self.precision.suggest(suggester)
        weights = self.weights.suggest(suggester, precision.groups(STATIC))
        precision = self.precision.calibrated(suggester, precision, weights.quantization_aware)
        return Candidate(weights, precision, self.placement.suggest(suggester, precision))
